"""One experiment from its name to its report: what `sagan experiment` does."""

from __future__ import annotations

import fcntl
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from imaging.files import write_whole
from train.data.pack import Pack, image_progress, open_data
from train.errors import ExperimentError
from train.experiments import blindness, summary
from train.experiments.catalogue import BLINDNESS, Experiment, Variant, find, milestones
from train.experiments.measure import Ruler
from train.experiments.runs import DIVERGED, perform, task
from train.measure.features import Features, open_trusted
from train.measure.features_training import train_features
from train.measure.inception import open_inception
from train.recipes.recipe import Recipe, overrides_of, read_recipe
from train.run.distributed import World, joined
from train.run.state import check_judge

SETTINGS = "experiment.json"
FEATURES = "features.safetensors"
REAL = "real.json"  # figures of held-back real images


def run_experiment(
    name: str,
    data: Path,
    out: Path,
    *,
    console: Console,
    recipe: str | None = None,  # None: the experiment's own
    scale: float = 1.0,  # times the experiment's steps and milestones
    seeds: int = 1,
    only: str | None = None,  # a variant; None: all
    features: Path | None = None,  # None: trained into `out`
    inception_weights: Path | None = None,  # spatial-blindness looks through Inception as well
    samples: int = 2000,  # images a milestone
    settings: Sequence[str] = (),  # "section.field=value", on top of the recipe
    stop_after: float | None = None,  # seconds; None: to the end
    device: str = "auto",
) -> bool:
    """Go on with the experiment in `out`, or begin it; True when nothing is left to do.

    The report in `out` is written anew after every milestone. May be killed at any moment, and started
    twice at once: each process takes the runs that no other is at. Raises TrainError.
    """
    deadline = time.monotonic() + stop_after if stop_after is not None else float("inf")
    experiment = find(name)
    if scale <= 0 or seeds < 1:
        raise ExperimentError(f"--scale ({scale:g}) must be above 0 and --seeds ({seeds}) at least 1.")
    trains = name != BLINDNESS
    if not trains and (recipe or settings or only or scale != 1 or seeds != 1):
        raise ExperimentError(
            f"{name} trains no network: it takes no --recipe, --set, --only, --scale or --seeds."
        )
    if trains and inception_weights:
        raise ExperimentError(f"--inception-weights is for {BLINDNESS}; {name} measures in own features.")
    base = read_recipe(recipe or experiment.recipe, overrides_of(settings)) if trains else None
    wanted = _wanted(experiment, base, only) if base else []
    if base:
        check_judge(base)
    with image_progress(console) as progress:
        pack = open_data(data, base.model.get("resolution") if base else None, progress=progress)
    with joined(device) as world:
        if world.size > 1:
            raise ExperimentError(
                "An experiment runs in one process; start its command twice to use more cores."
            )
        extractor = _features(pack, out, features, str(world.device), console)
        asked: dict[str, Any] = {
            "experiment": name,
            "data": {
                "source": pack.metadata.get("source"),
                "sha256": pack.metadata.get("sha256"),
                "licence": pack.metadata.get("licence"),
                "images": len(pack),
                "classes": len(pack.class_names),
                "resolution": pack.resolution,
            },
            "features": {"sha256": extractor.sha256, "accuracy": extractor.accuracy},
            "samples": samples,
        }
        if base is None:
            looks = _looks(extractor, inception_weights, str(world.device))
            asked["looks"] = [look.about for look in looks]
            asked["command"] = _command(name, data, out, features, inception_weights, samples)
            kept = _agreed(out, asked)
            studies = [blindness.Study(out, pack, look, samples, str(world.device)) for look in looks]
            return _observe(out, experiment, kept, studies, deadline, console)
        ruler = Ruler(pack, extractor, samples, str(world.device))
        asked |= {
            "recipe": json.loads(json.dumps(base.to_json())),
            "scale": scale,
            "seeds": seeds,
            "milestones": list(milestones(experiment, scale)),
            "variants": [v.name for v in wanted],
            "reference_images": len(ruler.reference),
            "command": _command(
                name,
                data,
                out,
                features,
                None,
                samples,
                recipe=recipe,
                scale=scale,
                seeds=seeds,
                settings=settings,
            ),
        }
        kept = _agreed(out, asked)
        return _train_all(out, experiment, base, wanted, kept, ruler, seeds, deadline, world, console)


def _train_all(
    out: Path,
    experiment: Experiment,
    base: Recipe,
    wanted: Sequence[Variant],
    kept: Mapping[str, Any],
    ruler: Ruler,
    seeds: int,
    deadline: float,
    world: World,
    console: Console,
) -> bool:
    if not (out / REAL).exists():
        write_whole(out / REAL, json.dumps(ruler.real()).encode())
    real = json.loads((out / REAL).read_text())
    everything = experiment.variants(base)

    def told() -> None:
        settings = json.loads((out / SETTINGS).read_text())  # another process may have added to it
        summary.write_report(out, experiment, everything, settings, base, real)

    told()
    finished = True
    for seed in range(seeds):  # the outer loop: what there is can be compared early
        for trained in dict.fromkeys(v.trains for v in wanted):
            variant = next(v for v in everything if v.name == trained)
            looks = [v for v in everything if v.trains == trained and (v in wanted or v is variant)]
            each = task(out, variant, looks, base, seed, kept["milestones"], ruler, told)
            if each.done():
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            label = f"{variant.name}, seed {seed}"
            outcome = perform(each, ruler.pack, world, console, label, None if left == float("inf") else left)
            if outcome is None:
                console.print(f"{label}: another process is at it", highlight=False, markup=False)
                finished = False
            elif not outcome.finished:
                return False
            elif (each.folder / DIVERGED).exists():
                console.print(f"{label}: {outcome.reason}", highlight=False, markup=False)
    told()
    return finished


def _observe(
    out: Path,
    experiment: Experiment,
    kept: Mapping[str, Any],
    studies: Sequence[blindness.Study],
    deadline: float,
    console: Console,
) -> bool:
    def told() -> None:
        blindness.write_report(out, experiment, kept, studies)

    finished = all(blindness.run_study(study, deadline, console, told) for study in studies)
    told()
    return finished


def _wanted(experiment: Experiment, base: Recipe, only: str | None) -> list[Variant]:
    every = experiment.variants(base)
    for variant in every:
        variant.recipe(base)  # refuses now what cannot be built
    if only is None:
        return list(every)
    chosen = [v for v in every if v.name == only]
    if not chosen:
        raise ExperimentError(
            f"{experiment.name} has no variant {only!r}; it has {', '.join(v.name for v in every)}."
        )
    return chosen


def _features(pack: Pack, out: Path, given: Path | None, device: str, console: Console) -> Features:
    """The extractor in a file, or the one of this folder, trained first where it is not there yet."""
    path = given or out / FEATURES
    if not given and not path.exists():
        if (out / SETTINGS).exists():
            raise ExperimentError(f"{out} was begun with --features FILE: give the same again.")
        with image_progress(console) as progress:
            train_features(pack, path, device=device, progress=progress)
    features = open_trusted(path)
    if features.doubt:
        console.print(f"warning: {features.doubt}", highlight=False, markup=False, soft_wrap=True)
    return features


def _looks(own: Features, inception_weights: Path | None, device: str) -> list[blindness.Look]:
    looks = [
        blindness.Look(
            "own", f"own features (sha256 {own.sha256[:16]}…, not Inception)", own.network.to(device)
        )
    ]
    if inception_weights:
        inception = open_inception(inception_weights)
        about = str(inception.protocol["extractor"])
        looks.append(
            blindness.Look("inception", f"{about} (sha256 {inception.sha256[:16]}…)", inception.to(device))
        )
    return looks


def _agreed(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The settings of the experiment in `out`, with what was asked for now added to them.

    More steps, seeds and variants are added to what is there. Raises ExperimentError where anything else
    differs, or where less is asked for than was done.
    """
    path = out / SETTINGS
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            try:
                asked = _added(out, json.loads(path.read_text()), asked)
            except (ValueError, KeyError, TypeError) as wrong:
                raise ExperimentError(f"{path} is damaged ({wrong!r}): use another --out.") from None
        write_whole(path, json.dumps(asked, indent=1).encode())
    return asked


def _added(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    before, now = _fixed(there), _fixed(asked)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ExperimentError(
                f"{out} holds an experiment with {name} = {_plain(before.get(name))}, not "
                f"{_plain(now.get(name))}: "
                "go on with the same settings, or use another --out."
            )
    if "milestones" not in asked:
        return asked
    done, wanted = there["milestones"], asked["milestones"]
    if wanted[-1] < done[-1]:
        raise ExperimentError(
            f"{out} was begun at --scale {there['scale']:g}, to {done[-1]:,} steps: it can grow, not shrink "
            f"to "
            f"{wanted[-1]:,}."
        )
    return {
        **asked,
        "milestones": done + [m for m in wanted if m > done[-1]],
        "seeds": max(there["seeds"], asked["seeds"]),
        "variants": there["variants"] + [v for v in asked["variants"] if v not in there["variants"]],
    }


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change between two sessions of one experiment, by a name that tells a person where."""
    fixed: dict[str, Any] = {
        "experiment": settings["experiment"],
        "data": settings["data"]["sha256"],
        "features": settings["features"]["sha256"],
        "samples": settings["samples"],
        "looks": settings.get("looks"),
    }
    if "recipe" in settings:
        # a recipe kept before a setting existed means that setting's default
        recipe = json.loads(json.dumps(Recipe.from_json(settings["recipe"]).to_json()))
        fixed |= {f"model.{key}": value for key, value in recipe["model"].items()}
        fixed |= {f"optimisation.{key}": v for key, v in recipe["optimisation"].items() if key != "steps"}
        fixed["schedule.statistics_batches"] = recipe["schedule"]["statistics_batches"]
    return fixed


def _plain(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:20]}…"


def _command(
    name: str,
    data: Path,
    out: Path,
    features: Path | None,
    inception_weights: Path | None,
    samples: int,
    *,
    recipe: str | None = None,
    scale: float = 1.0,
    seeds: int = 1,
    settings: Sequence[str] = (),
) -> str:
    """The command as anyone may type it: without the folders of this machine."""

    def path(given: Path) -> str:
        return given.name if given.is_absolute() else str(given)

    words = ["sagan", "experiment", name, "--data", path(data), "--out", path(out)]
    words += ["--recipe", path(Path(recipe))] if recipe else []
    words += ["--scale", f"{scale:g}"] if scale != 1 else []
    words += ["--seeds", str(seeds)] if seeds != 1 else []
    words += ["--features", path(features)] if features else []
    words += ["--inception-weights", path(inception_weights)] if inception_weights else []
    words += ["--samples", str(samples)]
    for setting in settings:
        words += ["--set", setting]
    return shlex.join(words)
