"""The figures of a generator at a milestone, always with the same noise, classes, reference and extractor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.generator import Generator
from train.data.pack import Pack
from train.data.sources.base import spoken
from train.errors import FeaturesError
from train.measure.distances import NEIGHBOURS, frechet, kernel_distance, neighbourhoods
from train.measure.features import Extractor, Features, FeatureSet, look, split
from train.measure.figures import NEIGHBOUR_IMAGES
from train.measure.metrics import REFERENCE_IMAGES, GeneratorSampler, stratified

NOISE_SEED = 0  # of every image that is measured or shown
SHOWN = 12  # images in a strip
_BATCH = 250  # images


@dataclass(frozen=True)
class Metric:
    """A figure of a report."""

    key: str
    title: str
    lower: bool  # whether lower is better
    digits: int


METRICS = (
    Metric("frechet_own_features", "Fréchet distance (own features)", True, 2),
    Metric("spatial_frechet_own_features", "spatial Fréchet distance (own features)", True, 2),
    Metric("kid_own_features", "KID (own features)", True, 4),
    Metric("precision", "precision", False, 3),
    Metric("recall", "recall", False, 3),
    Metric("density", "density", False, 3),
    Metric("coverage", "coverage", False, 3),
    Metric("accuracy", "accuracy", False, 3),
)
MAIN = METRICS[0]


class Ruler:
    """Generator -> METRICS in own features, beside nine tenths of a pack (at most 10,000 images).

    samples: generated images, their classes in the pack's proportions. Raises FeaturesError if the extractor
    does not fit the pack, or if there are too few images.
    """

    def __init__(self, pack: Pack, features: Features, samples: int, device: str) -> None:
        same = spoken(pack.class_names) == spoken(features.class_names)
        if pack.resolution != features.network.config.resolution or not same:
            raise FeaturesError(
                "The extractor was trained on other classes or another resolution than this data has: "
                "leave --features out and one is trained on it."
            )
        reference, held = split(len(pack))
        if min(samples, len(held)) <= NEIGHBOURS:
            raise FeaturesError(
                f"More than {NEIGHBOURS} samples and {10 * NEIGHBOURS} images are needed, not {samples} and "
                f"{len(pack)}."
            )
        rng = np.random.Generator(np.random.Philox(key=[NOISE_SEED, len(pack)]))
        self.pack, self.features, self.samples, self.device = pack, features, samples, device
        self.network = features.network.to(device)
        self.reference = np.sort(rng.permutation(reference)[:REFERENCE_IMAGES])
        self.held = np.sort(rng.permutation(held)[:samples])
        self.known = look_at(self.network, pack, self.reference, device)
        self.labels = stratified(pack.labels.numpy()[self.reference], samples)

    def __call__(self, generator: Generator, truncation: float = 1.0) -> dict[str, float]:
        """METRICS by key, for `samples` images of a generator in eval mode."""
        sampler = GeneratorSampler(
            generator.to(self.device), self.features.class_names, truncation, self.device
        )
        parts = []
        for first in range(0, self.samples, _BATCH):
            labels = self.labels[first : first + _BATCH]
            images = sampler(torch.from_numpy(labels), NOISE_SEED, first)
            parts.append(look(self.network, images, labels, self.device))
        return self._figures(FeatureSet.joined(parts))

    def real(self) -> dict[str, float]:
        """METRICS of held-back real images, which neither extractor nor reference has seen: the target."""
        return self._figures(look_at(self.network, self.pack, self.held, self.device))

    def strip(self, generator: Generator, truncation: float = 1.0) -> torch.Tensor:
        """Images uint8 [SHOWN, 3, R, R] of evenly spread classes, with the same noise each time."""
        labels = torch.linspace(0, len(self.pack.class_names) - 1, SHOWN).round().long()
        sampler = GeneratorSampler(
            generator.to(self.device), self.features.class_names, truncation, self.device
        )
        return sampler(labels, NOISE_SEED, self.samples)

    def _figures(self, seen: FeatureSet) -> dict[str, float]:
        right = seen.logits.argmax(1) == seen.labels
        found = {**distances(self.known, seen, self.device), "accuracy": float(right.mean())}
        return {metric.key: found[metric.key] for metric in METRICS}


def look_at(extractor: Extractor, pack: Pack, indices: npt.NDArray[np.int64], device: str) -> FeatureSet:
    """The features of some images of a pack."""
    chosen = [torch.from_numpy(indices[i : i + _BATCH]) for i in range(0, len(indices), _BATCH)]
    return FeatureSet.joined(
        [look(extractor, pack.images[i], pack.labels[i].numpy(), device) for i in chosen]
    )


def distances(known: FeatureSet, images: FeatureSet, device: str) -> dict[str, float]:
    """METRICS by key, except accuracy: how far `images` lie from the reference `known`."""
    rng = np.random.Generator(np.random.Philox(key=[NOISE_SEED, 0]))
    kid, _ = kernel_distance(known.features, images.features, rng, device=device)
    # equal numbers, so that the neighbourhoods of both are equally dense
    count = min(len(known), len(images), NEIGHBOUR_IMAGES)
    few_known, few = (s.features[rng.choice(len(s), count, replace=False)] for s in (known, images))
    found: dict[str, object] = {
        "frechet_own_features": frechet(known.features, images.features, device),
        "spatial_frechet_own_features": frechet(known.spatial, images.spatial, device),
        "kid_own_features": kid,
        **neighbourhoods(few_known, few, device=device),
    }
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}


def best_first(metric: Metric, values: Sequence[float]) -> int:
    """Index of the best of `values`."""
    return int(np.argmin(values) if metric.lower else np.argmax(values))
