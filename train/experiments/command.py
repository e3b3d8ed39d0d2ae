"""One experiment from its name to its report: what `sagan experiment` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from imaging.files import write_whole
from train.data.pack import Pack, image_progress, open_data
from train.errors import ExperimentError
from train.experiments import blindness_report, summary
from train.experiments.blindness import NamedExtractor, Study, run_study
from train.experiments.catalogue import Experiment, Variant, find, milestones
from train.experiments.measure import Ruler
from train.experiments.runs import DIVERGED, perform, task
from train.experiments.settings import SETTINGS, Request, agreed
from train.measure.features import Features, open_trusted
from train.measure.features_training import train_features
from train.measure.inception import open_inception
from train.recipes.recipe import Recipe, overrides_of, read_recipe
from train.run.distributed import World, joined
from train.run.state import check_judge

FEATURES = "features.safetensors"
REAL = "real.json"  # figures of held-back real images
REPORT_EVERY = 60.0  # seconds between two reports at least: their charts take some seconds of a core


def run_experiment(request: Request, console: Console, stop_after: float | None = None) -> bool:
    """Begin or resume the experiment in request.out; True when nothing is left to do.

    stop_after: seconds; None: to the end. It may be killed at any moment, and started twice at once: each
    process takes the runs that no other holds. Raises TrainError.
    """
    deadline = time.monotonic() + stop_after if stop_after is not None else float("inf")
    experiment = find(request.name)
    request.check()
    base, wanted = None, []
    if experiment.recipe:
        base = read_recipe(request.recipe or experiment.recipe, overrides_of(request.settings))
        wanted = _wanted(experiment, base, request.only)
        check_judge(base)
    with image_progress(console) as progress:
        pack = open_data(request.data, base.model.get("resolution") if base else None, progress=progress)
    with joined(request.device) as world:
        if world.size > 1:
            raise ExperimentError(
                "An experiment runs in one process; start its command twice to use more cores."
            )
        device = str(world.device)
        features = _features(pack, request, device, console)
        asked = _settings(request, pack, features)
        if base is None:
            extractors = _extractors(features, request.inception_weights, device)
            asked["looks"] = [extractor.about for extractor in extractors]
            kept = agreed(request.out, asked)
            studies = [Study(request.out, pack, each, request.samples, device) for each in extractors]
            return _study(request, experiment, kept, studies, deadline, console)
        ruler = Ruler(pack, features, request.samples, device)
        asked |= {
            "recipe": json.loads(json.dumps(base.to_json())),
            "scale": request.scale,
            "seeds": request.seeds,
            "milestones": list(milestones(experiment, request.scale)),
            "variants": [v.name for v in wanted],
            "reference_images": len(ruler.reference),
        }
        kept = agreed(request.out, asked)
        training = _Training(request, experiment, base, wanted, kept["milestones"], ruler, console)
        finished = training.run(world, deadline)
        training.report()
        return finished


@dataclass(frozen=True)
class _Training:
    """The training runs of an experiment."""

    request: Request
    experiment: Experiment
    base: Recipe
    wanted: Sequence[Variant]
    milestones: Sequence[int]
    ruler: Ruler
    console: Console

    def run(self, world: World, deadline: float) -> bool:
        """Train and measure what is missing; True when nothing is left."""
        out, variants = self.request.out, self.experiment.variants(self.base)
        if not (out / REAL).exists():
            write_whole(out / REAL, json.dumps(self.ruler.real()).encode())
        report = _at_most_every(REPORT_EVERY, self.report)
        report()
        finished = True
        for seed in range(self.request.seeds):  # the outer loop, so that variants can be compared early
            for name in dict.fromkeys(v.trains for v in self.wanted):
                variant = next(v for v in variants if v.name == name)
                looks = [v for v in variants if v.trains == name and (v in self.wanted or v is variant)]
                each = task(out, variant, looks, self.base, seed, self.milestones, self.ruler, report)
                if each.done():
                    continue
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                label = f"{name}, seed {seed}"
                outcome = perform(
                    each, self.ruler.pack, world, self.console, label, None if left == float("inf") else left
                )
                if outcome is None:
                    self.console.print(f"{label}: another process is at it", highlight=False, markup=False)
                    finished = False
                elif not outcome.finished:
                    return False
                elif (each.folder / DIVERGED).exists():
                    self.console.print(f"{label}: {outcome.reason}", highlight=False, markup=False)
        return finished

    def report(self) -> None:
        """Write the report, from the results of every process at work in the folder."""
        out = self.request.out
        settings, real = (json.loads((out / name).read_text()) for name in (SETTINGS, REAL))
        summary.write_report(
            out, self.experiment, self.experiment.variants(self.base), settings, self.base, real
        )


def _study(
    request: Request,
    experiment: Experiment,
    settings: Mapping[str, Any],
    studies: Sequence[Study],
    deadline: float,
    console: Console,
) -> bool:
    """Measure what is missing of each study; True when nothing is left."""

    def report() -> None:
        blindness_report.write_report(request.out, experiment, settings, studies)

    now_and_then = _at_most_every(REPORT_EVERY, report)
    finished = all(run_study(study, deadline, console, now_and_then) for study in studies)
    report()
    return finished


def _at_most_every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """`act`, skipped where its last run is less than `seconds` ago."""
    last = -float("inf")

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            act()
            last = time.monotonic()

    return maybe


def _settings(request: Request, pack: Pack, features: Features) -> dict[str, Any]:
    """What experiment.json keeps of every experiment."""
    return {
        "experiment": request.name,
        "command": request.command(),
        "data": {
            "source": pack.metadata.get("source"),
            "sha256": pack.metadata.get("sha256"),
            "licence": pack.metadata.get("licence"),
            "images": len(pack),
            "classes": len(pack.class_names),
            "resolution": pack.resolution,
        },
        "features": {"sha256": features.sha256, "accuracy": features.accuracy},
        "samples": request.samples,
    }


def _wanted(experiment: Experiment, base: Recipe, only: str | None) -> list[Variant]:
    variants = experiment.variants(base)
    for variant in variants:
        variant.recipe(base)  # raises now for a network that cannot be built
    if only is None:
        return list(variants)
    chosen = [v for v in variants if v.name == only]
    if not chosen:
        raise ExperimentError(
            f"{experiment.name} has no variant {only!r}; it has {', '.join(v.name for v in variants)}."
        )
    return chosen


def _features(pack: Pack, request: Request, device: str, console: Console) -> Features:
    """The extractor in the file that was given, else the one in the folder, which is trained first."""
    path = request.features or request.out / FEATURES
    if not path.exists() and not request.features:
        if (request.out / SETTINGS).exists():
            raise ExperimentError(f"{request.out} was begun with --features FILE: give the same again.")
        with image_progress(console) as progress:
            train_features(pack, path, device=device, progress=progress)
    features = open_trusted(path)
    if features.doubt:
        console.print(f"warning: {features.doubt}", highlight=False, markup=False, soft_wrap=True)
    return features


def _extractors(own: Features, inception_weights: Path | None, device: str) -> list[NamedExtractor]:
    about = f"own features (sha256 {own.sha256[:16]}…, not Inception)"
    extractors = [NamedExtractor("own", about, own.network.to(device))]
    if inception_weights:
        inception = open_inception(inception_weights)
        about = f"{inception.protocol['extractor']} (sha256 {inception.sha256[:16]}…)"
        extractors.append(NamedExtractor("inception", about, inception.to(device)))
    return extractors
