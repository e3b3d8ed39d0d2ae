"""The extractor: what it learns, what it keeps away from, and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from train.data.pack import Pack
from train.errors import FeaturesError
from train.measure.features import (
    FeatureNet,
    FeaturesConfig,
    FeatureSet,
    extract,
    look,
    open_features,
    open_trusted,
    split,
)
from train.measure.features_training import FeaturesRecipe, augment, train_features

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

QUICK = FeaturesRecipe(epochs=4, batch=32, learning_rate=0.05)
WIDTHS = (8, 8, 16)


def coloured_pack(count: int = 400, resolution: int = 32) -> Pack:
    """Two classes told apart by colour, under noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 100, (count, 3, resolution, resolution))
    images[np.arange(count), labels] += 100
    return Pack(
        torch.from_numpy(images.astype(np.uint8)),
        torch.from_numpy(labels),
        ("red", "green"),
        resolution,
        {"sha256": "abc", "source": "colours", "licence": "CC0"},
    )


def test_an_extractor_learns_its_classes_and_its_file_says_how_well(tmp_path: Path) -> None:
    pack = coloured_pack()
    made = train_features(pack, tmp_path / "f.safetensors", QUICK, WIDTHS)
    assert made.accuracy > 0.95
    opened = open_features(tmp_path / "f.safetensors")
    assert opened.accuracy == made.accuracy
    assert opened.sha256 == made.sha256
    assert opened.class_names == ("red", "green")
    assert opened.metadata["pack_sha256"] == "abc"
    assert opened.metadata["held_out"] == 40
    _, held = split(len(pack))
    features, guessed = extract(opened.network, pack.images[torch.from_numpy(held)])
    assert features.shape == (40, 16)
    assert float(np.mean(guessed == pack.labels[torch.from_numpy(held)].numpy())) == made.accuracy
    assert not opened.network.training


def test_a_small_pack_gets_enough_steps_to_be_learned(tmp_path: Path) -> None:
    made = train_features(coloured_pack(100), tmp_path / "f", widths=WIDTHS)
    assert made.accuracy == 1  # in batches of 256 and 8 epochs there were 8 steps, and it guessed
    assert made.metadata["recipe"]["batch"] == 32
    assert made.metadata["recipe"]["epochs"] * (90 // 32) >= 500
    assert made.doubt is None


def test_the_recipe_fits_the_number_of_images_and_a_large_pack_has_the_one_it_always_had() -> None:
    for images in (17_522, 45_000, 1_000_000):  # of Stanford Dogs, of CIFAR-10: their figures are published
        assert FeaturesRecipe.fitting(images) == FeaturesRecipe() == FeaturesRecipe(epochs=8, batch=256)
    for images in (2, 31, 60, 543, 1_500, 6_669, 16_000):
        recipe = FeaturesRecipe.fitting(images)
        assert recipe.epochs * max(1, images // recipe.batch) >= 500
        assert recipe.batch == 32 or images // recipe.batch >= 16
    told = FeaturesRecipe.fitting(543, epochs=3, seed=5)
    assert told == FeaturesRecipe(epochs=3, batch=32, seed=5)
    assert FeaturesRecipe.fitting(543, batch=256) == FeaturesRecipe(epochs=250, batch=256)


def test_a_judge_that_guesses_is_not_let_measure_and_a_poor_one_is_called_so(tmp_path: Path) -> None:
    pack = coloured_pack(200)
    shuffled = replace(
        pack, labels=pack.labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    )
    made = train_features(shuffled, tmp_path / "f", QUICK, WIDTHS)
    assert 0.5 <= made.guess < 0.6
    assert "only guesses" in str(made.doubt)
    with pytest.raises(FeaturesError, match=r"f: The classifier only guesses .* that it never saw"):
        open_trusted(tmp_path / "f")
    for right, classes, held, said in (
        (
            0.30,
            6,
            60,
            "is a poor judge (30.0% right on 60 images that it never saw, where a guess has 16.7%)",
        ),
        (0.25, 6, 60, "only guesses"),
        (0.25, 6, 6000, "is a poor judge"),
        (0.85, 6, 60, None),
        (0.421, 120, 1947, None),
        (0.60, 2, 1000, "is a poor judge"),
        (0.75, 2, 8, "only guesses"),  # 6 of 8
    ):
        metadata = {"held_out": held}  # files of before have no "guess"
        found = replace(made, class_names=("",) * classes, accuracy=right, metadata=metadata).doubt
        assert (said is None) == (found is None)
        assert (said or "") in (found or "")


def test_held_out_images_have_no_part_in_training(tmp_path: Path) -> None:
    pack = coloured_pack(200)
    one = train_features(pack, tmp_path / "a", FeaturesRecipe(epochs=1, batch=32), WIDTHS)
    changed = pack.images.clone()
    changed[torch.from_numpy(split(200)[1])] = 0
    other = Pack(changed, pack.labels, pack.class_names, 32, pack.metadata)
    two = train_features(other, tmp_path / "b", FeaturesRecipe(epochs=1, batch=32), WIDTHS)
    for name, weight in one.network.state_dict().items():
        assert torch.equal(weight, two.network.state_dict()[name]), name


def test_the_split_is_always_the_same_and_complete() -> None:
    train, held = split(1000)
    assert len(held) == 100
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(1000))
    assert np.array_equal(split(1000)[1], held)


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_every_resolution_reaches_the_blocks_at_the_same_size(resolution: int) -> None:
    network = FeatureNet(FeaturesConfig(resolution, 7, WIDTHS)).eval()
    x = torch.zeros(2, 3, resolution, resolution, dtype=torch.uint8)
    assert network.stem(x.float()).shape[2:] in ((31, 31), (32, 32))
    features, logits = network(x)
    assert features.shape == (2, 16)
    assert logits.shape == (2, 7)


def test_spatial_features_move_with_what_they_see() -> None:
    torch.manual_seed(0)
    network = FeatureNet(FeaturesConfig(32, 2, WIDTHS)).eval()
    images = coloured_pack(50).images
    images[:, :, :16] //= 8  # dark above
    labels = np.zeros(50, np.int64)
    upright, turned = (look(network, part, labels) for part in (images, images.roll(16, 2)))
    assert upright.spatial.shape == (50, 7 * 7 * 7)
    assert np.array_equal(network.spatial(images).numpy(force=True), upright.spatial)
    assert np.array_equal(network(images)[0].numpy(force=True), upright.features)
    halves = []
    for seen in (upright, turned):
        rows = seen.spatial.reshape(50, 7, 7, 7).mean((0, 3))  # [channels, rows]
        halves.append((rows[:, :3].mean(1), rows[:, -3:].mean(1)))
    (above, below), (turned_above, turned_below) = halves
    apart = np.abs(above - below).max()
    assert np.abs(above - turned_below).max() < apart / 2
    assert np.abs(below - turned_above).max() < apart / 2


def test_what_is_seen_can_be_taken_in_parts_and_joined() -> None:
    network = FeatureNet(FeaturesConfig(32, 2, WIDTHS)).eval()
    pack = coloured_pack(20)
    seen = look(network, pack.images, pack.labels.numpy(), batch=6)
    parts = [seen[np.arange(8)], seen[np.arange(20) >= 8]]
    again = FeatureSet.joined(parts)
    assert len(parts[1]) == 12
    assert np.array_equal(again.logits, seen.logits)
    assert np.array_equal(again.labels, pack.labels.numpy())


def test_augmentation_only_moves_and_mirrors() -> None:
    images = torch.arange(32 * 32 * 3).reshape(1, 3, 32, 32).to(torch.uint8).repeat(200, 1, 1, 1)
    images[:, 0] = torch.arange(32, dtype=torch.uint8)  # red tells the column
    images[:, 1] = torch.arange(32, dtype=torch.uint8)[:, None]  # green the row
    moved = augment(images, FeaturesRecipe(), torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    steps = moved[:, 0, 16, 17].int() - moved[:, 0, 16, 16].int()
    mirrored = int((steps == -1).sum())
    assert mirrored + int((steps == 1).sum()) == 200
    assert 60 < mirrored < 140
    assert bool((moved[:, 1, 17, 16].int() - moved[:, 1, 16, 16].int() == 1).all())  # never upside down
    still = augment(images, FeaturesRecipe(shift=0, flips=False), torch.Generator())
    assert torch.equal(still, images)


def test_an_extractor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    network = FeatureNet(FeaturesConfig(32, 2, WIDTHS))
    with pytest.raises(FeaturesError, match=r"uint8 \[N, 3, 32, 32\]"):
        extract(network, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(FeaturesError, match="32 px or a multiple"):
        FeaturesConfig(48, 2)
    with pytest.raises(FeaturesError, match="at least 2 classes"):
        FeaturesConfig(32, 1)


def test_a_loss_that_explodes_is_told(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="lower the learning rate"):
        train_features(
            coloured_pack(100), tmp_path / "f", FeaturesRecipe(epochs=1, batch=10, learning_rate=1e30), WIDTHS
        )
    assert not (tmp_path / "f").exists()


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="no file"):
        open_features(tmp_path / "none")
    (tmp_path / "text").write_bytes(b"text")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    about = {"format": "sagan-features-1", "config": {"resolution": 32, "classes": 2, "widths": [8]}}
    save_file({"x": torch.zeros(1)}, tmp_path / "unfit", {"features": json.dumps(about)})
    for name in ("text", "foreign", "unfit"):
        with pytest.raises(FeaturesError, match="sagan train features"):
            open_features(tmp_path / name)
