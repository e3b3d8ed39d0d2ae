"""The shapes of requests and answers that clients rely on."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError, from_json

from jobs.job import Job, ModelInfo, State, WorkerInfo

MAX_SEED = 2**63 - 1

USUAL_PRIORITY = 5

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
# a folder's name has 255 bytes, a table's may be longer
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class GenerateIn(BaseModel):
    """A job. Every field has a default."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,  # true is no count, and neither is "4" or 1.5
        json_schema_extra={"examples": [{"count": 4, "seed": 42, "truncation": 0.8}]},
    )

    count: int = Field(1, ge=1, le=64, description="Images to make.")
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Image k is drawn from (seed, k). Drawn below 2^53 and returned when absent.",
    )
    truncation: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="A factor on z: lower is more typical, less varied.",
    )
    model: Name | None = Field(None, description="One of /models. Absent: the service's default.")
    priority: int | None = Field(
        None,
        ge=0,
        le=9,
        description="9 is most urgent. Absent: 5, or the highest that the caller may ask for if that is "
        "less. Above that: 403.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, body: object) -> object:
        # FastAPI hands on the bytes unless their Content-Type is JSON; `curl -d` calls them a form
        if not isinstance(body, bytes):
            return body
        try:
            return from_json(body)
        except ValueError as wrong:
            example = '{"count": 4, "seed": 42}'
            raise PydanticCustomError(
                "json_invalid",
                "Not JSON ({wrong}). Send it like {example}.",
                {"wrong": str(wrong), "example": example},
            ) from wrong


class GenerateAnyIn(GenerateIn):
    """A job with its class."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"class_id": "cat", "count": 4, "seed": 42}]})

    class_id: int | ClassName = Field(description="Number or name of a class of the model.")


class SpecOut(BaseModel):
    """The images' spec."""

    model: str
    model_hash: str = Field(description="SHA-256 of the checkpoint file.")
    precision: str
    class_id: int
    class_name: str
    count: int
    seed: int
    truncation: float
    priority: int


class LinksOut(BaseModel):
    """Addresses of the job's parts."""

    self: str
    images: list[str]
    grid: str
    events: str
    attention: str
    attention_grid: str = Field(description="All images, painted.")
    cancel: str = Field(description="DELETE it.")


class JobOut(BaseModel):
    """A job as it is now."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    state: State
    position: int | None = Field(
        description="Jobs that run before it; 0: it is next; null: it does not wait."
    )
    created_at: datetime
    started_at: datetime | None = Field(description="null: in no forward yet.")
    finished_at: datetime | None = Field(description="null: not ended.")
    error: str | None = Field(description="Why it failed.")
    done: int = Field(description="Images made so far, in any order.")
    spec: SpecOut
    links: LinksOut

    @classmethod
    def of(cls, job: Job, position: int | None, root: str) -> Self:
        """`job` for a client; root: the path prefix under which a proxy serves us, often empty."""
        here = f"{root}/jobs/{job.id}"
        links = LinksOut(
            self=here,
            images=[f"{here}/images/{index}" for index in range(job.spec.count)],
            grid=f"{here}/grid",
            events=f"{here}/events",
            attention=f"{root}/attention/{job.id}",
            attention_grid=f"{root}/attention/{job.id}/grid",
            cancel=here,
        )
        return cls(
            id=job.id,
            state=job.state,
            position=position if job.state == "queued" else None,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            error=job.error,
            done=job.done,
            spec=SpecOut.model_validate(job.spec, from_attributes=True),
            links=links,
        )


class JobsOut(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobOut]
    next: str | None = Field(description="The cursor of the next page; null: this is the last.")


class AttentionSiteOut(BaseModel):
    """A layer of the generator that attends."""

    name: str
    resolution: int = Field(description="Side of its feature map, cells.")
    gamma: float = Field(description="Gate of the layer; near 0 its map says little.")


class ClassOut(BaseModel):
    """A class of a model."""

    id: int
    name: str


class ClassesOut(BaseModel):
    """The classes of a model."""

    model: str
    classes: list[ClassOut]

    @classmethod
    def of(cls, model: ModelInfo) -> Self:
        classes = [ClassOut(id=index, name=name) for index, name in enumerate(model.classes)]
        return cls(model=model.name, classes=classes)


class VersionOut(BaseModel):
    """A version of a model, and who serves it."""

    hash: str
    precision: str
    workers: int = Field(description="Workers that have it loaded.")
    draining: bool = Field(description="It was replaced: it makes the jobs that wait, and gets no more.")
    served_by: list[str] = Field(description="Ids of these workers: host, process, and a random part.")


class ModelOut(BaseModel):
    """A model that a worker has loaded."""

    name: str
    hash: str = Field(description="SHA-256 of the checkpoint file.")
    precision: str
    resolution: int = Field(description="Side of an image, pixels.")
    classes: list[ClassOut]
    attention: list[AttentionSiteOut]
    metrics: dict[str, object]
    licence: str
    description: str
    versions: list[VersionOut] = Field(
        description="All that is loaded under this name, such as two in a rolling update; new jobs go to the "
        "first, whose `hash` and `precision` stand above."
    )

    @classmethod
    def of(cls, model: ModelInfo, workers: Sequence[WorkerInfo]) -> Self:
        return cls(
            name=model.name,
            hash=model.hash,
            precision=model.precision,
            resolution=model.resolution,
            classes=ClassesOut.of(model).classes,
            attention=[
                AttentionSiteOut.model_validate(site, from_attributes=True) for site in model.attention
            ],
            metrics=model.metrics,
            licence=model.licence,
            description=model.description,
            versions=_versions(model, workers),
        )


def _versions(model: ModelInfo, workers: Sequence[WorkerInfo]) -> list[VersionOut]:
    found: dict[str, VersionOut] = {}
    loaded = [(info, worker) for worker in workers for info in worker.models if info.name == model.name]
    for info, worker in sorted(loaded, key=lambda pair: pair[0].version != model.version):
        version = found.setdefault(
            info.version,
            VersionOut(hash=info.hash, precision=info.precision, workers=0, draining=True, served_by=[]),
        )
        version.workers += 1
        version.served_by.append(worker.id)
        version.draining = version.draining and info.draining
    return list(found.values())


class ModelsOut(BaseModel):
    """The models that workers have loaded; empty while none has."""

    models: list[ModelOut]


class MapOut(BaseModel):
    """An attention map. Rows are queries (y * width + x) and sum to 1. Grids are [height, width]."""

    job: str
    image: int
    layer: str
    query_grid: tuple[int, int]
    key_grid: tuple[int, int]
    gamma: float
    share: float = Field(description="‖γ·o‖/‖x‖: what attention adds to the features at that layer.")
    map: list[list[float]]


class WrongField(BaseModel):
    """One finding of a validation."""

    at: str
    message: str


class ProblemOut(BaseModel):
    """RFC 9457. `type` is stable; `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[WrongField] = []
