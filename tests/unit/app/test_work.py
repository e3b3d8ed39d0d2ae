"""When what there is to do is too much."""

from __future__ import annotations

import pytest

from app import work
from app.work import CROWD, STANDS, Work


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(work, "monotonic", lambda: clock.now)
    return clock


def crowd(here: Work, size: int = CROWD) -> Work:
    for one in range(size):
        here.begin(one)
    return here


def test_a_burst_of_any_size_is_answered(clock: Clock) -> None:
    here = crowd(Work(), 500)
    clock.now += STANDS / 2
    assert not here.is_too_much()
    for one in range(500):
        here.end(one)
    clock.now += STANDS
    crowd(here)
    assert not here.is_too_much()


def test_a_crowd_that_stands_is_let_in_as_others_leave(clock: Clock) -> None:
    here = crowd(Work())
    clock.now += 1.1 * STANDS
    assert here.is_too_much()
    here.end(0)
    assert not here.is_too_much()
    here.begin(0)
    assert here.is_too_much()  # at once: it has not been gone for long


def test_a_crowd_is_gone_after_a_while_with_room(clock: Clock) -> None:
    here = crowd(Work())
    clock.now += 1.1 * STANDS
    assert here.is_too_much()
    here.end(0)
    clock.now += 1.1 * STANDS
    assert not here.is_too_much()
    here.begin(0)
    assert not here.is_too_much()


def test_room_for_a_moment_begins_the_time_anew(clock: Clock) -> None:
    here = crowd(Work())
    for _ in range(10):
        clock.now += STANDS / 2
        here.end(0)
        here.begin(0)
        assert not here.is_too_much()


def test_what_ends_twice_leaves_once(clock: Clock) -> None:
    here = crowd(Work(), CROWD + 1)
    here.end(0)
    here.end(0)
    clock.now += 1.1 * STANDS
    assert here.is_too_much()
