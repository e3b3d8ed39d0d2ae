"""The batcher: who shares a forward, whose turn it is, and what an end means to those who wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.batcher import Batcher, Dropped, Ticket
from worker.jobs import Recipe
from worker.worker_store import Stopping


class Recorder:
    """A sampler that notes each forward, and waits to be let through the first one."""

    rows = 4

    def __init__(self) -> None:
        self.forwards: list[list[int]] = []  # seeds
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.bad_seed = -1

    def sample(self, recipes: Sequence[Recipe]) -> NDArray[np.uint8]:
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(10)
        if any(recipe.seed == self.bad_seed for recipe in recipes):
            raise RuntimeError("out of memory")
        self.forwards.append([recipe.seed for recipe in recipes])
        return np.array([[[[recipe.seed, recipe.index, 0]]] for recipe in recipes], np.uint8)


class Desk:
    """A batcher with two models, whose first forward waits until everything is in place."""

    def __init__(self) -> None:
        self.model = Recorder()
        self.other = Recorder()
        self.refused: set[str] = set()
        self.begun: list[tuple[list[str], list[str]]] = []
        self.batcher = Batcher(lambda: {"m": self.model, "other": self.other}, self.begin)
        self.batcher.start()
        self.other.gate.set()

    def begin(self, entering: Sequence[str], survived: Sequence[str]) -> set[str]:
        self.begun.append((list(entering), list(survived)))
        return set(entering) - self.refused

    def ask(self, seed: int, count: int = 1, **changes: object) -> Ticket:
        values: dict[str, object] = {"job_id": f"job-{seed}", "model": "m", "priority": 5, **changes}
        ticket = Ticket(recipes=[Recipe(0, seed, index, 1.0) for index in range(count)], **values)  # type: ignore[arg-type]
        self.batcher.submit(ticket)
        return ticket

    def hold(self) -> None:
        """Occupy the device: what is asked from now on waits behind this."""
        self.ask(0)
        assert self.model.entered.wait(10)

    def run(self, *tickets: Ticket) -> list[list[int]]:
        """Let everything through; the seeds of each forward after the first."""
        self.model.gate.set()
        for ticket in tickets:
            for future in ticket.futures:
                future.result(10)
        return self.model.forwards[1:]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.model.gate.set()
    desk.batcher.stop()
    desk.batcher.join(10)


def test_waiting_jobs_share_a_forward_and_each_gets_its_own_image(desk: Desk) -> None:
    desk.hold()
    tickets = [desk.ask(seed) for seed in (1, 2, 3, 4, 5)]
    assert desk.run(*tickets) == [[1, 2, 3, 4], [5]]
    assert [ticket.futures[0].result()[0, 0, 0] for ticket in tickets] == [1, 2, 3, 4, 5]
    assert len(desk.model.threads) == 1
    assert desk.model.threads != {threading.get_ident()}


def test_jobs_take_turns_so_that_a_long_one_holds_nobody_up(desk: Desk) -> None:
    desk.hold()
    long = desk.ask(9, count=10)
    short = [desk.ask(seed) for seed in (1, 2, 3, 4)]
    assert desk.run(long, *short) == [[9, 1, 2, 3], [4, 9, 9, 9], [9, 9, 9, 9], [9, 9]]
    assert [future.result()[0, 0, 1] for future in long.futures] == list(range(10))


def test_the_urgent_go_first_and_the_rest_fills_up(desk: Desk) -> None:
    desk.hold()
    lazy = desk.ask(1, count=3, priority=0)
    urgent = desk.ask(2, count=6, priority=9)
    assert desk.run(lazy, urgent) == [[2, 2, 2, 2], [2, 2, 1, 1], [1]]


def test_a_suspect_runs_alone(desk: Desk) -> None:
    desk.hold()
    tickets = [desk.ask(1, count=2), desk.ask(6, count=2, alone=True), desk.ask(2, count=2)]
    forwards = desk.run(*tickets)
    assert sorted(map(sorted, forwards)) == [[1, 1, 2, 2], [6, 6]]


def test_a_forward_is_of_one_model(desk: Desk) -> None:
    desk.hold()
    tickets = [desk.ask(1), desk.ask(7, model="other"), desk.ask(2), desk.ask(8, model="other")]
    assert desk.run(*tickets) == [[1, 2]]
    assert desk.other.forwards == [[7, 8]]


def test_attempts_are_counted_forward_by_forward(desk: Desk) -> None:
    desk.hold()
    desk.run(desk.ask(1, count=5), desk.ask(2))
    assert desk.begun == [
        (["job-0"], []),
        (["job-1", "job-2"], ["job-0"]),
        (["job-1"], ["job-1", "job-2"]),
    ]


def test_a_job_that_may_not_run_is_dropped(desk: Desk) -> None:
    desk.hold()
    desk.refused = {"job-1"}
    cancelled, other = desk.ask(1, count=9), desk.ask(2)
    assert desk.run(other) == [[2]]
    for future in cancelled.futures:
        assert isinstance(future.exception(10), Dropped)


def test_what_is_dropped_while_it_waits_never_runs(desk: Desk) -> None:
    desk.hold()
    cancelled, other = desk.ask(1, count=9), desk.ask(2)
    desk.batcher.drop(cancelled)
    assert desk.run(other) == [[2]]


def test_an_error_in_a_forward_is_the_fault_of_one_job(desk: Desk) -> None:
    desk.hold()
    desk.model.bad_seed = 2
    bad, good = desk.ask(2, count=3), [desk.ask(1), desk.ask(3)]
    desk.run(*good)
    for future in bad.futures:
        assert "out of memory" in str(future.exception(10))
    assert desk.ask(4).futures[0].result(10)[0, 0, 0] == 4


def test_a_call_comes_before_the_next_forward(desk: Desk) -> None:
    desk.hold()
    ticket = desk.ask(1)
    seen = desk.batcher.call("m", lambda model: (threading.get_ident(), len(model.forwards)))
    desk.run(ticket)
    thread, forwards = seen.result(10)
    assert {thread} == desk.model.threads
    assert forwards == 1
    failing = desk.batcher.call("m", lambda model: 1 / 0)
    assert isinstance(failing.exception(10), ZeroDivisionError)


def test_stopping_lets_the_forward_end_and_gives_the_rest_back(desk: Desk) -> None:
    running = desk.ask(0)
    assert desk.model.entered.wait(10)
    waiting = desk.ask(1, count=3)
    call = desk.batcher.call("m", lambda model: None)
    desk.batcher.stop()
    desk.model.gate.set()
    desk.batcher.join(10)
    assert running.futures[0].result(10)[0, 0, 0] == 0
    for future in (*waiting.futures, call, desk.ask(2).futures[0], desk.batcher.call("m", id)):
        assert isinstance(future.exception(10), Stopping)
    assert desk.begun[-1] == ([], ["job-0"])


def test_it_counts_what_it_does(desk: Desk) -> None:
    desk.hold()
    desk.run(desk.ask(1, count=6))
    desk.batcher.call("m", id).result(10)
    stats = desk.batcher.stats()
    assert (stats["m"].images, stats["m"].forwards, stats["m"].batch_sizes) == (7, 3, {1: 1, 4: 1, 2: 1})
    assert stats["m"].busy_seconds > 0
    assert stats["other"].forwards == 0
    desk.batcher.call("m", id).result(10)
    assert desk.batcher.stats()["m"].attention_maps >= 1


def test_the_error_of_loading_reaches_whoever_starts_it() -> None:
    def load() -> dict[str, Recorder]:
        raise FileNotFoundError("no model")

    accept_all: Callable[[Sequence[str], Sequence[str]], set[str]] = lambda entering, _: set(entering)  # noqa: E731
    with pytest.raises(FileNotFoundError, match="no model"):
        Batcher(load, accept_all).start()
