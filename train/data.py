"""Labelled images, packed once into one file that opens at once.

A pack is a safetensors file: `images` uint8 [N, 3, R, R], `labels` int64 [N], and JSON metadata under
the key `pack`. It is written beside its final name and renamed when whole.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.errors import DataError, NotAPack
from train.packing import FORMAT, PackReport, Writer, decode_all, shown
from train.packing import image_progress as image_progress
from train.sources import open_source

MIN_CROP = 48  # source pixels; the shortest crop around a box that is kept
MAX_IN_MEMORY = 2 * 2**30  # bytes; a raw source above it must be packed first


@dataclass(frozen=True)
class Pack:
    """Labelled images in memory or mapped from a file.

    images: uint8 [N, 3, R, R]. labels: int64 [N], indices into class_names. metadata: source, kind,
    licence, how (cropped and resized), sha256 (of the pixels, then labels, then class names), counts.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    resolution: int
    metadata: dict[str, object]

    def __len__(self) -> int:
        return len(self.labels)


def pack(
    source: Path,
    out: Path,
    resolution: int | None = None,
    *,
    min_crop: int = MIN_CROP,
    name: str | None = None,
    licence: str | None = None,
    progress: Progress | None = None,
) -> PackReport:
    """Read every picture of `source` and write the pack `out`.

    resolution: pixels, a multiple of 4 from 8 to 1024; None: the images' own size, which must then be the
    same square for all. min_crop: the shortest crop around a box (Stanford Dogs), source pixels; 0 keeps all.
    name, licence: what the metadata says; None: the file's name, what the format tells. progress: one that
    runs (inside its `with`); None: silent.
    Raises DataError (nothing is left behind then); a picture that cannot be read is only reported.
    """
    if resolution is not None and (resolution % 4 or not 8 <= resolution <= 1024):
        raise DataError(
            f"A resolution of {resolution} cannot be packed: give a multiple of 4 from 8 to 1024."
        )
    started = time.monotonic()
    with _no_pillow_warnings(), open_source(source) as pictures:
        if name is not None or licence is not None:
            pictures = replace(pictures, name=name or pictures.name, licence=licence or pictures.licence)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=out.parent, prefix=f".{out.name}.", suffix=".partial", delete=False
            ) as file:
                partial = Path(file.name)
                try:
                    writer = Writer(file, pictures, resolution)
                    chunks = decode_all(pictures, resolution, min_crop)
                    for chunk in shown(chunks, len(pictures.entries), progress):
                        writer.add(chunk)
                    report = writer.finish(out, started)
                    os.fsync(file.fileno())
                    os.chmod(partial, 0o666 & ~_umask())
                    partial.replace(out)
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise DataError(f"The pack cannot be written to {out} ({error.strerror or error}).") from error
    return report


def open_pack(path: Path) -> Pack:
    """The pack in a file, its pixels mapped and not read: open at once, whatever its size.

    The map is read-only: copy (index, clone) before writing. Raises NotAPack for anything else.
    """
    try:
        with safe_open(path, framework="np") as file:  # checks the header and every offset in it
            about = _metadata(path, file.metadata() or {})
            labels = torch.from_numpy(file.get_tensor("labels"))
        images = _mapped(path, "images")
    except FileNotFoundError:
        raise NotAPack(f"There is no file {path}.") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise NotAPack(
            f"{path} is not a pack ({error}): make one with `sagan data pack {path} OUT.safetensors`."
        ) from error
    class_names = about.pop("class_names")
    if (
        images.dim() != 4
        or images.shape[1] != 3
        or images.shape[2] != images.shape[3]
        or labels.dtype != torch.int64
        or labels.shape != images.shape[:1]
        or not isinstance(class_names, list)
        or not all(isinstance(name, str) for name in class_names)
        or len(labels) == 0
        or not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names)
    ):
        raise NotAPack(f"{path} is a damaged pack: its images, labels and classes do not fit. Pack it again.")
    return Pack(images, labels, tuple(class_names), int(images.shape[-1]), about)


def open_data(path: Path, resolution: int | None = None, *, progress: Progress | None = None) -> Pack:
    """A pack, or any source that `pack` knows, packed for this once in memory (2 GiB at most).

    progress: one that runs (inside its `with`). Raises DataError; also for a pack of another resolution
    than asked for.
    """
    if path.is_file() and not _is_archive(path):
        opened = open_pack(path)
    else:
        with open_source(path) as source:
            _check_small(path, len(source.entries) * 3 * (resolution or 8) ** 2)
        if progress is not None:
            progress.console.print(
                f"{path} is not a pack: reading its pictures once. `sagan data pack {path} OUT.safetensors` "
                "makes the next start quick.",
                highlight=False,
                markup=False,
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pack.safetensors"
            pack(path, file, resolution, progress=progress)
            _check_small(path, file.stat().st_size)
            mapped = open_pack(file)
            opened = replace(mapped, images=mapped.images.clone(), labels=mapped.labels.clone())
    if resolution is not None and opened.resolution != resolution:
        raise DataError(
            f"{path} has {opened.resolution} px and {resolution} px are needed: pack its source again with "
            f"--resolution {resolution}."
        )
    return opened


def _check_small(path: Path, size: int) -> None:
    if size > MAX_IN_MEMORY:
        raise DataError(
            f"{path} is too large to be packed at each start: "
            f"run `sagan data pack {path} OUT.safetensors` first."
        )


@contextmanager
def _no_pillow_warnings() -> Iterator[None]:
    """A bomb is refused instead of warned of; Pillow's remarks on odd files are not for who packs them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _mapped(path: Path, name: str) -> Tensor:
    """A uint8 tensor of a safetensors file that has been checked, mapped read-only.

    safetensors itself maps it copy-on-write, which Linux refuses for a pack larger than the memory.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    offset, shape = 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
    if entry["dtype"] != "U8" or 0 in shape:
        raise NotAPack(
            f"{path} is a damaged pack: its {name} are {entry['dtype']} {list(shape)}. Pack it again."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, np.uint8, "r", offset, shape))


def _metadata(path: Path, stored: dict[str, str]) -> dict[str, object]:
    try:
        about = json.loads(stored["pack"])
    except (KeyError, ValueError):
        raise NotAPack(f"{path} is a safetensors file, but not a pack of images.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or "class_names" not in about:
        raise NotAPack(f"{path} is a pack of another format than {FORMAT}: pack its source again.")
    return about


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(512)
    # a safetensors file starts with a length of 8 bytes and "{"; anything else is a source or a mistake
    return start[8:9] != b"{"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
