"""/health and /metrics, for the operator."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.deps import Store, UseMetrics, served_model
from app.docs import problems

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> dict[str, str]:
    """This process answers."""
    return {"status": "live"}


@router.get("/health/ready", responses=problems(503))
async def ready(store: Store) -> dict[str, object]:
    """Redis answers, and a worker with a loaded model is alive."""
    await store.ping()
    await served_model(store, None)
    models = [model.name for model in await store.models()]
    return {"status": "ready", "workers": len(await store.workers()), "models": models}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(store: Store, metrics: UseMetrics) -> Response:
    """Prometheus: this process' requests, and the jobs, queue and workers in Redis."""
    return Response(await metrics.render(store), headers={"Content-Type": CONTENT_TYPE_LATEST})
