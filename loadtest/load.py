"""Load on an HTTP server, closed loop (clients) or open loop (a rate), and the result of every request.

A latency counts from the moment at which a request should have been sent. In an open loop that is its
arrival, whatever became of the requests before it, so a server that stalls hides none of those that arrive
meanwhile (Tene's coordinated omission). In a closed loop it is the moment at which its client was free.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from loadtest.client import Address, Broken, Client, reason

Floats = NDArray[np.float64]

GOOD: Final = "good"
TIMEOUT: Final = "timeout"
LATE: Final = "HTTP 202"  # the server stopped waiting before the image was ready
UNSENT: Final = "not sent"  # too many were in flight
WAITED: Final = (GOOD, TIMEOUT, LATE)  # kinds with a latency; other errors may come at once


@dataclass(frozen=True)
class Target:
    """One request to one server, and which answers to it are good."""

    address: Address
    path: str
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    body: Callable[[int], bytes] = lambda n: b""  # of the n-th request
    good: Callable[[bytes], bool] = lambda body: True  # whether the body of a 200 is
    images: int = 1  # in a good answer
    timeout: float = 60.0  # seconds

    def kind(self, status: int, body: bytes) -> str:
        """GOOD, or the kind of error that an answer counts as."""
        if status != 200:
            return f"HTTP {status}"
        return GOOD if self.good(body) else "not what was asked for"


Send = Callable[[float], Coroutine[Any, Any, str]]  # (when the request is due) -> its kind


class Load(Protocol):
    """When requests are sent."""

    def __str__(self) -> str:
        """As a table names it."""

    async def run(self, send: Send, stop: float) -> list[float]:
        """Send requests until `stop` (seconds of the clock), and wait until all have ended.

        Returns when the unsent ones were due.
        """


@dataclass(frozen=True)
class Clients:
    """Closed loop: each client asks again as soon as it is answered."""

    count: int

    def __str__(self) -> str:
        return f"{self.count} client{'s' if self.count > 1 else ''}"

    async def run(self, send: Send, stop: float) -> list[float]:
        async def client() -> None:
            while (now := _clock()) < stop:
                if await send(now) not in WAITED:
                    await asyncio.sleep(0.01)  # an error may come at once; a busy loop would measure nothing

        await asyncio.gather(*(client() for _ in range(self.count)))
        return []


@dataclass(frozen=True)
class Rate:
    """Open loop: requests arrive at a rate, answered or not."""

    per_second: float
    even: bool = False  # equal gaps; else Poisson's, which are exponential
    seed: int = 0
    in_flight: int = 1000  # at most; an arrival beyond is counted as UNSENT

    def __str__(self) -> str:
        return f"{self.per_second:g} requests/s"

    async def run(self, send: Send, stop: float) -> list[float]:
        flying: set[asyncio.Task[str]] = set()
        unsent = []
        for due in self._arrivals(_clock(), stop):
            if (pause := due - _clock()) > 0:
                await asyncio.sleep(pause)
            if len(flying) >= self.in_flight:
                unsent.append(due)
                continue
            flying.add(sent := asyncio.create_task(send(due)))
            sent.add_done_callback(flying.discard)
        await asyncio.gather(*flying)
        return unsent

    def _arrivals(self, due: float, stop: float) -> Iterator[float]:
        draw = np.random.default_rng(self.seed)
        while (due := due + (1.0 if self.even else draw.exponential()) / self.per_second) < stop:
            yield due


@dataclass(frozen=True)
class Result:
    """Every request of a run. Times are seconds; 0 is the end of the warm-up."""

    load: Load
    seconds: float  # measured, after the warm-up
    images: int  # in a good answer
    due: Floats  # [N], when each should have been sent; below 0: in the warm-up
    sent: Floats
    ended: Floats
    kinds: NDArray[np.str_]  # [N], GOOD or the kind of error
    unsent: int
    cpu: float  # the generator's own, seconds, in the measured time

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Which requests were due after the warm-up."""
        return np.asarray(self.due >= 0)

    @property
    def latencies(self) -> Floats:
        """Sorted seconds of the requests whose kind is in WAITED; a timeout and a 202 count their wait.

        Other errors are in `counts` alone: one that came at once would flatter the rest.
        """
        chosen = self.measured & np.isin(self.kinds, WAITED)
        return np.sort((self.ended - self.due)[chosen])

    @property
    def corrected(self) -> Floats:
        """`latencies` as if each client had gone on asking once in every median while it waited.

        This is HdrHistogram's correction of a closed loop; an open loop needs none.
        """
        latencies = self.latencies
        if not isinstance(self.load, Clients) or not len(latencies):
            return latencies
        beat = percentile(latencies, 0.5)
        missing = [np.arange(long - beat, beat, -beat) for long in latencies[latencies > 2 * beat]]
        return np.sort(np.concatenate([latencies, *missing]))

    @property
    def counts(self) -> Counter[str]:
        """Requests of the measured time, by kind."""
        found = Counter(str(kind) for kind in self.kinds[self.measured])
        return found + Counter({UNSENT: self.unsent})

    @property
    def errors(self) -> int:
        """Requests of the measured time without a good answer."""
        return self.counts.total() - self.counts[GOOD]

    @property
    def throughput(self) -> float:
        """Images a second, in good answers within the measured time."""
        return self._good_between(0, self.seconds) * self.images / self.seconds

    @property
    def cpu_per_request(self) -> float:
        """Seconds of the generator's CPU a request that ended in the measured time."""
        ended = np.count_nonzero((self.ended >= 0) & (self.ended < self.seconds))
        return self.cpu / ended if ended else math.nan

    def over_time(self, step: float) -> list[tuple[float, float]]:
        """(middle of a step, images a second within it), over the measured time."""
        steps = max(1, round(self.seconds / step))
        edges = [self.seconds * i / steps for i in range(steps + 1)]
        return [
            ((low + high) / 2, self._good_between(low, high) * self.images / (high - low))
            for low, high in pairwise(edges)
        ]

    def _good_between(self, low: float, high: float) -> int:
        within = (self.ended >= low) & (self.ended < high) & (self.kinds == GOOD)
        return int(np.count_nonzero(within))


def percentile(latencies: Floats, share: float) -> float:
    """The lowest of the sorted latencies that a share (0, 1] of them do not exceed; NaN of none."""
    if not len(latencies):
        return math.nan
    # the tolerance: 0.99 × 100 is a little more than 99 in floating point
    return float(latencies[max(0, math.ceil(share * len(latencies) - 1e-9) - 1)])


async def measure(target: Target, load: Load, seconds: float, warm_up: float = 0.0) -> Result:
    """Put `load` on `target` for warm_up + seconds, and wait until every request has ended."""
    client = Client(target.address)
    due_at: list[float] = []
    sent_at: list[float] = []
    ended_at: list[float] = []
    kinds: list[str] = []
    numbers = iter(range(2**62))

    async def send(due: float) -> str:
        body = target.body(next(numbers))
        sent = _clock()
        try:
            request = client.request(target.method, target.path, target.headers, body)
            kind = target.kind(*await client.ask(request, target.timeout))
        except TimeoutError:
            kind = TIMEOUT
        except Broken as why:
            kind = str(why)
        except OSError as why:
            kind = f"no connection ({reason(why)})"
        ended_at.append(_clock())
        due_at.append(due)
        sent_at.append(sent)
        kinds.append(kind)
        return kind

    start = _clock() + warm_up
    cpu = asyncio.create_task(_cpu_between(start, start + seconds))
    try:
        unsent = await load.run(send, start + seconds)
        used = await cpu
    finally:
        cpu.cancel()
        client.close()
    return Result(
        load=load,
        seconds=seconds,
        images=target.images,
        due=np.array(due_at) - start,
        sent=np.array(sent_at) - start,
        ended=np.array(ended_at) - start,
        kinds=np.array(kinds, dtype=np.str_),
        unsent=sum(due >= start for due in unsent),
        cpu=used,
    )


async def _cpu_between(start: float, stop: float) -> float:
    await asyncio.sleep(start - _clock())
    before = time.process_time()
    await asyncio.sleep(stop - _clock())
    return time.process_time() - before


_clock = time.perf_counter
