"""Spatial blindness: which measure sees disorder first? Real images are disturbed; nothing is trained.

A split cuts the data into two random halves. `samples` images of one are the reference, as many of the other
are measured. Several undisturbed splits give each measure's mean and spread. A measure sees a
disturbance where it lies more than THRESHOLD spreads on the worse side of that mean.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from torch import Tensor, from_numpy

from imaging.files import write_whole
from train.data.pack import Pack
from train.errors import ExperimentError
from train.experiments.disorder import Disturbance, disturbances
from train.experiments.measure import METRICS, Metric, distances
from train.measure.features import Extractor, FeatureSet, look

STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
SPLITS = 10  # measured undisturbed
DISTURBED_SPLITS = 3  # the first of them, measured at each strength and averaged
THRESHOLD = 3.0  # standard deviations over the undisturbed splits
MEASURES = tuple(
    replace(m, title=m.title.replace(" (own features)", ""), key=m.key.replace("_own_features", ""))
    for m in METRICS
    if m.key != "accuracy"
)


@dataclass(frozen=True)
class NamedExtractor:
    """An extractor as the report names it."""

    name: str  # of its folder
    about: str  # with the hash of its weights
    network: Extractor


@dataclass
class Study:
    """The measures in one extractor's features. Each measurement is kept as a file and never made again."""

    out: Path
    pack: Pack
    extractor: NamedExtractor
    samples: int  # images of each half
    device: str
    _reference: tuple[int, FeatureSet] | None = None  # (split, its reference), of the last split

    def undisturbed(self, split: int) -> dict[str, float]:
        return self._kept(f"undisturbed-{split}", split, None, 0.0)

    def disturbed(self, disturbance: Disturbance, strength: float, split: int) -> dict[str, float]:
        name = f"{disturbance.name}-{strength:g}-{split}"
        return self._kept(name, split, disturbance, strength)

    def kept(self, name: str) -> dict[str, float] | None:
        path = self._path(name)
        return dict(json.loads(path.read_text())) if path.exists() else None

    def _path(self, name: str) -> Path:
        return self.out / "measured" / self.extractor.name / f"{name}.json"

    def _kept(
        self, name: str, split: int, disturbance: Disturbance | None, strength: float
    ) -> dict[str, float]:
        found = self.kept(name)
        if found is None:
            known, measured = self._halves(split)
            images = self.pack.images[from_numpy(measured)]
            if disturbance is not None:
                images = disturbance.apply(images, strength, rng(disturbance.name, split))
            raw = distances(self._known(split, known), self._look(images), self.device)
            found = {key.replace("_own_features", ""): value for key, value in raw.items()}
            write_whole(self._path(name), json.dumps(found).encode())
        return found

    def _halves(self, split: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        order = rng("split", split).permutation(len(self.pack))
        half = len(order) // 2
        return order[: min(half, self.samples)], order[half : half + self.samples]

    def _known(self, split: int, indices: npt.NDArray[np.int64]) -> FeatureSet:
        if self._reference is None or self._reference[0] != split:
            self._reference = split, self._look(self.pack.images[from_numpy(indices)])
        return self._reference[1]

    def _look(self, images: Tensor) -> FeatureSet:
        return look(self.extractor.network, images, np.zeros(len(images), np.int64), self.device)


def run_study(study: Study, deadline: float, console: Console, report: Callable[[], None]) -> bool:
    """Measure what is missing; False: the deadline (of time.monotonic) came first."""
    if len(study.pack) // 2 <= 10:
        raise ExperimentError(f"Two halves of {len(study.pack)} images are too few to compare.")
    for split in range(SPLITS):
        if time.monotonic() > deadline:
            return False
        study.undisturbed(split)
    for split in range(DISTURBED_SPLITS):
        for disturbance in disturbances(study.pack.resolution):
            for strength in STRENGTHS:
                if time.monotonic() > deadline:
                    return False
                study.disturbed(disturbance, strength, split)
            report()
            console.print(
                f"{study.extractor.name}: {disturbance.name}, split {split + 1} of {DISTURBED_SPLITS}",
                highlight=False,
                markup=False,
            )
    return True


@dataclass(frozen=True)
class Sight:
    """How one measure answers one disturbance."""

    measure: Metric
    disturbance: str
    deviations: Sequence[tuple[float, float]]  # (strength, spreads on the worse side of the undisturbed mean)

    @property
    def first(self) -> float | None:
        """The lowest strength that the measure sees; None: none."""
        return next((s for s, z in self.deviations if z > THRESHOLD), None)

    @property
    def fooled(self) -> bool:
        """Whether disorder looks better than order, beyond the spread, at some strength."""
        return any(z < -THRESHOLD for _, z in self.deviations)


def sights(study: Study) -> list[Sight]:
    """Every measure on every disturbance that is measured so far."""
    undisturbed = [f for split in range(SPLITS) if (f := study.kept(f"undisturbed-{split}"))]
    if len(undisturbed) < SPLITS:
        return []
    found = []
    for disturbance in disturbances(study.pack.resolution):
        measured = {
            strength: [
                kept
                for split in range(DISTURBED_SPLITS)
                if (kept := study.kept(f"{disturbance.name}-{strength:g}-{split}"))
            ]
            for strength in STRENGTHS
        }
        for measure in MEASURES if any(measured.values()) else ():
            still = [kept[measure.key] for kept in undisturbed]
            mean, spread = statistics.fmean(still), max(statistics.stdev(still), 1e-12)
            deviations = [
                (strength, (statistics.fmean(kept[measure.key] for kept in there) - mean) / spread)
                for strength, there in measured.items()
                if there
            ]
            worse = 1 if measure.lower else -1
            found.append(Sight(measure, disturbance.name, [(s, worse * z) for s, z in deviations]))
    return found


def rng(purpose: str, number: int) -> np.random.Generator:
    """The random stream of (purpose, number)."""
    key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest())
    return np.random.Generator(np.random.Philox(key=[key, number]))
