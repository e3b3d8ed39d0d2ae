"""The shapes of requests and answers that clients rely on."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from jobs.job import Job, JobSpec, ModelInfo, State, WorkerInfo

Seeds = Literal["number", "string"]  # how an answer has them


class EndOut(BaseModel):
    """An end of a morph."""

    class_weights: dict[int, float]
    class_name: str
    seed: int | str
    index: int


class MorphOut(BaseModel):
    """What a job's images lie between."""

    ends: list[EndOut]
    loop: bool
    weights: list[tuple[float, ...]] | None = Field(description="Of the ends, a row an image; null: evenly.")
    attention: str | None = Field(description="Layer whose maps were made with the images.")

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        ends = [
            EndOut(class_weights=dict(end.classes), class_name=end.name, seed=end.seed, index=end.index)
            for end in spec.ends
        ]
        return cls(
            ends=ends, loop=spec.loop, weights=list(spec.weights) or None, attention=spec.attention or None
        )


class SpecOut(BaseModel):
    """The images' spec."""

    model: str
    model_hash: str = Field(description="SHA-256 of the checkpoint file.")
    precision: str
    class_id: int
    class_name: str
    count: int
    seed: int | str = Field(description="A number; a string of its digits where `seeds=string` asks for it.")
    truncation: float
    priority: int
    start: int = Field(description="Which image of the seed its first one is.")
    class_weights: dict[int, float] | None = Field(description="Of a mixture of classes; null: class_id.")
    morph: MorphOut | None = Field(description="What its images lie between; null: it is no morph.")

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        mixed = len(spec.ends) == 1
        return cls(
            model=spec.model,
            model_hash=spec.model_hash,
            precision=spec.precision,
            class_id=spec.class_id,
            class_name=spec.class_name,
            count=spec.count,
            seed=spec.seed,
            truncation=spec.truncation,
            priority=spec.priority,
            start=spec.start,
            class_weights=dict(spec.ends[0].classes) if mixed else None,
            morph=MorphOut.of(spec) if len(spec.ends) > 1 else None,
        )


class LinksOut(BaseModel):
    """Addresses of the job's parts."""

    self: str
    images: list[str]
    grid: str
    archive: str = Field(description="All images as a ZIP.")
    film: str = Field(description="All images one after the other.")
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
    expires_at: datetime | None = Field(description="Its images are gone after it; null: not ended.")
    deadline: datetime | None = Field(
        description="It is cancelled then, unless it has ended; null: it waits."
    )
    error: str | None = Field(description="Why it failed.")
    done: int = Field(description="Images made so far, in any order.")
    spec: SpecOut
    links: LinksOut
    images: list[str | None] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="With `images=base64`: the PNGs in base64; null: not made yet. Absent otherwise.",
    )

    @classmethod
    def of(cls, job: Job, position: int | None, root: str, seeds: Seeds = "number") -> Self:
        """`job` for a client; root: the path prefix under which a proxy serves us, often empty."""
        here = f"{root}/jobs/{job.id}"
        links = LinksOut(
            self=here,
            images=[f"{here}/images/{index}" for index in range(job.spec.count)],
            grid=f"{here}/grid",
            archive=f"{here}/archive",
            film=f"{here}/film",
            events=f"{here}/events",
            attention=f"{root}/attention/{job.id}",
            attention_grid=f"{root}/attention/{job.id}/grid",
            cancel=here,
        )
        spec = SpecOut.of(job.spec)
        if seeds == "string":
            for drawn in (spec, *(spec.morph.ends if spec.morph else ())):
                drawn.seed = str(drawn.seed)
        return cls(
            id=job.id,
            state=job.state,
            position=position if job.state == "queued" else None,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            expires_at=job.expires_at,
            deadline=job.deadline,
            error=job.error,
            done=job.done,
            spec=spec,
            links=links,
        )


class SeenOut(BaseModel):
    """What the service takes a request for."""

    address: str = Field(description="Of who asks, as limits and logs have it.")
    scheme: str
    host: str
    prefix: str = Field(description="The path under which a proxy serves this; often empty.")
    proxied: bool = Field(description="It came from a trusted proxy, whose headers were believed.")
    forwarded: list[str] = Field(description="Names of the headers of proxies that came with it.")


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
    result_ttl: int = Field(description="Seconds that the images of a job are kept after its end.")


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


class LiveOut(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class ReadyOut(BaseModel):
    """Images can be made."""

    status: Literal["ready"] = "ready"
    workers: int = Field(description="That make images.")
    models: list[str]


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
