"""The contract between the API and its workers: jobs, models, heartbeats and attention maps."""

from __future__ import annotations

import json
import math
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

# Raise it when records, messages or heartbeats change so that an older release would misread them. A release
# reads the formats up to its own, and a worker only takes messages of these (see jobs.wire). What the release
# before would read rightly is written as it writes it: JobSpec.format.
FORMAT: Final = 3  # 3: jobs from another image than 0 on, mixtures of classes, blends
PLAIN: Final = 2

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: Final[frozenset[State]] = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Draw:
    """An end of a blend: classes with weights that sum to 1, and a draw of noise."""

    classes: tuple[tuple[int, float], ...]
    name: str  # of the classes
    seed: int
    index: int = 0


@dataclass(frozen=True)
class JobSpec:
    """What a client asked for. Image k is a function of this and k alone."""

    model: str
    model_hash: str  # sha256 hex of the checkpoint file
    precision: str  # "float32", "bfloat16" or "int8": pixels depend on it
    class_id: int
    class_name: str
    count: int  # images, 1 to 64; of a blend 1 to 256
    seed: int  # 0 to 2^63 - 1
    truncation: float  # (0, 1]: z is scaled by it
    priority: int = 5  # 0 to 9, 9 is most urgent
    start: int = 0  # index of its first image among those of the seed
    # One: the classes are a mixture, of which class_id is the heaviest. More: the images lie between them.
    ends: tuple[Draw, ...] = ()
    loop: bool = False  # the way leads from the last end back to the first
    weights: tuple[tuple[float, ...], ...] = ()  # of the ends, a row an image; (): evenly along the way
    attention: str = ""  # layer whose maps are made with the images; "": none
    listed: bool = True  # among the caller's recent jobs

    @property
    def version(self) -> str:
        return version_of(self.model_hash, self.precision)

    @property
    def format(self) -> int:
        """The oldest format whose release makes the right images of it."""
        return FORMAT if self.start or self.ends or self.attention else PLAIN

    def shares(self, image: int) -> tuple[float, ...]:
        """How much of an image each of `ends` makes; they sum to 1."""
        if self.weights:
            return self.weights[image]
        ends = len(self.ends)
        # a loop's last image is one step before its first
        legs, steps = (ends, self.count) if self.loop else (ends - 1, max(self.count - 1, 1))
        leg, rest = divmod(image * legs, steps)
        shares = [0.0] * ends
        shares[leg % ends] = 1 - rest / steps
        shares[(leg + 1) % ends] += rest / steps
        return tuple(shares)


@dataclass(frozen=True)
class Context:
    """Who asked for a job, and how to follow it; nothing of it decides an image."""

    request_id: str = ""  # of the request that ordered it, as in the API's log
    key: str = ""  # id of the key it was ordered with; "": none was needed
    traceparent: str = ""  # W3C's; "": it is not traced


NOWHERE: Final = Context()  # of a job that is not to be followed


DAY: Final = 86400  # seconds


@dataclass(frozen=True)
class Quota:
    """How many images may be asked for with a key in a day of UTC."""

    key: str
    images: int
    asked: int | None = None  # images to take from it; None: those of the job


@dataclass(frozen=True)
class Today:
    """What was asked for with a key on this day, as of the moment of asking."""

    images: int
    resets_in: int  # seconds


HookEvent = Literal["start", "progress", "end"]


@dataclass(frozen=True)
class Webhook:
    """Who is told of a job."""

    url: str
    receiver: str  # the URL's scheme, host and port: what is slow or away as one
    events: tuple[HookEvent, ...]


@dataclass(frozen=True)
class Terms:
    """What is asked of a job beside its images."""

    context: Context = NOWHERE
    expires_in: float | None = None  # seconds from its creation, after which it is cancelled; None: it waits
    retention: int | None = None  # seconds that its images are kept after its end; None: the service's own
    quota: Quota | None = None  # that its images are taken from; None: of none
    webhook: Webhook | None = None


USUAL: Final = Terms()


@dataclass(frozen=True)
class Job:
    """The record of a job, as of the moment of reading."""

    id: str
    owner: str
    spec: JobSpec
    state: State
    created_at: datetime
    started_at: datetime | None = None  # None: not in a forward yet
    finished_at: datetime | None = None  # None: not ended
    error: str | None = None  # why it failed
    done: int = 0  # images finished so far
    expires_at: datetime | None = None  # the images are gone after it; None: not ended
    attempts: int = 0  # forwards it entered since its last finished image; above one: a worker died
    deadline: datetime | None = None  # it is cancelled then, unless it has ended; None: it waits
    context: Context = NOWHERE
    purged: bool = False  # its owner had its images taken away
    today: Today | None = None  # of its quota; None: it has none, or is older than this call

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def has_expired(self, now: datetime) -> bool:
        """now: by Redis' clock, as every time of a job is."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True)
class Taken:
    """A job that a worker has taken from the queue."""

    job_id: str
    spec: JobSpec
    attempts: int = 0  # forwards in a row that killed their worker
    made: frozenset[int] = frozenset()  # indices of the images that an earlier attempt stored
    context: Context = NOWHERE


@dataclass(frozen=True)
class AttentionSite:
    """A self-attention layer of the generator."""

    name: str  # as in "16x16"
    resolution: int  # of its feature map, in cells
    gamma: float  # gate of the layer; near 0 its map hardly matters


@dataclass(frozen=True)
class ModelInfo:
    """A model that a worker has loaded."""

    name: str
    hash: str  # sha256 hex of the checkpoint file
    precision: str
    resolution: int  # pixels
    classes: tuple[str, ...]
    attention: tuple[AttentionSite, ...] = ()
    metrics: dict[str, object] = field(default_factory=dict)
    licence: str = ""
    description: str = ""
    loaded_at: datetime | None = None  # by Redis' clock; None: a worker of format 1
    draining: bool = False  # its file was replaced or removed: it makes the jobs that wait, and gets no more

    @property
    def version(self) -> str:
        return version_of(self.hash, self.precision)


@dataclass(frozen=True)
class ModelStats:
    """A worker's counts for one model since it started, for the API; all others are the worker's /metrics.

    Heartbeats of older releases have more, which is not read.
    """

    attention_maps: int = 0


@dataclass(frozen=True)
class WorkerInfo:
    """A worker's heartbeat: it is alive, and what it has and did."""

    id: str
    device: str
    started_at: datetime
    beat_at: datetime
    models: tuple[ModelInfo, ...]
    stats: dict[str, ModelStats] = field(default_factory=dict)  # by name of the model
    in_hand: tuple[str, ...] = ()  # ids of the jobs that it works on
    consuming: bool = True  # its consumer is connected to Redis
    stuck: str | None = None  # why it makes nothing now; None: it does
    refused: dict[str, str] = field(default_factory=dict)  # file in its folder -> why it is not served
    results: str = "redis"  # where it stores images: redis, or the URL of an object store
    format: int = 1  # of its heartbeat, and of the messages that it takes; 1 did not tell


@dataclass(frozen=True)
class AttentionMap:
    """The attention of one layer for one image.

    Rows are queries, in row-major order (y * width + x); each sums to 1. Grids are (height, width).
    """

    layer: str
    query_grid: tuple[int, int]
    key_grid: tuple[int, int]
    gamma: float
    share: float  # ‖γ·o‖ / ‖x‖: what attention adds to the features at that layer
    map: NDArray[np.float16]  # [queries, keys]

    def to_bytes(self) -> bytes:
        """Compressed, for Redis."""
        header = {name: getattr(self, name) for name in HEADER}
        # all low bytes, then all high ones: the high ones repeat, so the whole packs smaller and sooner
        values = np.ascontiguousarray(self.map, np.float16).view(np.uint8).reshape(-1, 2).T.tobytes()
        return zlib.compress(json.dumps(header).encode() + b"\n" + values, level=1)

    @classmethod
    def from_bytes(cls, data: bytes) -> AttentionMap:
        head, values = zlib.decompress(data).split(b"\n", 1)
        header = json.loads(head)
        query_grid, key_grid = tuple(header.pop("query_grid")), tuple(header.pop("key_grid"))
        numbers = np.frombuffer(values, np.uint8).reshape(2, -1).T.copy().view(np.float16)
        shape = (math.prod(query_grid), math.prod(key_grid))
        return cls(query_grid=query_grid, key_grid=key_grid, map=numbers.reshape(shape), **header)


HEADER: Final = ("layer", "query_grid", "key_grid", "gamma", "share")  # of an attention map in Redis
FAILED: Final = b"failed:"  # stands before the reason, where a map could not be made


def attention_channel_key(job_id: str, image: int, layer: str) -> str:
    """The key under which pub/sub tells that a map is there."""
    return f"{job_id}/{image}/{layer}"


def version_of(model_hash: str, precision: str) -> str:
    """What decides an image beside its own spec; a queue each."""
    return f"{model_hash[:16]}.{precision}"


def new_job_id() -> str:
    """A random id that nobody can guess."""
    # 128 bits: without API keys, whoever knows an id may read the job
    while (job_id := secrets.token_urlsafe(16)).startswith("-"):
        pass  # a command would take it for an option
    return job_id


def as_state(text: str) -> State:
    """The state of that name."""
    states: Sequence[State] = ("queued", "running", "succeeded", "failed", "cancelled")
    return next(state for state in states if state == text)
