"""OpenAPI with our problems, and a /docs without a network: the fastapi-offline wheel has Swagger UI."""

import copy
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.routing import BaseRoute

from app import answers, errors, examples, v1
from app.schemas import ProblemOut
from app.security import KeyedRoute

_FILE = {"schema": {"type": "string", "format": "binary"}}


def files(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a file in one of several formats."""
    return {
        200: {"description": description, "content": dict.fromkeys(media_types, _FILE)},
        304: {"description": "`If-None-Match` names it: the client has it already."},
    }


PNG = files("PNG", "image/png")

_EXAMPLES: dict[int, errors.Problem] = {
    example.status: example
    for example in (
        errors.Unauthorised("Send a valid key as X-API-Key, or as Authorization: Bearer.", reason=""),
        errors.ForeignOrigin("Pages of this origin may not ask here."),
        errors.NotFound("There is no job 'x'."),
        errors.NotAcceptable(
            "There is image/png, image/webp, image/jpeg. Ask for one in Accept or by format=."
        ),
        errors.NotFinished("3 of 8 images are made. Ask again shortly."),
        errors.Gone("The same spec makes the same images again."),
        errors.BodyTooLarge("A body may have 65536 bytes."),
        errors.Invalid("body.count: Input should be less than or equal to 64."),
        errors.QueueIsFull("1000 jobs are waiting and no more are taken."),
        errors.NoWorker("No worker with a loaded model is there."),
    )
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sagan: API</title>
<link rel="icon" href="static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="docs-assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>The description itself is at <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs-assets/swagger-ui-bundle.js"></script>
<script src="docs-start.js"></script>
</body>
</html>
"""
_START = """\
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});
"""
_TAGS = {
    "generate": "Ask for images: the answer is a job.",
    "jobs": "A job's state, its images as they are made, its events; cancel it.",
    "attention": "What the network attended to while it made an image: drawn, or as numbers.",
    "models": "What can be asked for.",
    "openai": "The same for clients of OpenAI's: images and models in its shapes, errors too.",
    "health": "For the operator. Health needs no key.",
}
# functions whose names are too short away from their modules
_NAMES = {"read_map": "get_attention_map", "draw_attention": "get_attention", "metrics": "get_metrics"}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses: a problem document with an example for each status."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    example = _EXAMPLES[status]
    content = {
        "schema": {"$ref": "#/components/schemas/Problem"},
        "example": answers.document(example, "/..."),
    }
    response: dict[str, Any] = {
        "description": example.title,
        "content": {"application/problem+json": content},
    }
    if status in (409, 429, 503):
        response["headers"] = {
            "Retry-After": {
                "schema": {"type": "integer"},
                "description": "Seconds; absent: do not retry.",
            }
        }
    return response


def describe(app: FastAPI, *, has_keys: Callable[[], bool]) -> None:
    """Adds /docs, and /openapi.json with problem documents and, while has_keys(), the keys."""
    told_keys = False

    def openapi() -> dict[str, Any]:
        nonlocal told_keys
        with_keys = has_keys()
        if app.openapi_schema is None or told_keys != with_keys:
            told_keys = with_keys
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=[_shown(route, with_keys=with_keys) for route in app.routes],
                tags=[{"name": name, "description": said} for name, said in _TAGS.items()],
                license_info={"name": "MIT", "identifier": "MIT"},
            )
            components = schema.setdefault("components", {})
            _replace_validation_errors(schema)
            _tell_of_files(schema)
            _join_headers(schema)
            _bound_sizes(schema, app.state.settings.max_side)
            found = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = components.setdefault("schemas", {})
            parts.update(found.pop("$defs"))
            parts["Problem"] = found
            for name, example in examples.answers().items():
                parts[name].setdefault("examples", [example])
            if with_keys:
                components["securitySchemes"] = {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                }
                schema["security"] = [{"key": []}, {"bearer": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_route("/openapi.json", _served(openapi), include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(_PAGE)

    @app.get("/docs-start.js", include_in_schema=False)
    async def docs_start() -> Response:
        return Response(_START, media_type="text/javascript")

    app.mount("/docs-assets", StaticFiles(packages=[("fastapi_offline", "static")]))


def _served(openapi: Callable[[], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    """The document under the prefix at which it is asked for."""

    async def document(request: Request) -> JSONResponse:
        root, versioned = request.scope.get("root_path", ""), v1.TWIN in request.scope
        root = root.removesuffix(v1.PREFIX) if versioned else root
        servers = [
            {"url": root or "/", "description": "This service."},
            {"url": root + v1.PREFIX, "description": "The same, for clients that expect a version."},
        ]
        if versioned:
            servers.reverse()
        schema = openapi()
        # what stands under /v1 itself has no twin
        paths = {
            path: item | {"servers": [{"url": root or "/"}]} if v1.speaks_openai(path) else item
            for path, item in schema["paths"].items()
        }
        return JSONResponse(schema | {"servers": servers, "paths": paths})

    return document


def client_name(route: APIRoute) -> str:
    """The operationId: the name of a method in generated clients."""
    name = _NAMES.get(route.name, route.name)
    for verb in ("read_", "draw_"):
        name = f"get_{name.removeprefix(verb)}" if name.startswith(verb) else name
    return name


def _shown(route: BaseRoute, *, with_keys: bool) -> BaseRoute:
    """The route as the document tells it. HEAD is wherever GET is: it needs no operation of its own."""
    if not isinstance(route, APIRoute) or not route.methods:
        return route
    shown = copy.copy(route)
    shown.methods = route.methods - {"HEAD"}
    shown.operation_id = client_name(route)
    shown.summary = route.summary or client_name(route).replace("_", " ").capitalize()
    if with_keys and not isinstance(route, KeyedRoute):
        shown.openapi_extra = {"security": [], **(route.openapi_extra or {})}
    elif with_keys and isinstance(route, KeyedRoute):
        security = [
            {"key": [route.needed]},
            {"bearer": [route.needed]},
        ]  # OpenAPI 3.1 takes such names as roles
        shown.openapi_extra = {"security": security, **(route.openapi_extra or {})}
        if not v1.speaks_openai(route.path):
            shown.responses = {**problems(403), **route.responses}
    return shown


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each path with each of its operations."""
    return ((path, operation) for path, item in schema["paths"].items() for operation in item.values())


def _tell_of_files(schema: dict[str, Any]) -> None:
    """What an answer has that is neither JSON nor text is a file: generated clients return its bytes.

    JSON comes first: they read the first kind of an answer that may have several.
    """
    for _, operation in _operations(schema):
        for response in operation["responses"].values():
            if "content" in response:
                kinds = sorted(response["content"].items(), key=lambda item: item[0] != "application/json")
                response["content"] = dict(kinds)
            for kind, content in response.get("content", {}).items():
                if kind == "text/plain":
                    content.setdefault("schema", {"type": "string"})
                elif not kind.endswith("json") and kind != "text/event-stream":
                    content["schema"] = {"type": "string", "format": "binary"}


def _replace_validation_errors(schema: dict[str, Any]) -> None:
    """FastAPI's own 422, of routes that declare none, becomes our problem document."""
    for path, operation in _operations(schema):
        if "application/json" in operation["responses"].get("422", {}).get("content", {}):
            operation["responses"]["422"] = _problem(422)
        if v1.speaks_openai(path):
            operation["responses"].pop("422", None)  # 400 there
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"].get("schemas", {}).pop(name, None)


def _join_headers(schema: dict[str, Any]) -> None:
    """A header of several values may come as one, and generated clients send one."""
    for _, operation in _operations(schema):
        for parameter in operation.get("parameters", []):
            told = parameter["schema"]
            if parameter["in"] == "header" and told.get("type") == "array":
                values = [", ".join(values) for values in told.get("examples", [])]
                parameter["schema"] = {"type": "string", "title": told["title"], "examples": values}


def _bound_sizes(schema: dict[str, Any], max_side: int) -> None:
    """The largest side of an enlarged image is a setting."""
    for _, operation in _operations(schema):
        for parameter in operation.get("parameters", []):
            if parameter["name"] == "size":
                for branch in parameter["schema"].get("anyOf", []):
                    if branch.get("type") == "integer":
                        branch.setdefault("maximum", max_side)
