"""An attention map on its way to the client."""

from __future__ import annotations

import io

import numpy as np
import pytest

from app.map_formats import as_npy, as_records
from jobs.job import AttentionMap


@pytest.fixture
def noise() -> AttentionMap:
    """What a 64-pixel model attends to, 32 x 32 queries and 16 x 16 keys, with nothing to compress in it."""
    values = np.random.default_rng(0).dirichlet(np.ones(256), size=1024).astype(np.float16)
    return AttentionMap("32x32", (32, 32), (16, 16), 0.5, 0.1, values)


def test_a_rounded_map_of_a_64_pixel_model_is_below_300_kilobytes_whatever_it_holds(
    noise: AttentionMap,
) -> None:
    assert len(as_records(noise)) < 300_000


def test_a_row_with_one_key_alone_keeps_it() -> None:
    values = np.zeros((4, 4), np.float16)
    values[range(4), (2, 0, 3, 3)] = 1
    rows = np.load(io.BytesIO(as_records(AttentionMap("2x2", (2, 2), (2, 2), 1.0, 1.0, values))))
    assert rows["at"].tolist() == [2, 0, 3, 3]
    np.testing.assert_array_equal(rows["levels"], values * 255)


def test_the_exact_map_is_float16_as_the_worker_made_it(noise: AttentionMap) -> None:
    np.testing.assert_array_equal(np.load(io.BytesIO(as_npy(noise))), noise.map)
