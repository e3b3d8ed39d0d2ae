"""The messages that Celery would send, in the form in which kombu keeps them in Redis.

A script stores a job's record and its message in one step, so neither exists without the other, and the API
loads neither Celery nor kombu. A test compares these messages with those of `send_task`.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from functools import cache
from time import time
from typing import Any, Final

from jobs.job import FORMAT, PLAIN

GENERATE: Final = "sagan.generate"  # task (job_id, spec as JSON or None): make the images of a job
ATTENTION: Final = "sagan.attention"  # task (job_id, image, layer): make one attention map

CONTEXT_HEADER: Final = "sagan"  # of a message: the job's context, for logs and traces
_NOWHERE: Final = "{}"

# The queues of format 1, whatever the model. Every worker takes from them, and passes on what it cannot make.
OLD_GENERATE_QUEUE: Final = "generate"
OLD_ATTENTION_QUEUE: Final = "attention"

# Lists of waiting jobs at one step. Each caller whose jobs wait has one of them (see waits() in
# jobs/lua/prelude.lua), and workers take from one after the other, so callers take turns.
TURNS: Final = 8

# One list in Redis a step; the lowest is served first. kombu's default is four steps; the API has ten.
PRIORITY_STEPS: Final = tuple(range(10))


def celery_prefix(namespace: str) -> str:
    """Prefix of Celery's keys in Redis."""
    return f"{namespace}:celery:"


def broker_priority(priority: int) -> int:
    """The step in Redis (0 is served first) of the API's priority (9 is most urgent)."""
    return 9 - priority


def message_list(namespace: str, queue: str, step: int) -> str:
    """The Redis list in which kombu keeps the messages of a queue at one step."""
    name = celery_prefix(namespace) + queue
    return name if step == 0 else f"{name}\x06\x16{step}"


def turn_stem(namespace: str, queue: str, step: int) -> str:
    """The lists of new jobs, less the turn (1 to TURNS). Jobs that came back are in kombu's own list."""
    return f"{celery_prefix(namespace)}{queue}\x06\x16{step}~"


def generate_queue(version: str, format: int = PLAIN) -> str:
    """The queue of jobs of one version of a model (see jobs.job.version_of), for workers of a format."""
    return OLD_GENERATE_QUEUE if format < 2 else f"{OLD_GENERATE_QUEUE}.{format}.{version}"


def attention_queue(version: str, format: int = PLAIN) -> str:
    """The queue of attention maps of one version of a model."""
    return OLD_ATTENTION_QUEUE if format < 2 else f"{OLD_ATTENTION_QUEUE}.{format}.{version}"


def queues_of(version: str, format: int = FORMAT) -> list[str]:
    """The queues of jobs of one version from which workers of a format take, but for that of format 1."""
    return [generate_queue(version, each) for each in range(PLAIN, format + 1)]


def map_queues_of(version: str) -> list[str]:
    """The same of attention maps, for workers of our format."""
    return [attention_queue(version, each) for each in range(PLAIN, FORMAT + 1)]


def is_generate_queue(queue: str) -> bool:
    return queue.startswith(OLD_GENERATE_QUEUE)


def generate_lists(namespace: str, queue: str) -> list[str]:
    """Every list of a queue of jobs, the most urgent first."""
    turns = range(1, TURNS + 1)
    return [
        name
        for step in PRIORITY_STEPS
        for name in (
            message_list(namespace, queue, step),
            *(f"{turn_stem(namespace, queue, step)}{turn}" for turn in turns),
        )
    ]


def generate_message(
    job_id: str, spec: str | None, priority: int, queue: str, context: str = _NOWHERE
) -> str:
    """Message to make the images of a job. spec: JSON, of a new job; None: the worker reads the record.

    context: JSON of a jobs.job.Context.
    """
    return _message(GENERATE, job_id, [job_id, spec], queue, broker_priority(priority), context)


def attention_message(job_id: str, image: int, layer: str, queue: str) -> str:
    """Message to make one attention map, ahead of every job that waits."""
    return _message(ATTENTION, secrets.token_urlsafe(16), [job_id, image, layer], queue, 0)


def _message(task: str, task_id: str, args: list[Any], queue: str, step: int, context: str = _NOWHERE) -> str:
    """Message protocol 2 in the envelope of kombu's virtual transports, as JSON."""
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = b64encode(json.dumps([args, {}, options]).encode()).decode()
    # no escaping: ids, tags and base64 stand in JSON as they are
    parts = {"id": task_id, "tag": secrets.token_hex(16), "body": body, "time": time(), "context": context}
    return _envelope(task, queue, step) % parts


@cache
def _envelope(task: str, queue: str, step: int) -> str:
    """The JSON around a body, as a template: made once, not for each message."""
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": "%(id)s",
        "root_id": "%(id)s",
        "parent_id": None,
        "group": None,
        "group_index": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "",
        "kwargsrepr": "{}",
        "origin": "api",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        CONTEXT_HEADER: "%(context)s",
    }
    properties = {
        "correlation_id": "%(id)s",
        "reply_to": "",
        "delivery_mode": 2,
        "priority": step,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "body_encoding": "base64",
        "delivery_tag": "%(tag)s",
        "timestamp": "%(time).3f",
    }
    envelope = {
        "body": "%(body)s",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    text = json.dumps(envelope).replace('"%(time).3f"', "%(time).3f")  # a number
    return text.replace('"%(context)s"', "%(context)s")  # JSON as it is
