"""Spatial blindness: which measure sees disorder first? No network is trained; real images are disturbed.

Two random halves of the data, A and B, `samples` images of each: A is the reference, B is measured. Done
over several splits, B as it is gives each measure's undisturbed mean and spread. B disturbed is seen by
a measure when it lies more than THRESHOLD spreads on the worse side of that mean.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor, from_numpy

from imaging.files import write_whole
from train.data.pack import Pack
from train.errors import ExperimentError
from train.experiments.catalogue import Experiment
from train.experiments.disorder import Disturbance, disturbances
from train.experiments.measure import METRICS, Metric, distances
from train.experiments.report import Report, Series, chart
from train.experiments.runs import machine
from train.measure.features import Extractor, FeatureSet, look

STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
SPLITS = 10  # undisturbed
DISTURBED_SPLITS = 3  # of those, averaged at each strength
THRESHOLD = 3.0  # standard deviations over the undisturbed splits
MEASURES = tuple(
    replace(m, title=m.title.replace(" (own features)", ""), key=m.key.replace("_own_features", ""))
    for m in METRICS
    if m.key != "accuracy"
)


@dataclass(frozen=True)
class Look:
    """An extractor, and how the report calls it."""

    name: str  # a folder's name
    about: str  # with the hash of its weights
    extractor: Extractor


@dataclass
class Study:
    """What a look sees, split by split; each answer is kept as a file and never worked out twice."""

    out: Path
    pack: Pack
    look: Look
    samples: int  # images of each half
    device: str
    _reference: tuple[int, FeatureSet] | None = None  # of the split that was asked for last

    def undisturbed(self, split: int) -> dict[str, float]:
        return self._kept(f"undisturbed-{split}", split, None, 0.0)

    def disturbed(self, disturbance: Disturbance, strength: float, split: int) -> dict[str, float]:
        name = f"{disturbance.name}-{strength:g}-{split}"
        return self._kept(name, split, disturbance, strength)

    def kept(self, name: str) -> dict[str, float] | None:
        path = self._path(name)
        return dict(json.loads(path.read_text())) if path.exists() else None

    def _path(self, name: str) -> Path:
        return self.out / "measured" / self.look.name / f"{name}.json"

    def _kept(
        self, name: str, split: int, disturbance: Disturbance | None, strength: float
    ) -> dict[str, float]:
        found = self.kept(name)
        if found is None:
            known, measured = self._halves(split)
            images = self.pack.images[from_numpy(measured)]
            if disturbance is not None:
                images = disturbance.apply(images, strength, _rng(disturbance.name, split))
            raw = distances(self._known(split, known), self._look(images), self.device)
            found = {key.replace("_own_features", ""): value for key, value in raw.items()}
            write_whole(self._path(name), json.dumps(found).encode())
        return found

    def _halves(self, split: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        order = _rng("split", split).permutation(len(self.pack))
        half = len(order) // 2
        return order[: min(half, self.samples)], order[half : half + self.samples]

    def _known(self, split: int, indices: npt.NDArray[np.int64]) -> FeatureSet:
        if self._reference is None or self._reference[0] != split:
            self._reference = split, self._look(self.pack.images[from_numpy(indices)])
        return self._reference[1]

    def _look(self, images: Tensor) -> FeatureSet:
        return look(self.look.extractor, images, np.zeros(len(images), np.int64), self.device)


def run_study(study: Study, deadline: float, console: Console, told: Callable[[], None]) -> bool:
    """Measure all that is missing; False: the time was up before."""
    if len(study.pack) // 2 <= 10:
        raise ExperimentError(f"Two halves of {len(study.pack)} images are too small to be compared.")
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
            told()
            console.print(
                f"{study.look.name}: {disturbance.name}, split {split + 1} of {DISTURBED_SPLITS}",
                highlight=False,
                markup=False,
            )
    return True


# -- what it says ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sight:
    """How one measure answers one disturbance: deviations by strength, positive where it gets worse."""

    measure: Metric
    disturbance: str
    deviations: Sequence[tuple[float, float]]  # (strength, spreads from the undisturbed mean)

    @property
    def first(self) -> float | None:
        """The lowest strength that it sees; None: none."""
        return next((s for s, z in self.deviations if z > THRESHOLD), None)

    @property
    def fooled(self) -> bool:
        """Whether disorder ever looks better to it than order, beyond its spread."""
        return any(z < -THRESHOLD for _, z in self.deviations)


def sights(study: Study) -> list[Sight]:
    """Every measure and disturbance that has been measured in all its splits so far."""
    undisturbed = [f for split in range(SPLITS) if (f := study.kept(f"undisturbed-{split}"))]
    if len(undisturbed) < SPLITS:
        return []
    found = []
    for disturbance in disturbances(study.pack.resolution):
        by_strength: list[tuple[float, list[dict[str, float]]]] = []
        for strength in STRENGTHS:
            kept = [study.kept(f"{disturbance.name}-{strength:g}-{s}") for s in range(DISTURBED_SPLITS)]
            if there := [k for k in kept if k is not None]:
                by_strength.append((strength, there))
        if not by_strength:
            continue
        for measure in MEASURES:
            still = [u[measure.key] for u in undisturbed]
            mean, spread = statistics.fmean(still), statistics.stdev(still)
            worse = 1 if measure.lower else -1
            deviations = [
                (
                    strength,
                    worse * (statistics.fmean(t[measure.key] for t in there) - mean) / max(spread, 1e-12),
                )
                for strength, there in by_strength
            ]
            found.append(Sight(measure, disturbance.name, deviations))
    return found


def findings(found: Sequence[Sight]) -> list[str]:
    """Sentences from the sights of one look."""
    lines, wins = [], dict.fromkeys((m.title for m in MEASURES), 0)
    names = list(dict.fromkeys(s.disturbance for s in found))
    for name in names:
        mine = [s for s in found if s.disturbance == name]
        seeing = [(s.first, s.measure.title) for s in mine if s.first is not None]
        blind = [s.measure.title for s in mine if s.first is None]
        if seeing:
            lowest = min(first for first, _ in seeing)
            winners = [title for first, title in seeing if first == lowest]
            for title in winners:
                wins[title] += 1
            lines.append(
                f"{name}: seen first at strength {lowest:g}, by {', '.join(winners)}"
                + (f"; at no strength by {', '.join(blind)}." if blind else "; in the end by all.")
            )
        else:
            lines.append(f"{name}: seen by no measure at any strength.")
    if names:
        order = sorted(wins.items(), key=lambda item: -item[1])
        counts = ", ".join(f"{title} {count}" for title, count in order)
        lines.append(f"First, or among the first, in this many of {len(names)} disturbances: {counts}.")
        pooled, spatial = (
            {s.disturbance: s.first for s in found if s.measure.key == key}
            for key in ("frechet", "spatial_frechet")
        )
        later = [n for n in names if _or_never(pooled[n]) > _or_never(spatial[n])]
        earlier = [n for n in names if _or_never(pooled[n]) < _or_never(spatial[n])]
        never = [n for n in names if pooled[n] is None]
        lines.append(
            f"The Fréchet distance in pooled features sees {len(names) - len(never)} of {len(names)} "
            f"disturbances at some "
            f"strength; it sees {len(later)} later than the spatial one ({', '.join(later) or 'none'}) and "
            f"{len(earlier)} "
            f"sooner ({', '.join(earlier) or 'none'})."
        )
    if fooled := sorted({f"{s.measure.title} ({s.disturbance})" for s in found if s.fooled}):
        lines.append(f"Better than undisturbed, beyond their spread, at some strength: {', '.join(fooled)}.")
    return lines


def write_report(
    out: Path, experiment: Experiment, settings: Mapping[str, Any], studies: Sequence[Study]
) -> None:
    """report.md, report.html and figures/ from what has been measured. No image of the data is shown."""
    report = Report(f"Experiment: {experiment.name}")
    report.text(experiment.question)
    seen = [(study, sights(study)) for study in studies]
    report.heading("Findings")
    for study, found in seen:
        report.text(f"In {study.look.about}:")
        report.bullets(findings(found) or ["Nothing has been measured yet."])
    _protocol(report, settings, studies)
    for study, found in seen:
        if found:
            _tables(report, study, found)
    report.heading("What the disturbances do")
    report.text(
        "Drawn on a synthetic card, not on an image of the data. Columns: strength 0, then rising to 1."
    )
    kinds = disturbances(settings["data"]["resolution"])
    report.figure(
        "disturbances.png",
        _cards(settings["data"]["resolution"]),
        f"Rows: {', '.join(d.name for d in kinds)}",
    )
    report.write(out)


def _protocol(report: Report, settings: Mapping[str, Any], studies: Sequence[Study]) -> None:
    data = settings["data"]
    report.heading("What was run")
    report.code(settings["command"], "sh")
    report.bullets(
        [
            f"Data: {data['source']}, {data['images']:,} images of {data['classes']} classes, "
            f"{data['resolution']} px, "
            f"sha256 {str(data['sha256'])[:16]}…",
            f"Each split: {settings['samples']:,} images of one random half as reference, as many of the "
            f"other half "
            f"measured. {SPLITS} splits undisturbed; of those, the first {DISTURBED_SPLITS} disturbed, and "
            f"averaged.",
            f"A measure sees a disturbance where it is more than {THRESHOLD:g} standard deviations (over "
            f"the undisturbed "
            "splits) worse than the undisturbed mean.",
            f"Extractors: {'; '.join(s.look.about for s in studies)}.",
            f"Machine: {machine(studies[0].device)}.",
        ]
    )
    kinds = disturbances(data["resolution"])
    report.table(["disturbance", "what strength 0 to 1 means"], [[d.name, d.about] for d in kinds])


def _tables(report: Report, study: Study, found: Sequence[Sight]) -> None:
    report.heading(f"Figures in {study.look.name} features")
    names = list(dict.fromkeys(s.disturbance for s in found))
    still = [study.kept(f"undisturbed-{split}") or {} for split in range(SPLITS)]
    report.text("Undisturbed, mean and standard deviation over the splits:")
    report.table(
        [m.title for m in MEASURES],
        [
            [
                f"{statistics.fmean(s[m.key] for s in still):.4g} ± "
                f"{statistics.stdev(s[m.key] for s in still):.2g}"
                for m in MEASURES
            ]
        ],
    )
    of = {(s.measure.key, s.disturbance): s for s in found}
    report.text("The lowest strength that is seen; the lowest of a column in bold:")
    rows = []
    for m in MEASURES:
        cells = []
        for name in names:
            first = of[m.key, name].first
            least = min(_or_never(of[o.key, name].first) for o in MEASURES)
            text = "never" if first is None else f"{first:g}"
            cells.append(f"**{text}**" if first is not None and first == least else text)
        rows.append([m.title, *cells])
    report.table(["measure", *names], rows)
    report.text(
        "Sensitivity: deviations, in undisturbed standard deviations, at the weakest and at the full "
        "strength:"
    )
    report.table(
        ["measure", *names],
        [
            [m.title, *(" / ".join(f"{of[m.key, n].deviations[i][1]:.1f}" for i in (0, -1)) for n in names)]
            for m in MEASURES
        ],
    )
    for name in names:
        series = [
            Series(m.title, [(s, math.log10(1 + max(z, 0.0))) for s, z in of[m.key, name].deviations])
            for m in MEASURES
        ]
        title = f"{name}: deviation from undisturbed ({study.look.name})"
        drawn = chart(title, "strength", "log10(1 + deviations)", series, math.log10(1 + THRESHOLD))
        about = f"{title}; dashed: where a measure counts as seeing"
        report.figure(f"{study.look.name}-{name}.svg", drawn, about)


def card(side: int) -> Tensor:
    """A synthetic picture uint8 [3, side, side] on which any displacement shows."""
    picture = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(picture)
    for y in range(side):
        draw.line([(0, y), (side, y)], fill=(40 + 120 * y // side, 90, 200 - 120 * y // side))
    for i in range(0, side, side // 8):
        draw.line([(i, 0), (i, side)], fill=(230, 230, 230))
        draw.line([(0, i), (side, i)], fill=(230, 230, 230))
    unit = side / 32
    draw.ellipse([unit * v for v in (4, 4, 17, 17)], fill=(240, 200, 40), outline=(0, 0, 0))
    draw.polygon([(unit * x, unit * y) for x, y in ((20, 28), (28, 28), (24, 14))], fill=(200, 40, 40))
    draw.rectangle([unit * v for v in (5, 20, 15, 29)], fill=(40, 160, 80), outline=(0, 0, 0))
    return from_numpy(np.asarray(picture, np.uint8).transpose(2, 0, 1).copy())


def _cards(resolution: int) -> bytes:
    """Every disturbance (rows) of the card at every strength (columns)."""
    kinds, shown = disturbances(resolution), (0.0, *STRENGTHS)
    enlarged = max(1, 96 // resolution)
    side = resolution * enlarged
    sheet = Image.new("RGB", (len(shown) * (side + 2) - 2, len(kinds) * (side + 2) - 2), "white")
    images = card(resolution).flip(1).repeat(4, 1, 1, 1)
    images[0] = card(resolution)  # the others are upside down: what comes from another image shows
    for row, kind in enumerate(kinds):
        for column, strength in enumerate(shown):
            share = kind.name.startswith("halves") and strength > 0  # of images: this one is among them
            drawn = kind.apply(images, 1.0 if share else strength, _rng(kind.name, 0))[0]
            pixels = drawn.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2).permute(1, 2, 0)
            sheet.paste(Image.fromarray(pixels.numpy()), (column * (side + 2), row * (side + 2)))
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _rng(purpose: str, number: int) -> np.random.Generator:
    key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest())
    return np.random.Generator(np.random.Philox(key=[key, number]))


def _or_never(strength: float | None) -> float:
    return math.inf if strength is None else strength
