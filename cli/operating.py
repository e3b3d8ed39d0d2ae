"""Commands for whoever runs the service: what waits, what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.common import AsJson, add_row, fail, show, table, tell

if TYPE_CHECKING:
    from jobs.job import State
    from jobs.operator import Operator, Row

STYLES: Final = {"ok": "", "note": "dim", "look": "yellow", "bad": "red"}


class In(StrEnum):
    """The states of a job."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


Caller = Annotated[
    str | None,
    typer.Option(
        help="Of this caller alone: an owner, an address or the id of a key, or its first 6 letters"
    ),
]
OfModel = Annotated[str | None, typer.Option(help="For this model alone")]


@contextmanager
def _operator() -> Iterator[Operator]:
    """The Redis of SAGAN_REDIS_URL, or that of a `sagan serve` with this state folder."""
    from redis.exceptions import RedisError

    from jobs.operator import Operator
    from serve.running import queue_settings

    operator = Operator(queue_settings())
    try:
        yield operator
    except RedisError as error:
        fail(
            f"Redis does not answer ({error}). Set SAGAN_REDIS_URL to the service's Redis, or run this where "
            "`sagan serve` was started."
        )
    finally:
        operator.close()


def list_jobs(
    state: Annotated[
        list[In] | None, typer.Option(help="Several times: each; default: queued, running")
    ] = None,
    caller: Caller = None,
    model: OfModel = None,
    limit: Annotated[int, typer.Option(help="Rows at most", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """The jobs that wait or run, in the order in which they will run; or those that have ended."""
    with _operator() as operator:
        states = _states(state)
        rows: list[Row] = []
        more = False
        for row in _chosen(operator, states, caller, model):
            if len(rows) == limit:
                more = True
                break
            rows.append(row)
        now = operator.time()
    if as_json:
        tell(json.dumps({"jobs": [_facts(row) for row in rows], "more": more}, indent=2))
        return
    if not rows:
        tell(f"No job is {' or '.join(states)}{' of these' if caller or model else ''}.")
        return
    shown = table("job", "state", "place", "age", "images", "class", "model", "caller", "worker")
    for row in rows:
        job = row.job
        add_row(
            shown,
            job.id,
            job.state,
            "" if row.position is None else str(row.position),
            _span((now - job.created_at).total_seconds()),
            f"{job.done}/{job.spec.count}",
            job.spec.class_name,
            job.spec.model,
            (job.context.key or row.caller or job.owner)[:12],
            row.worker,
        )
    show(shown)
    if more:
        tell(f"These are the first {limit}; --limit shows more.")


def inspect(job_id: Annotated[str, typer.Argument(help="Id of a job")], as_json: AsJson = False) -> None:
    """All that is known of a job: where it stands, who asked for it, what became of it."""
    with _operator() as operator:
        row = operator.find(job_id)
        if row is None:
            fail(f"Redis knows no job {job_id[:64]!r}: it was never made, or is forgotten.")
        events = operator.events(job_id)
    facts = _facts(row) | {
        "events": [{"at": at.isoformat(), "state": state, "done": done} for at, state, done in events]
    }
    if as_json:
        tell(json.dumps(facts, indent=2))
        return
    shown = table("", "")
    for name, value in facts.items():
        if name == "events":
            value = "\n".join(f"{at:%H:%M:%S.%f} {state}, {done} made" for at, state, done in events)
        add_row(shown, name, "" if value is None else str(value))
    show(shown)


def cancel(
    job_id: Annotated[list[str] | None, typer.Argument(help="Ids of jobs")] = None,
    state: Annotated[list[In] | None, typer.Option(help="All jobs in this state: queued or running")] = None,
    caller: Caller = None,
    model: OfModel = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before several jobs are cancelled")] = False,
) -> None:
    """End jobs, whoever asked for them. Without ids: all that the options choose."""
    chosen = state or caller or model
    if bool(job_id) == bool(chosen):
        fail("Name jobs by their ids, or choose them by --state, --caller or --model.")
    with _operator() as operator:
        ids = job_id or [row.job.id for row in _chosen(operator, _states(state), caller, model)]
        if chosen and ids and not yes:
            typer.confirm(f"Cancel {len(ids)} jobs?", abort=True)
        done = [each for each in ids if operator.cancel(each)]
    tell(f"{len(done)} of {len(ids)} jobs are cancelled.")
    if job_id and len(done) < len(ids):
        fail(f"Ended before, or unknown: {', '.join(sorted(set(ids) - set(done)))}.")


def doctor(
    url: Annotated[str, typer.Argument(help="Where users reach the service")] = "http://127.0.0.1:8000",
    as_json: AsJson = False,
) -> None:
    """Looks at everything that a service needs, and says what to do where something is wrong."""
    from serve.doctor import examine

    findings = list(examine(url))
    if as_json:
        healthy = all(each.level != "bad" for each in findings)
        tell(json.dumps({"healthy": healthy, "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        shown = table("", "what", "found", "what to do")
        for each in findings:
            add_row(shown, each.level, each.what, each.found, each.advice, style=STYLES[each.level])
        show(shown)
    if any(each.level == "bad" for each in findings):
        raise typer.Exit(1)


def _states(asked: list[In] | None) -> tuple[State, ...]:
    from jobs.job import as_state

    return tuple(as_state(each.value) for each in asked or (In.queued, In.running))


def _chosen(
    operator: Operator, states: tuple[State, ...], caller: str | None, model: str | None
) -> Iterator[Row]:
    for row in operator.rows(states):
        if (caller is None or row.belongs_to(caller)) and model in (None, row.job.spec.model):
            yield row


def _facts(row: Row) -> dict[str, Any]:
    job, spec = row.job, row.job.spec

    def at(moment: Any) -> str | None:
        return None if moment is None else moment.isoformat()

    return {
        "id": job.id,
        "state": job.state,
        "position": row.position,
        "created_at": at(job.created_at),
        "started_at": at(job.started_at),
        "finished_at": at(job.finished_at),
        "expires_at": at(job.expires_at),
        "deadline": at(job.deadline),
        "error": job.error,
        "done": job.done,
        "count": spec.count,
        "attempts": job.attempts,
        "worker": row.worker or None,
        "model": spec.model,
        "version": spec.version,
        "class": spec.class_name,
        "seed": spec.seed,
        "truncation": spec.truncation,
        "priority": spec.priority,
        "owner": job.owner,
        "caller": row.caller,
        "key": job.context.key or None,
        "request_id": job.context.request_id or None,
        "traceparent": job.context.traceparent or None,
    }


def _span(seconds: float) -> str:
    """ "3 s", "2 min", "5 h": short, for a table."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
