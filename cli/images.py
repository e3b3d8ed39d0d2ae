"""Commands that make images from a checkpoint, without any server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Checkpoint, Device, Seed, Truncation, fail, film, moving, png, tell


def sample(
    checkpoint: Checkpoint,
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="Number or name of the class")],
    out: Annotated[Path, typer.Option(help="Folder for the PNGs")] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, max=10_000)] = 1,
    seed: Seed = 0,
    start: Annotated[int, typer.Option(help="Which image of the seed is the first", min=0, max=2**53)] = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
) -> None:
    """Make images from a checkpoint without any server: the same pixels that the service would make."""
    from worker.offline import OfflineError, write_samples

    try:
        for path in write_samples(
            checkpoint, class_name, out, range(start, start + count), seed, truncation, device
        ):
            tell(str(path))
    except (OfflineError, OSError) as error:
        fail(error)


def sheet(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The sheet, a PNG", callback=png)] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(help="Images a class", min=1, max=100)] = 10,
    rows: Annotated[
        int | None, typer.Option(help="So many classes, spread over all; unless told, every class", min=1)
    ] = None,
    seed: Seed = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
) -> None:
    """A contact sheet for a model card: the first images of one seed, unpicked, a row a class."""
    from worker.offline import OfflineError, write_sheet

    try:
        write_sheet(checkpoint, out, columns, rows, seed, truncation, device)
    except (OfflineError, OSError) as error:
        fail(error)
    tell(str(out))


def morph(
    checkpoint: Checkpoint,
    ends: Annotated[
        list[str], typer.Argument(metavar="CLASS:SEED...", help="Two images or more, such as cat:1 dog:2")
    ],
    out: Annotated[
        Path, typer.Option(help="The film: .webp, .gif, .png (APNG) or, with ffmpeg, .mp4", callback=film)
    ] = Path("morph.webp"),
    frames: Annotated[int, typer.Option(help="From the first image to the last", min=2, max=10_000)] = 48,
    loop: Annotated[bool, typer.Option(help="Lead from the last image back to the first")] = False,
    truncation: Truncation = 1.0,
    size: Annotated[
        int | None, typer.Option(help="Side of a frame, pixels; as made unless told", min=16, max=2048)
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames a second", min=0.1, max=50)] = 12,
    device: Device = "auto",
) -> None:
    """A film from image to image: noise on a great circle, classes on a line; as POST /morph makes it."""
    from app.recipes import of_job
    from worker.offline import OfflineError
    from worker.offline_films import Way, write_film

    if len(ends) < 2:
        fail("A morph needs two images or more: give CLASS:SEED twice, such as cat:1 dog:2.")
    way = Way(ends, frames, loop, truncation)
    try:
        write_film(checkpoint, way, out, size, fps, lambda spec: of_job(spec, "film", fps=fps), device)
    except (OfflineError, OSError) as error:
        fail(error)
    tell(str(out))


def attention(
    checkpoint: Checkpoint,
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="Number or name of the class")],
    out: Annotated[Path, typer.Option(help="The figure, a PNG", callback=png)] = Path("attention.png"),
    seed: Seed = 0,
    index: Annotated[int, typer.Option(help="Which image of that seed", min=0, max=2**63 - 1)] = 0,
    truncation: Truncation = 1.0,
    layer: Annotated[str | None, typer.Option(help='Such as "16x16"; the first one unless told')] = None,
    device: Device = "auto",
) -> None:
    """Draw what the generator attended to: five points and where each one looks."""
    from app.overlay import FigureStyle, figure
    from app.pictures import written
    from app.points import default_points
    from imaging.files import write_whole
    from imaging.marks import marked
    from worker.offline import OfflineError, attend

    try:
        pixels, found = attend(checkpoint, class_name, seed, index, truncation, layer, device)
        points = default_points(found, len(pixels))
        title = f"{checkpoint.stem}, class {class_name}, seed {seed}, image {index}"
        *_, drawn = figure(pixels, found, points, FigureStyle(), title)
        write_whole(out, marked(b"".join(written(drawn))))
    except (OfflineError, OSError) as error:
        fail(error)
    tell(str(out))


def progress(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `sagan train`")],
    out: Annotated[Path, typer.Option(help="The film, a .webp or .gif", callback=moving)] = Path(
        "progress.webp"
    ),
) -> None:
    """A film of a run: its sample grids, all of the same noise, one after the other."""
    from imaging.files import write_whole
    from imaging.film import chosen, film

    grids = sorted((run / "samples").glob("step-*.png"))
    if not run.is_dir():
        fail(f"There is no folder {run}: give that of a run of `sagan train`.")
    if len(grids) < 2:
        fail(f"Sample grids in {run / 'samples'}: {len(grids)}, and a film needs two: train on.")
    frames = chosen(grids)
    try:
        write_whole(out, film(frames, "GIF" if out.suffix.lower() == ".gif" else "WEBP"))
    except (OSError, ValueError) as error:
        fail(error)
    tell(f"{out}: {len(frames)} of {len(grids)} grids, {frames[0].stem} to {frames[-1].stem}")


def reproduce(
    image: Annotated[
        Path, typer.Argument(help="A picture or film that this service made: PNG, WebP, JPEG or GIF")
    ],
    checkpoints: Annotated[
        Path, typer.Option(help="Folder of checkpoints; its model is found under any name")
    ] = Path("checkpoints"),
    device: Device = "auto",
) -> None:
    """Make a picture again from the recipe inside its file, and compare; a lossy file is never the same."""
    from worker.offline import OfflineError, compare

    try:
        verdict = compare(image, checkpoints, device)
    except OfflineError as error:
        fail(error)
    tell(verdict.text)
    raise typer.Exit(0 if verdict.same else 1)
