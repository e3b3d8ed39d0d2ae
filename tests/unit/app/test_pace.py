"""When there will be room again: from what ended lately."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from app import pace
from app.pace import EVERY, LONGEST, Pace
from jobs.job import ModelStats, State, WorkerInfo

if TYPE_CHECKING:
    from jobs.client import JobClient


class Fleet:
    """What Redis and the workers have counted, at a time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.jobs, self.maps = 1000.0, 0, 0
        monkeypatch.setattr(pace, "monotonic", lambda: self.seconds)

    async def counts(self) -> dict[State, int]:
        return {"queued": 100, "running": 7, "succeeded": self.jobs}

    async def workers(self) -> list[WorkerInfo]:
        now = datetime.now(UTC)
        return [WorkerInfo("w", "cpu", now, now, (), {"m": ModelStats(attention_maps=self.maps)})]


async def looks(fleet: Fleet, times: int, jobs: int, maps: int = 0) -> Pace:
    """After so many looks, between which so many jobs ended."""
    found = Pace()
    store: JobClient = fleet  # type: ignore[assignment]
    for _ in range(times):
        await found.look(store)
        fleet.seconds += EVERY
        fleet.jobs += jobs
        fleet.maps += maps
    return found


@pytest.mark.parametrize(
    ("jobs", "waiting", "seconds"),
    [
        (500, 1000, 1),  # 100 a second
        (5, 1000, 100),  # 1 a second: a tenth of the queue is 100 jobs
        (1, 8, 5),  # one in 5 seconds, and one place is what is waited for
        (0, 8, 20),  # none in 20 seconds: as long again
        (0, 1000, LONGEST),
    ],
)
async def test_a_full_queue_has_room_after_a_tenth_of_it(
    monkeypatch: pytest.MonkeyPatch, jobs: int, waiting: int, seconds: int
) -> None:
    found = await looks(Fleet(monkeypatch), 5, jobs)
    assert found.until_a_job_fits(waiting) == seconds


async def test_only_the_last_minute_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch)
    found = await looks(fleet, 5, 1000)
    store: JobClient = fleet  # type: ignore[assignment]
    for _ in range(14):  # slower since
        await found.look(store)
        fleet.seconds += EVERY
        fleet.jobs += 5
    assert found.until_a_job_fits(100) == 10


async def test_maps_have_a_pace_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await looks(Fleet(monkeypatch), 5, 0, maps=10)
    assert found.until_a_map_fits(100) == 5


async def test_who_has_only_begun_says_so_and_a_worker_that_leaves_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Pace().until_a_job_fits(1000) == EVERY
    fleet = Fleet(monkeypatch)
    fleet.maps = 500
    found = await looks(fleet, 2, 0, maps=-400)
    assert found.until_a_map_fits(10) == EVERY
