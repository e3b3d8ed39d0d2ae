"""The batcher: who shares a forward, whose turn it is, and what an end means to those who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.batcher import Batcher, Dropped, Made, Ticket
from worker.jobs import Recipe
from worker.worker_store import Stopping


class Recorder:
    """A sampler that notes each forward, and waits to be let through the first one."""

    rows = 4

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = lanes
        self.forwards: list[list[int]] = []  # seeds
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.bad_seed = -1
        self.seconds = 0.0

    def sample(self, recipes: Sequence[Recipe]) -> NDArray[np.uint8]:
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(10)
        time.sleep(self.seconds)
        if any(recipe.seed == self.bad_seed for recipe in recipes):
            raise RuntimeError("out of memory")
        self.forwards.append([recipe.seed for recipe in recipes])
        return np.array([[[[recipe.seed, recipe.index, 0]]] for recipe in recipes], np.uint8)


class Desk:
    """A batcher with two models, whose first forward waits until everything is in place."""

    def __init__(self, lanes: int = 1) -> None:
        self.model = Recorder(lanes)
        self.other = Recorder()
        self.refused: set[str] = set()
        self.begun: list[tuple[list[str], int, list[str]]] = []
        self.made: dict[str, list[tuple[int, int]]] = {}  # job -> (seed, index) as delivered
        self.batcher = Batcher(lambda: {"m": self.model, "other": self.other}, self.begin, self.deliver)
        self.batcher.start()
        self.other.gate.set()

    def begin(self, entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        self.begun.append((list(entering), fresh, list(survived)))
        return lambda: set(entering) - self.refused

    def deliver(self, images: Sequence[Made]) -> None:
        for image in images:
            done = self.made.setdefault(image.ticket.job_id, [])
            done.append((int(image.pixels[0, 0, 0]), int(image.pixels[0, 0, 1])))
            if len(done) == len(image.ticket.recipes):
                image.ticket.end()

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
            ticket.done.result(10)
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
    assert [desk.made[ticket.job_id] for ticket in tickets] == [[(seed, 0)] for seed in (1, 2, 3, 4, 5)]
    assert len(desk.model.threads) == 1
    assert desk.model.threads != {threading.get_ident()}


def test_jobs_take_turns_so_that_a_long_one_holds_nobody_up(desk: Desk) -> None:
    desk.hold()
    long = desk.ask(9, count=10)
    short = [desk.ask(seed) for seed in (1, 2, 3, 4)]
    assert desk.run(long, *short) == [[9, 1, 2, 3], [4, 9, 9, 9], [9, 9, 9, 9], [9, 9]]
    assert desk.made[long.job_id] == [(9, index) for index in range(10)]


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
        (["job-0"], 1, []),
        (["job-1", "job-2"], 2, ["job-0"]),
        (["job-1"], 1, ["job-1", "job-2"]),
    ]


def test_a_job_that_may_not_run_is_dropped(desk: Desk) -> None:
    desk.hold()
    desk.refused = {"job-1"}
    cancelled, other = desk.ask(1, count=9), desk.ask(2)
    assert desk.run(other) == [[2]]
    assert isinstance(cancelled.done.exception(10), Dropped)


def test_a_job_that_was_wanted_a_moment_ago_runs_before_the_answer_comes(desk: Desk) -> None:
    answered = threading.Event()

    def begin(entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        desk.begin(entering, fresh, survived)
        return lambda: set(entering) - desk.refused if answered.wait(10) else set()

    batcher = Batcher(lambda: {"m": desk.model}, begin, desk.deliver)
    batcher.start()
    desk.batcher, other = batcher, desk.batcher
    desk.refused = {"job-2"}
    desk.model.gate.set()
    wanted = desk.ask(1, wanted_at=time.monotonic())
    while not desk.model.forwards:
        time.sleep(0.01)
    assert desk.begun == [(["job-1"], 1, [])]  # it was told of first
    assert not desk.made
    answered.set()
    wanted.done.result(10)
    cancelled = desk.ask(2, count=9, wanted_at=time.monotonic())
    assert isinstance(cancelled.done.exception(10), Dropped)
    assert desk.model.forwards == [[1], [2, 2, 2, 2]]  # one forward in vain, no more
    assert list(desk.made) == ["job-1"]
    for each in (batcher, other):
        each.stop()
        each.join(10)


def test_a_job_that_has_waited_is_asked_about_before_it_runs(desk: Desk) -> None:
    desk.refused = {"job-1"}
    cancelled = desk.ask(1, wanted_at=time.monotonic() - 1)
    assert isinstance(cancelled.done.exception(10), Dropped)
    assert not desk.model.entered.is_set()


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
    assert "out of memory" in str(bad.done.exception(10))
    desk.ask(4).done.result(10)
    assert desk.made["job-4"] == [(4, 0)]


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
    running.done.result(10)
    for future in (waiting.done, call, desk.ask(2).done, desk.batcher.call("m", id)):
        assert isinstance(future.exception(10), Stopping)
    assert desk.begun[-1] == ([], 0, ["job-0"])


def test_lanes_share_what_waits_and_count_a_job_once() -> None:
    desk = Desk(lanes=2)
    long = desk.ask(1, count=6)  # 3 images for each of two free lanes
    for _ in range(1000):
        if len(desk.begun) == 2:
            break
        time.sleep(0.01)
    desk.run(long)
    assert sorted(len(forward) for forward in desk.model.forwards) == [3, 3]
    assert len(desk.model.threads) == 2
    assert [fresh for _, fresh, _ in desk.begun[:2]] == [1, 0]
    assert sorted(desk.made["job-1"]) == [(1, index) for index in range(6)]
    desk.batcher.stop()
    desk.batcher.join(10)


def test_a_suspect_runs_while_no_other_lane_does() -> None:
    desk = Desk(lanes=2)
    desk.hold()
    suspect, other = desk.ask(6, alone=True), desk.ask(2)
    time.sleep(0.1)  # time to make the mistake
    assert [entering for entering, _, _ in desk.begun] == [["job-0"]]
    assert desk.run(suspect, other) == [[6], [2]]
    desk.batcher.stop()
    desk.batcher.join(10)


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

    accept_all: Callable[..., Callable[[], set[str]]] = lambda entering, *_: lambda: set(entering)  # noqa: E731
    with pytest.raises(FileNotFoundError, match="no model"):
        Batcher(load, accept_all, list).start()


def test_small_forwards_do_not_make_what_waits_look_like_more(desk: Desk) -> None:
    desk.model.gate.set()
    desk.model.seconds = 0.1
    desk.ask(1, count=4).done.result(10)
    for seed in range(2, 6):
        desk.ask(seed).done.result(10)
    desk.model.gate.clear()
    desk.model.entered.clear()
    desk.hold()
    waits = desk.ask(9, count=40, job_id="long")
    assert 0.9 < desk.batcher.backlog() < 2  # ten full forwards
    desk.run(waits)
