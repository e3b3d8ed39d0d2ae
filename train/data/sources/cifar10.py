"""CIFAR-10 as its authors ship it: Python pickles, read without letting them run anything.

The files are pickles of a dict with an array of uint8 [10000, 3072] (`data`) and a list of numbers
(`labels`). The reader below gives the few names that such a pickle needs stand-ins of its own and refuses
every other name: neither NumPy's unpickling nor any other code runs.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from train.data.sources.base import Entry, Source
from train.errors import DataError, UnsafeSource

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LICENCE = "CIFAR-10 (Krizhevsky 2009): no formal licence; its authors ask for citation."
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
FOLDER = "cifar-10-batches-py"
_MAX_BATCH_BYTES = 64 * 2**20  # a real batch has 31 MB


@contextmanager
def open_cifar10(path: Path) -> Iterator[Source]:
    """The training images of a `cifar-10-batches-py` folder or of its tar.gz, or those of one batch file."""
    if path.is_dir():
        batches = [_read_file(path / name) for name in BATCHES]
    elif tarfile.is_tarfile(path):
        batches = _read_tar(path)
    else:
        batches = [_read_file(path)]
    images, labels = zip(*batches, strict=True)
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    def read(entry: Entry) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(pixels[int(entry.name)]))

    entries = [Entry(f"{index:05d}", int(label)) for index, label in enumerate(np.concatenate(labels))]
    yield Source(path.name, "cifar10", CLASS_NAMES, entries, read, LICENCE)


def _read_file(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        with path.open("rb") as file:
            return _read_batch(path.name, file.read(_MAX_BATCH_BYTES + 1))
    except OSError as error:
        raise DataError(f"CIFAR-10's {path.name} cannot be read ({error.strerror}).") from error


def _read_tar(path: Path) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in BATCHES and member.isreg() and (file := archive.extractfile(member)) is not None:
                    found[name] = _read_batch(name, file.read(_MAX_BATCH_BYTES + 1))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path.name} is not a whole archive ({error}): download it again.") from error
    if missing := [name for name in BATCHES if name not in found]:
        raise DataError(f"{path.name} lacks CIFAR-10's {', '.join(missing)}: download it again.")
    return [found[name] for name in BATCHES]


def _read_batch(name: str, content: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels [N, 3072] and labels [N] of one batch file."""
    if len(content) > _MAX_BATCH_BYTES:
        raise UnsafeSource(
            f"CIFAR-10's {name} is larger than {_MAX_BATCH_BYTES >> 20} MiB: it is not the real one."
        )
    batch = restricted_loads(content, name)
    if not isinstance(batch, dict):
        raise DataError(f"CIFAR-10's {name} is not a batch of images: download it again.")
    fields = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = fields.get("data"), fields.get("labels")
    if (
        not isinstance(data, _Array)
        or not isinstance(labels, list)
        or data.value.ndim != 2
        or data.value.shape != (len(labels), 3072)
        or not all(type(label) is int and 0 <= label < len(CLASS_NAMES) for label in labels)
    ):
        raise DataError(
            f"CIFAR-10's {name} does not have pixels [N, 3072] and N labels 0 to 9: download it again."
        )
    return data.value, np.array(labels, np.int64)


class _Dtype:
    """Stands for numpy.dtype; only uint8 is known."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: uint8 has none."""


class _Array:
    """Stands for numpy.ndarray; filled from raw bytes only."""

    value: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not plain bytes")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _new_array(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("_codecs", "encode"): _encode,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


class _Refused(Exception):
    """A pickle asked for this name."""


def restricted_loads(content: bytes, name: str) -> object:
    """The contents of a pickle of arrays, bytes, str, int, list and dict.

    Raises UnsafeSource for any other name in it, DataError where it is damaged.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    except _Refused as error:
        raise UnsafeSource(
            f"{name} asks to run {error}, which CIFAR-10 never does: it is not the real one."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything; nothing of it has run
        raise DataError(f"{name} is not a whole CIFAR-10 file ({error}): download it again.") from error
