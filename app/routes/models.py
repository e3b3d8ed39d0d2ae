"""/models and /classes: the choices of a request."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import negotiation, pictures
from app.deps import Caller, Store, UseSettings, served_model
from app.docs import problems
from app.errors import NotFound, UnknownModel
from app.schemas import ClassesOut, ModelOut, ModelsOut
from app.security import KeyedRoute

router = APIRouter(tags=["models"], route_class=KeyedRoute)

_AGAIN = 3  # seconds after which previews that are not made yet are worth asking for


@router.get("/models", responses=problems(401, 503))
async def list_models(store: Store, caller: Caller, settings: UseSettings) -> ModelsOut:
    """The models that living workers have loaded, the service's default first."""
    models = sorted(await store.models(), key=lambda model: model.name != settings.default_model)
    workers = await store.workers()
    return ModelsOut(models=[ModelOut.of(model, workers) for model in models], result_ttl=settings.result_ttl)


@router.get("/models/{name}", responses=problems(401, 404, 503))
async def read_model(name: str, store: Store, caller: Caller) -> ModelOut:
    """One model: its classes, attention sites and metrics."""
    try:
        return ModelOut.of(await served_model(store, name), await store.workers())
    except UnknownModel as error:
        raise NotFound(error.detail) from error


@router.get(
    "/models/{name}/previews",
    response_class=Response,
    responses={
        200: {
            "description": "WebP without gaps: class k is in row k // n and column k % n of square pictures, "
            "where n = ceil(sqrt(number of classes)).",
            "content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}},
        },
        204: {
            "description": "Not made yet: a worker makes them when no job waits; see `Retry-After`.",
            "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
        },
        304: {"description": "`If-None-Match` names it: the client has it already."},
        **problems(401, 404, 503),
    },
)
async def read_previews(name: str, request: Request, store: Store, caller: Caller) -> Response:
    """One small picture of each class of a model, as one sheet: image 0 of seed 0 at truncation 0.7."""
    try:
        sheet = await store.previews(await served_model(store, name))
    except UnknownModel as error:
        raise NotFound(error.detail) from error
    if sheet is None:
        return Response(status_code=204, headers={"Retry-After": str(_AGAIN)})
    # no-cache: asked about each time, since the name's model may be another one by then
    headers = {"ETag": pictures.etag(sheet), "Cache-Control": "private, no-cache"}
    if negotiation.knows(request, headers["ETag"]):
        return negotiation.not_modified(headers)
    return Response(sheet, media_type="image/webp", headers=headers)


@router.get("/classes", responses=problems(401, 404, 422, 503))
async def list_classes(
    store: Store,
    caller: Caller,
    settings: UseSettings,
    model: Annotated[str | None, Query(description="Absent: the service's default.")] = None,
) -> ClassesOut:
    """The classes of a model."""
    return ClassesOut.of(await served_model(store, model or settings.default_model))
