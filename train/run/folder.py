"""A person's own pictures for a run: looked over, packed once into the run's folder, faults named.

The run's folder then has `data.safetensors` (the pack), `data.json` (its origin) and, where pictures were
left out, `skipped.txt` with their names and the reason for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from imaging.files import write_whole
from train.data.automatic import Line, Survey, check_enough, choose, pictures, to_toml
from train.data.pack import Pack, image_progress, is_source, open_data, open_pack, pack
from train.data.packing import FEW, PackReport
from train.data.pictures import square_around
from train.data.sources import AS_IT_IS, Reading, Source, archive_of, open_source
from train.data.sources.names import shorten
from train.efficientnet import installed
from train.errors import DataError
from train.recipes.recipe import Recipe, parse_recipe, read_recipe
from train.run.grids import AUGMENTED, REAL, SAMPLES
from train.run.loop import STATE
from train.run.observers import BOARD
from train.run.pretrained_judge import NETWORK
from train.run.saved import StateError
from train.run.state import check_judge

PACK = "data.safetensors"
ABOUT = "data.json"
SKIPPED = "skipped.txt"
RECIPE = "recipe.toml"
AUTO = "auto"  # names the recipe that is chosen by the pictures
LOOKED_AT = 200  # pictures, at least, whose sizes the resolution is chosen by
NAMED = 20  # pictures or classes on the screen; the others are counted


@dataclass(frozen=True)
class _About:
    """The origin of the pack in a run's folder."""

    source: str  # the path given, made absolute
    listing: str  # sha256 of names, sizes and times of change; "": the pack may not be whole
    pictures: int  # in the source
    resolution: int
    skipped: int


def prepare(
    name: str,
    data: Path,
    out: Path,
    overrides: dict[str, str],
    on_cpu: bool,
    console: Console,
    *,
    resume: bool,
    reading: Reading = AS_IT_IS,
) -> tuple[Recipe, Pack]:
    """The recipe called `name`, or the resumed run's own, and the images for it.

    Pictures that are no pack yet are packed into `out`: the next start does not read them again. A resumed
    run keeps the images it began with. Raises TrainError.
    """
    check_asked(data, out, reading)
    check_free(out, data)
    if name != AUTO:
        recipe = read_recipe(name, overrides)
        return recipe, _images(data, out, resolution_of(recipe), console, reading, resume=resume)
    if resume:
        recipe = chosen_recipe(out, overrides)
        return recipe, _images(data, out, resolution_of(recipe), console, reading, resume=True)
    recipe, choices, text = chosen_for(data, on_cpu, overrides, reading)
    check_recipe_free(out, text)
    images = _images(data, out, resolution_of(recipe), console, reading, resume=False)
    check_enough(len(images))
    write_whole(out / RECIPE, text.encode())
    say(console, f"The recipe for them, chosen by number and size; {out / RECIPE} has it to be changed:")
    for choice in choices:
        say(console, f"  {choice.setting()} ({choice.reason})")
    return recipe, images


def check_asked(data: Path, out: Path, reading: Reading) -> None:
    """Raises DataError for an `out` among the pictures, and for a reading of what is packed already."""
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise DataError(f"{out} lies in {data} and would count as pictures of it: choose another --out.")
    if not is_source(data) and (reading.classes is not None or reading.bits is not None):
        raise DataError(f"{data} is packed already: give --classes and --bits to `sagan data pack`.")


def check_free(out: Path, data: Path) -> None:
    """Raises DataError where a run would write over a file in `out` that no run has left there."""
    drawn = () if _is_a_runs(out) else (f"{SAMPLES}/{REAL}", f"{SAMPLES}/{AUGMENTED}")
    packed = (PACK, ABOUT, SKIPPED) if is_source(data) and _about_of(out) is None else ()
    for path in (out / name for name in (*drawn, *packed)):
        if path.exists() or path.is_symlink():
            raise DataError(_taken(path))


def check_recipe_free(out: Path, text: str) -> None:
    """Raises DataError where the recipe in `out` is another one than `text`, and not a run's."""
    path = out / RECIPE
    if path.exists() and not _is_a_runs(out) and path.read_bytes() != text.encode():
        raise DataError(f"{_taken(path)} To train by it, give its path in place of `auto`.")


def _is_a_runs(out: Path) -> bool:
    return _about_of(out) is not None or any((out / name).exists() for name in (STATE, BOARD))


def _taken(path: Path) -> str:
    return f"{path} is there, was not left by a run, and would be written over: choose another --out."


def chosen_for(
    data: Path, on_cpu: bool, overrides: dict[str, str], reading: Reading
) -> tuple[Recipe, list[Line], str]:
    """The recipe chosen by the pictures at `data`, its lines, and its file's text. Raises TrainError."""
    choices = choose(_survey(data, reading), on_cpu, overrides)
    text = to_toml(f"A SAGAN for the pictures of {_shown_name(data)}", choices)
    return parse_recipe(AUTO, text), choices, text


def resolution_of(recipe: Recipe) -> int:
    """The resolution of a recipe's images, pixels. Raises for a recipe that cannot be trained here."""
    check_judge(recipe)
    return recipe.config(classes=1).resolution


def chosen_recipe(out: Path, overrides: dict[str, str]) -> Recipe:
    """The recipe in the folder of an `auto` run, with any changes made there. Raises TrainError."""
    path = out / RECIPE
    try:
        return parse_recipe(AUTO, path.read_text("utf-8"), overrides)
    except FileNotFoundError:
        raise StateError(
            f"There is no {path}: the run was not begun by `auto`. Name the recipe that it was begun with."
        ) from None
    except (OSError, ValueError) as wrong:
        raise StateError(f"{path}: not a readable recipe ({wrong}).") from None


def _survey(data: Path, reading: Reading) -> Survey:
    if not is_source(data):
        opened = open_pack(data)
        return Survey(len(opened), (), opened.resolution, pretrained=installed(NETWORK))
    with open_source(data, reading) as source:
        check_enough(len(source.entries))
        return Survey(len(source.entries), _sides(source), pretrained=installed(NETWORK))


def _sides(source: Source) -> tuple[int, ...]:
    """Shorter sides in pixels, sorted, of pictures spread over the whole source."""
    sides = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd files: packing will name those
        for entry in source.entries[:: max(len(source.entries) // LOOKED_AT, 1)]:
            try:
                with source.read(entry) as image:
                    whole = (0, 0, min(image.size), min(image.size))
                    left, _, right, _ = square_around(entry.box, *image.size) if entry.box else whole
            except Exception:  # noqa: BLE001  # Pillow raises nearly anything; packing will tell the reason
                continue
            sides.append(right - left)
    return tuple(sorted(sides))


def _images(
    data: Path, out: Path, resolution: int, console: Console, reading: Reading, *, resume: bool
) -> Pack:
    """The images at `data` at this resolution, from the run's folder if they lie packed there."""
    check_writable(out)
    if not is_source(data):
        images = open_data(data, resolution)
        _say_classes(images, console)
        return images
    kept = _read_about(out)
    listing, found = _listing(data, reading)
    if kept is not None and (resume or (kept.listing, kept.resolution) == (listing, resolution)):
        if kept.listing != listing:
            _check_same_place(kept, data, out)
            say(
                console,
                f"{data} has changed since this run began ({pictures(kept.pictures)} then, {found:,} "
                "now). It goes on with the images it began with; to use these, begin another in a new --out.",
                style="yellow",
            )
        left_out = f"; {kept.skipped:,} had been left out, see {out / SKIPPED}" if kept.skipped else ""
        say(console, f"The pictures lie packed in {out / PACK} and are not read again{left_out}.")
    else:
        with image_progress(console) as progress:
            about = _About(str(data.resolve()), "", found, resolution, 0)
            _write_about(about, out)  # should this be cut short, what lies there is ours, and is not used
            try:
                report = pack(
                    data,
                    out / PACK,
                    resolution,
                    reading=reading,
                    force=True,
                    progress=progress,
                    say=partial(say, console),
                )
            finally:
                if not (out / PACK).exists():
                    (out / ABOUT).unlink()
        _write_skipped(report, out)
        _write_about(replace(about, listing=listing, skipped=report.skipped_count), out)
        _tell(report, out, console)
        images = open_pack(out / PACK)
        _name_small_classes(images, console)
        return images
    images = open_pack(out / PACK)
    _say_classes(images, console)
    return images


def check_writable(out: Path) -> None:
    """Raises DataError where nothing can be written, before the long work. Leaves nothing behind."""
    try:
        there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as wrong:
        raise DataError(f"{out} cannot be written to ({wrong.strerror}): choose another --out.") from wrong


def _write_skipped(report: PackReport, out: Path) -> None:
    if report.skipped:
        lines = [f"{name}: {reason}\n" for name, reason in report.skipped]
        if report.skipped_count > len(lines):
            lines.append(f"and {report.skipped_count - len(lines):,} more\n")
        write_whole(out / SKIPPED, "".join(lines).encode(errors="replace"))
    else:
        (out / SKIPPED).unlink(missing_ok=True)


def _tell(report: PackReport, out: Path, console: Console) -> None:
    say(
        console,
        f"{pictures(report.images)} packed at {report.resolution}×{report.resolution} in {report.path} "
        f"({report.seconds:.1f} s); the next start does not read them again.",
    )
    if report.skipped_count:
        say(console, f"{report.skipped_count:,} left out, all named in {out / SKIPPED}:", style="yellow")
        for name, reason in report.skipped[:NAMED]:
            say(console, f"  {name}: {reason}")
        if report.skipped_count > NAMED:
            say(console, f"  and {report.skipped_count - NAMED:,} more")
    for note in report.notes:
        say(console, note, style="yellow")


def _say_classes(images: Pack, console: Console) -> None:
    """The classes of a pack, with their numbers of pictures."""
    counts = torch.bincount(images.labels, minlength=len(images.class_names)).tolist()
    said = [f"{name} ({n:,})" for name, n in zip(images.class_names, counts, strict=True)]
    say(console, f"{len(said)} classes: {shorten(said)}" if len(said) > 1 else f"1 class: {said[0]}")
    _name_small_classes(images, console)


def _name_small_classes(images: Pack, console: Console) -> None:
    counts = torch.bincount(images.labels, minlength=len(images.class_names)).tolist()
    few = [f"{name} ({n})" for name, n in zip(images.class_names, counts, strict=True) if n < FEW]
    if few:
        more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
        say(
            console,
            f"Fewer than {FEW} pictures: {', '.join(few[:NAMED])}{more}. Of so few a network learns little "
            "but copies: add pictures, merge classes that are alike, or take these out.",
            style="yellow",
        )


def _listing(data: Path, reading: Reading) -> tuple[str, int]:
    """A hash of the names, sizes and times of change of the pictures, and their number."""
    digest = hashlib.sha256()
    with open_source(data, reading) as source:
        if reading.bits is not None:  # the pixels are a function of it
            digest.update(f"{reading.bits}".encode())
        for entry in source.entries:
            digest.update(
                f"{entry.name}/{entry.label}/{_stamp(data / entry.name)}\n".encode(errors="replace")
            )
        # an archive's pictures change with it
        archive = None if data.is_dir() else archive_of(data)
        digest.update(f"{source.class_names}/{_stamp(archive) if archive else ''}".encode(errors="replace"))
        return digest.hexdigest(), len(source.entries)


def _stamp(path: Path) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""  # a member of an archive is no file of its own
    return f"{status.st_size}/{status.st_mtime_ns}"


def _read_about(out: Path) -> _About | None:
    """The origin of the pack in `out`; None: there is no whole one."""
    about = _about_of(out)
    return about if about is not None and about.listing and (out / PACK).exists() else None


def _about_of(out: Path) -> _About | None:
    try:
        return _About(**json.loads((out / ABOUT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_about(about: _About, out: Path) -> None:
    write_whole(out / ABOUT, json.dumps(asdict(about)).encode())


def _check_same_place(kept: _About, data: Path, out: Path) -> None:
    if kept.source != str(data.resolve()):
        raise StateError(
            f"The run in {out} was begun with the pictures of {kept.source}, and {data} has others. "
            "Resume with those, or use a new --out."
        )


def _shown_name(path: Path) -> str:
    return path.resolve().name.encode(errors="replace").decode()


def say(console: Console, text: str, style: str | None = None) -> None:
    """A line on the screen, whatever the names in it look like."""
    text = text.encode(errors="replace").decode()  # a file's name may not be UTF-8
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
