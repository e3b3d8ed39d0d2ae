"""The report: its protocol, its rows, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.generator import Generator
from networks import judge_with
from train.data.pack import Pack
from train.errors import FeaturesError
from train.measure.features import split
from train.measure.features_training import FeaturesRecipe, train_features
from train.measure.figures import figures
from train.measure.metrics import GeneratorSampler, check_classes, evaluate, stratified


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
    assert made["spatial_frechet_own_features"] > 0
    # a perfect generator is as far from the reference as real images are
    assert made["frechet_own_features"] == pytest.approx(real["frechet_own_features"], rel=1)
    again = evaluate(Colours(), file, pack, samples=40, seed=3)
    assert again["generated"] == made


@pytest.mark.parametrize(
    ("which", "images", "held"), [("all", 400, 40), ("train", 360, 40), ("held-out", 40, 40)]
)
def test_the_reference_is_the_part_of_the_pack_that_was_asked_for(
    measured: tuple[Path, Pack], which: str, images: int, held: int
) -> None:
    file, pack = measured
    report = evaluate(Colours(), file, pack, samples=40, reference=which)
    protocol, real = report["protocol"], report["real_held_back"]
    assert isinstance(protocol, dict)
    assert isinstance(real, dict)
    assert protocol["reference_images"] == images
    assert real["images"] == 40
    assert real["frechet_own_features"] > 0.001  # no image of that row is in its own reference


def test_real_images_are_never_measured_against_themselves(measured: tuple[Path, Pack]) -> None:
    file, pack = measured
    rows = [
        evaluate(Colours(), file, pack, samples=40, reference=which)["real_held_back"]
        for which in ("all", "train")
    ]
    assert rows[0] == rows[1]  # the tenth against the nine tenths, both times


def test_a_generator_of_wrong_classes_is_found_out(measured: tuple[Path, Pack]) -> None:
    file, pack = measured
    report = evaluate(Colours(swapped=True), file, pack, samples=40)["generated"]
    assert isinstance(report, dict)
    assert report["accuracy"] < 0.1
    perfect = evaluate(Colours(), file, pack, samples=40)["generated"]
    assert isinstance(perfect, dict)
    within = "intra_class_frechet_own_features"
    assert report[within] > 5 * perfect[within]
    assert set(report[f"{within}_by_class"]) == {"red", "green"}
    assert set(report["accuracy_by_class"]) == {"red", "green"}


def test_what_cannot_be_compared_is_refused(measured: tuple[Path, Pack]) -> None:
    file, pack = measured
    with pytest.raises(FeaturesError, match="other classes"):
        evaluate(Colours(class_names=("green", "red")), file, pack, samples=40)
    with pytest.raises(FeaturesError, match="At least 6"):
        evaluate(Colours(), file, pack, samples=3)
    with pytest.raises(FeaturesError, match="choose all, train or held-out"):
        evaluate(Colours(), file, pack, samples=40, reference="some")
    larger = Pack(torch.zeros(400, 3, 64, 64, dtype=torch.uint8), pack.labels, pack.class_names, 64, {})
    with pytest.raises(FeaturesError, match="64 px"):
        evaluate(Colours(), file, larger, samples=40)


def test_a_class_is_the_same_with_spaces_as_with_underscores() -> None:
    check_classes("pack", ("Afghan hound", "pug"), "network", ("Afghan_hound", "pug"))
    with pytest.raises(FeaturesError, match="other classes"):
        check_classes("pack", ("pug", "Afghan hound"), "network", ("Afghan_hound", "pug"))


def test_a_poor_judge_is_named_in_the_protocol_and_one_that_guesses_is_refused(
    measured: tuple[Path, Pack], tmp_path: Path
) -> None:
    file, pack = measured
    protocol = evaluate(Colours(), file, pack, samples=40)["protocol"]
    assert isinstance(protocol, dict)
    assert "warning" not in protocol
    poor = judge_with(file, tmp_path / "poor", 0.6, 1000)
    protocol = evaluate(Colours(), poor, pack, samples=40)["protocol"]
    assert isinstance(protocol, dict)
    assert "is a poor judge (60.0% right on 1,000 images" in protocol["warning"]
    with pytest.raises(FeaturesError, match="only guesses"):
        evaluate(Colours(), judge_with(file, tmp_path / "guessing", 0.5, 1000), pack, samples=40)


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


def test_a_generator_that_always_makes_one_image_has_precision_and_no_coverage() -> None:
    real = np.random.default_rng(1).standard_normal((200, 4))
    nearly = np.random.default_rng(2).standard_normal((200, 4)) * 1e-6
    collapsed = figures(real, np.repeat(real[:1], 200, 0) + nearly)
    assert collapsed["precision"] == 1
    assert float(str(collapsed["recall"])) < 0.02
    assert float(str(collapsed["coverage"])) < 0.1
    again = figures(real, np.random.default_rng(3).standard_normal((200, 4)))
    assert float(str(again["frechet_own_features"])) < float(str(collapsed["frechet_own_features"])) / 5


def test_labels_come_in_the_proportions_of_the_reference() -> None:
    reference = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 300, 600]))
    assert np.bincount(stratified(reference, 20)).tolist() == [2, 6, 12]
    assert np.bincount(stratified(reference, 5000)).tolist() == [500, 1500, 3000]
