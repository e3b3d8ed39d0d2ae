"""A morph straight from a checkpoint, as a film, without a service: for the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from imaging.animation import Apng, Film, Gif, Reel, Webp
from imaging.enlarging import enlarged
from imaging.files import written_whole
from imaging.mp4 import Mp4, Mp4Error, ffmpeg
from imaging.spec import SEEDS
from jobs.classes import between
from jobs.job import Draw, JobSpec
from worker.engine import Engine
from worker.offline import OfflineError, class_id_of, load, made_of
from worker.pending import image_spec


@dataclass(frozen=True)
class Way:
    """How a film goes from end to end."""

    ends: Sequence[str]  # each "class:seed" or "class:seed:index"
    frames: int
    loop: bool
    truncation: float


def write_film(
    checkpoint: Path,
    way: Way,
    out: Path,
    size: int | None,
    fps: float,
    recipe: Callable[[JobSpec], str],
    device: str,
) -> None:
    """Write the film of a morph, the frames that the service would make. Raises OfflineError, OSError.

    out: .webp (lossless), .gif, .png (an APNG) or .mp4. size: of a frame, pixels; None: as they are made.
    recipe: what the file says of the job.
    """
    program = ffmpeg()
    if out.suffix.lower() == ".mp4" and program is None:
        raise OfflineError(f"{out} needs ffmpeg, which is not on PATH: install it, or name a .webp.")
    engine = load(checkpoint, device)
    info = engine.info
    ends = tuple(_draw(engine, text) for text in way.ends)
    spec = JobSpec(
        model=info.name,
        model_hash=info.hash,
        precision=info.precision,
        class_id=ends[0].classes[0][0],
        class_name=between([end.name for end in ends]),
        count=way.frames,
        seed=ends[0].seed,
        truncation=way.truncation,
        start=ends[0].index,
        ends=ends,
        loop=way.loop,
    )
    side = size or info.resolution
    side += side % 2 if out.suffix.lower() == ".mp4" else 0  # its colours are stored for 2 × 2 pixels
    reel = Reel(side, side, way.frames, loop=True, text=recipe(spec))
    until = [round(1000 * k / fps) for k in range(way.frames + 1)]
    images = made_of(engine, [image_spec(spec, k) for k in range(way.frames)])
    film = _film(out, reel, fps, program)
    try:
        with written_whole([out]) as (file,):
            for image, (before, after) in zip(images, pairwise(until), strict=True):
                shown = image if side == info.resolution else enlarged(image, side, "lanczos")
                file.write(film.add(shown, after - before))
            for piece in film.end():
                file.write(piece)
    except Mp4Error as error:
        raise OfflineError(f"ffmpeg could not make {out} ({error}). Name a .webp.") from error
    finally:
        film.close()


def _film(out: Path, reel: Reel, fps: float, program: str | None) -> Film:
    match out.suffix.lower():
        case ".webp":
            return Webp(reel, None)
        case ".gif":
            return Gif(reel)
        case ".png":
            return Apng(reel)
        case _:
            return Mp4(reel, Fraction(fps).limit_denominator(1000), program or "ffmpeg")


def _draw(engine: Engine, text: str) -> Draw:
    """ "class:seed" or "class:seed:index" as an end. Raises OfflineError."""
    numbers: list[int] = []
    name = text
    while len(numbers) < 2 and ":" in name:
        head, _, tail = name.rpartition(":")
        if not (tail.isascii() and tail.isdecimal() and len(tail) < 20 and int(tail) < SEEDS):
            break
        name, numbers = head, [int(tail), *numbers]
    if not numbers:
        raise OfflineError(f"An end reads CLASS:SEED or CLASS:SEED:INDEX, such as cat:1; this is {text!r}.")
    class_id = class_id_of(engine, name)
    seed, index = numbers[0], numbers[1] if len(numbers) > 1 else 0
    return Draw(((class_id, 1.0),), engine.info.classes[class_id], seed, index)
