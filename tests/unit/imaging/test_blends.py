"""What lies between images: its noise, its classes and its recipe."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from imaging.noise import noise, noise_of, slerp
from imaging.spec import End, ImageSpec, Provenance, SpecError

CAT, DOG = ((3, 1.0),), ((5, 1.0),)
HALF = ImageSpec.blend((End(CAT, 1, 0, 0.5), End(DOG, 2, 7, 0.5)), 0.8)


def test_an_end_alone_is_the_plain_image() -> None:
    ends = (End(CAT, 1, 0, 0.0), End(DOG, 2, 7, 1.0))
    assert ImageSpec.blend(ends, 0.8) == ImageSpec(5, 2, 7, 0.8)
    np.testing.assert_array_equal(noise_of(ImageSpec(5, 2, 7, 0.8), 128), noise(2, 7, 128, 0.8))


def test_the_way_between_two_draws_is_a_great_circle() -> None:
    a, b = noise(1, 0, 128).astype(float), noise(2, 7, 128).astype(float)
    between = [slerp(a, b, t) for t in np.linspace(0, 1, 9)]
    np.testing.assert_array_equal(between[0], a)
    np.testing.assert_array_equal(between[-1], b)

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return math.acos(x @ y / math.sqrt((x @ x) * (y @ y)))

    # the lengths of two draws differ a little, so the steps are even to a few hundredths
    steps = [angle(x, y) for x, y in pairwise(between)]
    assert steps == pytest.approx([angle(a, b) / 8] * 8, rel=0.1)
    assert np.linalg.norm(between[4]) == pytest.approx(math.sqrt(128), rel=0.2)  # a straight line: 0.7 of it
    np.testing.assert_allclose(noise_of(HALF, 128), between[4] * 0.8, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_draws_in_one_direction_have_a_way_between_them(sign: int) -> None:
    a = noise(1, 0, 128).astype(float)
    assert np.isfinite(slerp(a, sign * a, 0.5)).all()


def test_three_draws_have_a_middle() -> None:
    third = End(CAT, 3, 0, 1 / 3)
    middle = ImageSpec.blend((End(CAT, 1, 0, 1 / 3), End(CAT, 2, 0, 1 / 3), third), 1.0)
    z = noise_of(middle, 512)
    alike = [float(z @ noise(seed, 0, 512)) / 512 for seed in (1, 2, 3)]
    assert alike == pytest.approx([1 / math.sqrt(3)] * 3, abs=0.15)


def test_classes_of_a_blend_are_shares_of_a_whole() -> None:
    mixed = ImageSpec.blend((End(((3, 0.75), (4, 0.25)), 1, 0, 0.5), End(DOG, 2, 0, 0.5)), 1.0)
    assert mixed.classes == ((3, 0.375), (4, 0.125), (5, 0.5))
    assert (mixed.class_id, mixed.seed) == (3, 1)
    assert ImageSpec(3, 1, 0, 1.0).classes == ((3, 1.0),)


def test_a_blend_s_recipe_comes_back_and_a_plain_one_stays_as_it_was() -> None:
    made = Provenance("m", "0" * 64, "float32", "cat to dog", HALF)
    assert Provenance.from_json(made.to_json()) == made
    assert json.loads(made.to_json())["version"] == 2
    plain = json.loads(Provenance("m", "0" * 64, "float32", "cat", ImageSpec(3, 1, 0, 1.0)).to_json())
    assert plain["version"] == 1
    assert "ends" not in plain


@pytest.mark.parametrize(
    "change",
    [
        {"ends": None},
        {"ends": []},
        {"ends": [5]},
        {"ends": [{}]},
        {"ends": [{"class_weights": {"3": 1.0}, "seed": 1, "index": 0, "weight": 0.5}]},
        {"ends": [{"class_weights": {"cat": 1.0}, "seed": 1, "index": 0, "weight": 1.0}]},
        {"ends": [{"class_weights": {"9" * 5000: 1.0}, "seed": 1, "index": 0, "weight": 1.0}]},
        {"ends": [{"class_weights": {"3": math.nan}, "seed": 1, "index": 0, "weight": 1.0}]},
        {"ends": [{"class_weights": {"3": 2.0, "4": -1.0}, "seed": 1, "index": 0, "weight": 1.0}]},
        {"ends": [{"class_weights": {"3": 1.0}, "seed": -1, "index": 0, "weight": 1.0}]},
        {"ends": [{"class_weights": {"3": 1.0}, "seed": 1, "index": 0, "weight": 1 / 33}] * 33},
        {"version": 3},
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_one_line(change: dict[str, Any]) -> None:
    values = json.loads(Provenance("m", "0" * 64, "float32", "cat to dog", HALF).to_json()) | change
    with pytest.raises(SpecError) as refused:
        Provenance.from_json(json.dumps(values))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
