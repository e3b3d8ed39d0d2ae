"""What is looked at: an image, a layer of its network, and their map once a worker has made it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from app import pictures
from app.deps import charge, payer_of, state
from app.disconnect import while_connected
from app.errors import (
    RETRY_AFTER,
    ModelChanged,
    NoAttention,
    NotFinished,
    NotFound,
    NoWorker,
    QueueIsFull,
    Unavailable,
)
from app.routes.jobs import image_of
from jobs.client import JobClient
from jobs.errors import MapsFull
from jobs.job import AttentionMap, AttentionSite, Job

ALL: Final = "all"  # layers


class Which(BaseModel):
    """Which map."""

    model_config = ConfigDict(extra="forbid")

    image: int = Field(0, description="Which image of the job.")
    layer: str | None = Field(
        None, max_length=100, description="One of the model's sites; absent: the first."
    )


@dataclass(frozen=True)
class Sight:
    """An image whose attention is asked for, and the layer."""

    job: Job
    index: int
    png: bytes
    site: AttentionSite

    @property
    def place(self) -> tuple[Job, int, str]:
        return self.job, self.index, self.site.name

    @property
    def memory(self) -> int:
        """Bytes of the map as it is read: packed, unpacked and as float32."""
        queries = self.site.resolution**2
        return 4 * 2 * queries * (queries // 4) + pictures.ALWAYS


def etag(sights: Sequence[Sight], *asked: object) -> str:
    """Of the maps, drawn or written as `asked`: the same spec has the same map."""
    parts = [(pictures.etag(one.png), one.job.id, one.index, one.site.name) for one in sights]
    return pictures.etag(repr(parts), repr(asked))


async def sights_of(store: JobClient, job: Job, asked: Which) -> list[Sight]:
    """The image by the layer asked for; by each layer of its model where that is ALL.

    Raises NotFound, NotFinished, Unsuccessful, NoAttention, ModelChanged, NoWorker.
    """
    check_ended(job)
    png = await image_of(job, asked.image, store)
    sites = await sites_of(store, job, asked.image, asked.layer)
    return [Sight(job, asked.image, png, site) for site in sites]


def check_ended(job: Job) -> None:
    """Raises NotFinished."""
    if not job.ended:
        raise NotFinished(
            f"The job is {job.state}: {job.done} of {job.spec.count} images are made. Ask again shortly.",
            retry_after=1,
        )


async def sites_of(store: JobClient, job: Job, image: int, asked: str | None) -> list[AttentionSite]:
    """The layer asked for, or the first one of the job's model; every one where ALL is asked for."""
    spec = job.spec
    served = [model for worker in await store.workers() for model in worker.models]
    model = next((model for model in served if model.version == spec.version), None)
    if model is None:
        # a map that was made lives as long as its images, whatever became of its model
        others = (site.name for model in served if model.name == spec.model for site in model.attention)
        names = [asked] if asked and asked != ALL else list(dict.fromkeys(others))
        made = [name for name in names if await _is_made(store, job, image, name)]
        if made and (asked != ALL or made == names):
            found = [AttentionSite(name, int(name.partition("x")[0]), 0.0) for name in made]
            return found if asked == ALL else found[:1]
    if model is None and any(model.name == spec.model for model in served):
        raise ModelChanged(
            f"This job was made by another version of {spec.model!r} ({spec.model_hash[:12]}). "
            "Generate again, and look at the new job."
        )
    if model is None:
        raise NoWorker(f"No worker with the model {spec.model!r} is there.", retry_after=RETRY_AFTER)
    sites = {site.name: site for site in model.attention}
    if not sites:
        raise NoAttention(
            f"The model {spec.model!r} has no attention layer. See /models for those that have."
        )
    if asked == ALL:
        return list(sites.values())
    if asked is not None and asked not in sites:
        raise NotFound(f"layer must be one of: {', '.join(sites)}.")
    return [model.attention[0] if asked is None else sites[asked]]


async def _is_made(store: JobClient, job: Job, image: int, name: str) -> bool:
    return name.partition("x")[0].isdecimal() and await store.has_attention(job, image, name)


async def ask_for(request: Request, sight: Sight) -> None:
    """Have a worker make the map. Raises MapsFull."""
    here = state(request)
    caller = payer_of(request)
    await here.store.ask_for_attention(*sight.place, caller, math.ceil(here.settings.attention_timeout))


async def see(request: Request, sight: Sight) -> None:
    """Return when the map is there; a worker makes it if need be.

    Raises NoMap, QueueIsFull, TooManyRequests, ClientLeft, Unavailable.
    """
    here, timeout = state(request), state(request).settings.attention_timeout
    if await here.store.has_attention(*sight.place):
        return
    await charge(request)
    try:
        await ask_for(request, sight)
    except MapsFull as full:
        raise QueueIsFull(str(full), retry_after=here.pace.until_a_map_fits(full.waiting)) from full
    made = await while_connected(request, here.store.attention_made(*sight.place, timeout))
    if not made:
        raise _late(timeout)


async def read(request: Request, sight: Sight) -> AttentionMap:
    """The map, which is there. Raises NoMap, or Unavailable if it has just expired."""
    here = state(request)
    found = await here.store.attention(*sight.place)
    if found is None:
        raise _late(here.settings.attention_timeout)
    return found


def _late(timeout: float) -> Unavailable:
    return Unavailable(
        f"No worker made the map within {timeout:g} s. Ask again: it may be there by then.",
        retry_after=RETRY_AFTER,
    )


def facts(attentions: Sequence[AttentionMap]) -> dict[str, str]:
    """The numbers of the layers, with commas between those of several."""
    told = {
        "Layer": [attention.layer for attention in attentions],
        "Query-Grid": ["x".join(map(str, attention.query_grid)) for attention in attentions],
        "Key-Grid": ["x".join(map(str, attention.key_grid)) for attention in attentions],
        "Gamma": [f"{attention.gamma:.6g}" for attention in attentions],
        "Share": [f"{attention.share:.6g}" for attention in attentions],
    }
    return {f"X-Attention-{name}": ", ".join(values) for name, values in told.items()}
