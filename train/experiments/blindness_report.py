"""The report on spatial blindness. It shows no image of the data."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor, from_numpy

from train.experiments import blindness
from train.experiments.blindness import MEASURES, STRENGTHS, THRESHOLD, Sight, Study, rng, sights
from train.experiments.catalogue import Experiment
from train.experiments.charts import Axes, Line, chart
from train.experiments.disorder import disturbances
from train.experiments.report import Report
from train.experiments.runs import machine


def write_report(
    out: Path, experiment: Experiment, settings: Mapping[str, Any], studies: Sequence[Study]
) -> None:
    """Write report.md and figures/ in `out`, from the measurements that are there now."""
    report = Report(f"Experiment: {experiment.name}")
    report.text(experiment.question)
    seen = [(study, sights(study)) for study in studies]
    report.heading("Findings")
    for study, found in seen:
        report.text(f"In {study.extractor.about}:")
        report.bullets(findings(found) or ["Nothing is measured yet."])
    _protocol(report, settings, studies)
    for study, found in seen:
        if found:
            _tables(report, study, found)
            _curves(report, study, found)
    report.heading("The disturbances")
    resolution = settings["data"]["resolution"]
    names = ", ".join(kind.name for kind in disturbances(resolution))
    caption = f"A synthetic card. Rows: {names}. Columns: strength 0, then rising to 1."
    report.figure("disturbances.png", _cards(resolution), caption)
    report.write(out)


def findings(found: Sequence[Sight]) -> list[str]:
    """How many disturbances each measure sees, and how many first."""
    if not found:
        return []
    names = _names(found)
    seen = {m.title: sum(s.first is not None for s in found if s.measure == m) for m in MEASURES}
    first = dict.fromkeys(seen, 0)
    for name in names:
        strengths = {s.measure.title: _or_never(s) for s in found if s.disturbance == name}
        for title, strength in strengths.items():
            first[title] += strength == min(strengths.values()) < math.inf
    lines = [
        f"Seen at some strength, of {len(names)} disturbances: {_counts(seen)}.",
        f"Seen first: {_counts(first)}.",
    ]
    if fooled := sorted({f"{s.measure.title} ({s.disturbance})" for s in found if s.fooled}):
        lines.append(f"Better than undisturbed, beyond the spread, at some strength: {', '.join(fooled)}.")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _protocol(report: Report, settings: Mapping[str, Any], studies: Sequence[Study]) -> None:
    data = settings["data"]
    report.heading("Protocol")
    report.code(settings["command"], "sh")
    report.bullets(
        [
            f"Data: {data['source']}, {data['images']:,} images of {data['classes']} classes, "
            f"{data['resolution']} px, sha256 {str(data['sha256'])[:16]}…",
            f"A split: {settings['samples']:,} images of one random half are the reference, as many of the "
            f"other are measured. {blindness.SPLITS} splits undisturbed; the first "
            f"{blindness.DISTURBED_SPLITS} disturbed too, and averaged.",
            f"A measure sees a disturbance where it is more than {THRESHOLD:g} standard deviations (over the "
            "undisturbed splits) worse than the undisturbed mean.",
            f"Extractors: {'; '.join(study.extractor.about for study in studies)}.",
            f"Machine: {machine(studies[0].device)}.",
        ]
    )
    kinds = disturbances(data["resolution"])
    report.table(["disturbance", "what strength 0 to 1 means"], [[d.name, d.about] for d in kinds])


def _tables(report: Report, study: Study, found: Sequence[Sight]) -> None:
    report.heading(f"Figures in {study.extractor.name} features")
    names = _names(found)
    of = {(s.measure.key, s.disturbance): s for s in found}
    still = [kept for split in range(blindness.SPLITS) if (kept := study.kept(f"undisturbed-{split}"))]
    columns = [[kept[m.key] for kept in still] for m in MEASURES]
    report.text("Undisturbed, mean and standard deviation over the splits:")
    report.table(
        [m.title for m in MEASURES],
        [[f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}" for values in columns]],
    )
    report.text("The lowest strength that a measure sees; the lowest of a column in bold:")
    least = {name: min(_or_never(of[m.key, name]) for m in MEASURES) for name in names}
    rows = [[m.title, *(_strength(of[m.key, name].first, least[name]) for name in names)] for m in MEASURES]
    report.table(["measure", *names], rows)
    report.text("Deviations, in undisturbed standard deviations, at the weakest and at the full strength:")
    rows = [
        [m.title, *(" / ".join(f"{of[m.key, name].deviations[i][1]:.1f}" for i in (0, -1)) for name in names)]
        for m in MEASURES
    ]
    report.table(["measure", *names], rows)


def _strength(first: float | None, least: float) -> str:
    if first is None:
        return "never"
    return f"**{first:g}**" if first == least else f"{first:g}"


def _curves(report: Report, study: Study, found: Sequence[Sight]) -> None:
    axes = Axes("strength", "standard deviations", "symlog")
    for name in _names(found):
        title = f"{name}: deviation from undisturbed ({study.extractor.name})"
        lines = [
            Line(s.measure.title, [(strength, max(z, 0.0)) for strength, z in s.deviations])
            for s in found
            if s.disturbance == name
        ]
        caption = f"{title}; dashed: where a measure counts as seeing"
        report.figure(f"{study.extractor.name}-{name}.svg", chart(title, axes, lines, THRESHOLD), caption)


def card(side: int) -> Tensor:
    """A synthetic picture uint8 [3, side, side]; any displacement shows on it."""
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
    images[0] = card(resolution)  # the others are upside down, so that their parts show in it
    for row, kind in enumerate(kinds):
        for column, strength in enumerate(shown):
            # here strength is a share of images; at 1 this one is among them
            share = kind.name.startswith("halves") and strength > 0
            drawn = kind.apply(images, 1.0 if share else strength, rng(kind.name, 0))[0]
            pixels = drawn.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2).permute(1, 2, 0)
            sheet.paste(Image.fromarray(pixels.numpy()), (column * (side + 2), row * (side + 2)))
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _names(found: Sequence[Sight]) -> list[str]:
    return list(dict.fromkeys(sight.disturbance for sight in found))


def _or_never(sight: Sight) -> float:
    return math.inf if sight.first is None else sight.first
