"""How good generated images are, in the features of an extractor trained on the same classes.

Nothing here is FID or IS, which are defined by the Inception network: figures are comparable only where
the extractor's hash, the reference and the number of samples agree, and all three stand in every report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from torch import Tensor

from model.generator import Generator
from train.data import Pack
from train.errors import FeaturesError
from train.features import SPLIT_SEED, FeatureNet, Features, extract, open_features, split

Array = npt.NDArray[np.float64]

NEIGHBOURS = 5  # k of precision, recall, density and coverage (Naeem et al. 2020)
REFERENCE_IMAGES = 10_000  # of the reference, at most: more cost minutes on a CPU and move little
NEIGHBOUR_IMAGES = 5000  # of each set, at most: all distances between them are held in memory
KID_SUBSETS = 50
KID_SIZE = 1000  # images a subset, at most
_BATCH = 250  # images


class Sampler(Protocol):
    """What is measured: a source of images of given classes."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def truncation(self) -> float: ...

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        """Images uint8 [B, 3, R, R] of the classes `labels` [B]; image i is number first + i of `seed`."""
        ...


@dataclass(frozen=True)
class GeneratorSampler:
    """Images of a generator, each a function of (seed, number, class) alone."""

    generator: Generator
    class_names: Sequence[str]
    truncation: float = 1.0
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        latent = self.generator.config.latent
        z = np.stack(
            [
                np.random.Generator(np.random.Philox(key=[seed, first + i])).standard_normal(latent)
                for i in range(len(labels))
            ]
        )
        latents = torch.from_numpy(z * self.truncation).float().to(self.device)
        images: Tensor = self.generator(latents, labels.to(self.device))
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def evaluate(
    sampler: Sampler,
    features_file: Path,
    reference_pack: Pack,
    samples: int = 5000,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, object]:
    """Every figure below for `samples` generated images, and the same for real ones held back.

    Classes are drawn as often as the reference has them. The reference comes from the nine tenths of the
    pack that `split` names; the second row comes from the tenth it holds back and tells how far a perfect
    generator would come with that many images. Returns {"protocol", "generated", "real_held_back"}, ready
    for JSON.
    Raises FeaturesError where classes, sizes or numbers do not fit.
    """
    features = open_features(features_file)
    _check(sampler, features, reference_pack, samples)
    started = time.monotonic()
    network = features.network.to(device)
    reference, held = (
        _some(indices, count)
        for indices, count in zip(split(len(reference_pack)), (REFERENCE_IMAGES, samples), strict=True)
    )
    known, _ = _extract_pack(network, reference_pack, reference, device, progress)
    labels = stratified(reference_pack.labels.numpy()[reference], samples)
    made, guessed = _generate(sampler, network, labels, seed, device, progress)
    real, real_guessed = _extract_pack(network, reference_pack, held, device, progress)
    names = features.class_names
    return {
        "protocol": {
            "features": "own classifier (not Inception: this is no FID)",
            "features_sha256": features.sha256,
            "features_accuracy": features.accuracy,
            "features_pack_sha256": features.metadata.get("pack_sha256"),
            "reference": reference_pack.metadata.get("source"),
            "reference_sha256": reference_pack.metadata.get("sha256"),
            "reference_images": len(reference),
            "reference_split": "drawn from nine tenths of the pack; real_held_back from the other tenth",
            "resolution": reference_pack.resolution,
            "samples": samples,
            "classes": "in the reference's proportions",
            "seed": seed,
            "truncation": sampler.truncation,
            "kid": f"cubic kernel, mean of {KID_SUBSETS} subsets of at most {KID_SIZE}",
            "neighbours": f"{NEIGHBOURS} nearest, among at most {NEIGHBOUR_IMAGES:,} images of each set",
            "seconds": round(time.monotonic() - started, 1),
        },
        "generated": figures(known, made, seed) | accuracy(labels, guessed, names),
        "real_held_back": figures(known, real, seed)
        | accuracy(reference_pack.labels.numpy()[held], real_guessed, names),
    }


def figures(reference: Array, images: Array, seed: int = 0) -> dict[str, object]:
    """All distances between two sets of features [N, D] and [M, D]."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    kid, spread = kernel_distance(reference, images, rng)
    # as many real images as generated ones: the neighbourhoods of both must be equally dense
    count = min(len(reference), len(images), NEIGHBOUR_IMAGES)
    few_real, few = (part[rng.choice(len(part), count, replace=False)] for part in (reference, images))
    return {
        "images": len(images),
        "frechet_own_features": frechet_distance(*moments(reference), *moments(images)),
        "kid_own_features": kid,
        "kid_own_features_std": spread,
    } | neighbourhoods(few_real, few)


def moments(features: Array) -> tuple[Array, Array]:
    """Mean [D] and unbiased covariance [D, D]. Raises FeaturesError for fewer than two images."""
    if len(features) < 2:
        raise FeaturesError(f"A covariance needs at least 2 images, not {len(features)}.")
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Squared Fréchet distance of two Gaussians: |a - b|² + tr(A + B - 2 (A½ B A½)½).

    Dowson and Landau 1982. Only symmetric eigenvalues are taken: the usual square root of A·B is not
    symmetric, and turns complex or fails where a covariance is singular.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ cov_b @ root
    shared = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared
    return max(0.0, float(distance))


def kernel_distance(a: Array, b: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Kernel inception distance's estimator (Bińkowski et al. 2018): unbiased MMD², kernel (x·y/D + 1)³.

    Mean and standard deviation over subsets; it can be slightly below 0. Features are float64 [N, D].
    """
    size = min(KID_SIZE, len(a), len(b))
    if size < 2:
        raise FeaturesError(f"KID needs at least 2 images, not {size}.")

    def kernel(x: Array, y: Array) -> Array:
        base = x @ y.T / x.shape[1] + 1
        return np.asarray(base * base * base)  # NumPy's power is many times slower

    found = []
    for _ in range(KID_SUBSETS):
        x, y = (part[rng.choice(len(part), size, replace=False)] for part in (a, b))
        within = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (kernel(x, x), kernel(y, y)))
        found.append(float(within - 2 * kernel(x, y).mean()))
    return float(np.mean(found)), float(np.std(found))


def neighbourhoods(real: Array, fake: Array, k: int = NEIGHBOURS) -> dict[str, object]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Features [N, D] of as many real as generated images, more than k. A point's neighbourhood is the ball
    that reaches to its k-th nearest other point of its own set.
    """
    if min(len(real), len(fake)) <= k:
        raise FeaturesError(
            f"Neighbourhoods of {k} need more than {k} images, not {min(len(real), len(fake))}."
        )
    x, y = torch.from_numpy(real), torch.from_numpy(fake)
    # k + 1: the nearest point of one's own set is oneself, at 0
    reach_x = torch.cdist(x, x).kthvalue(k + 1, dim=1).values
    reach_y = torch.cdist(y, y).kthvalue(k + 1, dim=1).values
    between = torch.cdist(x, y)  # [real, fake]
    in_real = between < reach_x[:, None]
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float((between < reach_y).any(1).double().mean()),
        "density": float(in_real.sum(0).double().mean() / k),
        "coverage": float((between.min(1).values < reach_x).double().mean()),
    }


def accuracy(
    labels: npt.NDArray[np.int64], guessed: npt.NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, object]:
    """Share of images that the extractor's classifier takes for the class they were asked to be."""
    right = labels == guessed
    by_class = {
        name: round(float(right[labels == label].mean()), 4)
        for label, name in enumerate(class_names)
        if (labels == label).any()
    }
    return {"accuracy": float(right.mean()), "accuracy_by_class": by_class}


def stratified(labels: npt.NDArray[np.int64], samples: int) -> npt.NDArray[np.int64]:
    """`samples` labels in the proportions of `labels`, in order of class."""
    return np.sort(labels)[((np.arange(samples) + 0.5) * len(labels) / samples).astype(np.int64)]


def _some(indices: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most `count` of them, always the same ones."""
    rng = np.random.Generator(np.random.Philox(key=[SPLIT_SEED, len(indices)]))
    return np.sort(rng.permutation(indices)[:count])


def _check(sampler: Sampler, features: Features, pack: Pack, samples: int) -> None:
    if pack.resolution != features.network.config.resolution:
        raise FeaturesError(
            f"The extractor sees {features.network.config.resolution} px and the reference has "
            f"{pack.resolution} px: train features on that pack."
        )
    for what, names in (("generator", sampler.class_names), ("reference", pack.class_names)):
        if tuple(names) != features.class_names:
            raise FeaturesError(
                f"The {what} has other classes ({len(names)}: {', '.join(list(names)[:3])} …) than the "
                f"extractor ({len(features.class_names)}: {', '.join(features.class_names[:3])} …)."
            )
    if samples <= NEIGHBOURS or len(pack) * 0.1 <= NEIGHBOURS:
        raise FeaturesError(
            f"More than {NEIGHBOURS} generated and {10 * NEIGHBOURS} real images are needed, "
            f"not {samples} and {len(pack)}."
        )


def _extract_pack(
    network: FeatureNet, pack: Pack, indices: npt.NDArray[np.int64], device: str, progress: Progress | None
) -> tuple[Array, npt.NDArray[np.int64]]:
    parts = []
    task = progress.add_task("real images", total=len(indices)) if progress else None
    for start in range(0, len(indices), _BATCH):
        images = pack.images[torch.from_numpy(indices[start : start + _BATCH])]
        parts.append(extract(network, images, device))
        if progress and task is not None:
            progress.advance(task, len(images))
    return _joined(parts)


def _generate(
    sampler: Sampler,
    network: FeatureNet,
    labels: npt.NDArray[np.int64],
    seed: int,
    device: str,
    progress: Progress | None,
) -> tuple[Array, npt.NDArray[np.int64]]:
    parts = []
    task = progress.add_task("generated images", total=len(labels)) if progress else None
    for start in range(0, len(labels), _BATCH):
        images = sampler(torch.from_numpy(labels[start : start + _BATCH]), seed, start)
        parts.append(extract(network, images, device))
        if progress and task is not None:
            progress.advance(task, len(images))
    return _joined(parts)


def _joined(
    parts: list[tuple[Array, npt.NDArray[np.int64]]],
) -> tuple[Array, npt.NDArray[np.int64]]:
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
