"""Calls of a model beside its forwards: attention maps, for which a person waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from jobs.job import JobSpec

S = TypeVar("S")


@dataclass
class Call(Generic[S]):
    """A function of a job's model, to be run on a lane."""

    spec: JobSpec
    function: Callable[[S], Any]
    of_map: bool = True  # it makes an attention map, and is counted as one
    future: Future[Any] = field(default_factory=Future)
    shared: bool = False  # it runs while images wait, and counts against the share of the calls


class CallQueue(Generic[S]):
    """Calls that wait, and how much of the device they may take while images wait. Not for several threads.

    A second of forwards allows calls share / (1 - share) seconds.
    """

    def __init__(self, share: float) -> None:
        self._calls: deque[Call[S]] = deque()
        self._rate = share / (1 - share)
        self._allowance = 0.0  # seconds that calls may still take while images wait
        self.running = 0

    def add(self, call: Call[S]) -> None:
        self._calls.append(call)

    def is_next(self, images_wait: bool) -> bool:
        """Whether a free lane takes a call: at once where it could make no images, else within the share."""
        if not self._calls or not images_wait:
            return bool(self._calls)
        return not self.running and self._allowance > 0

    def take(self, images_wait: bool) -> Call[S]:
        """The next call, which begins to run."""
        call = self._calls.popleft()
        call.shared = images_wait
        self.running += 1
        return call

    def ended(self, call: Call[S], seconds: float) -> None:
        self.running -= 1
        if call.shared:
            self._allowance -= seconds

    def allow(self, seconds: float) -> None:
        """A forward took so long."""
        # what calls did not use is not saved up: many at once would hold up the images that wait then
        self._allowance = min(self._allowance, 0.0) + seconds * self._rate

    def clear(self) -> list[Call[S]]:
        """Take all that wait."""
        calls = list(self._calls)
        self._calls.clear()
        return calls


def settle(future: Future[None], function: Callable[[], None]) -> None:
    """Call a function, and let the future tell its end."""
    try:
        function()
        future.set_result(None)
    except Exception as error:  # whoever waits for the future raises it  # noqa: BLE001
        future.set_exception(error)
