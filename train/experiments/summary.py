"""The report of an experiment that trains: read from its folder alone, whoever wrote what is in it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from train.experiments.catalogue import Experiment, Variant
from train.experiments.findings import (
    JUDGED,
    TOLERANCES,
    Run,
    apart,
    common_step,
    compared,
    ended,
    judge,
    judged_lines,
    shown,
    values,
)
from train.experiments.measure import MAIN, METRICS, SHOWN, Metric, best_first
from train.experiments.report import Report, Series, chart
from train.experiments.runs import DIVERGED, MILESTONES, run_folder
from train.recipes.recipe import Recipe

WIDEST = 800  # px of a picture in the report
SMOOTHED = 15  # logged losses in a running mean


def collect(out: Path, variants: Sequence[Variant]) -> list[Run]:
    """Every run in an experiment's folder, as each of its variants looks at it."""
    runs = []
    for variant in variants:
        for folder in sorted((out / "runs" / variant.trains).glob("seed-*"), key=_seed):
            found = [
                json.loads(p.read_text())
                for p in sorted((folder / MILESTONES).glob(f"*.{variant.name}.json"))
            ]
            if not found and not (folder / DIVERGED).exists():
                continue
            diverged = (
                json.loads((folder / DIVERGED).read_text())["step"] if (folder / DIVERGED).exists() else None
            )
            costs = [f for f in found if f.get("steps_per_second")]
            runs.append(
                Run(
                    variant.name,
                    _seed(folder),
                    {f["step"]: f["figures"] for f in found},
                    _losses(folder / "log.jsonl"),
                    diverged,
                    {
                        k: v
                        for k, v in (costs or found or [{}])[-1].items()
                        if k in ("steps_per_second", "parameters", "peak_bytes")
                    },
                    found[-1]["machine"] if found else "",
                )
            )
    return runs


def write_report(
    out: Path,
    experiment: Experiment,
    variants: Sequence[Variant],
    settings: Mapping[str, Any],
    base: Recipe,
    real: Mapping[str, float],
) -> None:
    """report.md, report.html and figures/ in `out`, from what is there now."""
    runs = collect(out, variants)
    names = [v.name for v in variants if any(r.variant == v.name for r in runs)]
    trained = [v.name for v in variants if v.name in names and not v.of]
    milestones = sorted({step for r in runs for step in r.figures})
    report = Report(f"Experiment: {experiment.name}")
    report.text(experiment.question)
    report.heading("Findings")
    every = [v.name for v in variants]
    wanted = settings["variants"]
    lines = ended(runs, [v for v in every if v in wanted], settings["seeds"], settings["milestones"][-1])
    step = common_step(runs, names)
    if step is not None and every[0] in names:
        lines = compared(runs, names, step) + lines
    if experiment.name == "attention-sites":
        lines += judged_lines(judge([r for r in runs if r.variant in trained], JUDGED))
    report.bullets([*lines, *experiment.notes(base)] or ["Nothing has been measured yet."])
    _protocol(report, settings, runs, variants)
    if step is not None:
        _tables(report, runs, names, milestones, step, real)
    _curves(report, runs, names, trained, milestones, real)
    if experiment.name == "attention-sites":
        _stopping(report, [r for r in runs if r.variant in trained])
    _cost(report, runs, trained)
    _samples(report, out, [v for v in variants if v.name in names])
    report.heading("The recipe in full")
    report.text(
        "As it is for every variant but for what the variant changes; steps and seed are the run's own."
    )
    report.code(json.dumps(settings["recipe"], indent=1), "json")
    report.write(out)


def _protocol(
    report: Report, settings: Mapping[str, Any], runs: Sequence[Run], variants: Sequence[Variant]
) -> None:
    report.heading("What was run")
    report.code(settings["command"], "sh")
    machines = sorted({r.machine for r in runs if r.machine})
    milestones = settings["milestones"]
    report.bullets(
        [
            f"Scale {settings['scale']:g}: milestones at {', '.join(f'{m:,}' for m in milestones)} "
            f"generator steps"
            + (
                ", the experiment in full."
                if settings["scale"] == 1
                else ", not the full length of the experiment (scale 1)."
            ),
            f"Seeds: {settings['seeds']} a variant, the same ones for each; noise and classes that are "
            f"measured are the same everywhere.",
            f"Data: {settings['data']['source']}, {settings['data']['images']:,} images of "
            f"{settings['data']['classes']} classes, "
            f"{settings['data']['resolution']} px, sha256 {str(settings['data']['sha256'])[:16]}…",
            f"Measured on {settings['samples']:,} generated images a milestone, classes in the data's "
            f"proportions, beside "
            f"{settings['reference_images']:,} real ones (nine tenths of the data, at most 10,000).",
            f"Features: a classifier trained on this data, {settings['features']['accuracy']:.1%} right on "
            f"images it never saw, "
            f"sha256 {settings['features']['sha256'][:16]}… Its distances are **not** FID; they compare "
            f"only with this file's.",
            "Generators are measured as served: averaged weights, batch-norm statistics recomputed, unless "
            "a variant says otherwise.",
            f"Recipe {settings['recipe']['name']}, in full at the end.",
            f"Machine: {'; '.join(machines) or 'nothing measured yet'}.",
        ]
    )
    report.table(["variant", "what it is"], [[v.name, v.about] for v in variants])


def _tables(
    report: Report,
    runs: Sequence[Run],
    names: Sequence[str],
    milestones: Sequence[int],
    step: int,
    real: Mapping[str, float],
) -> None:
    report.heading("Figures")
    report.text(
        f"At step {step:,}, the last that every variant has reached. Mean ± standard deviation, and in "
        "brackets over how many seeds; no spread where there is one. The best mean in bold. *Apart*: in "
        f"{MAIN.title}, every seed is better, or every seed worse, than every seed of {names[0]}. "
        "The last row: as many held-back real images as there are, up to the same number."
    )
    columns = {m.key: [values(runs, n, step, m) for n in names] for m in METRICS}
    rows = []
    for i, name in enumerate(names):
        cells = [_bold(columns[m.key], i, m) for m in METRICS]
        verdict = apart(columns[MAIN.key][i], columns[MAIN.key][0]) if i else None
        rows.append([name, *cells, {None: "–", True: "yes", False: "no"}[verdict]])
    rows.append(["real images", *(f"{real[m.key]:.{m.digits}f}" for m in METRICS), "–"])
    report.table(["variant", *(m.title for m in METRICS), "apart"], rows)
    report.text(f"{MAIN.title} at every milestone:")
    report.table(
        ["variant", *(f"{m:,}" for m in milestones)],
        [
            [name, *(_bold([values(runs, n, m, MAIN) for n in names], i, MAIN) for m in milestones)]
            for i, name in enumerate(names)
        ],
    )


def _curves(
    report: Report,
    runs: Sequence[Run],
    names: Sequence[str],
    trained: Sequence[str],
    milestones: Sequence[int],
    real: Mapping[str, float],
) -> None:
    if not milestones:
        return
    report.heading("Curves")
    for i, metric in enumerate(METRICS):
        series = []
        for name in names:
            at = [(m, found) for m in milestones if (found := values(runs, name, m, metric))]
            band = [(min(f), max(f)) for _, f in at] if any(len(f) > 1 for _, f in at) else []
            series.append(Series(name, [(m, sum(f) / len(f)) for m, f in at], band))
        better = "lower is better" if metric.lower else "higher is better"
        about = f"{metric.title} against generator steps ({better}); band: all seeds; dashed: real images"
        drawn = chart(metric.title, "generator steps", metric.title, series, real[metric.key])
        report.figure(f"{metric.key}.svg", drawn, about)
        if i == 0:  # the loss beside the metric that the stopping rule speaks of
            losses = [Series(name, smoothed(runs, name)) for name in trained]
            about = (
                f"The discriminator's hinge loss, running mean of {SMOOTHED} logged steps, mean over seeds"
            )
            drawn = chart("Discriminator's loss", "generator steps", "hinge loss", losses)
            report.figure("discriminator_loss.svg", drawn, about)


def smoothed(runs: Sequence[Run], variant: str) -> list[tuple[float, float]]:
    """Running mean of the discriminator's logged loss, over the seeds' mean, at most 200 points."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        if run.variant == variant:
            for step, loss in run.losses:
                by_step.setdefault(step, []).append(loss)
    means = [(step, sum(found) / len(found)) for step, found in sorted(by_step.items())]
    if len(means) < SMOOTHED:
        return [(float(step), loss) for step, loss in means]
    windows = [means[i - SMOOTHED : i] for i in range(SMOOTHED, len(means) + 1, max(1, len(means) // 200))]
    return [(float(window[-1][0]), sum(loss for _, loss in window) / SMOOTHED) for window in windows]


def _stopping(report: Report, runs: Sequence[Run]) -> None:
    if not judge(runs, JUDGED):
        return
    report.heading("The stopping rule")
    report.text(
        f"First the metric flattens ({MAIN.title} at a milestone is not lower by more than the tolerance "
        f"than the best "
        "before), then the discriminator's loss does (its mean over the stretch up to a milestone differs "
        "from the stretch "
        "before by at most the tolerance): there training would stop. At each milestone the rule knows only "
        "what came before."
    )
    rows = []
    for tolerance in TOLERANCES:
        for j in judge(runs, tolerance):
            stop = f"{j.stop.stop:,}" if j.stop.stop is not None else "never"
            flat = f"{j.stop.metric_flat:,}" if j.stop.metric_flat is not None else "never"
            at_stop = f"{j.at_stop:.{MAIN.digits}f}" if j.at_stop is not None else "–"
            best, last = (f"{value:.{MAIN.digits}f} ({step:,})" for step, value in (j.best, j.last))
            rows.append(
                [f"{j.run.variant}, seed {j.run.seed}", f"{tolerance:.0%}", flat, stop, at_stop, best, last]
            )
    report.table(
        ["run", "tolerance", "metric flat at", "stops at", "metric there", "best (step)", "last (step)"], rows
    )


def _cost(report: Report, runs: Sequence[Run], trained: Sequence[str]) -> None:
    report.heading("Cost")
    rows = []
    for name in trained:
        mine = [r.cost for r in runs if r.variant == name]
        rates = [c["steps_per_second"] for c in mine if c.get("steps_per_second")]
        sizes = [c["parameters"] for c in mine if "parameters" in c]
        peaks = [c["peak_bytes"] for c in mine if "peak_bytes" in c]
        rows.append(
            [
                name,
                shown(rates, 2),
                f"{sizes[0] / 1e6:.2f}" if sizes else "–",
                f"{max(peaks) / 2**20:,.0f}" if peaks else "–",
            ]
        )
    report.table(["variant", "steps/s", "generator, million parameters", "peak GPU memory, MiB"], rows)
    report.text(
        "Steps a second of training alone, before the last milestone; other work on the machine slows them."
    )


def _samples(report: Report, out: Path, variants: Sequence[Variant]) -> None:
    report.heading("Samples")
    report.text(
        f"Generated images of {SHOWN} classes with the same noise everywhere, first seed; a row a "
        f"milestone, the last at the bottom."
    )
    for variant in variants:
        folder = run_folder(out, variant.trains, 0) / MILESTONES
        strips = sorted(folder.glob(f"*.{variant.name}.png"))
        if strips:
            about = f"{variant.name}: steps {', '.join(f'{int(p.name[:7]):,}' for p in strips)}"
            report.figure(f"samples-{variant.name}.png", _stacked(strips), about)


def _stacked(strips: Sequence[Path]) -> bytes:
    images = [Image.open(io.BytesIO(path.read_bytes())) for path in strips]
    height = images[0].height + 1
    sheet = Image.new("RGB", (images[0].width, height * len(images) - 1), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (0, i * height))
    if sheet.width > WIDEST:
        sheet = sheet.resize((WIDEST, round(sheet.height * WIDEST / sheet.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _bold(columns: Sequence[Sequence[float]], row: int, metric: Metric) -> str:
    """The cell of a row, marked if its mean is the best of the column."""
    text = shown(columns[row], metric.digits)
    there = [i for i, found in enumerate(columns) if found]
    means = [sum(columns[i]) / len(columns[i]) for i in there]
    return f"**{text}**" if len(there) > 1 and there[best_first(metric, means)] == row else text


def _losses(log: Path) -> list[tuple[int, float]]:
    if not log.exists():
        return []
    found = []
    for line in log.read_text().splitlines():
        try:
            entry = json.loads(line)
            found.append((int(entry["step"]), float(entry["loss/discriminator"])))
        except (ValueError, KeyError):
            continue  # a line cut short by a kill; the run that resumes drops it
    return found


def _seed(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-"))
