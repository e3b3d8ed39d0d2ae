"""The scheduler: who shares a forward, whose turn it is, and what an end means to those who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from imaging.spec import ImageSpec
from jobs.worker_store import Stopping
from worker.scheduler import Dropped, Made, PendingJob, Scheduler


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

    def sample(self, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(10)
        time.sleep(self.seconds)
        if any(spec.seed == self.bad_seed for spec in specs):
            raise RuntimeError("out of memory")
        self.forwards.append([spec.seed for spec in specs])
        return np.array([[[[spec.seed, spec.index, 0]]] for spec in specs], np.uint8)


class Dispatcher:
    """A scheduler with two models, whose first forward waits until everything is in place."""

    def __init__(self, lanes: int = 1) -> None:
        self.model = Recorder(lanes)
        self.other = Recorder()
        self.refused: set[str] = set()
        self.begun: list[tuple[list[str], int, list[str]]] = []
        self.made: dict[str, list[tuple[int, int]]] = {}  # job -> (seed, index) as delivered
        self.scheduler = Scheduler(lambda: {"m": self.model, "other": self.other}, self.begin, self.deliver)
        self.scheduler.start()
        self.other.gate.set()

    def begin(self, entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        self.begun.append((list(entering), fresh, list(survived)))
        return lambda: set(entering) - self.refused

    def deliver(self, images: Sequence[Made]) -> None:
        for image in images:
            done = self.made.setdefault(image.pending.job_id, [])
            done.append((int(image.pixels[0, 0, 0]), int(image.pixels[0, 0, 1])))
            if len(done) == len(image.pending.specs):
                image.pending.end()

    def ask(self, seed: int, count: int = 1, **changes: object) -> PendingJob:
        values: dict[str, object] = {"job_id": f"job-{seed}", "model": "m", "priority": 5, **changes}
        pending = PendingJob(specs=[ImageSpec(0, seed, index, 1.0) for index in range(count)], **values)  # type: ignore[arg-type]
        self.scheduler.submit(pending)
        return pending

    def hold(self) -> None:
        """Occupy the device: what is asked from now on waits behind this."""
        self.ask(0)
        assert self.model.entered.wait(10)

    def run(self, *pending_jobs: PendingJob) -> list[list[int]]:
        """Let everything through; the seeds of each forward after the first."""
        self.model.gate.set()
        for pending in pending_jobs:
            pending.done.result(10)
        return self.model.forwards[1:]


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    dispatcher = Dispatcher()
    yield dispatcher
    dispatcher.model.gate.set()
    dispatcher.scheduler.stop()
    dispatcher.scheduler.join(10)


def test_waiting_jobs_share_a_forward_and_each_gets_its_own_image(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    pending_jobs = [dispatcher.ask(seed) for seed in (1, 2, 3, 4, 5)]
    assert dispatcher.run(*pending_jobs) == [[1, 2, 3, 4], [5]]
    assert [dispatcher.made[pending.job_id] for pending in pending_jobs] == [
        [(seed, 0)] for seed in (1, 2, 3, 4, 5)
    ]
    assert len(dispatcher.model.threads) == 1
    assert dispatcher.model.threads != {threading.get_ident()}


def test_jobs_take_turns_so_that_a_long_one_holds_nobody_up(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    long = dispatcher.ask(9, count=10)
    short = [dispatcher.ask(seed) for seed in (1, 2, 3, 4)]
    assert dispatcher.run(long, *short) == [[9, 1, 2, 3], [4, 9, 9, 9], [9, 9, 9, 9], [9, 9]]
    assert dispatcher.made[long.job_id] == [(9, index) for index in range(10)]


def test_the_urgent_go_first_and_the_rest_fills_up(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    lazy = dispatcher.ask(1, count=3, priority=0)
    urgent = dispatcher.ask(2, count=6, priority=9)
    assert dispatcher.run(lazy, urgent) == [[2, 2, 2, 2], [2, 2, 1, 1], [1]]


def test_a_suspect_runs_alone(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    pending_jobs = [
        dispatcher.ask(1, count=2),
        dispatcher.ask(6, count=2, alone=True),
        dispatcher.ask(2, count=2),
    ]
    forwards = dispatcher.run(*pending_jobs)
    assert sorted(map(sorted, forwards)) == [[1, 1, 2, 2], [6, 6]]


def test_a_forward_is_of_one_model(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    pending_jobs = [
        dispatcher.ask(1),
        dispatcher.ask(7, model="other"),
        dispatcher.ask(2),
        dispatcher.ask(8, model="other"),
    ]
    assert dispatcher.run(*pending_jobs) == [[1, 2]]
    assert dispatcher.other.forwards == [[7, 8]]


def test_attempts_are_counted_forward_by_forward(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    dispatcher.run(dispatcher.ask(1, count=5), dispatcher.ask(2))
    assert dispatcher.begun == [
        (["job-0"], 1, []),
        (["job-1", "job-2"], 2, ["job-0"]),
        (["job-1"], 1, ["job-1", "job-2"]),
    ]


def test_a_job_that_may_not_run_is_dropped(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    dispatcher.refused = {"job-1"}
    cancelled, other = dispatcher.ask(1, count=9), dispatcher.ask(2)
    assert dispatcher.run(other) == [[2]]
    assert isinstance(cancelled.done.exception(10), Dropped)


def test_a_job_that_was_wanted_a_moment_ago_runs_before_the_answer_comes(dispatcher: Dispatcher) -> None:
    answered = threading.Event()

    def begin(entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        dispatcher.begin(entering, fresh, survived)
        return lambda: set(entering) - dispatcher.refused if answered.wait(10) else set()

    scheduler = Scheduler(lambda: {"m": dispatcher.model}, begin, dispatcher.deliver)
    scheduler.start()
    dispatcher.scheduler, other = scheduler, dispatcher.scheduler
    dispatcher.refused = {"job-2"}
    dispatcher.model.gate.set()
    wanted = dispatcher.ask(1, wanted_at=time.monotonic())
    while not dispatcher.model.forwards:
        time.sleep(0.01)
    assert dispatcher.begun == [(["job-1"], 1, [])]  # it was told of first
    assert not dispatcher.made
    answered.set()
    wanted.done.result(10)
    cancelled = dispatcher.ask(2, count=9, wanted_at=time.monotonic())
    assert isinstance(cancelled.done.exception(10), Dropped)
    assert dispatcher.model.forwards == [[1], [2, 2, 2, 2]]  # one forward in vain, no more
    assert list(dispatcher.made) == ["job-1"]
    for each in (scheduler, other):
        each.stop()
        each.join(10)


def test_a_job_that_has_waited_is_asked_about_before_it_runs(dispatcher: Dispatcher) -> None:
    dispatcher.refused = {"job-1"}
    cancelled = dispatcher.ask(1, wanted_at=time.monotonic() - 1)
    assert isinstance(cancelled.done.exception(10), Dropped)
    assert not dispatcher.model.entered.is_set()


def test_what_is_dropped_while_it_waits_never_runs(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    cancelled, other = dispatcher.ask(1, count=9), dispatcher.ask(2)
    dispatcher.scheduler.drop(cancelled)
    assert dispatcher.run(other) == [[2]]


def test_an_error_in_a_forward_is_the_fault_of_one_job(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    dispatcher.model.bad_seed = 2
    bad, good = dispatcher.ask(2, count=3), [dispatcher.ask(1), dispatcher.ask(3)]
    dispatcher.run(*good)
    assert "out of memory" in str(bad.done.exception(10))
    dispatcher.ask(4).done.result(10)
    assert dispatcher.made["job-4"] == [(4, 0)]


def test_a_call_comes_before_the_next_forward(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    pending = dispatcher.ask(1)
    seen = dispatcher.scheduler.call("m", lambda model: (threading.get_ident(), len(model.forwards)))
    dispatcher.run(pending)
    thread, forwards = seen.result(10)
    assert {thread} == dispatcher.model.threads
    assert forwards == 1
    failing = dispatcher.scheduler.call("m", lambda model: 1 / 0)
    assert isinstance(failing.exception(10), ZeroDivisionError)


def test_stopping_lets_the_forward_end_and_gives_the_rest_back(dispatcher: Dispatcher) -> None:
    running = dispatcher.ask(0)
    assert dispatcher.model.entered.wait(10)
    waiting = dispatcher.ask(1, count=3)
    call = dispatcher.scheduler.call("m", lambda model: None)
    dispatcher.scheduler.stop()
    dispatcher.model.gate.set()
    dispatcher.scheduler.join(10)
    running.done.result(10)
    for future in (waiting.done, call, dispatcher.ask(2).done, dispatcher.scheduler.call("m", id)):
        assert isinstance(future.exception(10), Stopping)
    assert dispatcher.begun[-1] == ([], 0, ["job-0"])


def test_lanes_share_what_waits_and_count_a_job_once() -> None:
    dispatcher = Dispatcher(lanes=2)
    long = dispatcher.ask(1, count=6)  # 3 images for each of two free lanes
    for _ in range(1000):
        if len(dispatcher.begun) == 2:
            break
        time.sleep(0.01)
    dispatcher.run(long)
    assert sorted(len(forward) for forward in dispatcher.model.forwards) == [3, 3]
    assert len(dispatcher.model.threads) == 2
    assert [fresh for _, fresh, _ in dispatcher.begun[:2]] == [1, 0]
    assert sorted(dispatcher.made["job-1"]) == [(1, index) for index in range(6)]
    dispatcher.scheduler.stop()
    dispatcher.scheduler.join(10)


def test_a_suspect_runs_while_no_other_lane_does() -> None:
    dispatcher = Dispatcher(lanes=2)
    dispatcher.hold()
    suspect, other = dispatcher.ask(6, alone=True), dispatcher.ask(2)
    for _ in range(3):  # the other lane is free to answer, and looks for work after each
        dispatcher.scheduler.call("m", id).result(10)
    assert [entering for entering, _, _ in dispatcher.begun] == [["job-0"]]
    assert dispatcher.run(suspect, other) == [[6], [2]]
    dispatcher.scheduler.stop()
    dispatcher.scheduler.join(10)


def test_it_counts_what_it_does(dispatcher: Dispatcher) -> None:
    dispatcher.hold()
    dispatcher.run(dispatcher.ask(1, count=6))
    dispatcher.scheduler.call("m", id).result(10)
    stats = dispatcher.scheduler.stats()
    assert (stats["m"].images, stats["m"].forwards, stats["m"].batch_sizes) == (7, 3, {1: 1, 4: 1, 2: 1})
    assert stats["m"].busy_seconds > 0
    assert stats["other"].forwards == 0
    dispatcher.scheduler.call("m", id).result(10)
    assert dispatcher.scheduler.stats()["m"].attention_maps >= 1


def test_the_error_of_loading_reaches_whoever_starts_it() -> None:
    def load() -> dict[str, Recorder]:
        raise FileNotFoundError("no model")

    accept_all: Callable[..., Callable[[], set[str]]] = lambda entering, *_: lambda: set(entering)  # noqa: E731
    with pytest.raises(FileNotFoundError, match="no model"):
        Scheduler(load, accept_all, list).start()


def test_small_forwards_do_not_make_what_waits_look_like_more(dispatcher: Dispatcher) -> None:
    dispatcher.model.gate.set()
    dispatcher.model.seconds = 0.1
    dispatcher.ask(1, count=4).done.result(10)
    for seed in range(2, 6):
        dispatcher.ask(seed).done.result(10)
    dispatcher.model.gate.clear()
    dispatcher.model.entered.clear()
    dispatcher.hold()
    waits = dispatcher.ask(9, count=40, job_id="long")
    assert 0.9 < dispatcher.scheduler.backlog() < 2  # ten full forwards
    dispatcher.run(waits)
