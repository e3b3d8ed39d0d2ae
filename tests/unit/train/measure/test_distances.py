"""The figures: against closed forms, and against second implementations on the same features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from prdc import compute_prdc
from scipy import linalg
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from train.errors import FeaturesError
from train.measure import distances
from train.measure.distances import (
    accuracy,
    frechet,
    frechet_distance,
    inception_score,
    intra_class,
    kernel_distance,
    moments,
    neighbourhoods,
)

Array = npt.NDArray[np.float64]


def features(images: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    """As a network gives them: not negative, and correlated."""
    draw = rng(seed)
    mixed = draw.standard_normal((images, size)) @ rng(99).standard_normal((size, size))
    return np.abs(mixed).astype(np.float32)


def covariance(size: int, seed: int, rank: int | None = None) -> Array:
    factor = np.random.default_rng(seed).standard_normal((size, rank or size))
    return np.asarray(factor @ factor.T)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_frechet_distance_of_gaussians_with_a_closed_form() -> None:
    a, b = np.diag([1.0, 4.0, 9.0]), np.diag([16.0, 4.0, 0.0])
    mean_a, mean_b = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 3.0])
    expected = 4 + (1 - 4) ** 2 + 0 + 3**2  # |mean|² + the differences of the standard deviations
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, abs=1e-9)
    turn = np.linalg.qr(rng().standard_normal((3, 3)))[0]
    turned = frechet_distance(turn @ mean_a, turn @ a @ turn.T, turn @ mean_b, turn @ b @ turn.T)
    assert turned == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_frechet_distance_agrees_with_the_square_root_of_the_product(size: int) -> None:
    a, b = covariance(size, 1, size * 3), covariance(size, 2, size * 3)
    mean_a, mean_b = rng(3).standard_normal(size), rng(4).standard_normal(size)
    root = linalg.sqrtm(a @ b).real
    assert np.allclose(root @ root, a @ b)
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-6, abs=1e-3)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-6, abs=1e-3)


@pytest.mark.parametrize("images", [20, 200])
def test_frechet_agrees_with_scipy_and_torch_fidelity_on_the_same_features(images: int) -> None:
    """With fewer images than features, where it takes another way, and with more."""
    a, b = features(images, 32, 1), features(images + 7, 32, 2) * 1.2 + 0.3
    (mean_a, cov_a), (mean_b, cov_b) = (
        (x.mean(0, dtype=np.float64), np.cov(x, rowvar=False, dtype=np.float64)) for x in (a, b)
    )
    by_root = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    statistics = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    library = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    found = frechet(a, b)
    assert found == pytest.approx(by_root, rel=1e-3)
    assert found == pytest.approx(library, rel=1e-3)
    assert found == pytest.approx(frechet_distance(*moments(a), *moments(b)), rel=1e-6)
    assert found > 1
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_bears_singular_covariances() -> None:
    mean, a = np.zeros(64), covariance(64, 1, rank=5)
    assert frechet_distance(mean, a, mean, a) == pytest.approx(0, abs=1e-3)
    assert frechet_distance(mean, a, mean, np.zeros((64, 64))) == pytest.approx(np.trace(a))


def test_frechet_distance_of_samples_comes_to_that_of_their_gaussians() -> None:
    a = rng(1).standard_normal((20_000, 4))
    b = rng(2).standard_normal((20_000, 4)) * 2 + 1
    assert frechet_distance(*moments(a), *moments(b)) == pytest.approx(4 + 4, rel=0.03)


def test_kernel_distance_is_unbiased_and_agrees_with_the_sum_written_out() -> None:
    x, y = rng(1).standard_normal((12, 3)), rng(2).standard_normal((12, 3)) + 0.5

    def kernel(a: Array, b: Array) -> float:
        return float((a @ b / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(12) for j in range(12)]
    expected = (
        sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / (12 * 11)
        - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 144
    )
    found, spread = kernel_distance(x, y, rng())
    assert found == pytest.approx(expected)
    assert spread == pytest.approx(0, abs=1e-9)  # every subset is the whole
    same, _ = kernel_distance(rng(1).standard_normal((400, 3)), rng(2).standard_normal((400, 3)), rng())
    assert abs(same) < 0.1 < found


def test_neighbourhoods_agree_with_a_loop_over_points() -> None:
    real, fake, k = rng(1).standard_normal((60, 2)), rng(2).standard_normal((60, 2)) * 0.5, 5

    def reach(points: Array) -> Array:
        return np.array([np.sort(np.linalg.norm(points - point, axis=1))[k] for point in points])

    between = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    balls, fake_balls = reach(real), reach(fake)
    found = neighbourhoods(real, fake, k)
    assert found["precision"] == pytest.approx(
        np.mean([any(between[i, j] < balls[i] for i in range(60)) for j in range(60)])
    )
    assert found["recall"] == pytest.approx(
        np.mean([any(between[i, j] < fake_balls[j] for j in range(60)) for i in range(60)])
    )
    assert found["density"] == pytest.approx(
        sum(between[i, j] < balls[i] for i in range(60) for j in range(60)) / 300
    )
    assert found["coverage"] == pytest.approx(np.mean([between[i].min() < balls[i] for i in range(60)]))


def test_too_few_images_are_told() -> None:
    with pytest.raises(FeaturesError, match="at least 2"):
        moments(np.zeros((1, 3)))
    with pytest.raises(FeaturesError, match="more than 5"):
        neighbourhoods(np.zeros((5, 3)), np.zeros((9, 3)))


def test_moments_are_those_of_the_whole_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(50, 6, 1)
    mean, covariance = moments(x)
    assert np.allclose(mean, x.mean(0))
    assert np.allclose(covariance, np.cov(x, rowvar=False))
    monkeypatch.setattr(distances, "_ROWS", 7)
    assert np.allclose(moments(x)[1], covariance, rtol=1e-12)


def test_kernel_distance_agrees_with_torch_fidelity_on_the_same_features() -> None:
    a, b = features(120, 16, 1), features(120, 16, 2) + 0.5
    library = kid_features_to_metric(
        torch.from_numpy(a).double(), torch.from_numpy(b).double(), kid_subset_size=120, kid_subsets=2
    )
    assert kernel_distance(a, b, rng(), 2)[0] == pytest.approx(
        library["kernel_inception_distance_mean"], rel=1e-3
    )


def test_neighbourhoods_agree_with_prdc_and_torch_fidelity_on_the_same_features() -> None:
    real, made = features(150, 8, 1), features(150, 8, 2) * 1.4 + 1.5
    found = neighbourhoods(real, made, 5)
    second = compute_prdc(real.astype(np.float64), made.astype(np.float64), nearest_k=5)
    assert found == pytest.approx(second, rel=1e-3)
    library = prc_features_to_metric(
        torch.from_numpy(made).double(), torch.from_numpy(real).double(), prc_neighborhood=5
    )
    assert found["precision"] == pytest.approx(library["precision"], rel=1e-3)
    assert found["recall"] == pytest.approx(library["recall"], rel=1e-3)
    assert 0.05 < float(str(found["precision"])) < 0.95  # far from where all agree


def test_neighbourhoods_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = features(90, 4, 1), features(90, 4, 2) * 0.8
    whole = neighbourhoods(real, made)
    monkeypatch.setattr(distances, "_DISTANCES", 90 * 7)
    assert neighbourhoods(real, made) == whole


def test_a_set_is_its_own_neighbourhood() -> None:
    x = features(60, 4, 1)
    found = neighbourhoods(x, x)
    assert [found[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_inception_score_agrees_with_torch_fidelity_on_the_same_logits() -> None:
    logits = rng(1).standard_normal((333, 20)) * 3
    score, spread = inception_score(logits)
    library = isc_features_to_metric(torch.from_numpy(logits))
    assert score == pytest.approx(library["inception_score_mean"], rel=1e-6)
    assert spread == pytest.approx(library["inception_score_std"], rel=1e-6)
    assert 2 < score < 20


def test_inception_score_counts_the_classes_that_are_sure_and_even() -> None:
    sure = np.tile(np.eye(4) * 100, (1000, 1))
    assert inception_score(sure)[0] == pytest.approx(4, rel=0.01)  # splits are not quite even
    assert inception_score(np.zeros((50, 4))) == (pytest.approx(1), pytest.approx(0))
    with pytest.raises(FeaturesError, match="at least 10"):
        inception_score(np.zeros((9, 4)))


def test_distances_within_classes_see_what_the_whole_does_not() -> None:
    x = features(80, 3, 1)
    labels = np.repeat([0, 1], 40)
    x[labels == 1] += 5
    swapped = 1 - labels
    names = ("a", "b")
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert intra_class(x, labels, x, labels, names)[0] == pytest.approx(0, abs=1e-6)
    mean, by_class = intra_class(x, labels, x, swapped, names)
    assert by_class["a"] == pytest.approx(frechet(x[:40], x[40:]))
    assert mean == pytest.approx(sum(by_class.values()) / 2)
    assert by_class["a"] > 60


def test_classes_without_two_images_are_left_out() -> None:
    x, labels = features(9, 3, 1), np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    assert intra_class(x, labels, x, labels, ("a", "b", "c", "d"))[1].keys() == {"a", "b"}
    assert intra_class(x[:1], labels[:1], x, labels, ("a",)) == (None, {})


def test_accuracy_is_given_by_class() -> None:
    found = accuracy(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ("a", "b", "c"))
    assert found == {"accuracy": 0.75, "accuracy_by_class": {"a": 0.5, "b": 1.0}}
