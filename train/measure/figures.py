"""The figures of a set of images against a reference, by the names that reports give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.measure.distances import (
    KID_SUBSETS,
    NEIGHBOURS,
    Points,
    accuracy,
    frechet,
    inception_score,
    intra_class,
    kernel_distance,
    nearest,
    neighbourhoods,
)
from train.measure.features import FeatureSet

NEAREST_IMAGES = 1000  # of each set, at most, whose nearest real image is looked for
NEIGHBOUR_IMAGES = 5000  # of each set, at most, except with Inception
INCEPTION_NEIGHBOUR_IMAGES = 10_000
NEAREST = "nearest_real"
INCEPTION_KID_SUBSETS = 100  # as torch-fidelity


def nearest_real(reference: Points, images: Points, device: str = "cpu") -> float:
    """Median distance of the images [M, D] to the nearest of the reference [N, D]; 0 for copies."""
    count = min(len(images), NEAREST_IMAGES)
    spread = np.linspace(0, len(images) - 1, count).round().astype(np.int64)  # over all classes
    distances, _ = nearest(images[spread], reference, 1, device)
    return float(np.median(distances))


def own_figures(
    reference: FeatureSet, images: FeatureSet, class_names: Sequence[str], seed: int = 0, device: str = "cpu"
) -> dict[str, object]:
    """All that own features tell of `images` against `reference`."""
    within, by_class = _intra_class(reference, images, class_names, device)
    return (
        figures(reference.features, images.features, seed, device)
        | {
            "spatial_frechet_own_features": frechet(reference.spatial, images.spatial, device),
            "intra_class_frechet_own_features": within,
            "intra_class_frechet_own_features_by_class": by_class,
        }
        | accuracy(images.labels, images.logits.argmax(1), class_names)
    )


def inception_figures(
    reference: FeatureSet, images: FeatureSet, class_names: Sequence[str], seed: int = 0, device: str = "cpu"
) -> dict[str, object]:
    """FID and its relatives of `images` against `reference`, both seen by Inception."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    score, score_spread = inception_score(images.logits, device)
    kid, spread = kernel_distance(reference.features, images.features, rng, INCEPTION_KID_SUBSETS, device)
    within, by_class = _intra_class(reference, images, class_names, device)
    return {
        "images": len(images),
        "fid": frechet(reference.features, images.features, device),
        "sfid": frechet(reference.spatial, images.spatial, device),
        "inception_score": score,
        "inception_score_std": score_spread,
        "kid": kid,
        "kid_std": spread,
        NEAREST: nearest_real(reference.features, images.features, device),
        "intra_fid": within,
        "intra_fid_by_class": by_class,
    } | _neighbourhoods(reference.features, images.features, rng, INCEPTION_NEIGHBOUR_IMAGES, device)


def figures(
    reference: Points, images: Points, seed: int = 0, device: str = "cpu", eye: str = "own_features"
) -> dict[str, object]:
    """All distances between two sets of features [N, D] and [M, D]; `eye` is part of their names."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    kid, spread = kernel_distance(reference, images, rng, KID_SUBSETS, device)
    return {
        "images": len(images),
        f"frechet_{eye}": frechet(reference, images, device),
        f"kid_{eye}": kid,
        f"kid_{eye}_std": spread,
        NEAREST: nearest_real(reference, images, device),
    } | _neighbourhoods(reference, images, rng, NEIGHBOUR_IMAGES, device)


def _intra_class(
    reference: FeatureSet, images: FeatureSet, class_names: Sequence[str], device: str
) -> tuple[float | None, dict[str, float]]:
    mean, by_class = intra_class(
        reference.features, reference.labels, images.features, images.labels, class_names, device
    )
    return mean, {name: round(distance, 4) for name, distance in by_class.items()}


def _neighbourhoods(
    reference: Points, images: Points, rng: np.random.Generator, limit: int, device: str
) -> dict[str, object]:
    # as many real images as generated ones: the neighbourhoods of both must be equally dense
    count = min(len(reference), len(images), limit)
    real, made = (part[rng.choice(len(part), count, replace=False)] for part in (reference, images))
    return neighbourhoods(real, made, NEIGHBOURS, device)
