"""The stopping rule under study: first the metric flattens, then the discriminator's loss does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """What the rule says of one run. Steps; None: that never happened."""

    metric_flat: int | None  # where the metric first failed to improve on its best so far
    stop: int | None  # where the loss was flat too, there or later


def stopping_step(
    steps: Sequence[int], metric: Sequence[float], loss: Sequence[float], tolerance: float
) -> Stop:
    """Apply the rule to what was seen at `steps`, knowing at each nothing of what came after it.

    metric: lower is better. It is flat at the first step where it is not lower than `tolerance` (a share)
    below the best before. loss: the discriminator's, each a mean over the stretch that ends at that step.
    It is flat where it differs from the stretch before by at most `tolerance`. The rule stops at the first
    step, at or after the metric's, where the loss is flat.
    """
    if not len(steps) == len(metric) == len(loss):
        raise ValueError(f"{len(steps)} steps, {len(metric)} metrics and {len(loss)} losses do not match.")
    flat: int | None = None
    for i in range(1, len(steps)):
        if flat is None and not metric[i] < min(metric[:i]) * (1 - tolerance):
            flat = steps[i]
        if flat is not None and abs(loss[i] - loss[i - 1]) <= tolerance * abs(loss[i - 1]):
            return Stop(flat, steps[i])
    return Stop(flat, None)


def stretches(log: Sequence[tuple[int, float]], steps: Sequence[int]) -> list[float]:
    """Mean of the logged (step, value) pairs in each stretch up to one of `steps`; NaN: nothing there."""
    means, before = [], 0
    for step in steps:
        values = [value for at, value in log if before < at <= step]
        means.append(sum(values) / len(values) if values else float("nan"))
        before = step
    return means
