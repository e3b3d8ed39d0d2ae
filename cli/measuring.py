"""Commands that measure generators, and experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.common import (
    Checkpoint,
    Device,
    Seed,
    Truncation,
    add_row,
    console,
    fail,
    png,
    show,
    table,
    tell,
    wait_passively,
    warn,
)


def evaluate(
    checkpoint: Checkpoint,
    source: Annotated[Path, typer.Option("--data", help="Pack, folder or zip to measure by: its classes")],
    resolution: Annotated[
        int | None, typer.Option(help="Pixels of pictures that are no pack yet; the generator's")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="File that `sagan train features` wrote on that pack")
    ] = None,
    inception: Annotated[
        bool, typer.Option("--inception", help="FID and its relatives, torch-fidelity fetching the weights")
    ] = False,
    inception_weights: Annotated[
        Path | None, typer.Option(help="FID and its relatives, with the weights in this file")
    ] = None,
    cas: Annotated[
        bool, typer.Option("--cas", help="Train a classifier on generated images, test it on real ones")
    ] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="In the features of a network that ImageNet taught")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(help="Images to make; unless told 5,000, for Inception 10,000 or 50,000", min=2),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="all, train or held-out images; unless told train, for Inception all")
    ] = None,
    seed: Seed = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Of a worker: auto, float32, bfloat16 or int8; unless told as trained")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Write the figures into the checkpoint")] = False,
) -> None:
    """Measure a generator beside real images: in our own classifier's features (not FID), in those of a
    network that ImageNet taught, in Inception's, or by what a classifier learns from its images.
    """
    wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.measure.commands import Measures, check_keepable, keep_figures, run_evaluation

    try:
        if keep:
            check_keepable(checkpoint)  # before the long work
        figures = run_evaluation(
            checkpoint,
            source,
            Measures(features, inception, inception_weights, cas, pretrained, samples, reference, resolution),
            seed=seed,
            truncation=truncation,
            device=device,
            precision=precision,
        )
        console.print_json(data=figures)
        _show_beside_real(figures)
        _warn_of_doubts(figures)
        if keep:
            keep_figures(checkpoint, figures)
    except (TrainError, ModelError) as error:
        fail(error)


def _show_beside_real(figures: dict[str, Any]) -> None:
    """A table of what generated and real images both have; on standard error, as the JSON may be piped on."""
    for name, report in figures.items():
        if "real_held_back" not in report:
            continue
        made, real = report["generated"], report["real_held_back"]
        shown = table(name, "generated", "real, held back")
        for figure in made:
            values = made[figure], real.get(figure)
            if all(isinstance(value, float) for value in values):
                add_row(shown, figure, *(f"{value:.3f}" for value in values))
        show(shown, stderr=True)


def _warn_of_doubts(figures: dict[str, object]) -> None:
    """Show the warning of each report's protocol, where there is one."""
    for report in figures.values():
        if isinstance(report, dict) and "protocol" in report:
            warn(report["protocol"].get("warning"))


def neighbours(
    checkpoint: Checkpoint,
    source: Annotated[Path, typer.Option("--data", help="Pack, folder or zip that it was trained on")],
    out: Annotated[Path, typer.Option(help="The picture, a PNG", callback=png)] = Path("neighbours.png"),
    columns: Annotated[int, typer.Option(help="Real images beside a generated one", min=1, max=100)] = 8,
    rows: Annotated[int, typer.Option(help="Generated images to show", min=1, max=1000)] = 10,
    samples: Annotated[int, typer.Option(help="Generated images to measure", min=1)] = 1000,
    seed: Seed = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
) -> None:
    """Draw the real images that are nearest to generated ones, in the features of a network that ImageNet
    taught, and compare their distance with that of real images to each other: copies are far nearer.
    """
    wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.measure.commands import run_neighbours
    from train.measure.neighbours import Sheet

    try:
        run_neighbours(
            checkpoint,
            source,
            out,
            sheet=Sheet(samples, columns, rows),
            seed=seed,
            truncation=truncation,
            device=device,
            console=console,
        )
    except (TrainError, ModelError) as error:
        fail(error)
    tell(str(out))


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            help="attention-sites, spatial-blindness, stabilisers, attention-forms or ablations",
        ),
    ],
    source: Annotated[Path, typer.Option("--data", help="A pack, or anything `sagan data pack` reads")],
    out: Annotated[Path, typer.Option(help="Folder of the experiment: its runs, figures and report")],
    recipe: Annotated[str | None, typer.Option(help="Base recipe; unless told, the experiment's own")] = None,
    scale: Annotated[float, typer.Option(help="Times the experiment's steps and milestones")] = 1.0,
    seeds: Annotated[int, typer.Option(help="Runs a variant", min=1)] = 1,
    only: Annotated[str | None, typer.Option(help="One variant, by name")] = None,
    features: Annotated[
        Path | None, typer.Option(help="File that `sagan train features` wrote; else one is trained first")
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="spatial-blindness: look through Inception as well")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images a milestone", min=6)] = 2000,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.field=value")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Stop in time, all kept: 90s, 20m, 1.5h")] = None,
    device: Device = "auto",
) -> None:
    """Put a question to several variants of a recipe, and write a report with tables, curves and samples.

    The same command goes on where it was, however it ended; more seeds, variants or scale reuse what is
    there. Started twice at once, the two share the work.
    """
    wait_passively()
    from train.commands import seconds
    from train.errors import TrainError
    from train.experiments.command import run_experiment
    from train.experiments.settings import Request

    request = Request(
        name,
        source,
        out,
        recipe=recipe,
        scale=scale,
        seeds=seeds,
        only=only,
        features=features,
        inception_weights=inception_weights,
        samples=samples,
        settings=settings or [],
        device=device,
    )
    try:
        finished = run_experiment(request, console, seconds(stop_after) if stop_after else None)
    except TrainError as error:
        fail(error)
    tell(f"{'Finished' if finished else 'Stopped, all kept; the same command goes on'}. {out}/report.md")
