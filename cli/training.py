"""Commands that make a checkpoint of labelled images."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from cli.common import Device, Seed, console, fail, keep_freed_memory, tell, wait_passively, warn

if TYPE_CHECKING:
    from rich.console import Console

    from train.data.sources import Reading
    from train.run.loop import Session

Classes = Annotated[
    str | None,
    typer.Option(
        help="How to read the classes: labels (labels.csv, dataset.json), one, or the folders' depth: 1, 2"
    ),
]
Bits = Annotated[
    int | None, typer.Option(help="Bits in use in pictures of 16 bits, such as 12", min=8, max=32)
]


def pack(
    source: Annotated[Path, typer.Argument(help="Folder or zip of class folders, CIFAR-10, Stanford Dogs")],
    out: Annotated[Path, typer.Argument(help="The pack, a .safetensors file")],
    resolution: Annotated[
        int | None, typer.Option(help="Pixels a side; unless told, the images' own")
    ] = None,
    classes: Classes = None,
    bits: Bits = None,
    min_crop: Annotated[int, typer.Option(help="Stanford Dogs: shortest crop kept, source pixels")] = 48,
    shards: Annotated[
        int, typer.Option(help="Files beside OUT to deal the images to, for several hosts; 1: only OUT")
    ] = 1,
    licence: Annotated[str | None, typer.Option(help="Note that models trained on it will carry")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an OUT that is no pack")] = False,
) -> None:
    """Read labelled images once, into one file that opens at once. Bad pictures are named and left out."""
    from train.data import pack as packs
    from train.data.sources import Reading
    from train.errors import TrainError

    try:
        with packs.image_progress(console) as progress:
            report = packs.pack(
                source,
                out,
                resolution,
                reading=Reading(classes, bits, min_crop, licence),
                shards=shards,
                force=force,
                progress=progress,
                say=tell,
            )
    except TrainError as error:
        fail(error)
    for line in report.lines():
        tell(line)  # file names may look like markup


class _Asked(TypedDict):
    """What a run, its rehearsal and the training of features are all told."""

    console: Console
    device: str
    settings: list[str]
    session: Session
    reading: Reading


def train(
    source: Annotated[Path, typer.Option("--data", help="Folder or zip of pictures, pack, CIFAR-10, ...")],
    out: Annotated[Path, typer.Option(help="Folder of the run; for features: the file")],
    recipe: Annotated[
        str, typer.Argument(help='A recipe\'s name, a .toml file, "auto": by the pictures, or "features"')
    ] = "auto",
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out")] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Fine-tune: a checkpoint or a run's state of the same shape to begin with"
        ),
    ] = None,
    classes: Classes = None,
    bits: Bits = None,
    stop_after: Annotated[
        str | None,
        typer.Option(help="Training time (from the first step on), then it ends, all saved: 90s, 9m, 1.5h"),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Of the pictures, for the checkpoint; unless told, of the LICENSE file among them"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing: tell what would be packed, which recipe, how long"),
    ] = False,
    features: Annotated[
        Path | None,
        typer.Option(help="For schedule.measure_every: file of `sagan train features`; else pretrained"),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="For features: pixels of pictures that are no pack yet")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value; for features field=value")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; unless told, on a GPU")
    ] = None,
    graph: Annotated[
        bool | None,
        typer.Option("--graph/--no-graph", help="Record a step as a CUDA graph; unless told, on one GPU"),
    ] = None,
) -> None:
    """Labelled images -> checkpoint. Ctrl-C saves; --resume goes on exactly where it stopped.

    `sagan train --data my-photos --out runs/mine` is enough for a folder of photos (one of folders, where
    there are classes): it looks at them, chooses a recipe, says why and how long it will take.

    `sagan train features` trains the small classifier that `sagan evaluate` measures with.
    """
    wait_passively()
    keep_freed_memory()
    from model.errors import ModelError
    from train.commands import rehearsal, run, run_features, seconds
    from train.data.sources import Reading
    from train.errors import TrainError
    from train.run.execution import CaptureFailed, Execution
    from train.run.loop import STATE, Session

    try:
        limit = seconds(stop_after) if stop_after else None
        session = Session(resume, start, limit, Execution(compile, graph), licence, features)
        asked: _Asked = {
            "console": console,
            "device": device,
            "settings": settings or [],
            "session": session,
            "reading": Reading(classes, bits),
        }
        if resolution is not None and recipe != "features":
            raise TrainError(
                "--resolution is for features; a network's is its recipe's: "
                f"--set model.resolution={resolution}."
            )
        if dry_run:
            rehearsal(recipe, source, out, **asked)
            return
        if recipe == "features":
            trained = run_features(source, out, resolution=resolution, **asked)
            warn(trained.doubt)
            return
        outcome = run(recipe, source, out, **asked)
    except CaptureFailed as error:
        if (out / STATE).exists() and not resume:  # saved within the first steps
            fail(f"{error} Go on by --resume --no-graph.")
        warn(f"{error} It starts again without: --no-graph.")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--no-graph"])
    except (TrainError, ModelError) as error:
        fail(error)
    if outcome.finished:
        tell(f"step {outcome.step}: finished. The generator is in {out}/generator.safetensors.")
    else:
        tell(f"step {outcome.step}: stopped ({outcome.reason}), all saved; --resume goes on.")


def choose(
    run: Annotated[Path, typer.Argument(help="Folder of a run with schedule.snapshot_every")],
    source: Annotated[Path, typer.Option("--data", help="Pack, folder or zip that it was trained on")],
    features: Annotated[
        Path | None, typer.Option(help="File that `sagan train features` wrote, to check the ranking by")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images of each snapshot", min=2)] = 2000,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Let a run's last discriminator judge the run's snapshots; the best becomes chosen.safetensors there."""
    wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.measure.commands import run_choice

    try:
        run_choice(run, source, features, samples=samples, seed=seed, device=device, console=console)
    except (TrainError, ModelError) as error:
        fail(error)


def average(
    out: Annotated[Path, typer.Argument(help="The mean, a .safetensors file")],
    snapshots: Annotated[list[Path], typer.Argument(help="Two or more files of RUN/snapshots")],
    batches: Annotated[
        int, typer.Option(help="Of 32 images, for the batch-norm statistics of the mean", min=1)
    ] = 120,
) -> None:
    """The mean of a run's last snapshots as one generator: a longer average, often with better images."""
    wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.run.averaging import average as write

    try:
        write(snapshots, out, batches)
    except (TrainError, ModelError, OSError) as error:
        fail(error)
    tell(f"{out}: the mean of {len(snapshots)} snapshots. `sagan evaluate` tells whether it is better.")
