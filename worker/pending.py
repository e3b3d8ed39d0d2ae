"""A job on its way through the scheduler, what makes its images, and what can become of it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imaging.spec import End, ImageSpec
from jobs.job import NOWHERE, AttentionMap, Context, JobSpec
from jobs.tracing import NONE as SPAN_NONE
from jobs.tracing import Span

Pixels = NDArray[np.uint8]


class DeviceLost(Exception):
    """The device answers no more: this process must end, and another one make the jobs."""


class BatchEngine(Protocol):
    """An engine, as the scheduler uses it: from several threads at once."""

    max_batch: int  # images in one forward, at most
    lanes: int  # forwards at once, at most

    def sample(self, specs: Sequence[ImageSpec]) -> Pixels:
        """uint8 [N, R, R, 3], one image a spec; an image does not depend on the others. Raises DeviceLost."""

    def attention(self, spec: ImageSpec, layer: str) -> tuple[Pixels, AttentionMap]:
        """The image again, and the map of one layer. Raises DeviceLost."""


class Dropped(Exception):
    """The job was cancelled, or another worker has it: this worker makes no more of it."""


@dataclass(eq=False)
class PendingJob:
    """The images of one job that are still to be made."""

    job_id: str
    spec: JobSpec
    images: Sequence[int]  # of the job, by number
    context: Context = NOWHERE
    sent_at: float = 0.0  # seconds since 1970, by the sender's clock; 0: it came again
    alone: bool = False  # its last forward killed the worker: it shares a forward with no other job
    wanted_at: float = -inf  # monotonic() of the last sign that it is still wanted
    # None once the last image is stored; else Dropped, Stopping or an error
    done: Future[None] = field(default_factory=Future)
    entered: int = 0  # images that have entered a forward
    forwards: int = 0  # running forwards that have images of it
    stored: int = 0  # images that are stored
    begun: bool = False  # it has been in a forward of this worker
    storing: float | None = None  # seconds that its last images took to be stored; None: none is
    span: Span = SPAN_NONE  # of its processing
    told: dict[str, Any] = field(default_factory=dict)  # how lines of the log have it; {}: none has yet

    def end(self, error: Exception | None = None) -> None:
        """Set the outcome; None: all is stored. The first outcome stands."""
        with suppress(InvalidStateError):
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


@dataclass(frozen=True)
class Made:
    """One image, fresh from a forward."""

    pending: PendingJob
    image: int  # of the job
    pixels: Pixels  # [R, R, 3]
    map: AttentionMap | None = None  # where the job asks for maps


def image_spec(spec: JobSpec, image: int) -> ImageSpec:
    """What image `image` of a job is made from."""
    match spec.ends:
        case ():
            return ImageSpec(spec.class_id, spec.seed, spec.start + image, spec.truncation)
        case (mixture,):
            end = End(mixture.classes, mixture.seed, spec.start + image, 1.0)
            return ImageSpec.blend((end,), spec.truncation)
        case ends:
            shares = zip(ends, spec.shares(image), strict=True)
            return ImageSpec.blend(
                tuple(End(end.classes, end.seed, end.index, share) for end, share in shares), spec.truncation
            )


def map_of(model: BatchEngine, pending: PendingJob, image: int) -> AttentionMap | None:
    """The map of an image whose job asks for maps; made alone, as GET /attention has one made."""
    layer = pending.spec.attention
    return model.attention(image_spec(pending.spec, image), layer)[1] if layer else None


def class_name(spec: JobSpec, image: int) -> str:
    """Of image `image` of a job: of its class, or of what it lies between."""
    if len(spec.ends) > 1:
        named = [end.name for end, share in zip(spec.ends, spec.shares(image), strict=True) if share > 0]
        if len(named) == 1:
            return named[0]
    return spec.class_name
