"""Jobs and heartbeats in Redis: JSON of the dataclasses in jobs.job, validated when it is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from jobs.errors import NewerFormat
from jobs.job import FORMAT, NOWHERE, Context, Job, JobSpec, ModelInfo, Webhook, WorkerInfo, as_state

log = logging.getLogger(__name__)

MOST_UNREADABLE: Final = 1000  # workers remembered
_unreadable: dict[str, None] = {}  # workers whose heartbeat was told to be unreadable

SPEC: Final = TypeAdapter(JobSpec)
CONTEXT: Final = TypeAdapter(Context)
WORKER: Final = TypeAdapter(WorkerInfo)
_TRIAL: Final = TypeAdapter(list[list[list[list[ModelInfo]]]])


def read_job(job_id: str, record: Mapping[bytes, bytes]) -> Job:
    """A job from its hash in Redis. Raises NewerFormat."""
    text = {name.decode(): value.decode() for name, value in record.items()}
    if int(text.get("format", 1)) > FORMAT:
        raise NewerFormat(job_id)
    return Job(
        id=job_id,
        owner=text["owner"],
        spec=SPEC.validate_json(text["spec"]),
        state=as_state(text["state"]),
        created_at=datetime.fromtimestamp(float(text["created_at"]), UTC),
        started_at=_time(text.get("started_at")),
        finished_at=_time(text.get("finished_at")),
        error=text["error"] or None,
        done=int(text["done"]),
        expires_at=_time(text.get("expires_at")),
        attempts=int(text["attempts"]),
        deadline=_time(text.get("deadline")),
        context=read_context(text.get("context")),
        purged="purged" in text,
    )


def read_context(text: str | bytes | None) -> Context:
    """A context from its JSON; that of nobody where there is none, or one that cannot be read."""
    if not text:
        return NOWHERE
    try:
        return CONTEXT.validate_json(text)
    except ValidationError:  # it decides no image: the job goes on
        return NOWHERE


def as_context(found: object) -> Context:
    """The same from what a message carries."""
    try:
        return CONTEXT.validate_python(found)
    except ValidationError:
        return NOWHERE


def read_workers(beats: Mapping[str, bytes | None]) -> list[WorkerInfo]:
    """The workers of these heartbeats (worker -> JSON; None: it is dead), the oldest first.

    One that cannot be read is left out and logged once: it is one worker's matter.
    """
    found = []
    for worker, beat in beats.items():
        if beat is None:
            continue
        try:
            found.append(WORKER.validate_json(beat))
        except ValidationError as error:
            if worker not in _unreadable:
                _unreadable[worker] = None
                log.error(
                    "the heartbeat of worker %s cannot be read, so it does not count: %s", worker, error
                )
    while len(_unreadable) > MOST_UNREADABLE:
        del _unreadable[next(iter(_unreadable))]
    return sorted(found, key=lambda worker: worker.started_at)


def printable(text: str) -> str:
    """`text` as JSON and logs can carry it: a file's name may be no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def announceable(model: ModelInfo) -> None:
    """Raises ValueError for a model that no heartbeat can tell of, such as a class name that is no text."""
    # as deep as answers of the API nest it, and a little more
    try:
        _TRIAL.validate_json(_TRIAL.dump_json([[[[model]]]]))
    except (PydanticSerializationError, ValidationError) as error:
        raise ValueError(f"its header has what JSON cannot carry ({error})") from error


def changed_job(job: Job, changes: str | bytes) -> Job:
    """The job after a change. changes: what finish() in jobs/lua/prelude.lua publishes."""
    state, error, done, attempts, started_at, finished_at, expires_at = json.loads(changes)
    return replace(
        job,
        state=as_state(state),
        error=error or None,
        done=int(done),
        attempts=int(attempts),
        started_at=_time(started_at or None),
        finished_at=_time(finished_at or None),
        expires_at=_time(expires_at or None),
    )


def webhook_field(webhook: Webhook, caller: str) -> str:
    """A webhook as jobs/lua/prelude.lua reads it. caller: who ordered the job."""
    return f"{hook_tag(caller)}:{hook_tag(webhook.receiver)} {','.join(webhook.events)} {webhook.url}"


def hook_tag(name: str) -> str:
    """A caller or receiver in a member of Keys.hooks."""
    return sha256(name.encode()).hexdigest()[:16]


def read_webhook(field: bytes) -> tuple[str, list[str]]:
    """URL and events of a job's webhook."""
    _, events, url = field.decode().split(" ", 2)
    return url, events.split(",")


def as_time(answer: tuple[int, int]) -> datetime:
    """Redis' answer to TIME."""
    seconds, micros = answer
    return datetime.fromtimestamp(seconds + micros / 1e6, UTC)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromtimestamp(float(text), UTC)
