"""What the figures say and what they do not: comparisons over seeds, and sentences made from them alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from train.experiments.measure import MAIN, METRICS, Metric, best_first
from train.experiments.stopping import Stop, stopping_step, stretches

TOLERANCES = (0.02, 0.05, 0.1)  # of the stopping rule
JUDGED = 0.05  # the one the findings speak of


@dataclass(frozen=True)
class Run:
    """What is known of one training run, as one variant looks at it."""

    variant: str
    seed: int
    figures: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # step -> METRICS by key
    losses: Sequence[tuple[int, float]] = ()  # (step, the discriminator's loss), as logged
    diverged: int | None = None  # step
    cost: Mapping[str, float] = field(default_factory=dict)  # steps_per_second, parameters, peak_bytes
    machine: str = ""


def values(runs: Sequence[Run], variant: str, step: int, metric: Metric) -> list[float]:
    """One a seed, of those seeds that have been measured there."""
    return [r.figures[step][metric.key] for r in runs if r.variant == variant and step in r.figures]


def shown(found: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation over seeds (n - 1), and how many there are."""
    if not found:
        return "–"
    mean = f"{statistics.fmean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.{digits}f} ({len(found)})"


def apart(a: Sequence[float], b: Sequence[float]) -> bool | None:
    """Whether every seed of one is better than every seed of the other; None: fewer than two seeds a side."""
    if min(len(a), len(b)) < 2:
        return None
    return max(a) < min(b) or max(b) < min(a)


def by_chance(n: int, m: int) -> float:
    """Share of comparisons of n with m seeds that `apart` would tell apart if nothing differed."""
    return 2 / math.comb(n + m, n)


def common_step(runs: Sequence[Run], variants: Sequence[str]) -> int | None:
    """The last milestone that a run of each variant has reached, those aside that only diverged."""
    reached = [
        set().union(*(r.figures for r in runs if r.variant == variant))
        for variant in variants
        if any(r.variant == variant and r.diverged is None and r.figures for r in runs)
    ]
    return max(set.intersection(*reached), default=None) if reached else None


def compared(runs: Sequence[Run], variants: Sequence[str], step: int) -> list[str]:
    """Each variant against the first in the main metric at `step`, and whether the metrics agree."""
    baseline, *others = variants
    held = values(runs, baseline, step, MAIN)
    if not held:
        return [f"{baseline} has no figures at step {step:,}, so nothing can be held against it."]
    lines, clear, tried, single = [], [], 0, len(held) < 2
    chance = 0.0
    for variant in others:
        found = values(runs, variant, step, MAIN)
        if not found:
            continue
        verdict = apart(found, held)
        if verdict is None:
            single = True
            continue
        tried += 1
        chance += by_chance(len(found), len(held))
        if verdict:
            change = statistics.fmean(found) / statistics.fmean(held) - 1
            clear.append(f"{variant} is {'worse' if change > 0 else 'better'} by {abs(change):.0%}")
    if single:
        lines.append(
            "There is only one seed of some variants: what differs between those may be chance, and "
            "nothing here can tell. Run it again with more --seeds; what is there is kept."
        )
    if tried and clear:
        lines.append(
            f"Against {baseline}, at step {step:,}, in {MAIN.title}: {'; '.join(clear)}. In these "
            "the ranges over seeds do not overlap."
        )
    if tried and len(clear) < tried:
        lines.append(
            ("No variant differs" if not clear else f"{tried - len(clear)} of {tried} variants do not differ")
            + f" from {baseline} by more than the spread of the seeds (at step {step:,}, in {MAIN.title})."
        )
    if tried:
        lines.append(
            f"If nothing differed at all, ranges would part by chance in about {chance:.1f} of these {tried} "
            f"comparison{'s' * (tried > 1)}."
        )
    measured = [v for v in variants if values(runs, v, step, MAIN)]
    if len(measured) > 1:
        winners = {}
        for metric in METRICS:
            means = [statistics.fmean(values(runs, v, step, metric)) for v in measured]
            if means.count(means[best_first(metric, means)]) == 1:  # of equals none is the best
                winners[metric.title] = measured[best_first(metric, means)]
        first = winners.pop(MAIN.title, None)
        if first is None:
            return [*lines, f"No variant alone has the best mean {MAIN.title}."]
        ours, theirs = (statistics.fmean(values(runs, v, step, MAIN)) for v in (first, baseline))
        agree = [title for title, winner in winners.items() if winner == first]
        differ = [f"{title} ({winner})" for title, winner in winners.items() if winner != first]
        lines.append(
            f"{first} has the best mean {MAIN.title} at step {step:,}, {ours:.{MAIN.digits}f}"
            + (f" ({baseline}: {theirs:.{MAIN.digits}f}); " if first != baseline else "; ")
            + (f"it also has the best {', '.join(agree)}." if agree else "no other metric puts it first.")
            + (f" Others are best in: {', '.join(differ)}." if differ else "")
        )
    return lines


def ended(runs: Sequence[Run], variants: Sequence[str], seeds: int, last: int) -> list[str]:
    """What diverged, and what is not there yet."""
    lines = [
        f"{r.variant}, seed {r.seed}: diverged at step {r.diverged:,}; what it reached before stands in the "
        f"tables."
        for r in runs
        if r.diverged is not None
    ]
    there = {(r.variant, r.seed) for r in runs if r.diverged is not None or last in r.figures}
    missing = [f"{v} (seed {s})" for v in variants for s in range(seeds) if (v, s) not in there]
    if missing:
        lines.append(f"Not finished yet: {', '.join(missing)}.")
    return lines


@dataclass(frozen=True)
class Judged:
    """The stopping rule on one run, beside the best milestone and the last one."""

    run: Run
    stop: Stop
    at_stop: float | None
    best: tuple[int, float]
    last: tuple[int, float]


def judge(runs: Sequence[Run], tolerance: float) -> list[Judged]:
    """The stopping rule on every run that has three milestones or more."""
    judged = []
    for run in runs:
        steps = sorted(run.figures)
        if len(steps) < 3:
            continue
        metric = [run.figures[step][MAIN.key] for step in steps]
        stop = stopping_step(steps, metric, stretches(run.losses, steps), tolerance)
        best = min(range(len(steps)), key=metric.__getitem__)
        at_stop = metric[steps.index(stop.stop)] if stop.stop is not None else None
        judged.append(Judged(run, stop, at_stop, (steps[best], metric[best]), (steps[-1], metric[-1])))
    return judged


def judged_lines(judged: Sequence[Judged]) -> list[str]:
    """What the rule is worth beside 'take the last', in sentences."""
    if not judged:
        return []
    stopped = [j for j in judged if j.at_stop is not None]
    lines = [f"The stopping rule (tolerance {JUDGED:.0%}) stopped {len(stopped)} of {len(judged)} runs."]
    if stopped:
        rule = statistics.fmean(_excess(j.at_stop or 0.0, j.best[1]) for j in stopped)
        trivial = statistics.fmean(_excess(j.last[1], j.best[1]) for j in stopped)
        saved = statistics.fmean(1 - (j.stop.stop or 0) / j.last[0] for j in stopped)
        lines.append(
            f"In those its {MAIN.title} was {rule:.0%} above the run's best milestone on average, and that "
            f"of 'take "
            f"the last' {trivial:.0%}; it would have saved {saved:.0%} of the steps."
        )
        lines.append(
            "So here the rule loses to taking the last."
            if rule > trivial
            else "So here the rule is no worse than taking the last."
        )
        early = sum(j.at_stop is not None and j.last[1] < j.at_stop for j in stopped)
        lines.append(
            f"In {early} of {len(stopped)} stopped runs the metric was lower at the end than where it "
            f"stopped."
        )
    return lines


def _excess(value: float, best: float) -> float:
    return value / best - 1 if best > 0 else 0.0
