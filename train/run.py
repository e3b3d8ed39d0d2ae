"""One training run from a recipe's name to a checkpoint: what `sagan train` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from model.checkpoint import load_generator, save_generator
from train.data import image_progress, open_data
from train.distributed import World, joined
from train.errors import TrainError
from train.features import train_features
from train.loop import GENERATOR, Observer, Outcome, starting_step, train
from train.metrics import GeneratorSampler, evaluate
from train.observers import Grids, ProgressBar, Scalars, Served
from train.recipe import read_recipe


def run(
    recipe_name: str,
    data: Path,
    out: Path,
    *,
    console: Console,
    device: str = "auto",
    resume: bool = False,
    stop_after: float | None = None,
    settings: Sequence[str] = (),
) -> Outcome:
    """Train `recipe_name` on `data` into the folder `out`; TrainError says what to do about it.

    stop_after: seconds; None: to the end. settings: "section.field=value", on top of the recipe.
    """
    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise TrainError(f"--set {setting}: write it as section.field=value.")
        overrides[key.strip()] = value.strip()
    recipe = read_recipe(recipe_name, overrides)
    with image_progress(console) as progress:
        pack = open_data(data, recipe.model.get("resolution"), progress=progress)
    with joined(device) as world:
        first = starting_step(out, resume)  # before an observer touches what is there
        observers: list[Observer] = []
        if world.leads:
            schedule, steps = recipe.schedule, recipe.optimisation.steps
            observers = [
                ProgressBar(console, first, steps, schedule.log_every),
                Scalars(out, first, schedule.log_every),
                Grids(out, pack, recipe, console),
                Served(out / GENERATOR, {"description": recipe.description}),
            ]
            console.print(_about(world, len(pack.labels), len(pack.class_names), recipe.name, out))
        return train(recipe, pack, out, world, observers, resume=resume, stop_after=stop_after)


def run_features(data: Path, out: Path, device: str, console: Console) -> None:
    """Train the classifier that images are measured with; TrainError says what to do about it."""
    with image_progress(console) as progress:
        pack = open_data(data, progress=progress)
        features = train_features(pack, out, device=_one_device(device), progress=progress)
    console.print(f"{out}: {features.accuracy:.1%} right on the tenth of the images that it never saw.")


def run_evaluation(
    checkpoint: Path, features: Path, data: Path, samples: int, seed: int, truncation: float, device: str
) -> dict[str, object]:
    """The figures of `train.metrics.evaluate` for a checkpoint. Raises TrainError or ModelError."""
    loaded = load_generator(checkpoint)
    where = _one_device(device)
    sampler = GeneratorSampler(loaded.generator.to(where), loaded.class_names, truncation, where)
    with image_progress() as progress:
        figures = evaluate(sampler, features, open_data(data), samples, seed, where, progress)
    return {"checkpoint": checkpoint.name, "checkpoint_sha256": loaded.sha256, **figures}


def keep_figures(checkpoint: Path, figures: Mapping[str, object]) -> None:
    """Write the figures into the checkpoint's header, where `/models` and the page find them."""
    loaded = load_generator(checkpoint)
    metrics = {**loaded.metrics, "own_features": dict(figures)}
    save_generator(checkpoint, loaded.generator, loaded.class_names, metrics, loaded.metadata)


def _one_device(device: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def seconds(text: str) -> float:
    """ "90", "90s", "9m" or "1.5h" as seconds. Raises TrainError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise TrainError(f"{text!r} is not a length of time; write 90s, 9m or 1.5h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _about(world: World, images: int, classes: int, recipe: str, out: Path) -> str:
    processes = f"{world.size} processes on " if world.size > 1 else ""
    return f"recipe {recipe}: {images:,} images of {classes} classes, {processes}{world.device}, into {out}"
