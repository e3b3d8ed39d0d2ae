"""Disturbances put pixels out of order as they say, and the card shows each of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from train.experiments.blindness_report import card
from train.experiments.disorder import disturbances

KINDS = {d.name: d for d in disturbances(32)}


def noise_images(count: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("name", KINDS)
def test_strength_0_changes_nothing_and_more_strength_changes_more(name: str) -> None:
    images = noise_images()
    assert torch.equal(KINDS[name].apply(images, 0.0, rng()), images)
    before = images.clone()
    changed = [float((KINDS[name].apply(images, s, rng()) != images).float().mean()) for s in (0.2, 1.0)]
    assert torch.equal(images, before)
    assert 0 < changed[0] <= changed[1]
    assert torch.equal(KINDS[name].apply(images, 0.4, rng()), KINDS[name].apply(images, 0.4, rng()))


def patches(image: Tensor, side: int) -> list[bytes]:
    cells = image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return [cell.contiguous().numpy().tobytes() for cell in cells]


@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_shuffling_moves_its_share_of_patches_and_loses_none(side: int, strength: float) -> None:
    images = noise_images()
    shuffled = KINDS[f"shuffle-{side}px"].apply(images, strength, rng())
    for image, other in zip(images, shuffled, strict=True):
        a, b = patches(image, side), patches(other, side)
        assert Counter(a) == Counter(b)
        assert sum(x != y for x, y in zip(a, b, strict=True)) == round(strength * len(a))


def test_halves_are_swapped_within_and_exchanged_across() -> None:
    images = noise_images()
    within = KINDS["halves-within"].apply(images, 0.5, rng())
    changed = [i for i in range(12) if not torch.equal(within[i], images[i])]
    assert len(changed) == 6
    assert all(
        torch.equal(within[i], torch.cat([images[i, :, :, 16:], images[i, :, :, :16]], 2)) for i in changed
    )
    across = KINDS["halves-across"].apply(images, 1.0, rng())
    assert torch.equal(across[..., :16], images[..., :16])
    rights = {images[i, :, :, 16:].numpy().tobytes(): i for i in range(12)}
    found = [rights[across[i, :, :, 16:].contiguous().numpy().tobytes()] for i in range(12)]
    assert sorted(found) == list(range(12))
    assert all(i != j for i, j in enumerate(found))


def test_a_band_keeps_its_rows_and_moves_half_of_them_round() -> None:
    images = noise_images()
    moved = KINDS["band"].apply(images, 0.5, rng())
    for image, other in zip(images, moved, strict=True):
        rows = [r for r in range(32) if not torch.equal(image[:, r], other[:, r])]
        assert rows == list(range(rows[0], rows[0] + 16))
        assert any(torch.equal(other[:, rows], image[:, rows].roll(by, 2)) for by in (-8, 8))


def test_displacement_has_the_size_that_is_told() -> None:
    ramp = (torch.arange(32).repeat(32, 1) * 4 + 64).to(torch.uint8).expand(40, 3, 32, 32).contiguous()
    moved = KINDS["displacement"].apply(ramp, 0.5, rng()).float() - ramp.float()
    inner = moved[:, :, 8:24, 8:24] / 4  # pixels sideways; away from the edge, where it is reflected
    assert (
        1.0 < float(inner.square().mean().sqrt()) < 3.0
    )  # told: 2 px, root mean square over both directions


def test_the_card_shows_every_disturbance() -> None:
    cards = card(32)[None].repeat(4, 1, 1, 1)
    cards[1:] = cards[1:].flip(2)
    for kind in disturbances(32):
        assert not torch.equal(kind.apply(cards, 1.0, rng())[0], cards[0]), kind.name
