"""What the folder of an experiment holds, and comparisons over its seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.experiments.catalogue import Variant
from train.experiments.measure import MAIN, Metric
from train.experiments.runs import DIVERGED, MILESTONES

COSTS = ("steps_per_second", "parameters", "peak_bytes")


@dataclass(frozen=True)
class Run:
    """One training run, as one variant samples it."""

    variant: str
    seed: int
    figures: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # step -> METRICS by key
    losses: Sequence[tuple[int, float]] = ()  # (step, discriminator's loss), as logged
    diverged: int | None = None  # step
    cost: Mapping[str, float] = field(default_factory=dict)  # COSTS, those that were measured
    machine: str = ""


@dataclass(frozen=True)
class Results:
    """Everything measured so far."""

    runs: Sequence[Run]
    variants: Sequence[str]  # with a run; the first is the baseline
    trained: Sequence[str]  # of those, the ones with training runs of their own
    real: Mapping[str, float]  # METRICS by key, of held-back real images

    @classmethod
    def read(cls, out: Path, variants: Sequence[Variant], real: Mapping[str, float]) -> Results:
        """The results in an experiment's folder."""
        runs = [run for variant in variants for run in _runs(out, variant)]
        found = [v for v in variants if any(run.variant == v.name for run in runs)]
        return cls(runs, [v.name for v in found], [v.name for v in found if not v.of], real)

    @property
    def milestones(self) -> list[int]:
        return sorted({step for run in self.runs for step in run.figures})

    @property
    def common_step(self) -> int | None:
        """The last milestone that every variant has reached; a variant that only diverged does not count."""
        reached = [
            set().union(*(run.figures for run in self.of(variant)))
            for variant in self.variants
            if any(run.diverged is None and run.figures for run in self.of(variant))
        ]
        return max(set.intersection(*reached), default=None) if reached else None

    def of(self, variant: str) -> list[Run]:
        return [run for run in self.runs if run.variant == variant]

    def values(self, variant: str, step: int, metric: Metric = MAIN) -> list[float]:
        """One a seed that was measured at `step`."""
        return [run.figures[step][metric.key] for run in self.of(variant) if step in run.figures]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation over seeds (n - 1), and how many there are."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})"


def apart(a: Sequence[float], b: Sequence[float]) -> bool | None:
    """Whether every seed of one is better than every seed of the other; None: fewer than two seeds a side."""
    if min(len(a), len(b)) < 2:
        return None
    return max(a) < min(b) or max(b) < min(a)


def by_chance(n: int, m: int) -> float:
    """Probability that `apart` separates n from m seeds of equally good variants."""
    return 2 / math.comb(n + m, n)


def _runs(out: Path, variant: Variant) -> list[Run]:
    runs = []
    for folder in sorted((out / "runs" / variant.trains).glob("seed-*"), key=_seed):
        paths = sorted((folder / MILESTONES).glob(f"*.{variant.name}.json"))
        measured = [json.loads(path.read_text()) for path in paths]
        end = folder / DIVERGED
        diverged = json.loads(end.read_text())["step"] if end.exists() else None
        if not measured and diverged is None:
            continue
        timed = [each for each in measured if each.get("steps_per_second")]
        last = (timed or measured or [{}])[-1]
        runs.append(
            Run(
                variant.name,
                _seed(folder),
                figures={each["step"]: each["figures"] for each in measured},
                losses=_losses(folder / "log.jsonl"),
                diverged=diverged,
                cost={name: last[name] for name in COSTS if name in last},
                machine=measured[-1]["machine"] if measured else "",
            )
        )
    return runs


def _losses(log: Path) -> list[tuple[int, float]]:
    if not log.exists():
        return []
    losses = []
    for line in log.read_text().splitlines():
        try:
            entry = json.loads(line)
            losses.append((int(entry["step"]), float(entry["loss/discriminator"])))
        except (ValueError, KeyError):
            continue  # a kill cut this line short; the run that resumes drops it
    return losses


def _seed(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-"))
