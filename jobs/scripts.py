"""The scripts in jobs/lua as typed calls: one a change of a job's state, so that record, event and message to
whoever waits change together.

A method of Scripts prepares a call; the call runs on a blocking client (`run`) or an asyncio one (`arun`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, Generic, Literal, TypeVar

from redis.exceptions import NoScriptError

from jobs.errors import IdempotencyConflict, MapsFull, QueueFull, QuotaReached, ShareFull
from jobs.job import FAILED, NOWHERE, PLAIN, USUAL, Job, JobSpec, Taken, Terms, Today
from jobs.keys import Keys
from jobs.records import CONTEXT, SPEC, read_context, read_job, webhook_field
from jobs.results import REDIS, read_stores
from jobs.settings import QueueSettings
from jobs.wire import (
    attention_message,
    attention_queue,
    broker_priority,
    generate_message,
    generate_queue,
    message_list,
    turn_stem,
)

T = TypeVar("T")


def _read(name: str, prelude: str = "") -> str:
    return prelude + files("jobs").joinpath("lua", f"{name}.lua").read_text()


NAMES: Final = (
    "create",
    "end",
    "take",
    "begin",
    "save",
    "release",
    "recount",
    "expire",
    "purge",
    "keep_map",
    "hook_claim",
    "hook_settle",
)
_PRELUDE: Final = _read("prelude")
_TEXTS: Final[Mapping[str, str]] = {
    **{name: _read(name, _PRELUDE) for name in NAMES},
    "claim": _read("claim"),
    "spend": _read("spend"),
}
_DIGESTS: Final = {name: sha1(text.encode()).hexdigest() for name, text in _TEXTS.items()}


@dataclass(frozen=True)
class Call(Generic[T]):
    """One run of a script. Its clients must answer bytes."""

    script: str
    args: Sequence[str | int | float | bytes]
    read: Callable[[Any], T]  # Redis' answer -> ours
    keys: Sequence[str] = ()

    @property
    def by_digest(self) -> tuple[Any, ...]:
        """The command, for a Redis that has seen the script."""
        return "EVALSHA", _DIGESTS[self.script], len(self.keys), *self.keys, *self.args

    @property
    def in_full(self) -> tuple[Any, ...]:
        """The command, for any Redis."""
        return "EVAL", _TEXTS[self.script], len(self.keys), *self.keys, *self.args

    def run(self, redis: Any) -> T:
        try:
            answer = redis.execute_command(*self.by_digest)
        except NoScriptError:
            answer = redis.execute_command(*self.in_full)
        return self.read(answer)

    async def arun(self, redis: Any) -> T:
        try:
            answer = await redis.execute_command(*self.by_digest)
        except NoScriptError:
            answer = await redis.execute_command(*self.in_full)
        return self.read(answer)


@dataclass(frozen=True)
class NewJob:
    """A job to record and queue."""

    id: str
    owner: str
    spec: JobSpec
    idempotency_key: str | None = None
    request: str | None = None  # what the key stands for; None: the spec
    waiter: str = ""  # API process that waits for the end; "": none does
    caller: str = ""  # whose share of the queue it takes; "": the owner's
    format: int = PLAIN  # of its queue and message
    terms: Terms = USUAL


@dataclass(frozen=True)
class Spent:
    """What a caller has spent in this minute."""

    taken: bool  # False: it would have gone beyond the limit, and nothing was taken
    units: int
    resets_in: int  # seconds


@dataclass(frozen=True)
class Purged:
    """What object stores may still have of a job whose images were taken away."""

    stores: Sequence[str]  # URLs
    maps: Sequence[tuple[int, str]]  # image, layer


@dataclass(frozen=True)
class Saved:
    """What became of a job when an image of it was stored."""

    goes_on: bool  # False: it has ended, with this image or before, or is unknown
    ended: tuple[float, float] | None = None  # with this image: seconds that it waited, and took altogether
    refused: bool = False  # it had ended before, and the image's file in an object store is nobody's


Created = tuple[Job, bool] | QueueFull | QuotaReached | IdempotencyConflict  # the job, and whether it is new


class Scripts:
    """Every call of a service with these settings."""

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._keys = Keys(settings.namespace)
        first = read_stores(settings.result_store)[0]
        self._store = "" if first == REDIS else first  # where workers of these settings keep images

    def create(self, jobs: Sequence[NewJob]) -> Call[list[Created]]:
        """Record jobs and queue them; the outcome of each."""
        settings = self._settings
        lifetime = settings.longest_retention + settings.record_ttl
        limits = (settings.max_queued, settings.max_queued_images)
        shares = [max(1, int(limit * settings.caller_share)) for limit in limits]
        parts = [part for job in jobs for part in self._parts(job)]
        return Call(
            "create",
            [self._keys.prefix, lifetime, *limits, *shares, *parts],
            lambda answers: [_created(job, *answer) for job, answer in zip(jobs, answers, strict=True)],
        )

    def _parts(self, job: NewJob) -> tuple[str | int, ...]:
        """A job as create.lua takes it."""
        spec, priority = SPEC.dump_json(job.spec, exclude_defaults=True).decode(), job.spec.priority
        key, request = "", ""
        if job.idempotency_key is not None:
            key = self._keys.idempotency(job.owner, job.idempotency_key)
            request = spec if job.request is None else job.request
        queue, step = generate_queue(job.spec.version, job.format), broker_priority(priority)
        context = CONTEXT.dump_json(job.terms.context, exclude_defaults=True).decode()
        # a worker of format 1 knows kombu's own lists alone
        name = turn_stem if job.format > 1 else message_list
        return (
            *(
                job.id,
                job.owner,
                job.caller or job.owner,
                spec,
                priority,
                job.spec.count,
                key,
                request,
                job.waiter,
            ),
            *(queue, name(self._settings.namespace, queue, step)),
            generate_message(job.id, spec, priority, queue, context),
            job.spec.format,
            "1" if job.spec.listed else "",
            "" if job.terms.expires_in is None else f"{job.terms.expires_in:.3f}",
            self._extras(job, context),
        )

    def _extras(self, job: NewJob, context: str) -> str:
        """Further fields of a job's record, as JSON of field, value, field, ...; "": none."""
        terms, fields = job.terms, list[str]()
        if terms.context != NOWHERE:
            fields += ["context", context]
        if terms.quota is not None:  # create.lua counts it
            asked = job.spec.count if terms.quota.asked is None else terms.quota.asked
            fields += ["quota", f"{terms.quota.key}:{terms.quota.images}:{asked}"]
        if terms.retention is not None:
            fields += ["retention", str(terms.retention)]
        if terms.webhook is not None:
            fields += ["webhook", webhook_field(terms.webhook, job.caller or job.owner)]
        if self._store:
            fields += ["store", self._store]
        return json.dumps(fields) if fields else ""

    def end(self, job_id: str, state: Literal["failed", "cancelled"], reason: str = "") -> Call[bool]:
        """End a job without success. False: it had ended before, or is unknown."""
        times = (self._settings.result_ttl, self._settings.record_ttl)
        return Call("end", [self._keys.prefix, job_id, state, reason, *times], bool)

    def take(self, job_id: str, worker: str) -> Call[Taken | None]:
        """Give a job to a worker. None: it has ended, is unknown, or a living worker has it."""

        def read(answer: Any) -> Taken | None:
            if answer is None:
                return None
            spec, attempts, context, *made = answer
            images = frozenset(map(int, made))
            return Taken(job_id, SPEC.validate_json(spec), int(attempts), images, read_context(context))

        return Call("take", [self._keys.prefix, job_id, worker], read)

    def begin(
        self, worker: str, entering: Sequence[str], fresh: int, survived: Sequence[str]
    ) -> Call[set[str]]:
        """Count an attempt for jobs that enter a forward, and clear it for those that came out of their last.

        entering: each job once; the first `fresh` of them are in no other forward of this worker. Answers
        with the jobs that may run: not the cancelled, nor those that another worker has taken over, nor those
        past their deadline, which end here.
        """
        times = (self._settings.result_ttl, self._settings.record_ttl)
        args: list[str | int] = [self._keys.prefix, worker, len(entering), fresh, *times]
        args += [*entering, *survived]
        return Call("begin", args, lambda answer: {job_id.decode() for job_id in answer})

    def save(self, images: Sequence[tuple[str, int, bytes]], store: str = "") -> Call[list[Saved]]:
        """Store images (job, index, PNG), those of one job side by side; the last of a job ends it.

        store: URL of the object store that has them already; "": they lie in Redis.
        """
        times = (self._settings.result_ttl, self._settings.record_ttl)
        parts = [part for image in images for part in image]
        return Call(
            "save", [self._keys.prefix, *times, store, *parts], lambda answer: list(map(_saved, answer))
        )

    def purge(self, job_id: str) -> Call[Purged | None]:
        """Take a job's images and maps away, and cancel it before if need be. None: it has none left."""

        def read(answer: Any) -> Purged | None:
            if answer is None:
                return None
            stores, *maps = (part.decode() for part in answer)
            places = [(int(image), layer) for image, layer in zip(maps[::2], maps[1::2], strict=True)]
            return Purged(tuple(stores.split()), places)

        return Call("purge", [self._keys.prefix, job_id, self._settings.record_ttl], read)

    def keep_map(self, place: tuple[str, int, str], content: bytes, store: str, name: str) -> Call[bool]:
        """Keep an attention map of (job, image, layer). False: its job is gone.

        store: URL of the object store that has it under `name`; "": it lies in Redis.
        """
        args: tuple[str | int | bytes, ...] = (*place, content, "", self._settings.result_ttl, store, name)
        return Call("keep_map", [self._keys.prefix, *args], bool)

    def keep_reason(self, place: tuple[str, int, str], reason: str, seconds: int) -> Call[bool]:
        """Keep for so long why there is no map. False: the job is gone."""
        args: tuple[str | int | bytes, ...] = (*place, FAILED + reason.encode(), seconds, 0, "", "")
        return Call("keep_map", [self._keys.prefix, *args], bool)

    def claim_attention(
        self, job: Job, image: int, layer: str, caller: str, seconds: int, format: int = PLAIN
    ) -> Call[MapsFull | None]:
        """Queue an attention map that somebody waits for, up to so many seconds. MapsFull: it was refused.

        format: of its queue.
        """
        most = self._settings.max_queued_maps
        queue = attention_queue(job.spec.version, format)
        keys = (
            self._keys.attention_claim(job.id, image, layer),
            message_list(self._settings.namespace, queue, 0),
            self._keys.attention_asked,
            self._keys.attention(job.id, image, layer),
        )
        share = max(1, most // 2)
        args = (attention_message(job.id, image, layer, queue), seconds, most, share, caller)

        def read(answer: Any) -> MapsFull | None:
            outcome, waiting = answer
            return None if outcome in (b"queued", b"known") else MapsFull(waiting, own=outcome == b"share")

        return Call("claim", args, read, keys)

    def spend(self, caller: str, cost: int, limit: int) -> Call[Spent]:
        """Take `cost` from what a caller may spend in this minute, unless that goes beyond `limit`."""
        counters = self._keys.rate(caller)
        return Call("spend", [counters, cost, limit], lambda answer: Spent(bool(answer[0]), *answer[1:]))

    def release(self, job_id: str, holder: str) -> Call[bool]:
        """Let a job of a worker wait again; its message is still there. False: it ended or moved on."""
        return Call("release", [self._keys.prefix, job_id, holder, "", ""], bool)

    def bring_back(self, job_id: str, spec: JobSpec, holder: str, format: int = PLAIN) -> Call[bool]:
        """Queue a job again, at the front, for workers of a format. False: it ended or moved on.

        holder: the worker that had it; "": none did.
        """
        queue = generate_queue(spec.version, format)
        name = message_list(self._settings.namespace, queue, broker_priority(spec.priority))
        message = generate_message(job_id, None, spec.priority, queue)
        return Call("release", [self._keys.prefix, job_id, holder, name, message], bool)

    def expire(self) -> Call[list[str]]:
        """Cancel the jobs whose deadline has come, a hundred at most; their ids."""
        times = (self._settings.result_ttl, self._settings.record_ttl)
        return Call("expire", [self._keys.prefix, *times], lambda ids: [job_id.decode() for job_id in ids])

    def recount(self) -> Call[bool]:
        """Count anew what waits of each caller."""
        return Call("recount", [self._keys.prefix], bool)


def _saved(answer: Any) -> Saved:
    if isinstance(answer, list):
        return Saved(False, (float(answer[0]), float(answer[1])))
    return Saved(answer == 1, refused=answer is None)


def _created(job: NewJob, outcome: bytes, detail: bytes, *record: bytes) -> Created:
    match outcome:
        case b"new":
            created_at = datetime.fromtimestamp(float(detail), UTC)
            lives = job.terms.expires_in
            deadline = None if lives is None else created_at + timedelta(seconds=lives)
            context = job.terms.context
            made = Job(job.id, job.owner, job.spec, "queued", created_at, deadline=deadline, context=context)
            return (replace(made, today=Today(*map(int, record))) if record else made), True
        case b"full":
            return QueueFull(int(detail))
        case b"share":
            return ShareFull(int(detail))
        case b"quota":
            quota = job.terms.quota
            assert quota is not None
            return QuotaReached(quota.asked or job.spec.count, quota, Today(int(detail), *map(int, record)))
        case b"conflict":
            return IdempotencyConflict(str(job.idempotency_key))
        case _:  # "again" or "known"
            fields = dict(zip(record[::2], record[1::2], strict=True))
            return read_job(detail.decode(), fields), outcome == b"again"
