"""/jobs/{id}/webhooks: what became of a job's webhook."""

from fastapi import APIRouter, Request

from app.deps import Known, state
from app.docs import problems
from app.security import KeyedRoute
from app.webhooks import WebhookOut

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=KeyedRoute)


@router.get("/{job_id}/webhooks", responses=problems(401, 404, 503))
async def read_webhooks(request: Request, job: Known) -> WebhookOut:
    """Each try to deliver the job's webhook, and when the next one is; also once its images have expired."""
    return await state(request).webhooks.log_of(job)
