"""The pack: labelled images in one file that opens at once, or in shards with an index.

A pack is a safetensors file: `images` uint8 [N, 3, R, R], `labels` int64 [N], and JSON metadata under
the key `pack`. A shard is a pack as well; an index has all labels and names the shards, which lie beside it.
All files get their names when all are whole, the index last. `train.data.packing` makes their bytes.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from torch import Tensor

from imaging.files import forget_parts, written_whole
from train.data.licence import stated_licence
from train.data.packing import FORMAT, INDEX_FORMAT, PackReport, Writer, decode_all, shown
from train.data.packing import image_progress as image_progress
from train.data.sources import AS_IT_IS, Reading, archive_of, open_source
from train.errors import DataError, NotAPack

MAX_IN_MEMORY = 2 * 2**30  # bytes; a raw source above it must be packed first
MAX_SHARDS = 512  # all are open at once while they are written


class Shards:
    """Images of several files, indexed like one tensor uint8 [N, 3, R, R].

    A file is opened when one of its images is first read, so a host needs only the shards it reads.
    """

    dtype = torch.uint8

    def __init__(self, lengths: Sequence[int], resolution: int, open_shard: Callable[[int], Tensor]) -> None:
        self.shape = torch.Size((sum(lengths), 3, resolution, resolution))
        self._ends = torch.tensor(lengths).cumsum(0)
        self.lengths = tuple(lengths)  # images in each file
        self._open_shard = open_shard
        self._opened: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """A copy of the images at `index`, int64 [B] or a slice. Raises DataError for a missing shard."""
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        of = torch.bucketize(index, self._ends, right=True)
        images = torch.empty(len(index), *self.shape[1:], dtype=self.dtype)
        for shard in sorted(set(of.tolist())):
            here = of == shard
            images[here] = self.shard(shard)[index[here] - self._ends[shard] + self.lengths[shard]]
        return images

    def shard(self, number: int) -> Tensor:
        """The images of one file, mapped and not read. Raises DataError."""
        if number not in self._opened:
            self._opened[number] = self._open_shard(number)
        return self._opened[number]


@dataclass(frozen=True)
class Pack:
    """Labelled images in memory or mapped from a file.

    images: uint8 [N, 3, R, R]. labels: int64 [N], indices into class_names. metadata: source, kind, licence,
    how (cropped and resized), counts, and sha256: of the pixels, then labels, then class names; of several
    shards, of their own hashes.
    """

    images: Tensor | Shards
    labels: Tensor
    class_names: tuple[str, ...]
    resolution: int
    metadata: dict[str, object]
    shards: tuple[int, ...] = ()  # images in each file, in order; (): all in one file

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, shards: Iterable[int]) -> None:
        """Open the files of these shards. Raises DataError for one that is missing or of another pack."""
        if isinstance(self.images, Shards):
            for number in shards:
                self.images.shard(number)


def pack(
    source: Path,
    out: Path,
    resolution: int | None = None,
    *,
    reading: Reading = AS_IT_IS,
    shards: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> PackReport:
    """Read every picture of `source` and write the pack `out`, or its shards and the index `out`.

    resolution: pixels, a multiple of 4 from 8 to 1024; None: the images' own size, which must then be the
    same square for all. shards: number of files that the images are dealt to, each a fair sample of every
    class; 1: `out` alone. force: write over files that are no packs, though never over the source.
    progress: a running bar (inside its `with`); None: silent. say: is told the classes before any is read.
    Raises DataError, and leaves nothing behind; a picture that cannot be read is only reported.
    """
    if resolution is not None and (resolution % 4 or not 8 <= resolution <= 1024):
        raise DataError(
            f"A resolution of {resolution} cannot be packed: give a multiple of 4 from 8 to 1024."
        )
    if not 1 <= shards <= MAX_SHARDS:
        raise DataError(f"{shards} shards cannot be written: choose 1 to {MAX_SHARDS}.")
    paths = [*_shard_paths(out, shards), out] if shards > 1 else [out]
    for path in paths:
        _check_place(path, source, force)
    started = time.monotonic()
    with no_pillow_warnings(), open_source(source, reading) as pictures:
        licence = reading.licence or stated_licence(source) or pictures.licence
        pictures = replace(pictures, licence=licence)
        if say is not None:
            for line in pictures.classes():
                say(line)
        try:
            forget_parts(out.parent, [path.name for path in paths])
            with written_whole(paths) as files:
                writer = Writer(files, pictures, resolution, reading)
                chunks = decode_all(pictures, resolution, reading)
                for chunk in shown(chunks, len(pictures.entries), progress):
                    writer.add(chunk)
                report = writer.finish(out, paths, started)
        except OSError as error:
            raise DataError(f"The pack cannot be written to {out} ({error.strerror or error}).") from error
    return report


def open_pack(path: Path) -> Pack:
    """The pack in a file. Its pixels are mapped, not read, so any size opens at once.

    The map is read-only: copy (index, clone) before writing. An index opens its shards when they are read.
    Raises NotAPack for any other file.
    """
    try:
        with safe_open(path, framework="np") as file:  # checks the header and every offset in it
            about = _metadata(path, file.metadata() or {})
            labels = torch.from_numpy(file.get_tensor("labels"))
        shards = about.pop("shards", None)
        images = _mapped(path, "images") if shards is None else _stacked(path, about, shards)
    except FileNotFoundError:
        raise NotAPack(f"There is no file {path}.") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise NotAPack(
            f"{path} is not a pack ({error}): make one with `sagan data pack {path} OUT.safetensors`."
        ) from error
    class_names = about.pop("class_names")
    if (
        len(images.shape) != 4
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
    lengths = images.lengths if isinstance(images, Shards) else ()
    return Pack(images, labels, tuple(class_names), int(images.shape[-1]), about, lengths)


def open_data(
    path: Path,
    resolution: int | None = None,
    *,
    reading: Reading = AS_IT_IS,
    progress: Progress | None = None,
) -> Pack:
    """A pack, or any source that `pack` knows, packed in memory (2 GiB at most) for this call alone.

    resolution: pixels that the images must have; None: any. progress: a running bar (inside its `with`), on
    whose console the classes and what was left out are told; None: silent. Raises DataError.
    """
    if not is_source(path):
        opened = open_pack(path)
    else:
        with open_source(path, reading) as source:
            _check_small(path, len(source.entries) * 3 * (resolution or 8) ** 2)

        def tell(line: str) -> None:
            if progress is not None:
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

        tell(
            f"{path} is not a pack: reading its pictures once. `sagan data pack {path} OUT.safetensors` "
            "makes the next start quick."
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pack.safetensors"
            report = pack(path, file, resolution, reading=reading, progress=progress, say=tell)
            for line in report.faults():
                tell(line)
            _check_small(path, file.stat().st_size)
            mapped = open_pack(file)
            opened = replace(mapped, images=mapped.images[:].clone(), labels=mapped.labels.clone())
    if resolution is not None and opened.resolution != resolution:
        raise DataError(
            f"{path} has {opened.resolution} px and {resolution} px are needed: pack its source again with "
            f"--resolution {resolution}."
        )
    return opened


def is_source(path: Path) -> bool:
    """Whether `path` is still to be packed. True also where there is nothing: packing reports that."""
    return not path.is_file() or _is_archive(path)


def _check_place(path: Path, source: Path, force: bool) -> None:
    """Raises DataError where a pack at `path` would take the place of something that is no pack."""
    if not path.exists() and not path.is_symlink():
        return
    read = source if source.is_dir() else archive_of(source)
    if read is not None and path.exists() and path.samefile(read):
        raise DataError(f"{path} is what is to be read: give the pack another name.")
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no ordinary file: give the pack another name.")
    try:
        open_pack(path)
    except DataError:
        inside = source.is_dir() and path.resolve().is_relative_to(source.resolve())
        if inside:
            raise DataError(f"{path} is a file of the source: give the pack another name.") from None
        if not force:
            raise DataError(
                f"{path} is there and is no pack: give another name, or write over it by "
                "`sagan data pack --force`."
            ) from None


def _check_small(path: Path, size: int) -> None:
    if size > MAX_IN_MEMORY:
        raise DataError(
            f"{path} is too large to be packed at each start: "
            f"run `sagan data pack {path} OUT.safetensors` first."
        )


def _shard_paths(out: Path, shards: int) -> list[Path]:
    return [out.with_name(f"{out.stem}-{i:05d}-of-{shards:05d}{out.suffix}") for i in range(shards)]


@contextmanager
def no_pillow_warnings() -> Iterator[None]:
    """Refuse decompression bombs, which Pillow only warns of, and hide its remarks on odd files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _mapped(path: Path, name: str) -> Tensor:
    """A uint8 tensor of a safetensors file whose header is checked, mapped read-only.

    safetensors itself maps copy-on-write, which Linux refuses for a pack larger than the memory.
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


def _stacked(index: Path, about: dict[str, object], shards: object) -> Shards:
    """The images of the shards in an index. Raises NotAPack when it is damaged."""
    resolution = about.pop("resolution", None)
    if (
        not isinstance(shards, list)
        or not shards
        or not all(isinstance(s, dict) and type(s.get("images")) is int and s["images"] > 0 for s in shards)
        or not all(s.get("file") and Path(str(s["file"])).name == s["file"] for s in shards)
        or not isinstance(resolution, int)
    ):
        raise NotAPack(f"{index} is a damaged index of a pack: its shards are not as written. Pack it again.")

    def open_shard(number: int) -> Tensor:
        path = index.with_name(shards[number]["file"])
        if not path.exists():
            raise NotAPack(
                f"Shard {number} of {len(shards)} is read here, and {path} is missing: copy it to this host."
            )
        shard = open_pack(path)
        if shard.metadata.get("sha256") != shards[number]["sha256"] or not isinstance(shard.images, Tensor):
            raise NotAPack(f"{path} is not the shard that {index} was written with: copy or pack both again.")
        return shard.images

    return Shards([shard["images"] for shard in shards], resolution, open_shard)


def _metadata(path: Path, stored: dict[str, str]) -> dict[str, object]:
    try:
        about = json.loads(stored["pack"])
    except (KeyError, ValueError, RecursionError):
        raise NotAPack(f"{path} is a safetensors file, but not a pack of images.") from None
    if not isinstance(about, dict) or "class_names" not in about or _kind(about) != about.get("format"):
        raise NotAPack(f"{path} is a pack of another format than {FORMAT}: pack its source again.")
    return about


def _kind(about: Mapping[str, object]) -> str:
    return INDEX_FORMAT if "shards" in about else FORMAT


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(512)
    # a safetensors file starts with a length of 8 bytes and "{"; anything else is a source or a mistake
    return start[8:9] != b"{"
