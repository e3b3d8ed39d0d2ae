"""An attention map as bytes: .npy, .npy of rounded records, or JSON."""

import gzip
import io
from collections.abc import Callable

import numpy as np

from app.schemas import MapOut
from jobs.job import AttentionMap


def written(write: Callable[[AttentionMap], bytes], attention: AttentionMap, gzipped: bool) -> bytes:
    """`attention` in the format of `write`, gzipped or not."""
    content = write(attention)
    # the lowest level: the highest saves 4 % at most and takes more than twice as long
    return gzip.compress(content, compresslevel=1, mtime=0) if gzipped else content


def as_npy(attention: AttentionMap) -> bytes:
    """float16 [queries, keys]."""
    return _npy(attention.map.astype(np.float16, copy=False))


def as_records(attention: AttentionMap) -> bytes:
    """[queries] of `peak`, `at` (its key) and `levels` [keys], 255 at the peak: half the bytes of float16."""
    values = attention.map.astype(np.float32)
    queries, keys = values.shape
    rows = np.empty(queries, [("peak", "<f4"), ("at", "<u4"), ("levels", "u1", (keys,))])
    rows["peak"], rows["at"] = values.max(axis=1), values.argmax(axis=1)
    rows["levels"] = np.rint(values * (255 / rows["peak"][:, None]))  # a row sums to 1: its peak is not 0
    return _npy(rows)


def as_json(job_id: str, index: int, attention: AttentionMap) -> bytes:
    """MapOut of image `index` of a job."""
    out = MapOut(
        job=job_id,
        image=index,
        layer=attention.layer,
        query_grid=attention.query_grid,
        key_grid=attention.key_grid,
        gamma=attention.gamma,
        share=attention.share,
        # 7 decimals hold what float16 does, in half the bytes
        map=np.round(attention.map.astype(np.float64), 7).tolist(),
    )
    return out.model_dump_json().encode()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
