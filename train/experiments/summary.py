"""The report of an experiment that trains, made from its folder alone."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from train.experiments.catalogue import Experiment, Variant
from train.experiments.charts import Axes, Line, chart
from train.experiments.measure import MAIN, METRICS, SHOWN, Metric, best_first
from train.experiments.report import Report
from train.experiments.results import COSTS, Results, Run, apart, by_chance, spread
from train.experiments.runs import MILESTONES, run_folder
from train.experiments.stopping import Trial, try_rule
from train.recipes.recipe import Recipe

WIDEST = 800  # px of a picture in the report
SMOOTHED = 15  # logged losses in a running mean
DRAWN = 200  # points of a loss curve, about
TOLERANCES = (0.02, 0.05, 0.1)  # of the stopping rule
TOLERANCE = 0.05  # the one of the findings
LOSSES = {  # what loss/discriminator in a log is, by the recipe's judge
    "plain": "hinge loss",
    "pretrained": "hinge losses of all heads, and the class's cross-entropy if the judge has a probe",
    "both": "hinge losses of the discriminator and of all heads, and the class's cross-entropy if the judge "
    "has a probe",
}


def write_report(
    out: Path,
    experiment: Experiment,
    variants: Sequence[Variant],
    settings: Mapping[str, Any],
    base: Recipe,
    real: Mapping[str, float],
) -> None:
    """Write report.md and figures/ in `out`, from the results that are there now."""
    results = Results.read(out, variants, real)
    report = Report(f"Experiment: {experiment.name}")
    report.text(experiment.question)
    report.heading("Findings")
    lines = findings(results)
    if experiment.tries_rule:
        lines += rule_findings(try_rule(_trained(results), TOLERANCE))
    lines += [*unfinished(results, settings), *experiment.notes(base)]
    report.bullets(lines or ["Nothing is measured yet."])
    _protocol(report, settings, results)
    report.table(["variant", "what it is"], [[v.name, v.about] for v in variants])
    if (step := results.common_step) is not None:
        _tables(report, results, step)
    if results.milestones:
        _curves(report, results, settings["recipe"]["optimisation"].get("judge", "plain"))
    if experiment.tries_rule:
        _stopping(report, results)
    _cost(report, results)
    _samples(report, out, [v for v in variants if v.name in results.variants])
    report.heading("The recipe in full")
    report.text(
        "Each variant changes only what the table of variants says; steps and seed are the run's own."
    )
    report.code(json.dumps(settings["recipe"], indent=1), "json")
    report.write(out)


def findings(results: Results) -> list[str]:
    """What the main metric says of the variants, as far as the seeds allow."""
    step = results.common_step
    if step is None or len(results.variants) < 2:
        return []
    baseline, *others = results.variants
    means = {v: statistics.fmean(found) for v in results.variants if (found := results.values(v, step))}
    first = min(means, key=means.__getitem__)
    figures = ", ".join(
        f"{v} {means[v]:.{MAIN.digits}f}" for v in dict.fromkeys((first, baseline)) if v in means
    )
    lines = [f"Best mean {MAIN.title} at step {step:,}: {figures}."]
    held = results.values(baseline, step)
    pairs = {v: results.values(v, step) for v in others}
    verdicts = {v: apart(found, held) for v, found in pairs.items()}
    if compared := [v for v, verdict in verdicts.items() if verdict is not None]:
        clear = [f"{v} ({means[v] / means[baseline] - 1:+.0%})" for v in compared if verdicts[v]]
        chance = sum(by_chance(len(pairs[v]), len(held)) for v in compared)
        lines.append(
            f"Apart from {baseline}: {', '.join(clear) or 'none'}, of {len(compared)} compared; chance alone "
            f"would part {chance:.1f} of them."
        )
    if few := [v for v in others if v not in compared]:
        lines.append(f"Not compared, as one side has fewer than two seeds: {', '.join(few)}.")
    return lines


def unfinished(results: Results, settings: Mapping[str, Any]) -> list[str]:
    """Which runs diverged, and which are missing."""
    lines = [
        f"{run.variant}, seed {run.seed}: diverged at step {run.diverged:,}."
        for run in results.runs
        if run.diverged is not None
    ]
    last = settings["milestones"][-1]
    done = {
        (run.variant, run.seed) for run in results.runs if run.diverged is not None or last in run.figures
    }
    wanted = [(v, seed) for v in settings["variants"] for seed in range(settings["seeds"])]
    if missing := [f"{v} (seed {seed})" for v, seed in wanted if (v, seed) not in done]:
        lines.append(f"Not finished yet: {', '.join(missing)}.")
    return lines


def rule_findings(trials: Sequence[Trial]) -> list[str]:
    """The stopping rule beside taking the last milestone."""
    stopped = [(trial, trial.at_stop, trial.stop.stop) for trial in trials if trial.at_stop is not None]
    if not stopped:
        return [f"The stopping rule stopped none of {len(trials)} runs."] if trials else []
    there = statistics.fmean(_excess(at_stop, trial.best[1]) for trial, at_stop, _ in stopped)
    last = statistics.fmean(_excess(trial.last[1], trial.best[1]) for trial, _, _ in stopped)
    saved = statistics.fmean(1 - (step or 0) / trial.last[0] for trial, _, step in stopped)
    return [
        f"The stopping rule (tolerance {TOLERANCE:.0%}) stopped {len(stopped)} of {len(trials)} runs, "
        f"{there:.0%} above their best {MAIN.title} on average; their last milestones are {last:.0%} above "
        f"it. The rule saves {saved:.0%} of the steps."
    ]


def _protocol(report: Report, settings: Mapping[str, Any], results: Results) -> None:
    report.heading("Protocol")
    report.code(settings["command"], "sh")
    data, features = settings["data"], settings["features"]
    machines = sorted({run.machine for run in results.runs if run.machine})
    report.bullets(
        [
            f"Recipe {settings['recipe']['name']} at scale {settings['scale']:g} of the experiment. "
            f"Milestones: {', '.join(f'{m:,}' for m in settings['milestones'])} generator steps. "
            f"Seeds: {settings['seeds']} a variant.",
            f"Data: {data['source']}, {data['images']:,} images of {data['classes']} classes, "
            f"{data['resolution']} px, sha256 {str(data['sha256'])[:16]}…",
            f"A measurement: {settings['samples']:,} generated images, classes in the data's proportions, "
            f"the same noise everywhere, beside {settings['reference_images']:,} real ones.",
            f"Features: a classifier trained on this data, {features['accuracy']:.1%} right on held-out "
            f"images, sha256 {features['sha256'][:16]}… Its distances are **not** FID and compare only with "
            "this file's.",
            "Generators as served: averaged weights, batch-norm statistics recomputed, unless a variant says "
            "otherwise.",
            f"Machine: {'; '.join(machines) or 'nothing is measured yet'}.",
        ]
    )


def _tables(report: Report, results: Results, step: int) -> None:
    names = results.variants
    report.heading("Figures")
    report.text(
        f"At step {step:,}, the last that every variant has reached: mean ± standard deviation (seeds), the "
        f"best mean in bold. *Apart*: in {MAIN.title}, every seed is better, or every seed worse, than every "
        f"seed of {names[0]}. The real images are held back from the reference."
    )
    rows = []
    for name in names:
        verdict = (
            apart(results.values(name, step), results.values(names[0], step)) if name != names[0] else None
        )
        cells = [_cell(results, name, step, metric) for metric in METRICS]
        rows.append([name, *cells, {None: "–", True: "yes", False: "no"}[verdict]])
    rows.append(["real images", *(f"{results.real[m.key]:.{m.digits}f}" for m in METRICS), "–"])
    report.table(["variant", *(m.title for m in METRICS), "apart"], rows)
    report.text(f"{MAIN.title} at every milestone:")
    milestones = results.milestones
    report.table(
        ["variant", *(f"{m:,}" for m in milestones)],
        [[name, *(_cell(results, name, m, MAIN) for m in milestones)] for name in names],
    )


def _cell(results: Results, variant: str, step: int, metric: Metric) -> str:
    """Mean and spread of a variant; bold if no variant's mean is better."""
    text = spread(results.values(variant, step, metric), metric.digits)
    means = {v: statistics.fmean(f) for v in results.variants if (f := results.values(v, step, metric))}
    best = list(means)[best_first(metric, list(means.values()))] if len(means) > 1 else None
    return f"**{text}**" if variant == best else text


def _curves(report: Report, results: Results, judge: str) -> None:
    report.heading("Curves")
    for metric in METRICS:
        lines = []
        for name in results.variants:
            at = [(m, found) for m in results.milestones if (found := results.values(name, m, metric))]
            band = [(min(f), max(f)) for _, f in at] if any(len(f) > 1 for _, f in at) else []
            lines.append(Line(name, [(m, statistics.fmean(f)) for m, f in at], band))
        drawn = chart(metric.title, Axes("generator steps", metric.title), lines, results.real[metric.key])
        better = "lower" if metric.lower else "higher"
        report.figure(
            f"{metric.key}.svg",
            drawn,
            f"{metric.title}, {better} is better; band: all seeds; dashed: real images",
        )
    lines = [Line(name, smoothed(results, name)) for name in results.trained]
    drawn = chart("Discriminator's loss", Axes("generator steps", "loss"), lines)
    caption = (
        f"Discriminator's loss ({LOSSES[judge]}), running mean of {SMOOTHED} logged steps, mean over seeds"
    )
    report.figure("discriminator_loss.svg", drawn, caption)


def smoothed(results: Results, variant: str) -> list[tuple[float, float]]:
    """Running mean of the discriminator's logged loss, averaged over the seeds: about DRAWN points."""
    by_step: dict[int, list[float]] = {}
    for run in results.of(variant):
        for step, loss in run.losses:
            by_step.setdefault(step, []).append(loss)
    means = [(float(step), statistics.fmean(found)) for step, found in sorted(by_step.items())]
    if len(means) < SMOOTHED:
        return means
    windows = [means[i - SMOOTHED : i] for i in range(SMOOTHED, len(means) + 1, max(1, len(means) // DRAWN))]
    return [(window[-1][0], statistics.fmean(loss for _, loss in window)) for window in windows]


def _stopping(report: Report, results: Results) -> None:
    trials = [(tolerance, t) for tolerance in TOLERANCES for t in try_rule(_trained(results), tolerance)]
    if not trials:
        return
    report.heading("The stopping rule")
    report.text(
        f"First the metric flattens: {MAIN.title} at a milestone is not lower than the best before by more "
        "than the tolerance. Then the discriminator's loss does: its mean over the stretch up to a milestone "
        "differs from the stretch before by at most the tolerance. There training would stop."
    )
    digits = MAIN.digits
    rows = [
        [
            f"{trial.run.variant}, seed {trial.run.seed}",
            f"{tolerance:.0%}",
            *("never" if step is None else f"{step:,}" for step in (trial.stop.metric_flat, trial.stop.stop)),
            "–" if trial.at_stop is None else f"{trial.at_stop:.{digits}f}",
            *(f"{value:.{digits}f} ({step:,})" for step, value in (trial.best, trial.last)),
        ]
        for tolerance, trial in trials
    ]
    head = ["run", "tolerance", "metric flat at", "stops at", "metric there", "best (step)", "last (step)"]
    report.table(head, rows)


def _cost(report: Report, results: Results) -> None:
    report.heading("Cost")
    rows = []
    for name in results.trained:
        rates, sizes, peaks = (
            [run.cost[cost] for run in results.of(name) if run.cost.get(cost)] for cost in COSTS
        )
        size = f"{sizes[0] / 1e6:.2f}" if sizes else "–"
        peak = f"{max(peaks) / 2**20:,.0f}" if peaks else "–"
        rows.append([name, spread(rates, 2), size, peak])
    report.table(["variant", "steps/s", "generator, million parameters", "peak GPU memory, MiB"], rows)
    report.text(
        "Steps a second of training alone, up to the last milestone; other work on the machine slows them."
    )


def _samples(report: Report, out: Path, variants: Sequence[Variant]) -> None:
    report.heading("Samples")
    report.text(
        f"{SHOWN} images of the first seed, the same noise everywhere; a row a milestone, the last lowest."
    )
    for variant in variants:
        folder = run_folder(out, variant.trains, 0) / MILESTONES
        if strips := sorted(folder.glob(f"*.{variant.name}.png")):
            caption = f"{variant.name}: steps {', '.join(f'{int(p.name[:7]):,}' for p in strips)}"
            report.figure(f"samples-{variant.name}.png", _stacked(strips), caption)


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


def _trained(results: Results) -> list[Run]:
    return [run for run in results.runs if run.variant in results.trained]


def _excess(value: float, best: float) -> float:
    return value / best - 1 if best > 0 else 0.0
