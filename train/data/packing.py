"""Pictures of a source to the bytes of a pack, in order and a few at a time.

The disk bounds the size of a pack, not the memory: pixels go to the file as they come. Images are dealt to
shards like cards: every shard gets its share of every class.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from safetensors.numpy import save

from train.data.licence import NOT_STATED
from train.data.pictures import HOW, Square, read_square
from train.data.sources import Entry, Reading, Source
from train.data.sources.base import LeftOut, Unreadable, printable
from train.data.sources.names import misleading_numbers, shorten
from train.errors import DataError, NoImages

FORMAT = "sagan-pack-1"
INDEX_FORMAT = "sagan-pack-index-1"  # the file that names the shards of a pack
FEW = 50  # images; a class with fewer is named in the report
_CHUNK = 16  # pictures a task of the decoding pool
_DARK = 2**12  # levels of 65,536; where no grey picture of 16 bits has a higher one they may hold fewer bits
_NAMED = 100_000  # left-out pictures that the report names; the others are counted

Decoded = list[tuple[Entry, Square | str]]  # pixels, or why there are none


@dataclass(frozen=True)
class PackReport:
    """The contents of a new pack, and the pictures left out of it."""

    path: Path
    images: int
    resolution: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]  # images a class
    skipped: tuple[tuple[str, str], ...]  # (name, reason), the first 100,000
    skipped_count: int
    notes: tuple[str, ...]
    sha256: str
    seconds: float
    size: int  # bytes, of all files
    shards: int = 1

    @property
    def few(self) -> tuple[str, ...]:
        """Classes with fewer than 50 images."""
        return tuple(
            name for name, count in zip(self.class_names, self.class_counts, strict=True) if count < FEW
        )

    def lines(self) -> list[str]:
        """The report for a person."""
        rate = self.images / max(self.seconds, 1e-9)
        beside = f" and {self.shards} shards beside it" if self.shards > 1 else ""
        classes = f"{len(self.class_names)} class{'es' if len(self.class_names) > 1 else ''}"
        lines = [
            f"{self.images:,} images of {classes} at "
            f"{self.resolution}×{self.resolution} in {self.path}{beside} ({self.size / 2**20:,.0f} MiB)",
            f"{min(self.class_counts):,} to {max(self.class_counts):,} images a class; "
            f"{self.seconds:.1f} s, {rate:,.0f} images/s; sha256 {self.sha256}",
        ]
        if few := self.few:
            lines.append(f"fewer than {FEW} images: {shorten(few)}")
        return lines + self.faults()

    def faults(self) -> list[str]:
        """What was left out, or read with a doubt, for a person."""
        lines = []
        if self.skipped_count:
            lines.append(f"left out {self.skipped_count:,} pictures:")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped[:20]]
            if self.skipped_count > 20:
                lines.append(f"  and {self.skipped_count - 20:,} more")
        return lines + list(self.notes)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s")


class _Bar(Progress):
    """Shown from its first task on: without one it would leave an empty line before a refusal."""

    def start(self) -> None:
        if self.tasks:
            super().start()

    def stop(self) -> None:
        if self.tasks:
            super().stop()

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        task = super().add_task(*args, **kwargs)
        super().start()
        return task


def image_progress(console: Console | None = None) -> Progress:
    """A progress bar with images/s and time left. console: None: on standard error."""
    return _Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )


class _Shard:
    """One file: pixels as they are decoded, then the labels, and the header last, in the room left for it."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file, self.room = file, room
        self.labels: list[int] = []
        self.digest = hashlib.sha256()
        file.seek(8 + room)

    def add(self, pixels: bytes, label: int) -> None:
        self.digest.update(pixels)
        self.file.write(pixels)
        self.labels.append(label)

    def finish(self, number: Mapping[int, int], resolution: int, about: Mapping[str, object]) -> int:
        """Write labels and header; the file's size in bytes. number: new label of each label."""
        labels = np.array([number[label] for label in self.labels], "<i8").tobytes()
        self.file.write(labels)
        self.digest.update(labels)
        self.digest.update(json.dumps(about["class_names"]).encode())
        shape = [len(self.labels), 3, resolution, resolution]
        end = int(np.prod(shape))
        header = {
            "__metadata__": {"pack": json.dumps({**about, "sha256": self.digest.hexdigest()})},
            "images": {"dtype": "U8", "shape": shape, "data_offsets": [0, end]},
            "labels": {"dtype": "I64", "shape": shape[:1], "data_offsets": [end, end + len(labels)]},
        }
        self.file.seek(0)
        self.file.write(self.room.to_bytes(8, "little"))
        self.file.write(json.dumps(header).encode().ljust(self.room))
        self.file.flush()
        return 8 + self.room + end + len(labels)


class Writer:
    """Decoded pictures to the files of a pack: one, or the shards and, last, the index that names them."""

    def __init__(
        self, files: Sequence[BinaryIO], source: Source, resolution: int | None, reading: Reading
    ) -> None:
        self.source = source
        self.reading = reading
        self.remarks = LeftOut()  # on pictures that are taken
        self.deepest = -1  # level of the whitest grey deeper than 8 bits; -1: there is none
        self.resolution = resolution  # None until the first picture is decoded
        self.skipped: list[tuple[str, str]] = []
        self.skipped_count = 0
        names = len(json.dumps(json.dumps(source.class_names)))
        texts = len(json.dumps(json.dumps([source.name, source.licence, source.crop, HOW])))
        # a multiple of 8 keeps the pixels aligned; safetensors allows spaces at a header's end
        room = (4096 + names + 32 * len(source.class_names) + texts) // 8 * 8
        *shards, last = files
        self.index = last if shards else None  # None: the pack is one file
        self.shards = [_Shard(file, room) for file in shards or [last]]
        self._dealt: Counter[tuple[int, int]] = Counter()  # (label, shard) -> images
        self._random = random.Random(0)

    def add(self, chunk: Decoded) -> None:
        for entry, square in chunk:
            if isinstance(square, str):
                self.skipped_count += 1
                if len(self.skipped) < _NAMED:
                    self.skipped.append((printable(entry.name), square))
                continue
            pixels = square.pixels
            self.deepest = max(self.deepest, square.deepest)
            for remark in square.remarks:
                self.remarks.add(remark, entry.name)
            side = pixels.shape[1]
            if self.resolution is None:
                if side % 4 or not 8 <= side <= 1024:
                    raise DataError(
                        f"{entry.name} gives {side}×{side} pixels: choose a size with --resolution."
                    )
                self.resolution = side
            elif side != self.resolution:
                raise DataError(
                    f"The pictures differ in size ({self.resolution} and {side} px, {entry.name}): "
                    "choose one with --resolution."
                )
            if not any(shard.labels for shard in self.shards):
                self._check_room(3 * side * side * len(self.source.entries))
            self._next_shard(entry.label).add(pixels.tobytes(), entry.label)

    def finish(self, out: Path, paths: Sequence[Path], started: float) -> PackReport:
        """Write the ends of all files of the pack `out`, which will be named `paths`."""
        counts = Counter(label for shard in self.shards for label in shard.labels)
        self._check(counts.total())
        assert self.resolution is not None
        kept = [label for label in range(len(self.source.class_names)) if counts[label]]
        number = {label: index for index, label in enumerate(kept)}
        class_names = tuple(self.source.class_names[label] for label in kept)
        notes = self.source.notes + self.remarks.notes("noted of")
        if wrong := misleading_numbers(class_names):
            notes += (wrong,)
        if empty := [n for label, n in enumerate(self.source.class_names) if not counts[label]]:
            notes += (f"classes without a usable image were left out: {shorten(empty)}",)
        about = {
            "format": FORMAT,
            "source": self.source.name,
            "kind": self.source.kind,
            "licence": self.source.licence or NOT_STATED,
            "how": f"{self.source.crop}, {HOW}",
            "sha256": "",  # each file fills in that of its own content; here for its place in the order
            "skipped": self.skipped_count,
            "class_names": class_names,
        }
        size = sum(shard.finish(number, self.resolution, about) for shard in self.shards)
        sha256 = self.shards[0].digest.hexdigest()
        if self.index is not None:
            hashes = [shard.digest.hexdigest() for shard in self.shards]
            sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
            shards = [
                {"file": path.name, "images": len(shard.labels), "sha256": digest}
                for path, shard, digest in zip(paths[:-1], self.shards, hashes, strict=True)
            ]
            index = {
                "format": INDEX_FORMAT,
                "sha256": sha256,
                "resolution": self.resolution,
                "shards": shards,
            }
            size += self._write_index(self.index, number, about | index)
        return PackReport(
            path=out,
            images=counts.total(),
            resolution=self.resolution,
            class_names=class_names,
            class_counts=tuple(counts[label] for label in kept),
            skipped=tuple(self.skipped),
            skipped_count=self.skipped_count,
            notes=notes,
            sha256=sha256,
            seconds=time.monotonic() - started,
            size=size,
            shards=len(self.shards),
        )

    def _check(self, images: int) -> None:
        """Raises DataError where these make no pack."""
        if self.resolution is None or not images:
            first = f" (the first, {self.skipped[0][0]}: {self.skipped[0][1]})" if self.skipped else ""
            raise NoImages(f"No picture in {self.source.name} can be used{first}.")
        if 0 < self.deepest < _DARK and self.reading.bits is None:
            raise DataError(
                f"The pictures of 16 bits use levels up to {self.deepest:,} of 65,535 alone. Do they hold 12 "
                "bits? Then add --bits 12 (or 10, or 14). Or are they that dark? Then add --bits 16."
            )
        if empty_shards := sum(not shard.labels for shard in self.shards):
            raise DataError(
                f"{images} images do not fill {len(self.shards)} shards: "
                f"choose at most {len(self.shards) - empty_shards}."
            )

    def _write_index(self, file: BinaryIO, number: Mapping[int, int], about: Mapping[str, object]) -> int:
        """Write the index; its size in bytes. It has every label: any process knows the whole pack by it."""
        labels = np.array([number[n] for shard in self.shards for n in shard.labels], np.int64)
        content = save({"labels": labels}, {"pack": json.dumps(about)})
        file.write(content)
        file.flush()
        return len(content)

    def _next_shard(self, label: int) -> _Shard:
        """The shard with the fewest images of this class, then the fewest in all, then by a seeded lot.

        The lot keeps a source's regular order (pairs, bursts) from making the shards differ.
        """

        def fullness(i: int) -> tuple[int, int, float]:
            return self._dealt[label, i], len(self.shards[i].labels), self._random.random()

        chosen = min(range(len(self.shards)), key=fullness)
        self._dealt[label, chosen] += 1
        return self.shards[chosen]

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(Path(self.shards[0].file.name).parent).free
        if needed > free:
            raise DataError(
                f"The pack needs about {needed / 2**30:.1f} GiB and the disk has {free / 2**30:.1f} GiB free."
            )


def decode_all(source: Source, resolution: int | None, reading: Reading) -> Iterator[Decoded]:
    """Every picture in order, decoded by a few threads; only a few chunks are in memory at once."""

    def decode(entries: list[Entry]) -> Decoded:
        return [(entry, _decode(source, entry, resolution, reading)) for entry in entries]

    workers = min(8, os.cpu_count() or 1)
    entries = iter(source.entries)
    waiting: deque[Future[Decoded]] = deque()
    # Pillow decodes and resizes without the interpreter lock, so threads are enough
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while chunk := list(islice(entries, _CHUNK)):
                waiting.append(pool.submit(decode, chunk))
                if len(waiting) >= 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(source: Source, entry: Entry, resolution: int | None, reading: Reading) -> Square | str:
    try:
        with source.read(entry) as image:
            return read_square(image, entry.box, resolution, reading)
    except Unreadable as error:
        return str(error)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "it unfolds to too many pixels"
    except UnidentifiedImageError:
        return "not an image of a known format"
    except MemoryError:
        return "it does not fit into memory"
    except Exception as error:  # noqa: BLE001  # Pillow raises nearly anything on damaged data
        return f"cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def shown(chunks: Iterator[Decoded], total: int, progress: Progress | None) -> Iterable[Decoded]:
    if progress is None:
        yield from chunks
        return
    task = progress.add_task("packing", total=total)
    for chunk in chunks:
        yield chunk
        progress.advance(task, len(chunk))
