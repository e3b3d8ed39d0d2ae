"""The figures: against closed forms and second implementations, and as a whole report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.generator import Generator
from train.data import Pack
from train.errors import FeaturesError
from train.features import FeaturesRecipe, split, train_features
from train.metrics import (
    GeneratorSampler,
    accuracy,
    evaluate,
    figures,
    frechet_distance,
    kernel_distance,
    moments,
    neighbourhoods,
    stratified,
)

Array = npt.NDArray[np.float64]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tests share their cores; such small work only waits with more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def covariance(size: int, seed: int, rank: int | None = None) -> Array:
    factor = np.random.default_rng(seed).standard_normal((size, rank or size))
    return np.asarray(factor @ factor.T)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def square_root_by_iteration(matrix: Array, steps: int = 100) -> Array:
    """Denman and Beavers 1976: another way to the square root of A·B, which is not symmetric."""
    y, z = matrix, np.eye(len(matrix))
    for _ in range(steps):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    return y


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
    root = square_root_by_iteration(a @ b)
    assert np.allclose(root @ root, a @ b)
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-6, abs=1e-3)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-6, abs=1e-3)


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


def test_a_generator_that_always_makes_one_image_has_precision_and_no_coverage() -> None:
    real = rng(1).standard_normal((200, 4))
    collapsed = figures(real, np.repeat(real[:1], 200, 0) + rng(2).standard_normal((200, 4)) * 1e-6)
    assert collapsed["precision"] == 1
    assert float(str(collapsed["recall"])) < 0.02
    assert float(str(collapsed["coverage"])) < 0.1
    again = figures(real, rng(3).standard_normal((200, 4)))
    assert float(str(again["frechet_own_features"])) < float(str(collapsed["frechet_own_features"])) / 5


def test_too_few_images_are_told() -> None:
    with pytest.raises(FeaturesError, match="at least 2"):
        moments(np.zeros((1, 3)))
    with pytest.raises(FeaturesError, match="more than 5"):
        neighbourhoods(np.zeros((5, 3)), np.zeros((9, 3)))


def test_labels_come_in_the_proportions_of_the_reference() -> None:
    reference = rng().permutation(np.repeat([0, 1, 2], [100, 300, 600]))
    assert np.bincount(stratified(reference, 20)).tolist() == [2, 6, 12]
    assert np.bincount(stratified(reference, 5000)).tolist() == [500, 1500, 3000]


def test_accuracy_is_given_by_class() -> None:
    found = accuracy(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ("a", "b", "c"))
    assert found == {"accuracy": 0.75, "accuracy_by_class": {"a": 0.5, "b": 1.0}}


# --- the report -------------------------------------------------------------------------------------


def colours(labels: Tensor, seed: int) -> Tensor:
    """Noise with the channel of its class raised."""
    made = np.random.default_rng(seed).integers(0, 100, (len(labels), 3, 32, 32))
    made[np.arange(len(labels)), labels.numpy()] += 100
    return torch.from_numpy(made.astype(np.uint8))


@dataclass
class Colours:
    """A perfect generator, or one that mistakes every class for the other."""

    class_names: Sequence[str] = ("red", "green")
    truncation: float = 1.0
    swapped: bool = False

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        return colours(1 - labels if self.swapped else labels, seed + first)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pack]:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 2, 400))
    pack = Pack(colours(labels, 5), labels, ("red", "green"), 32, {"sha256": "abc", "source": "colours"})
    file = tmp_path_factory.mktemp("features") / "f.safetensors"
    train_features(pack, file, FeaturesRecipe(epochs=4, batch=32, learning_rate=0.05), (8, 8, 16))
    return file, pack


def test_a_report_names_its_protocol_and_stands_beside_real_images(measured: tuple[Path, Pack]) -> None:
    file, pack = measured
    report = evaluate(Colours(), file, pack, samples=40, seed=3)
    json.dumps(report, allow_nan=False)
    protocol, made, real = report["protocol"], report["generated"], report["real_held_back"]
    assert isinstance(protocol, dict)
    assert isinstance(made, dict)
    assert isinstance(real, dict)
    assert protocol["reference_images"] == 360
    assert protocol["samples"] == 40
    assert len(protocol["features_sha256"]) == 64
    assert real["images"] == len(split(400)[1])
    assert made["accuracy"] > 0.9
    assert made.keys() == real.keys()
    assert not any("fid" in key.lower() for key in made)
    # a perfect generator is as far from the reference as real images are
    assert made["frechet_own_features"] == pytest.approx(real["frechet_own_features"], rel=1)
    again = evaluate(Colours(), file, pack, samples=40, seed=3)
    assert again["generated"] == made


def test_a_generator_of_wrong_classes_is_found_out(measured: tuple[Path, Pack]) -> None:
    file, pack = measured
    report = evaluate(Colours(swapped=True), file, pack, samples=40)["generated"]
    assert isinstance(report, dict)
    assert report["accuracy"] < 0.1
    assert set(report["accuracy_by_class"]) == {"red", "green"}


def test_what_cannot_be_compared_is_refused(measured: tuple[Path, Pack]) -> None:
    file, pack = measured
    with pytest.raises(FeaturesError, match="other classes"):
        evaluate(Colours(class_names=("green", "red")), file, pack, samples=40)
    with pytest.raises(FeaturesError, match="More than 5"):
        evaluate(Colours(), file, pack, samples=3)
    larger = Pack(torch.zeros(400, 3, 64, 64, dtype=torch.uint8), pack.labels, pack.class_names, 64, {})
    with pytest.raises(FeaturesError, match="64 px"):
        evaluate(Colours(), file, larger, samples=40)


def test_a_generators_sample_is_a_function_of_its_number_alone(measured: tuple[Path, Pack]) -> None:
    torch.manual_seed(0)
    config = ModelConfig(32, 2, (8, 8, 8, 8), (8, 8, 8, 8), (16,))
    sampler = GeneratorSampler(Generator(config).eval(), ("red", "green"))
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    whole = sampler(labels, 7, 0)
    assert whole.shape == (8, 3, 32, 32)
    assert whole.dtype == torch.uint8
    assert (sampler(labels[4:], 7, 4).int() - whole[4:].int()).abs().max() <= 1
    assert not torch.equal(whole[0], whole[2])
    file, pack = measured
    report = evaluate(sampler, file, pack, samples=12)["generated"]
    assert isinstance(report, dict)
    assert report["images"] == 12
