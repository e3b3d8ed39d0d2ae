"""An attention map as bytes: .npy, .npy of rounded records, or JSON; each in pieces of some rows."""

import json
import math
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jobs.job import AttentionMap

_AT_ONCE: Final = 2**15  # values of a piece: as JSON they are a megabyte of objects


def gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces of a gzip file of them."""
    # the lowest level: the highest saves 4 % at most and takes more than twice as long
    packer = zlib.compressobj(1, wbits=31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def as_npy(attention: AttentionMap) -> Iterator[bytes]:
    """float16 [queries, keys]."""
    values = attention.map.astype(np.float16, copy=False)
    yield _header(values.dtype, values.shape)
    for rows in _parts(values):
        yield rows.tobytes()


def as_records(attention: AttentionMap) -> Iterator[bytes]:
    """[queries] of `peak`, `at` (its key) and `levels` [keys], 255 at the peak: half the bytes of float16."""
    queries, keys = attention.map.shape
    record = np.dtype([("peak", "<f4"), ("at", "<u4"), ("levels", "u1", (keys,))])
    yield _header(record, (queries,))
    for part in _parts(attention.map):
        values = part.astype(np.float32)
        rows = np.empty(len(values), record)
        rows["peak"], rows["at"] = values.max(axis=1), values.argmax(axis=1)
        rows["levels"] = np.rint(values * (255 / rows["peak"][:, None]))  # a row sums to 1: its peak is not 0
        yield rows.tobytes()


def as_json(job_id: str, index: int, attention: AttentionMap) -> Iterator[bytes]:
    """MapOut of image `index` of a job."""
    head = {
        "job": job_id,
        "image": index,
        "layer": attention.layer,
        "query_grid": attention.query_grid,
        "key_grid": attention.key_grid,
        "gamma": attention.gamma,
        "share": attention.share if math.isfinite(attention.share) else None,  # JSON has no NaN
    }
    before = json.dumps(head, allow_nan=False, separators=(",", ":"))[:-1] + ',"map":['
    for part in _parts(attention.map):
        # 7 decimals hold what float16 does, in half the bytes
        rows = np.round(part.astype(np.float64), 7).tolist()
        yield (before + json.dumps(rows, separators=(",", ":"))[1:-1]).encode()
        before = ","
    yield b"]}"


def _parts(values: npt.NDArray[np.float16]) -> Iterator[npt.NDArray[np.float16]]:
    """Some rows at a time."""
    rows = max(1, _AT_ONCE // values.shape[1])
    return (values[first : first + rows] for first in range(0, len(values), rows))


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What a .npy file begins with."""
    out = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()
