"""A run that is only tried: what it would pack, by which recipe, how long and with how much memory.

Nothing is written, and the few steps that are timed are forgotten.
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from train.data.automatic import pictures
from train.data.pack import Pack, is_source, no_pillow_warnings, open_data
from train.data.packing import decode_all
from train.data.sources import Reading, Source, open_source
from train.errors import DataError, TrainError
from train.recipes.recipe import Recipe, read_recipe
from train.run.distributed import World
from train.run.folder import (
    AUTO,
    PACK,
    check_asked,
    check_free,
    check_recipe_free,
    check_writable,
    chosen_for,
    resolution_of,
    say,
)
from train.run.loop import Session, begin
from train.run.observers import Pace, machine, rate, span
from train.run.state import TrainingState

TRIED = 64  # pictures that are read, spread over the source


def rehearse(
    name: str,
    data: Path,
    out: Path,
    overrides: dict[str, str],
    world: World,
    session: Session,
    console: Console,
    reading: Reading,
) -> tuple[Recipe, Pack]:
    """Tell what `sagan train` would do. Returns its recipe and the images that were tried.

    Raises TrainError or ModelError for what it would refuse.
    """
    if world.size > 1:
        raise TrainError("--dry-run is for one process: start it without torchrun.")
    check_asked(data, out, reading)
    check_writable(out)
    on_cpu = world.device.type == "cpu"
    check_free(out, data)
    if name == AUTO:
        recipe, choices, text = chosen_for(data, on_cpu, overrides, reading)
        check_recipe_free(out, text)
    else:
        recipe, choices = read_recipe(name, overrides), []
    resolution = resolution_of(recipe)
    if is_source(data):
        pack, whole = _read_some(data, out, resolution, console, reading)
    else:
        pack = open_data(data, resolution)
        whole = f"{len(pack):,} images, packed in {data}"
    say(console, f"Recipe {recipe.name}{', chosen by number and size:' if choices else '.'}")
    for choice in choices:
        say(console, f"  {choice.setting()} ({choice.reason})")
    say(console, f"It would train on {whole}.")
    state = TrainingState(recipe, pack, world, session.execution)
    begin(state, session)
    for line in _timed(state):
        say(console, line)
    return recipe, pack


def _read_some(
    data: Path, out: Path, resolution: int, console: Console, reading: Reading
) -> tuple[Pack, str]:
    """A pack in memory of some of the pictures; tells what all of them would become, and says it in short."""
    with no_pillow_warnings(), open_source(data, reading) as source:
        for line in source.classes():
            say(console, line)
        total = len(source.entries)
        size = total * 3 * resolution**2 / 2**20
        began = time.monotonic()
        tried = source.entries[:: max(total // TRIED, 1)]
        pack, bad = _decoded(replace(source, entries=tried), resolution, reading)
        packing = (time.monotonic() - began) / len(tried) * total
    say(
        console,
        f"{pictures(total)} would be packed at {resolution}×{resolution} into {out / PACK} "
        f"(about {size:,.0f} MiB, {span(packing)}), less any that turn out to be broken.",
    )
    for note in source.notes:
        say(console, note, style="yellow")
    if bad:
        say(console, f"Of {len(tried)} that were tried {len(bad)} cannot be used: {bad[0]}", style="yellow")
    return pack, pictures(total)


def _decoded(source: Source, resolution: int, reading: Reading) -> tuple[Pack, list[str]]:
    """Some pictures as a pack, and those that cannot be used, with the reason. Raises DataError."""
    images, labels, bad = [], [], []
    for chunk in decode_all(source, resolution, reading):
        for entry, square in chunk:
            if isinstance(square, str):
                bad.append(f"{entry.name}: {square}")
            else:
                images.append(torch.from_numpy(square.pixels.copy()))
                labels.append(entry.label)
    if not images:
        raise DataError(f"No picture that was tried can be used (the first, {bad[0]}).")
    return Pack(torch.stack(images), torch.tensor(labels), source.class_names, resolution, {}), bad


def _timed(state: TrainingState) -> list[str]:
    """How long and how large, by a few steps."""
    pace = Pace()
    while True:
        state.advance()
        if pace.step(state):
            break
    steps, device = state.recipe.optimisation.steps, state.world.device
    if device.type == "cuda":
        peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of the GPU's"
    else:
        peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of"
    return [
        f"About {span(steps * pace.seconds)} for {steps:,} steps at {rate(state, pace.seconds)} on "
        f"{machine(state)}, by {len(pace.steps)} steps that were tried; sample grids and saving come on top.",
        f"About {peak} memory.",
    ]
