"""An example of every answer in JSON, made by the code that makes the answers."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from app.openai import ErrorOut, ImageOut, ImagesOut, OpenAIErrorOut, OpenAIModelOut, OpenAIModelsOut
from app.schemas import ClassesOut, JobOut, JobsOut, LiveOut, MapOut, ModelOut, ModelsOut, ReadyOut, SeenOut
from app.webhooks import AttemptOut, WebhookOut
from jobs.job import AttentionSite, Job, JobSpec, ModelInfo, WorkerInfo

_HASH: Final = "9f" * 32
_ID: Final = "c2FnYW4taXMtZnVuLTEyMw"
_AT: Final = datetime(2026, 11, 21, 9, 15, 38, tzinfo=UTC)


def answers() -> dict[str, Any]:
    """Name of a component -> its example."""
    model = ModelInfo(
        name="cifar10",
        hash=_HASH,
        precision="float32",
        resolution=32,
        classes=("cat", "dog"),
        attention=(AttentionSite("16x16", 16, 0.41),),
        metrics={"fid": 9.6},
        licence="CC BY 4.0",
        description="Two classes of small pictures.",
        loaded_at=_AT,
    )
    spec = JobSpec(model.name, _HASH, "float32", 0, "cat", count=2, seed=42, truncation=0.8)
    job = JobOut.of(Job(_ID, "everybody", spec, "queued", _AT), 0, "")
    told = ModelOut.of(model, [WorkerInfo("host-1-ab12", "cpu", _AT, _AT, (model,))])
    openais = OpenAIModelOut.like(model, told)
    image = ImageOut(
        url=f"http://127.0.0.1:8000/v1/jobs/{_ID}/images/0",
        revised_prompt="cat",
        class_id=0,
        seed=42,
        index=0,
        job=_ID,
    )
    found: list[BaseModel] = [
        job,
        JobsOut(jobs=[job], next=None),
        told,
        ModelsOut(models=[told], result_ttl=3600),
        ClassesOut.of(model),
        MapOut(
            job=_ID,
            image=0,
            layer="16x16",
            query_grid=(2, 2),
            key_grid=(1, 1),
            gamma=0.41,
            share=0.2,
            map=[[1.0]] * 4,
        ),
        LiveOut(),
        ReadyOut(workers=1, models=["cifar10"]),
        SeenOut(
            address="203.0.113.7",
            scheme="https",
            host="sagan.example.com",
            prefix="",
            proxied=True,
            forwarded=["x-forwarded-for", "x-forwarded-proto"],
        ),
        ImagesOut(
            created=int(_AT.timestamp()),
            output_format="png",
            size="32x32",
            model="cifar10",
            seed=42,
            data=[image],
        ),
        openais,
        OpenAIModelsOut(data=[openais], models=[told], result_ttl=3600),
        OpenAIErrorOut(
            error=ErrorOut(
                message="cifar10 has no class 'cta'. Near it: cat.",
                type="invalid_request_error",
                param="prompt",
                code="unknown_class",
            )
        ),
        WebhookOut(
            webhook="https://example.com/hook",
            events=["end"],
            attempts=[
                AttemptOut(
                    id=f"{_ID}-end",
                    event="end",
                    at=_AT,
                    seconds=0.21,
                    status=503,
                    outcome="failed",
                    reason="it answered 503",
                )
            ],
            waiting=["end"],
            next_try=_AT + timedelta(seconds=5),
        ),
    ]
    return {
        type(one).__name__: one.model_dump(mode="json", exclude_none=isinstance(one, ImagesOut))
        for one in found
    }
