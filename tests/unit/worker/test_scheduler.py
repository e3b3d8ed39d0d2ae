"""The scheduler: who shares a forward, whose turn it is, and what an end means to those who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray

from imaging.spec import ImageSpec
from jobs.job import AttentionMap, JobSpec
from jobs.worker_store import Stopping
from worker.metrics import WorkerMetrics
from worker.pending import Dropped, Made, PendingJob
from worker.scheduler import Scheduler


def spec_of(model: str, seed: int = 0, count: int = 1, priority: int = 5) -> JobSpec:
    return JobSpec(model, model.ljust(64, "0"), "float32", 0, "cat", count, seed, 1.0, priority)


class Recorder:
    """A sampler that records each forward, and holds the first until its gate is open."""

    max_batch = 4

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

    def attention(self, spec: ImageSpec, layer: str) -> tuple[NDArray[np.uint8], AttentionMap]:
        row = np.array([[spec.seed]], np.float16)
        return self.sample([spec])[0], AttentionMap(layer, (1, 1), (1, 1), 0.0, 0.0, row)


class Bench:
    """A scheduler with two models; the first forward waits until the test lets it through."""

    def __init__(self, lanes: int = 1, calls_share: float = 0.5) -> None:
        self.model = Recorder(lanes)
        self.other = Recorder()
        self.refused: set[str] = set()
        self.begun: list[tuple[list[str], int, list[str]]] = []
        self.made: dict[str, list[tuple[int, int]]] = {}  # job -> (seed, index) as delivered
        self.metrics = WorkerMetrics()
        self.scheduler = Scheduler(
            lambda: {spec_of("m").version: self.model, spec_of("other").version: self.other},
            self.begin,
            self.deliver,
            calls_share,
            metrics=self.metrics,
        )
        self.scheduler.start()
        self.other.gate.set()

    def begin(self, entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        self.begun.append((list(entering), fresh, list(survived)))
        return lambda: set(entering) - self.refused

    def deliver(self, images: Sequence[Made]) -> None:
        for image in images:
            done = self.made.setdefault(image.pending.job_id, [])
            done.append((int(image.pixels[0, 0, 0]), int(image.pixels[0, 0, 1])))
            if len(done) == len(image.pending.images):
                image.pending.end()

    def ask(
        self,
        seed: int,
        count: int = 1,
        *,
        model: str = "m",
        priority: int = 5,
        alone: bool = False,
        wanted_at: float = -inf,
    ) -> PendingJob:
        spec = spec_of(model, seed, count, priority)
        pending = PendingJob(f"job-{seed}", spec, range(count), alone=alone, wanted_at=wanted_at)
        self.scheduler.submit(pending)
        return pending

    def hold(self) -> None:
        """Occupy the device: jobs asked for from now on wait behind this one."""
        self.ask(0)
        assert self.model.entered.wait(10)

    def close(self) -> None:
        self.model.gate.set()
        self.scheduler.stop()
        self.scheduler.join(10)

    def run(self, *pending_jobs: PendingJob) -> list[list[int]]:
        """Let everything through; the seeds of each forward after the first."""
        self.model.gate.set()
        for pending in pending_jobs:
            pending.done.result(10)
        return self.model.forwards[1:]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.model.gate.set()
    bench.scheduler.stop()
    bench.scheduler.join(10)


def test_waiting_jobs_share_a_forward_and_each_gets_its_own_image(bench: Bench) -> None:
    bench.hold()
    pending_jobs = [bench.ask(seed) for seed in (1, 2, 3, 4, 5)]
    assert bench.run(*pending_jobs) == [[1, 2, 3, 4], [5]]
    assert [bench.made[pending.job_id] for pending in pending_jobs] == [
        [(seed, 0)] for seed in (1, 2, 3, 4, 5)
    ]
    assert len(bench.model.threads) == 1
    assert bench.model.threads != {threading.get_ident()}


def test_jobs_take_turns_so_that_a_long_one_holds_nobody_up(bench: Bench) -> None:
    bench.hold()
    long = bench.ask(9, count=10)
    short = [bench.ask(seed) for seed in (1, 2, 3, 4)]
    assert bench.run(long, *short) == [[9, 1, 2, 3], [4, 9, 9, 9], [9, 9, 9, 9], [9, 9]]
    assert bench.made[long.job_id] == [(9, index) for index in range(10)]


def test_the_urgent_go_first_and_the_rest_fills_up(bench: Bench) -> None:
    bench.hold()
    lazy = bench.ask(1, count=3, priority=0)
    urgent = bench.ask(2, count=6, priority=9)
    assert bench.run(lazy, urgent) == [[2, 2, 2, 2], [2, 2, 1, 1], [1]]


def test_a_suspect_runs_alone(bench: Bench) -> None:
    bench.hold()
    pending_jobs = [
        bench.ask(1, count=2),
        bench.ask(6, count=2, alone=True),
        bench.ask(2, count=2),
    ]
    forwards = bench.run(*pending_jobs)
    assert sorted(map(sorted, forwards)) == [[1, 1, 2, 2], [6, 6]]


def test_a_forward_is_of_one_model(bench: Bench) -> None:
    bench.hold()
    pending_jobs = [
        bench.ask(1),
        bench.ask(7, model="other"),
        bench.ask(2),
        bench.ask(8, model="other"),
    ]
    assert bench.run(*pending_jobs) == [[1, 2]]
    assert bench.other.forwards == [[7, 8]]


def test_attempts_are_counted_forward_by_forward(bench: Bench) -> None:
    bench.hold()
    bench.run(bench.ask(1, count=5), bench.ask(2))
    assert bench.begun == [
        (["job-0"], 1, []),
        (["job-1", "job-2"], 2, ["job-0"]),
        (["job-1"], 1, ["job-1", "job-2"]),
    ]


def test_a_job_that_may_not_run_is_dropped(bench: Bench) -> None:
    bench.hold()
    bench.refused = {"job-1"}
    cancelled, other = bench.ask(1, count=9), bench.ask(2)
    assert bench.run(other) == [[2]]
    assert isinstance(cancelled.done.exception(10), Dropped)


def test_a_job_that_was_wanted_a_moment_ago_runs_before_the_answer_comes(bench: Bench) -> None:
    answered = threading.Event()

    def begin(entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        bench.begin(entering, fresh, survived)
        return lambda: set(entering) - bench.refused if answered.wait(10) else set()

    scheduler = Scheduler(lambda: {spec_of("m").version: bench.model}, begin, bench.deliver)
    scheduler.start()
    bench.scheduler, other = scheduler, bench.scheduler
    bench.refused = {"job-2"}
    bench.model.gate.set()
    wanted = bench.ask(1, wanted_at=time.monotonic())
    while not bench.model.forwards:
        time.sleep(0.01)
    assert bench.begun == [(["job-1"], 1, [])]  # it was told of first
    assert not bench.made
    answered.set()
    wanted.done.result(10)
    cancelled = bench.ask(2, count=9, wanted_at=time.monotonic())
    assert isinstance(cancelled.done.exception(10), Dropped)
    assert bench.model.forwards == [[1], [2, 2, 2, 2]]  # one forward in vain, no more
    assert list(bench.made) == ["job-1"]
    for each in (scheduler, other):
        each.stop()
        each.join(10)


def test_a_job_that_has_waited_is_asked_about_before_it_runs(bench: Bench) -> None:
    bench.refused = {"job-1"}
    cancelled = bench.ask(1, wanted_at=time.monotonic() - 1)
    assert isinstance(cancelled.done.exception(10), Dropped)
    assert not bench.model.entered.is_set()


def test_what_is_dropped_while_it_waits_never_runs(bench: Bench) -> None:
    bench.hold()
    cancelled, other = bench.ask(1, count=9), bench.ask(2)
    bench.scheduler.drop(cancelled)
    assert bench.run(other) == [[2]]


def test_an_error_in_a_forward_is_the_fault_of_one_job(bench: Bench) -> None:
    bench.hold()
    bench.model.bad_seed = 2
    bad, good = bench.ask(2, count=3), [bench.ask(1), bench.ask(3)]
    bench.run(*good)
    assert "out of memory" in str(bad.done.exception(10))
    bench.ask(4).done.result(10)
    assert bench.made["job-4"] == [(4, 0)]


def test_a_call_comes_before_the_next_forward(bench: Bench) -> None:
    bench.hold()
    pending = bench.ask(1)
    seen = bench.scheduler.call(spec_of("m"), lambda model: (threading.get_ident(), len(model.forwards)))
    bench.run(pending)
    thread, forwards = seen.result(10)
    assert {thread} == bench.model.threads
    assert forwards == 1
    failing = bench.scheduler.call(spec_of("m"), lambda model: 1 / 0)
    assert isinstance(failing.exception(10), ZeroDivisionError)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_calls_have_their_share_of_the_device_while_images_wait(share: float) -> None:
    bench = Bench(calls_share=share)
    bench.model.seconds = each = 0.02
    bench.hold()
    jobs = [bench.ask(seed, count=4) for seed in range(1, 41)]  # 40 forwards
    before: list[int] = []  # forwards before each call

    def call(model: Recorder) -> None:
        before.append(len(model.forwards))
        time.sleep(each)

    for _ in range(200):
        bench.scheduler.call(spec_of("m"), call)
    forwards = bench.run(*jobs)
    made = sum(count <= len(forwards) for count in before)  # while there was a forward to come
    assert 1 <= made <= 2 + 1.5 * 40 * share / (1 - share)
    bench.close()


def test_calls_have_the_whole_device_while_no_image_waits() -> None:
    bench = Bench(lanes=2)
    both = threading.Barrier(2)
    calls = [bench.scheduler.call(spec_of("m"), lambda _: both.wait(10)) for _ in range(2)]
    assert sorted(call.result(10) for call in calls) == [0, 1]  # each was there while the other ran
    bench.close()


def test_calls_without_end_hold_up_no_image() -> None:
    bench = Bench(lanes=2)
    bench.model.gate.set()
    calls = [bench.scheduler.call(spec_of("m"), lambda _: time.sleep(0.05)) for _ in range(400)]
    for seed in range(3):
        bench.ask(seed).done.result(10)
    assert sum(call.done() for call in calls) < 200
    bench.close()


def test_a_suspect_does_not_wait_for_calls_without_end_and_stays_alone() -> None:
    bench = Bench(lanes=2)
    calls = [bench.scheduler.call(spec_of("m"), lambda _: time.sleep(0.02)) for _ in range(400)]
    suspect, other = bench.ask(1, alone=True), bench.ask(2)
    assert bench.model.entered.wait(10)
    assert sum(call.done() for call in calls) < 200
    time.sleep(0.1)  # the calls that ran beside its beginning have ended
    assert [entering for entering, _, _ in bench.begun] == [["job-1"]]
    assert bench.run(suspect, other) == [[2]]
    bench.close()


def test_stopping_lets_the_forward_end_and_gives_the_rest_back(bench: Bench) -> None:
    running = bench.ask(0)
    assert bench.model.entered.wait(10)
    waiting = bench.ask(1, count=3)
    call = bench.scheduler.call(spec_of("m"), lambda model: None)
    bench.scheduler.stop()
    bench.model.gate.set()
    bench.scheduler.join(10)
    running.done.result(10)
    for future in (waiting.done, call, bench.ask(2).done, bench.scheduler.call(spec_of("m"), id)):
        assert isinstance(future.exception(10), Stopping)
    assert bench.begun[-1] == ([], 0, ["job-0"])


def test_lanes_share_what_waits_and_count_a_job_once() -> None:
    bench = Bench(lanes=2)
    long = bench.ask(1, count=6)  # 3 images for each of two free lanes
    for _ in range(1000):
        if len(bench.begun) == 2:
            break
        time.sleep(0.01)
    bench.run(long)
    assert sorted(len(forward) for forward in bench.model.forwards) == [3, 3]
    assert len(bench.model.threads) == 2
    assert [fresh for _, fresh, _ in bench.begun[:2]] == [1, 0]
    assert sorted(bench.made["job-1"]) == [(1, index) for index in range(6)]
    bench.scheduler.stop()
    bench.scheduler.join(10)


def test_a_suspect_runs_while_no_other_lane_does() -> None:
    bench = Bench(lanes=2)
    bench.hold()
    suspect, other = bench.ask(6, alone=True), bench.ask(2)
    for _ in range(3):  # the other lane is free to answer, and looks for work after each
        bench.scheduler.call(spec_of("m"), id).result(10)
    assert [entering for entering, _, _ in bench.begun] == [["job-0"]]
    assert bench.run(suspect, other) == [[6], [2]]
    bench.scheduler.stop()
    bench.scheduler.join(10)


def test_it_counts_what_it_does(bench: Bench) -> None:
    bench.hold()
    bench.run(bench.ask(1, count=6))
    bench.scheduler.call(spec_of("m"), id).result(10)
    counted = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in bench.metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("model") == "m"
    }
    assert counted["sagan_images_total", None] == 7
    assert [counted["sagan_forward_images_bucket", le] for le in ("1.0", "2.0", "4.0")] == [1, 2, 3]
    assert counted["sagan_forward_seconds_count", None] == 3
    assert counted["sagan_device_busy_seconds_total", None] >= counted["sagan_forward_seconds_sum", None] > 0
    assert "other" not in bench.scheduler.stats()
    bench.scheduler.call(spec_of("m"), id).result(10)
    assert bench.scheduler.stats()["m"].attention_maps >= 1


def test_the_error_of_loading_reaches_whoever_starts_it() -> None:
    def load() -> dict[str, Recorder]:
        raise FileNotFoundError("no model")

    accept_all: Callable[..., Callable[[], set[str]]] = lambda entering, *_: lambda: set(entering)  # noqa: E731
    with pytest.raises(FileNotFoundError, match="no model"):
        Scheduler(load, accept_all, lambda made: None).start()


@pytest.mark.slow
def test_small_forwards_do_not_make_what_waits_look_like_more(bench: Bench) -> None:
    bench.model.gate.set()
    bench.model.seconds = 0.1
    bench.ask(1, count=4).done.result(10)
    for seed in range(2, 6):
        bench.ask(seed).done.result(10)
    bench.model.gate.clear()
    bench.model.entered.clear()
    bench.hold()
    waits = bench.ask(9, count=40)
    assert 0.9 < bench.scheduler.backlog() < 2  # ten full forwards
    bench.run(waits)
