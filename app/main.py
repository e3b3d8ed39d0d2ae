"""The HTTP face: `create_app` wires routes, errors, guards and the page together."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from app import container
from app.access import Access
from app.addresses import Proxies
from app.answers import handle_errors
from app.bodies import BodyLimit
from app.docs import describe
from app.drawing import Drawings
from app.entrance import Doorkeeper
from app.exposition import Exposition
from app.keyring import Keyring
from app.metrics import Metrics, Observe
from app.origins import Origins
from app.pace import Pace
from app.prefix import Prefix
from app.rate import RateHeaders
from app.routes import attention, attention_grid, exports, generate, health, jobs, models, openai, webhooks
from app.security import Gate, ResponseHeaders, WrongKeys
from app.settings import Settings
from app.streams import Streams
from app.unbroken import Unbroken
from app.v1 import Versioned
from app.webhooks import Webhooks
from app.work import resting
from jobs import tracing
from jobs.client import JobClient
from jobs.exposition import build_version
from jobs.key_stores import FileKeys, KeyStore, RedisKeys
from jobs.pubsub import cancel
from jobs.settings import read_settings

_WEB = Path(__file__).parent / "web"


class _Page(StaticFiles):
    """The page's files. Browsers keep them, but ask about them each time: an update shows at once."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(settings: Settings | None = None, key_store: KeyStore | None = None) -> FastAPI:
    """The app; no connection is opened before its lifespan starts.

    settings: None reads the environment. key_store: where keys are kept; None: as the settings say.
    """
    settings = settings or read_settings(Settings)
    metrics = Metrics()
    keyring = Keyring(
        settings.api_keys,
        settings.api_keys_file,
        closed=settings.require_keys or settings.keys_file is not None,
        resting=resting,
    )
    app = FastAPI(
        title="Sagan",
        version=build_version(),
        description="Images of a class, on demand, and what the network attended to while it made them.",
        lifespan=_lifespan(settings, key_store, metrics, keyring),
        openapi_url=None,  # app.docs has both: FastAPI's page loads from a CDN, and its document knows no /v1
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.gate = Gate(keyring, WrongKeys(settings.wrong_keys), metrics.registry)
    app.state.exposition = Exposition(metrics)
    app.state.streams = Streams(settings.max_streams, settings.max_streams_per_caller, metrics.streams)
    app.state.pace = Pace()
    handle_errors(app)
    for resource in (generate, jobs, exports, attention, attention_grid, models, openai, webhooks, health):
        # not include_router: FastAPI goes through an included router twice at every request
        app.router.routes.extend(resource.router.routes)
    app.router.routes.extend(health.keyed.routes)
    describe(app, has_keys=lambda: keyring.closed)
    _show_page(app)
    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # as Starlette's own routes have it
    _guard(app, settings, keyring)
    return app


def create_app_of_process() -> FastAPI:
    """`create_app`, in a process that serves it and does nothing else.

    Garbage is collected less often: it took a tenth of the process' time and found next to nothing.
    """
    app = create_app()
    gc.collect()
    gc.freeze()  # loaded modules stay: no collection needs to go through them
    # some dozen open requests hold fewer objects: their coming and going starts no collection
    gc.set_threshold(10_000)
    return app


def _lifespan(
    settings: Settings, key_store: KeyStore | None, metrics: Metrics, keyring: Keyring
) -> Callable[[FastAPI], AbstractAsyncContextManager[dict[str, object]]]:
    """What runs beside the requests: it starts with the server and ends with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        exposition: Exposition = app.state.exposition
        store = app.state.store = JobClient.open(settings, metrics.waiting)
        drawings = app.state.drawings = Drawings(
            memory=settings.drawing_memory or min(container.memory() // 4, 2**30),
            at_once=container.cores(),
            most=settings.max_drawings,
        )
        tracing.start("sagan-api")
        following = asyncio.create_task(app.state.pace.follow(store), name="pace")
        publishing = asyncio.create_task(exposition.publish(store), name="metrics")
        told = app.state.webhooks = Webhooks(settings)
        sender = None
        if settings.webhook_secret:
            from app.sender import Sender  # an HTTP client, which nobody else needs

            sender = Sender(settings, told.hooks, metrics.registry)
            sender.start()
        doorkeeper = Doorkeeper(
            settings,
            on_stop=store.stop_waiting,
            ended=metrics.connections_ended,
            shed=metrics.requests_shed,
            refusals=metrics.refusals,
        )
        try:
            # what a lifespan yields is each connection's state: the server's protocol finds it there
            async with keyring.following(key_store or _keys(settings)), doorkeeper.watching():
                yield {"doorkeeper": doorkeeper}
        finally:
            await cancel(following, publishing)
            await exposition.leave(store)
            if sender is not None:
                await sender.stop()
            await told.hooks.close()
            drawings.close()
            await store.close()
            await asyncio.to_thread(tracing.stop)

    return lifespan


def _keys(settings: Settings) -> KeyStore:
    return RedisKeys(settings) if settings.keys_file is None else FileKeys(settings.keys_file)


def _guard(app: FastAPI, settings: Settings, keyring: Keyring) -> None:
    """Adds the middleware. A request meets what is added last first."""
    app.add_middleware(Unbroken)
    app.add_middleware(RateHeaders)
    app.add_middleware(BodyLimit, limit=settings.max_body)
    app.add_middleware(
        Origins,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
        with_keys=lambda: keyring.closed,
    )
    app.add_middleware(Versioned)
    if settings.root_path or settings.trusted_proxies:
        app.add_middleware(Prefix, prefix=settings.root_path)
    if settings.trusted_proxies:
        app.add_middleware(Proxies, trusted=settings.trusted_proxies)
    app.add_middleware(ResponseHeaders, shared=bool(settings.allowed_origins))
    app.add_middleware(Observe, metrics=app.state.metrics)
    app.add_middleware(Access)


def _show_page(app: FastAPI) -> None:
    page = _Page(directory=_WEB)
    app.mount("/static", page)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await page.get_response("index.html", request.scope)
