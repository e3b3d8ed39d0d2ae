"""OpenAPI with our problems, and a /docs without a network: the fastapi-offline wheel has Swagger UI."""

import copy
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.routing import BaseRoute

from app import errors
from app.schemas import ProblemOut

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
        errors.Unauthorised("Send a valid key as X-API-Key, or as Authorization: Bearer."),
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
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses: a problem document with an example for each status."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    example = _EXAMPLES[status]
    content = {
        "schema": {"$ref": "#/components/schemas/Problem"},
        "example": errors.document(example, "/..."),
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


def describe(app: FastAPI, *, with_keys: bool) -> None:
    """Adds /docs, and /openapi.json with problem documents and, where keys are set, the keys."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=[_without_head(route) for route in app.routes],
            )
            components = schema.setdefault("components", {})
            _replace_validation_errors(schema)
            _bound_sizes(schema, app.state.settings.max_side)
            found = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = components.setdefault("schemas", {})
            parts.update(found.pop("$defs"))
            parts["Problem"] = found
            if with_keys:
                components["securitySchemes"] = {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                }
                schema["security"] = [{"key": []}, {"bearer": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(_PAGE)

    @app.get("/docs-start.js", include_in_schema=False)
    async def docs_start() -> Response:
        return Response(_START, media_type="text/javascript")

    app.mount("/docs-assets", StaticFiles(packages=[("fastapi_offline", "static")]))


def _without_head(route: BaseRoute) -> BaseRoute:
    """HEAD is wherever GET is: it needs no operation of its own."""
    if not isinstance(route, APIRoute) or not route.methods:
        return route
    shown = copy.copy(route)
    shown.methods = route.methods - {"HEAD"}
    return shown


def _replace_validation_errors(schema: dict[str, Any]) -> None:
    """FastAPI's own 422, of routes that declare none, becomes our problem document."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"]["422"] = _problem(422)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"].get("schemas", {}).pop(name, None)


def _bound_sizes(schema: dict[str, Any], max_side: int) -> None:
    """The largest side of an enlarged image is a setting."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "size":
                    for branch in parameter["schema"].get("anyOf", []):
                        if branch.get("type") == "integer":
                            branch.setdefault("maximum", max_side)
