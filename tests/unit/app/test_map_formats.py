"""An attention map on its way to the client."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from app.map_formats import as_json, as_npy, as_records, gzipped
from app.schemas import MapOut
from jobs.job import AttentionMap


def loaded(pieces: Iterator[bytes]) -> Any:
    return np.load(io.BytesIO(b"".join(pieces)))


@pytest.fixture
def noise() -> AttentionMap:
    """What a 64-pixel model attends to, 32 x 32 queries and 16 x 16 keys, with nothing to compress in it."""
    values = np.random.default_rng(0).dirichlet(np.ones(256), size=1024).astype(np.float16)
    return AttentionMap("32x32", (32, 32), (16, 16), 0.5, 0.1, values)


def test_a_rounded_map_of_a_64_pixel_model_is_below_300_kilobytes_whatever_it_holds(
    noise: AttentionMap,
) -> None:
    assert len(b"".join(as_records(noise))) < 300_000


def test_a_row_with_one_key_alone_keeps_it() -> None:
    values = np.zeros((4, 4), np.float16)
    values[range(4), (2, 0, 3, 3)] = 1
    rows = loaded(as_records(AttentionMap("2x2", (2, 2), (2, 2), 1.0, 1.0, values)))
    assert rows["at"].tolist() == [2, 0, 3, 3]
    np.testing.assert_array_equal(rows["levels"], values * 255)


def test_the_exact_map_is_float16_as_the_worker_made_it(noise: AttentionMap) -> None:
    np.testing.assert_array_equal(loaded(as_npy(noise)), noise.map)


def test_json_is_valid_and_holds_the_map(noise: AttentionMap) -> None:
    text = b"".join(as_json("job-0001", 3, noise))
    told = MapOut.model_validate_json(text)
    assert (told.job, told.image, told.layer) == ("job-0001", 3, "32x32")
    np.testing.assert_allclose(np.array(told.map), noise.map, atol=1e-7)


def test_a_share_that_is_no_number_is_null_in_json(noise: AttentionMap) -> None:
    odd = AttentionMap("32x32", (32, 32), (16, 16), 0.5, float("nan"), noise.map)
    assert json.loads(b"".join(as_json("job-0001", 0, odd)))["share"] is None


def test_pieces_are_small_whatever_the_map_and_gzip_puts_them_together_again(noise: AttentionMap) -> None:
    big = AttentionMap("64x64", (64, 64), (32, 32), 0.5, 0.1, np.tile(noise.map, (4, 4)))
    for written in (as_npy, as_records, lambda map_: as_json("job-0001", 0, map_)):
        pieces = list(written(big))
        assert max(map(len, pieces)) < 500_000
        assert gzip.decompress(b"".join(gzipped(iter(pieces)))) == b"".join(pieces)
