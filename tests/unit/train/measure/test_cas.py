"""What a classifier learns from generated images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from train.data.pack import Pack
from train.errors import FeaturesError
from train.measure.cas import classification_accuracy
from train.measure.features_training import FeaturesRecipe

QUICK = FeaturesRecipe(epochs=2, batch=32, learning_rate=0.05)


def colours(labels: Tensor, seed: int, side: int = 32) -> Tensor:
    """Noise with the channel of its class raised."""
    made = np.random.default_rng(seed).integers(0, 100, (len(labels), 3, side, side))
    made[np.arange(len(labels)), labels.numpy()] += 100
    return torch.from_numpy(made.astype(np.uint8))


@dataclass
class Colours:
    """A perfect generator, or one that mistakes every class for the other."""

    swapped: bool = False
    side: int = 32
    class_names: Sequence[str] = ("red", "green")
    truncation: float = 1.0

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        return colours(1 - labels if self.swapped else labels, seed + first, self.side)


def pack(count: int = 200) -> Pack:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 2, count))
    return Pack(colours(labels, 5), labels, ("red", "green"), 32, {"sha256": "abc", "source": "colours"})


@pytest.mark.slow
def test_perfect_images_teach_as_much_as_real_ones_and_mistaken_ones_the_opposite() -> None:
    good = classification_accuracy(Colours(), pack(), 64, recipe=QUICK)
    assert good["generated"] == good["real"] == 1
    mistaken = classification_accuracy(Colours(swapped=True), pack(), 64, recipe=QUICK)
    assert mistaken["generated"] == 0
    assert mistaken["real"] == 1


def test_its_protocol_is_stated_and_there_are_as_many_real_images() -> None:
    found = classification_accuracy(Colours(), pack(40), 1000, seed=7, recipe=QUICK)
    json.dumps(found, allow_nan=False)
    protocol = found["protocol"]
    assert isinstance(protocol, dict)
    assert protocol["images"] == 36  # nine tenths of the pack: there are no more real ones
    assert protocol["tested_on"].startswith("4 real images")
    assert protocol["recipe"]["epochs"] == 2
    assert (protocol["seed"], protocol["truncation"], protocol["reference_sha256"]) == (7, 1.0, "abc")


def test_a_generator_that_does_not_fit_is_refused() -> None:
    with pytest.raises(FeaturesError, match="other classes"):
        classification_accuracy(Colours(class_names=("a", "b")), pack(), 64)
    with pytest.raises(FeaturesError, match="64 px"):
        classification_accuracy(Colours(side=64), pack(), 64)
