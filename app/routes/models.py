"""/models and /classes: the choices of a request."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.deps import Caller, Store, UseSettings, served_model
from app.docs import problems
from app.errors import NotFound, UnknownModel
from app.schemas import ClassesOut, ModelOut, ModelsOut
from app.security import KeyedRoute

router = APIRouter(tags=["models"], route_class=KeyedRoute)


@router.get("/models", responses=problems(401, 503))
async def list_models(store: Store, caller: Caller, settings: UseSettings) -> ModelsOut:
    """The models that living workers have loaded, the service's default first."""
    models = sorted(await store.models(), key=lambda model: model.name != settings.default_model)
    workers = await store.workers()
    return ModelsOut(models=[ModelOut.of(model, workers) for model in models])


@router.get("/models/{name}", responses=problems(401, 404, 503))
async def read_model(name: str, store: Store, caller: Caller) -> ModelOut:
    """One model: its classes, attention sites and metrics."""
    try:
        return ModelOut.of(await served_model(store, name), await store.workers())
    except UnknownModel as error:
        raise NotFound(error.detail) from error


@router.get("/classes", responses=problems(401, 404, 422, 503))
async def list_classes(
    store: Store,
    caller: Caller,
    settings: UseSettings,
    model: Annotated[str | None, Query(description="Absent: the service's default.")] = None,
) -> ClassesOut:
    """The classes of a model."""
    return ClassesOut.of(await served_model(store, model or settings.default_model))
