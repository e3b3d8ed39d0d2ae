"""/jobs/{id}/webhooks: what became of a job's webhook."""

from typing import Annotated

from fastapi import APIRouter, Path, Request

from app.deps import checked_id, state
from app.docs import problems
from app.security import KeyedRoute, key_of
from app.webhooks import WebhookOut

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=KeyedRoute)


@router.get("/{job_id}/webhooks", responses=problems(401, 404, 503))
async def read_webhooks(
    job_id: Annotated[str, Path(description="As the answer to POST /generate gave it.")],
    request: Request,
) -> WebhookOut:
    """Each try to deliver the job's webhook, and when the next one is; also once its images have expired."""
    key = key_of(request)
    owner = None if "admin" in key.scopes else key.owner
    return await state(request).webhooks.log_of(checked_id(job_id), owner)
