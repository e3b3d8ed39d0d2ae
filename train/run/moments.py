"""Moments by the clock, at which a run is looked at and saved whatever its schedule's steps say."""

from __future__ import annotations

import time
from collections.abc import Sequence

FIRST = (30.0, 120.0)  # seconds: on a slow machine the schedule's first step may be an hour away
EVERY = 300.0  # seconds, from then on
SHARE = 0.05  # of the time, at most, for drawing and saving at such moments


class Moments:
    """The moments of one sitting, counted from its beginning."""

    def __init__(self, first: Sequence[float] = FIRST, every: float = EVERY) -> None:
        self.first, self.every = first, every
        self.began = time.monotonic()
        self.next = first[0] if first else every  # seconds after the beginning

    def passed(self) -> bool:
        """Whether the next moment has come; then the one after it is the next."""
        now = time.monotonic() - self.began
        if now < self.next:
            return False
        self.next = min((moment for moment in self.first if moment > now), default=now + self.every)
        return True

    def took(self, seconds: float) -> None:
        """What drawing and saving cost this time: where that is much, the next moment is later."""
        self.next = max(self.next, time.monotonic() - self.began + seconds / SHARE)
