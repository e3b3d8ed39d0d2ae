"""Distances between two sets of features, and scores of one set's logits.

Features are float [N, D]; the arithmetic is float64, on `device`, in pieces that bound the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train.errors import FeaturesError

Array = npt.NDArray[np.float64]
Points = npt.NDArray[np.floating[Any]]  # an extractor's features, [N, D]
Labels = npt.NDArray[np.int64]

NEIGHBOURS = 5  # k of precision, recall, density and coverage (Naeem et al. 2020)
KID_SUBSETS = 50
KID_SIZE = 1000  # images a subset, at most
SPLITS = 10  # of the Inception score
_ROWS = 8192  # images a piece of a covariance
_DISTANCES = 2**25  # a piece of a matrix of distances: 256 MiB


def moments(features: Points, device: str = "cpu") -> tuple[Array, Array]:
    """Mean [D] and unbiased covariance [D, D]. Raises FeaturesError for fewer than two images."""
    if len(features) < 2:
        raise FeaturesError(f"A covariance needs at least 2 images, not {len(features)}.")
    pieces = torch.split(torch.as_tensor(features), _ROWS)
    mean = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for piece in pieces:
        mean += piece.to(device).double().sum(0)
    mean /= len(features)
    covariance = mean.new_zeros(len(mean), len(mean))
    for piece in pieces:
        centred = piece.to(device).double() - mean
        covariance.addmm_(centred.T, centred)
    return mean.cpu().numpy(), (covariance / (len(features) - 1)).cpu().numpy()


def frechet(a: Points, b: Points, device: str = "cpu") -> float:
    """Squared Fréchet distance of the Gaussians with the moments of two sets [N, D] and [M, D]."""
    if min(len(a), len(b)) >= a.shape[1]:
        return frechet_distance(*moments(a, device), *moments(b, device), device)
    if min(len(a), len(b)) < 2:
        raise FeaturesError(f"A covariance needs at least 2 images, not {min(len(a), len(b))}.")
    # With fewer images than features tr (AB)½ is the nuclear norm of X·Yᵀ, the smaller matrix by far:
    # the eigenvalues of AB = XᵀX·YᵀY are the squared singular values of X·Yᵀ.
    x, y = (torch.as_tensor(part).to(device).double() for part in (a, b))
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = ((part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (x, y))
    shared = torch.linalg.svdvals(x @ y.T).sum()
    distance = (mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * shared
    return max(0.0, float(distance))


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array, device: str = "cpu") -> float:
    """Squared Fréchet distance of two Gaussians: |a - b|² + tr(A + B - 2 (A½ B A½)½).

    Dowson and Landau 1982. Only eigenvalues of symmetric matrices are taken: the usual square root of A·B,
    which is not symmetric, turns complex or fails where a covariance is singular.
    """
    a, b = (torch.as_tensor(cov, dtype=torch.float64).to(device) for cov in (cov_a, cov_b))
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b @ root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = ((mean_a - mean_b) ** 2).sum() + float(a.trace() + b.trace() - 2 * shared)
    return max(0.0, float(distance))


def intra_class(
    reference: Points,
    reference_labels: Labels,
    images: Points,
    labels: Labels,
    class_names: Sequence[str],
    device: str = "cpu",
) -> tuple[float | None, dict[str, float]]:
    """Fréchet distance within each class that has two images in both sets, and their mean.

    Miyato and Koyama 2018, intra-FID. None: there is no such class. With fewer images than features in a
    class the distances are far too large, and compare only at equal numbers of images.
    """
    found = {}
    for label, name in enumerate(class_names):
        real, made = reference[reference_labels == label], images[labels == label]
        if min(len(real), len(made)) >= 2:
            found[name] = frechet(real, made, device)
    return (float(np.mean(list(found.values()))) if found else None), found


def within_class_variance(
    reference: Points, reference_labels: Labels, images: Points, labels: Labels, class_names: Sequence[str]
) -> tuple[float | None, dict[str, float]]:
    """Variance of `images` within their classes, as a share of the reference's; and the share of each class.

    A class's variance is the trace of the unbiased covariance of its features: it does not shrink with few
    images. Classes with two images in both sets count. The share is of the mean variances: 1 for images as
    varied as the reference, 0 for one image a class. None: no class counts, or the reference does not vary;
    a class whose reference does not vary has no share of its own.
    """
    made, real, names = [], [], []
    for label, name in enumerate(class_names):
        here, there = images[labels == label], reference[reference_labels == label]
        if min(len(here), len(there)) >= 2:
            made.append(_variance(here))
            real.append(_variance(there))
            names.append(name)
    shares = {name: a / b for name, a, b in zip(names, made, real, strict=True) if b > 0}
    return (sum(made) / sum(real) if sum(real) > 0 else None), shares


def _variance(features: Points) -> float:
    return float(features.var(0, ddof=1, dtype=np.float64).sum())


def kernel_distance(
    a: Points, b: Points, rng: np.random.Generator, subsets: int = KID_SUBSETS, device: str = "cpu"
) -> tuple[float, float]:
    """Kernel inception distance's estimator (Bińkowski et al. 2018): unbiased MMD², kernel (x·y/D + 1)³.

    Mean and standard deviation over subsets; it can be slightly below 0.
    """
    size = min(KID_SIZE, len(a), len(b))
    if size < 2:
        raise FeaturesError(f"KID needs at least 2 images, not {size}.")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    found = []
    for _ in range(subsets):
        x, y = (
            torch.as_tensor(part[rng.choice(len(part), size, replace=False)]).to(device).double()
            for part in (a, b)
        )
        within = sum((k.sum() - k.trace()) / (size * (size - 1)) for k in (kernel(x, x), kernel(y, y)))
        found.append(within - 2 * kernel(x, y).mean())
    estimates = torch.stack(found)
    return float(estimates.mean()), float(estimates.std(correction=0))


def neighbourhoods(real: Points, fake: Points, k: int = NEIGHBOURS, device: str = "cpu") -> dict[str, object]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Features [N, D] of equally many real and generated images, more than k. A point's neighbourhood is the
    ball around it that reaches its k-th nearest other point in its own set.
    """
    if min(len(real), len(fake)) <= k:
        raise FeaturesError(
            f"Neighbourhoods of {k} need more than {k} images, not {min(len(real), len(fake))}."
        )
    x, y = (torch.as_tensor(part).to(device).double() for part in (real, fake))
    # k + 1: the nearest point in its own set is the point itself, at 0
    reach_x, reach_y = (
        torch.cat([d.topk(k + 1, largest=False).values[:, k] for _, d in _distances(part, part)])
        for part in (x, y)
    )
    around = torch.zeros(len(y), dtype=torch.int64, device=device)  # real balls around each generated point
    recalled, covered = torch.zeros((), device=device), torch.zeros((), device=device)
    for rows, between in _distances(x, y):
        reach = reach_x[rows]
        around += (between < reach[:, None]).sum(0)
        recalled += (between < reach_y).any(1).sum()
        covered += (between.amin(1) < reach).sum()
    return {
        "precision": float((around > 0).double().mean()),
        "recall": float(recalled) / len(x),
        "density": float(around.double().mean() / k),
        "coverage": float(covered) / len(x),
    }


def nearest(
    points: Points, among: Points, k: int, device: str = "cpu", own: Labels | None = None
) -> tuple[Array, Labels]:
    """Distances and numbers [N, k] of the k points in `among` [M, D] nearest to each of `points` [N, D].

    own: each point's own number in `among`, where it does not count; None: the points are not in `among`.
    """
    x, y = (torch.as_tensor(part).to(device).double() for part in (points, among))
    distances, numbers = [], []
    for rows, between in _distances(x, y):
        if own is not None:
            between[torch.arange(len(between)), torch.as_tensor(own[rows])] = torch.inf
        found = between.topk(k, largest=False)
        distances.append(found.values)
        numbers.append(found.indices)
    return torch.cat(distances).cpu().numpy(), torch.cat(numbers).cpu().numpy()


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Distances [n, M] to all of y, for a few rows of x at a time."""
    rows = max(1, _DISTANCES // len(y))
    for start in range(0, len(x), rows):
        part = slice(start, min(start + rows, len(x)))
        yield part, torch.cdist(x[part], y)


def inception_score(logits: Points, device: str = "cpu") -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), mean and standard deviation over 10 splits (Salimans et al. 2016).

    logits [N, classes], at least one image a split. Raises FeaturesError for fewer.
    """
    if len(logits) < SPLITS:
        raise FeaturesError(f"The Inception score needs at least {SPLITS} images, not {len(logits)}.")
    # images come sorted by class, so a split must be drawn; this is torch-fidelity's draw
    order = np.random.RandomState(2020).permutation(len(logits))
    scores = []
    for split in range(SPLITS):
        part = order[split * len(logits) // SPLITS : (split + 1) * len(logits) // SPLITS]
        log_p = torch.as_tensor(logits[part]).to(device).double().log_softmax(1)
        p = log_p.exp()
        scores.append((p * (log_p - p.mean(0).log())).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))


def accuracy(labels: Labels, guessed: Labels, class_names: Sequence[str]) -> dict[str, object]:
    """Share of images that a classifier takes for the class they were asked to be, in all and by class."""
    right = labels == guessed
    by_class = {
        name: round(float(right[labels == label].mean()), 4)
        for label, name in enumerate(class_names)
        if (labels == label).any()
    }
    return {"accuracy": float(right.mean()), "accuracy_by_class": by_class}
