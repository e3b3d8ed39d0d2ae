"""Many waiting jobs, few forwards: each free lane takes the images that wait and makes them in one forward.

A lane is a thread that runs one forward at a time. There is no waiting window: while a forward runs, the next
batch gathers by itself. Jobs of one priority take turns, image by image, so a long one does not hold up the
short ones behind it.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Condition, Thread, get_ident
from time import monotonic
from typing import Final, Generic, TypeVar

from jobs.job import JobSpec, ModelStats
from jobs.worker_store import Stopping
from worker import trail
from worker.calls import Call, CallQueue, settle
from worker.metrics import WorkerMetrics
from worker.pending import BatchEngine, DeviceLost, Dropped, Made, PendingJob, image_spec, map_of

log = logging.getLogger(__name__)

# Seconds. A job that was wanted this recently enters its forward before Redis has answered: the device would
# idle for a round trip and a write to disk. The answer comes meanwhile; a cancelled job's images are dropped.
SURELY_WANTED: Final = 0.2


S = TypeVar("S", bound=BatchEngine)
T = TypeVar("T")
_Batch = list[tuple[PendingJob, int]]  # images of jobs


class Scheduler(Generic[S]):
    """Runs forwards on its lanes; the first lane also loads the models. A model goes by its version."""

    def __init__(
        self,
        load: Callable[[], Mapping[str, S]],
        begin: Callable[[Sequence[str], int, Sequence[str]], Callable[[], set[str]]],
        deliver: Callable[[Sequence[Made]], None],
        calls_share: float = 0.5,
        on_lost: Callable[[DeviceLost], None] = lambda _: None,
        metrics: WorkerMetrics | None = None,
        aside: Callable[[Callable[[], None]], None] = lambda function: function(),
    ) -> None:
        """load: returns the models by version; it runs in the first lane.

        begin(entering, fresh, survived): counts an attempt for jobs that enter a forward, and clears it for
        jobs that came out of their last one; see jobs.scripts. The function it returns is called once: it
        waits for the jobs that may run.
        deliver(images): takes the images of a forward; the lane waits for it.
        calls_share: of the device's time that calls may take while images wait.
        on_lost: called in a lane whose device answers no more.
        metrics: what forwards and calls are counted in.
        aside: runs a function soon, so that no lane waits for the log.
        """
        self._metrics = metrics or WorkerMetrics()
        self._on_lost, self._aside = on_lost, aside
        self._load = load
        self._begin = begin
        self._deliver = deliver
        self._changed = Condition()
        self._rings: dict[int, deque[PendingJob]] = {}  # by priority; the jobs of a ring take turns
        self._calls: CallQueue[S] = CallQueue(calls_share)
        self._alone: deque[Callable[[], None]] = deque()  # each needs the device for itself
        self._stopping = False
        self._running = 0  # lanes at work
        self._exclusive = False  # one of them is at work on a suspect, a job that is `alone`
        self._survived: list[str] = []
        self._maps: Counter[str] = Counter()  # made, by the name of the model
        self._pace = 0.0  # seconds an image, over the last forwards that were not small
        self._models: Mapping[str, S] = {}
        self._since: dict[int, float] = {}  # lane whose device is at work -> monotonic() of its beginning
        self._loaded: Future[Mapping[str, S]] = Future()
        self._lanes = [Thread(target=self._first_lane, name="device", daemon=True)]

    def start(self) -> Mapping[str, S]:
        """Load the models and start the lanes; returns the models. Raises the errors of `load`."""
        self._lanes[0].start()
        models = self._loaded.result()
        for index in range(1, max(model.lanes for model in models.values())):
            self._lanes.append(Thread(target=self._lane, name=f"device-{index}", daemon=True))
            self._lanes[-1].start()
        return models

    def serve(self, models: Mapping[str, S]) -> None:
        """Use these models from now on; no job of a model that is left out may be in hand."""
        with self._changed:
            self._models = dict(models)

    def busy_for(self) -> float:
        """Seconds that the oldest running forward has taken; 0 if none runs."""
        return monotonic() - min([*self._since.values(), monotonic()])

    def submit(self, pending: PendingJob) -> None:
        """Queue a job's images; each is delivered when it is made."""
        with self._changed:
            if not self._stopping:
                self._rings.setdefault(pending.spec.priority, deque()).append(pending)
                self._changed.notify()
                return
        pending.end(Stopping("the worker is being stopped"))

    def call(self, spec: JobSpec, function: Callable[[S], T], of_map: bool = True) -> Future[T]:
        """Run a function of a job's model soon: a person waits. Calls share the device with forwards.

        of_map: it makes an attention map, and is counted as one.
        """
        call = Call[S](spec, function, of_map)
        with self._changed:
            if not self._stopping:
                self._calls.add(call)
                self._changed.notify()
                return call.future
        call.future.set_exception(Stopping("the worker is being stopped"))
        return call.future

    def alone(self, function: Callable[[], None]) -> Future[None]:
        """Run a function in a lane while no other lane uses the device."""
        future: Future[None] = Future()
        with self._changed:
            self._alone.append(partial(settle, future, function))
            self._changed.notify()
        return future

    def drop(self, pending: PendingJob, error: Exception | None = None) -> None:
        """Make no more of a job. It ends with the error; None: with Dropped."""
        with self._changed:
            ring = self._rings.get(pending.spec.priority, deque())
            if pending in ring:
                ring.remove(pending)
        pending.end(error or Dropped())

    def backlog(self) -> float:
        """Seconds of work that wait, at the pace of the last forwards."""
        with self._changed:
            waiting = sum(_left(pending) for ring in self._rings.values() for pending in ring)
            return waiting * self._pace / len(self._lanes)

    def stats(self) -> dict[str, ModelStats]:
        """Counts since the start, by model."""
        with self._changed:
            return {name: ModelStats(attention_maps=maps) for name, maps in self._maps.items()}

    def stop(self) -> None:
        """Let running forwards end; every job that is in none of them ends with Stopping."""
        with self._changed:
            self._stopping = True
            pending_jobs = [pending for ring in self._rings.values() for pending in ring]
            calls = self._calls.clear()
            self._rings.clear()
            self._changed.notify_all()
        for pending in pending_jobs:
            if not pending.forwards:  # else its images may still complete it; Dispatcher.stop ends the rest
                pending.end(Stopping("the worker is being stopped"))
        for call in calls:
            call.future.set_exception(Stopping("the worker is being stopped"))

    def join(self, seconds: float) -> None:
        """Wait for the lanes to end, after stop()."""
        deadline = monotonic() + seconds
        for lane in self._lanes:
            if lane.is_alive():
                lane.join(max(0.0, deadline - monotonic()))

    def _first_lane(self) -> None:
        try:
            self._models = self._load()
        except BaseException as error:  # start() raises it  # noqa: BLE001
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(self._models)
        self._lane()

    def _lane(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._ready()):
                    self._changed.wait()
                if self._stopping:
                    break
                lone, call, batch, alone = None, None, _Batch(), False
                images_wait = self._forward_is_due()
                self._running += 1
                if self._alone:
                    lone = self._alone.popleft()
                    alone = self._exclusive = True
                elif self._calls.is_next(images_wait):
                    call = self._calls.take(images_wait)
                else:
                    batch = self._gather()
                    alone = self._exclusive = batch[0][0].alone
                if self._ready():
                    self._changed.notify()  # there is work for another lane
            try:
                if lone is not None:
                    lone()
                elif call is not None:
                    self._run_call(call)
                else:
                    self._make(batch)
            finally:
                with self._changed:
                    self._running -= 1
                    self._exclusive = self._exclusive and not alone
                    self._changed.notify_all()
        with self._changed:
            survived, self._survived = self._survived, []
        try:
            self._begin([], 0, survived)()
        except Stopping:
            log.warning("Redis is away: the attempts of jobs in hand stay counted.")

    def _ready(self) -> bool:
        """Whether a free lane has something to do."""
        if self._exclusive:
            return False
        if self._alone:
            return not self._running
        due = self._forward_is_due()
        return due or self._calls.is_next(due)

    def _forward_is_due(self) -> bool:
        """Whether a free lane could make images that wait."""
        first = next((self._rings[p][0] for p in sorted(self._rings, reverse=True) if self._rings[p]), None)
        if first is None or self._running == self._calls.running:
            return first is not None
        # A suspect waits until no other job can die with it. Other jobs wait until they are worth a forward
        # of their own, since it slows the one that runs.
        return not first.alone and self._waiting(first.spec.version) >= self._worthwhile(first.spec.version)

    def _gather(self) -> _Batch:
        """The next forward, of one model: by priority, and jobs of one priority in turn."""
        rings = [
            self._rings[priority] for priority in sorted(self._rings, reverse=True) if self._rings[priority]
        ]
        first = rings[0][0]
        room = self._room(first.spec.version)
        batch = _Batch()
        for ring in rings:
            left_out = []
            while ring and len(batch) < room:
                pending = ring.popleft()
                apart = pending is not first and (pending.alone or first.alone)
                if apart or pending.spec.version != first.spec.version:
                    left_out.append(pending)
                    continue
                batch.append((pending, pending.images[pending.entered]))
                pending.entered += 1
                if _left(pending):
                    ring.append(pending)
            ring.extendleft(reversed(left_out))  # at the head: their turn is next
        return batch

    def _room(self, version: str) -> int:
        """Images for one forward: as many as fit, or an equal share where other lanes are free as well."""
        waiting = self._waiting(version)
        free = len(self._lanes) - self._running + 1
        shares = max(1, min(free, waiting // self._worthwhile(version)))
        return min(self._models[version].max_batch, -(-waiting // shares))

    def _waiting(self, version: str) -> int:
        rings = self._rings.values()
        return sum(_left(job) for ring in rings for job in ring if job.spec.version == version)

    def _worthwhile(self, version: str) -> int:
        """Images that are worth a forward beside a running one."""
        return max(1, self._models[version].max_batch // 4)

    def _make(self, batch: _Batch) -> None:
        pending_jobs = list(dict.fromkeys(pending for pending, _ in batch))
        with self._changed:
            pending_jobs.sort(key=lambda pending: pending.forwards > 0)
            fresh = sum(pending.forwards == 0 for pending in pending_jobs)
            for pending in pending_jobs:
                pending.forwards += 1
            survived, self._survived = self._survived, []
        allowed: set[str] = set()
        try:
            now = monotonic()
            self._aside(trail.begun(pending_jobs[:fresh]))
            answer = self._begin([pending.job_id for pending in pending_jobs], fresh, survived)
            if all(now - pending.wanted_at < SURELY_WANTED for pending in pending_jobs):
                made = self._forward(batch)
                allowed = answer()
            else:
                allowed = answer()
                made = self._forward([(job, image) for job, image in batch if job.job_id in allowed])
            for pending in pending_jobs:
                if pending.job_id in allowed:
                    pending.wanted_at = now
                else:
                    self.drop(pending)
            self._deliver([one for one in made if one.pending.job_id in allowed])
        except Stopping as stopping:
            for pending in pending_jobs:
                self.drop(pending, stopping)
        except DeviceLost as lost:
            allowed = set()  # not survived: what always breaks a device must fail in the end
            self._end(lost)
            for pending in pending_jobs:
                self.drop(pending, Stopping(str(lost)))
        except Exception as error:  # the lane must go on for other jobs
            log.exception("jobs could not begin")
            for pending in pending_jobs:
                self.drop(pending, error)
        finally:
            with self._changed:
                for pending in pending_jobs:
                    pending.forwards -= 1
                    if pending.job_id in allowed and not pending.forwards:
                        self._survived.append(pending.job_id)

    def _forward(self, batch: _Batch) -> list[Made]:
        if not batch:
            return []
        spec = batch[0][0].spec
        model = self._models[spec.version]
        forward = trail.Forward(batch)
        try:
            with self._at_work():
                specs = [image_spec(pending.spec, image) for pending, image in batch]
                pixels = model.sample(specs)
                maps = [map_of(model, pending, image) for pending, image in batch]
        except DeviceLost as lost:
            forward.ended(lost)
            raise
        except Exception as error:  # an error of the network fails a job, not the worker  # noqa: BLE001
            forward.ended(error)
            return self._one_by_one(batch, error)
        took = forward.ended()
        self._aside(forward.tell)
        self._metrics.forward(spec.model, len(batch), took, batch[0][0].context.traceparent)
        with self._changed:
            self._calls.allow(took)
            pace = took / len(batch)
            if pace < self._pace or self._pace == 0.0:
                self._pace = pace
            elif 2 * len(batch) >= model.max_batch:
                # a small forward costs more an image, but images that wait are made in full ones
                self._pace = 0.8 * self._pace + 0.2 * pace
        return [Made(*entry, *made) for entry, *made in zip(batch, pixels, maps, strict=True)]

    def _one_by_one(self, batch: _Batch, error: Exception) -> list[Made]:
        """After a forward failed: make each job apart, and fail the one whose forward fails again."""
        jobs = list(dict.fromkeys(pending for pending, _ in batch))
        if len(jobs) == 1:
            self.drop(jobs[0], error)
            return []
        parts = [[entry for entry in batch if entry[0] is job] for job in jobs]
        return [made for part in parts for made in self._forward(part)]

    def _run_call(self, call: Call[S]) -> None:
        began = monotonic()
        try:
            with self._at_work():
                result = call.function(self._models[call.spec.version])
        except DeviceLost as lost:
            self._end(lost)
            call.future.set_exception(Stopping(str(lost)))
        except Exception as error:  # whoever waits for the future raises it  # noqa: BLE001
            call.future.set_exception(error)
        else:
            call.future.set_result(result)
        took = monotonic() - began
        self._metrics.called(call.spec.model, took, call.of_map)
        with self._changed:
            self._calls.ended(call, took)
            self._maps[call.spec.model] += call.of_map

    def _end(self, lost: DeviceLost) -> None:
        self.stop()  # another forward would only count an attempt for other jobs
        self._on_lost(lost)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._since[get_ident()] = monotonic()
        try:
            yield
        finally:
            del self._since[get_ident()]


def _left(pending: PendingJob) -> int:
    """Images that have not entered a forward."""
    return len(pending.images) - pending.entered
