"""/health and /metrics, for the operator."""

import asyncio
from typing import Final

from fastapi import APIRouter, Request, Response

from app.addresses import address_of
from app.deps import Store, served_model, state
from app.docs import problems
from app.errors import RETRY_AFTER, NoBroker, NoWorker
from app.schemas import LiveOut, ReadyOut, SeenOut
from app.security import KeyedRoute, needs
from jobs.job import WorkerInfo

router = APIRouter(tags=["health"])
keyed = APIRouter(tags=["health"], route_class=KeyedRoute)

ANSWERS_WITHIN: Final = 1.5  # seconds; whoever asks for readiness waits a second or two


@router.get("/health/live")
async def live() -> LiveOut:
    """This process answers."""
    return LiveOut()


@router.get("/health/ready", responses=problems(503))
async def ready(store: Store) -> ReadyOut:
    """Redis answers at once, and a living worker with a loaded model takes jobs and makes images."""
    try:
        async with asyncio.timeout(ANSWERS_WITHIN):
            await store.ping()
            await served_model(store, None)
            models = [model.name for model in await store.models()]
            workers = await store.workers()
    except TimeoutError as error:
        raise NoBroker(
            f"Redis has not answered within {ANSWERS_WITHIN:g} s. Ask again shortly.", retry_after=RETRY_AFTER
        ) from error
    idle = {worker.id: _idles(worker) for worker in workers}
    able = [worker for worker in workers if not idle[worker.id]]
    if not able:
        said = "; ".join(f"{worker_id}: {why}" for worker_id, why in idle.items())
        raise NoWorker(f"No worker makes images now. {said}.", retry_after=RETRY_AFTER)
    return ReadyOut(workers=len(able), models=models)


def _idles(worker: WorkerInfo) -> str | None:
    """Why a living worker makes nothing; None: it does."""
    return worker.stuck if worker.consuming else "it is not connected to the queue"


@router.get("/health/seen")
async def read_seen(request: Request) -> SeenOut:
    """What this service takes you for, behind proxies too: `sagan doctor` compares it with what should be."""
    names = {name for name in request.headers if name.startswith("x-forwarded-") or name == "forwarded"}
    return SeenOut(
        address=address_of(request),
        scheme=request.url.scheme,
        host=request.headers.get("host", ""),
        prefix=request.scope.get("root_path", ""),
        proxied=request.scope.get("sagan.proxied", False),
        forwarded=sorted(names),
    )


@keyed.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **problems(401)}
)
@needs("metrics")
async def metrics(request: Request, store: Store) -> Response:
    """For Prometheus: requests; of one API service on a Redis the queue; under `sagan serve` the worker.

    In OpenMetrics, with exemplars, where `Accept` asks for `application/openmetrics-text`.
    """
    accept = ", ".join(request.headers.getlist("accept"))
    content, kind = await state(request).exposition.render(store, accept)
    return Response(content, headers={"Content-Type": kind, "Vary": "Accept"})
