"""The stopping rule under study: first the metric flattens, then the discriminator's loss does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from train.experiments.measure import MAIN
from train.experiments.results import Run

LEAST = 3  # milestones of a run that the rule can be tried on


@dataclass(frozen=True)
class Stop:
    """Where the rule would have ended one run. Steps; None: never."""

    metric_flat: int | None  # where the metric first failed to improve on its best so far
    stop: int | None  # the first step from there on at which the loss was flat too


@dataclass(frozen=True)
class Trial:
    """The stopping rule on one run, beside the run's best and last milestones, both as (step, metric)."""

    run: Run
    stop: Stop
    at_stop: float | None  # the metric there; None: it never stopped
    best: tuple[int, float]
    last: tuple[int, float]


def stopping_step(
    steps: Sequence[int], metric: Sequence[float], loss: Sequence[float], tolerance: float
) -> Stop:
    """Apply the rule to the values at `steps`; at each step it knows only the steps before.

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
    """Mean of the logged (step, value) pairs in each stretch up to one of `steps`; NaN: none were logged."""
    means, before = [], 0
    for step in steps:
        values = [value for at, value in log if before < at <= step]
        means.append(sum(values) / len(values) if values else float("nan"))
        before = step
    return means


def try_rule(runs: Sequence[Run], tolerance: float) -> list[Trial]:
    """The stopping rule on every run of at least LEAST milestones."""
    trials = []
    for run in runs:
        steps = sorted(run.figures)
        if len(steps) < LEAST:
            continue
        metric = [run.figures[step][MAIN.key] for step in steps]
        stop = stopping_step(steps, metric, stretches(run.losses, steps), tolerance)
        best = min(range(len(steps)), key=metric.__getitem__)
        at_stop = metric[steps.index(stop.stop)] if stop.stop is not None else None
        trials.append(Trial(run, stop, at_stop, (steps[best], metric[best]), (steps[-1], metric[-1])))
    return trials
