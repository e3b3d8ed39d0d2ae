"""Figures in a pretrained network's features: what they are of known sets, and what they refuse."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from train.data.pack import Pack
from train.efficientnet import EfficientNetLite
from train.errors import FeaturesError
from train.measure.distances import nearest, within_class_variance
from train.measure.eye import Enlarged, PretrainedEye, open_eye, typical
from train.measure.features import FeatureSet, split
from train.measure.metrics import stratified
from train.measure.neighbours import Sheet, find_neighbours
from train.measure.probe import fit_probe

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

COLOURS = ("red", "green")


def colours(labels: Tensor, seed: int, side: int = 32) -> Tensor:
    """Noise with the channel of its class raised."""
    made = np.random.default_rng(seed).integers(0, 100, (len(labels), 3, side, side))
    made[np.arange(len(labels)), labels.numpy()] += 100
    return torch.from_numpy(made.astype(np.uint8))


@dataclass
class Colours:
    """A perfect generator, one that mistakes every class, or one that makes a single image of each."""

    class_names: Sequence[str] = COLOURS
    truncation: float = 1.0
    swapped: bool = False
    stuck: bool = False
    side: int = 32

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        if self.stuck:
            return colours(torch.arange(2), seed, self.side)[labels]
        return colours(1 - labels if self.swapped else labels, seed + first, self.side)


class Plain(nn.Module):
    """Stands for the network where what it sees does not matter: patches' means. Counts what it looked at."""

    sha256 = "0" * 64

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(48, 2)
        self.looked: list[int] = []

    def features(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32
        assert images.min() >= -1
        assert images.max() <= 1
        self.looked.append(len(images))
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def pack(count: int = 400, classes: int = 2) -> Pack:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, classes, count))
    return Pack(colours(labels, 5), labels, COLOURS[:classes], 32, {"sha256": "abc", "source": "colours"})


def plain_eye(pack: Pack, reference: str = "train") -> tuple[PretrainedEye, Plain]:
    network = Plain()
    return PretrainedEye(pack, cast(EfficientNetLite, network), reference=reference), network


def row(report: dict[str, object], name: str = "generated") -> dict[str, Any]:
    found = report[name]
    assert isinstance(found, dict)
    return found


def test_half_the_deviation_is_a_quarter_of_the_variance_however_few_the_images() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(3).repeat(400)
    real = (
        draw.standard_normal((1200, 30)) * np.array([1.0, 2.0, 3.0])[labels][:, None] + 100 * labels[:, None]
    )
    share, by_class = within_class_variance(real, labels, real / 2 + 7, labels, ("a", "b", "c"))
    assert share == pytest.approx(0.25)
    assert by_class == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.25})
    # of 400 images of each class 3, again and again: unbiased, so 1 on average
    few = [
        within_class_variance(real, labels, real[part], labels[part], ("a", "b", "c"))[0]
        for part in (
            np.concatenate([400 * k + draw.choice(400, 3, False) for k in range(3)]) for _ in range(300)
        )
    ]
    assert np.mean([share for share in few if share is not None]) == pytest.approx(1, abs=0.02)


def test_a_class_without_two_images_or_without_variance_has_no_share() -> None:
    real = np.array([[0.0], [2.0], [5.0], [5.0], [1.0], [4.0], [8.0]])
    labels = np.array([0, 0, 1, 1, 2, 3, 3])
    made = np.array([[0.0], [1.0], [0.0], [1.0], [3.0], [3.0], [9.0]])
    asked = np.array([0, 0, 1, 1, 2, 2, 3])
    share, by_class = within_class_variance(real, labels, made, asked, ("a", "b", "c", "d"))
    assert by_class == {"a": 0.25}
    assert share == pytest.approx(1 / 2)  # of a and b together
    assert within_class_variance(real[2:4], labels[2:4], made[2:4], asked[2:4], ("a", "b")) == (None, {})
    assert within_class_variance(real[4:5], labels[4:5], made, asked, ("a", "b", "c")) == (None, {})


def test_the_probe_names_classes_that_a_plane_parts_and_not_others() -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3], 100)  # class 1 has no image
    features = draw.standard_normal((300, 20)).astype(np.float32) * 50
    features[:, 19] = 3  # constant
    features[:, :4] += 400 * np.eye(4, dtype=np.float32)[labels]
    probe = fit_probe(features[::2], labels[::2])
    assert (probe.guess(features[1::2]) == labels[1::2]).all()
    again = fit_probe(features[::2], labels[::2])
    assert torch.equal(again.weight, probe.weight)
    lost = fit_probe(features[::2, 4:], labels[::2])
    assert (lost.guess(features[1::2, 4:]) == labels[1::2]).mean() < 0.6
    with pytest.raises(FeaturesError, match="at least 2 classes"):
        fit_probe(features[:100], labels[:100])


def test_the_typical_image_of_a_class_has_the_direction_of_its_mean() -> None:
    def features(rows: list[list[float]], labels: list[int]) -> FeatureSet:
        points = np.array(rows, np.float32)
        return FeatureSet(points, points[:, :0], points[:, :0], np.array(labels))

    known = features([[5, 1], [5, -1], [-5, 1], [-5, -1]], [0, 0, 1, 1])
    # of class 0: across, near the mean of all, far out the same way; of class 1: the other's way, its own
    made = features([[0, 9], [0.1, 0.2], [50, 1], [5, 0], [-1, 0.1]], [0, 0, 0, 1, 1])
    assert typical(known, made, 3) == [2, 4, None]
    assert typical(known, made[made.labels == 1], 2) == [None, 1]


def test_a_typical_image_is_made_again_by_its_number() -> None:
    images = pack()
    found, _ = plain_eye(images)
    report = found.measure(Colours(), samples=40)
    asked = stratified(images.labels.numpy()[split(len(images))[0]], 40)
    assert [asked[number] for number in row(report)["typical"]] == [0, 1]


def test_a_report_names_its_protocol_and_stands_beside_real_images() -> None:
    found, _ = plain_eye(pack())
    report = found.measure(Colours(), samples=40, seed=3)
    json.dumps(report, allow_nan=False)
    protocol, made, real = row(report, "protocol"), row(report), row(report, "real_held_back")
    assert protocol["network_sha256"] == "0" * 64
    assert "ImageNet" in protocol["features"]
    assert "Lite2" in protocol["features"]
    assert protocol["resize"] == "bilinear from 32 to 128 px"
    assert "360 real images" in protocol["probe"]
    assert (protocol["reference_images"], protocol["samples"], protocol["seed"]) == (360, 40, 3)
    assert made.keys() - real.keys() == {"typical"}  # numbers that make an image again
    assert {
        "frechet_pretrained",
        "kid_pretrained",
        "recall",
        "coverage",
        "within_class_variance",
    } < made.keys()
    assert not {"fid", "inception_score"} & made.keys()
    assert made["probe_accuracy"] == real["probe_accuracy"] == 1
    assert set(made["probe_accuracy_by_class"]) == set(made["within_class_variance_by_class"]) == set(COLOURS)
    assert made["within_class_variance"] == pytest.approx(1, abs=0.15)
    assert real["within_class_variance"] == pytest.approx(1, abs=0.15)


def test_what_is_wrong_with_a_generator_shows() -> None:
    found, _ = plain_eye(pack())
    swapped, stuck = (
        row(found.measure(sampler, samples=40)) for sampler in (Colours(swapped=True), Colours(stuck=True))
    )
    assert swapped["probe_accuracy"] == 0
    assert stuck["within_class_variance"] == 0
    assert stuck["recall"] == 0
    assert stuck["probe_accuracy"] == 1


def test_many_generators_look_at_the_real_images_once() -> None:
    found, network = plain_eye(pack())
    first = found.measure(Colours(), samples=40)
    assert sum(network.looked) == 400 + 40
    network.looked.clear()
    assert row(found.measure(Colours(), samples=40)) == row(first)
    assert network.looked == [32, 8]


@pytest.mark.parametrize(("which", "images"), [("all", 400), ("held-out", 40)])
def test_the_probe_never_judges_images_it_learnt_from(which: str, images: int) -> None:
    found, _ = plain_eye(pack(), which)
    report = found.measure(Colours(), samples=40)
    assert row(report, "protocol")["reference_images"] == images
    assert row(report)["probe_accuracy"] == 1
    assert row(report, "real_held_back")["probe_accuracy"] == (None if which == "held-out" else 1)
    assert row(report, "real_held_back")["images"] == 40


def test_one_class_is_measured_without_a_probe() -> None:
    found, _ = plain_eye(pack(classes=1))
    report = found.measure(Colours(class_names=COLOURS[:1]), samples=12)
    json.dumps(report, allow_nan=False)
    assert row(report)["probe_accuracy"] is None
    assert row(report)["probe_accuracy_by_class"] == {}
    assert row(report)["within_class_variance"] == pytest.approx(1, abs=0.3)


def test_one_image_a_class_has_no_variance_within() -> None:
    names = tuple(f"class {k}" for k in range(80))
    labels = torch.arange(80)
    one = Pack(colours(labels % 2, 5), labels, names, 32, {})
    report = plain_eye(one)[0].measure(_Each(names), samples=20)
    json.dumps(report, allow_nan=False)
    assert row(report)["within_class_variance"] is None
    assert row(report)["within_class_variance_by_class"] == {}


@dataclass
class _Each:
    class_names: Sequence[str]
    truncation: float = 1.0

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        return colours(labels % 2, seed)


def test_what_cannot_be_compared_is_refused() -> None:
    found, network = plain_eye(pack())
    with pytest.raises(FeaturesError, match="other classes"):
        found.measure(Colours(class_names=("green", "red")), samples=40)
    with pytest.raises(FeaturesError, match="At least 6"):
        found.measure(Colours(), samples=3)
    with pytest.raises(FeaturesError, match="At least 6 generated and 60 real images"):
        plain_eye(pack(50))[0].measure(Colours(), samples=40)
    with pytest.raises(FeaturesError, match="no reference 'some'"):
        plain_eye(pack(), "some")[0].measure(Colours(), samples=40)
    assert not network.looked  # before any work
    with pytest.raises(FeaturesError, match="makes 64 px and the reference has 32"):
        found.measure(Colours(side=64), samples=40)


@pytest.mark.parametrize(
    ("resolution", "side"), [(8, 128), (64, 128), (128, 128), (132, 160), (160, 160), (256, 256)]
)
def test_images_are_enlarged_to_a_side_that_the_network_takes(resolution: int, side: int) -> None:
    sizes = []

    class Watched(Plain):
        def features(self, images: Tensor) -> Tensor:
            sizes.append(images.shape[-1])
            return super().features(images)

    views = Enlarged(cast(EfficientNetLite, Watched()), resolution)
    views.views(torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8))
    assert sizes == [side]


def test_figures_do_not_depend_on_what_a_machine_has_for_bf16() -> None:
    found = open_eye(pack(20))
    with torch.autocast("cpu", torch.bfloat16):
        rough = found.see(np.arange(2)).features
    exact = open_eye(pack(20)).see(np.arange(2)).features
    assert np.array_equal(rough, exact)
    assert exact.shape == (2, 1280)


def test_a_copy_is_much_nearer_to_a_real_image_than_real_images_are_to_each_other() -> None:
    found, network = plain_eye(pack(60))

    def copies(labels: Tensor, seed: int, first: int) -> Tensor:
        """Real images with a little noise."""
        of_class = [torch.nonzero(found.pack.labels == label)[first] for label in labels]
        images = found.pack.images[torch.cat(of_class)].int()
        return (images + torch.arange(32) % 2).clamp(0, 255).to(torch.uint8)

    copied = find_neighbours(_Made(copies), found, Sheet(20, columns=3, rows=4))
    assert copied.ratio is not None
    assert copied.ratio < 0.2
    network.looked.clear()
    own = find_neighbours(Colours(), found, Sheet(20, columns=3, rows=4))
    assert own.ratio == pytest.approx(1, abs=0.15)
    assert sum(network.looked) == 20  # the real ones are known by now
    assert f"ratio {own.ratio:.3f}" in own.line()
    with Image.open(io.BytesIO(own.picture)) as picture:
        assert picture.height > 5 * 96  # four rows and that of the closest
        assert picture.width == 4 * 96 + 3 * 4 + 12


def test_a_report_tells_copies_by_how_near_they_are_to_real_images() -> None:
    found, _ = plain_eye(pack())

    def copies(labels: Tensor, seed: int, first: int) -> Tensor:
        train = torch.from_numpy(split(400)[0])
        known = found.pack.labels[train]
        return torch.cat([found.pack.images[train[known == label][:1]] for label in labels])

    copied, own = row(found.measure(_Made(copies), 40)), found.measure(Colours(), 40)
    assert copied["nearest_real_ratio"] < 0.01
    assert row(own)["nearest_real_ratio"] == pytest.approx(1, abs=0.1)
    assert row(own, "real_held_back")["nearest_real_ratio"] == 1
    assert "half is copying" in row(own, "protocol")["nearest_real"]
    twins = pack(60)
    twins.images[:] = twins.images[:1].clone()
    assert row(plain_eye(twins)[0].measure(Colours(), 20))["nearest_real_ratio"] is None


def test_nearest_are_those_of_a_loop_and_never_oneself() -> None:
    draw = np.random.default_rng(0)
    points, among = draw.standard_normal((7, 5)), draw.standard_normal((30, 5))
    distances, numbers = nearest(points, among, 2)
    for point, found, near in zip(points, distances, numbers, strict=True):
        every = np.linalg.norm(among - point, axis=1)
        assert near.tolist() == np.argsort(every)[:2].tolist()
        assert found == pytest.approx(np.sort(every)[:2])
    among[3] = among[4]  # a twin is another
    own = np.array([3, 9])
    distances, numbers = nearest(among[own], among, 1, own=own)
    assert numbers[0] == 4
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert numbers[1] != 9


def test_neighbours_of_a_pack_of_twins_have_no_ratio_and_of_one_image_there_are_none() -> None:
    twins = pack(12)
    twins.images[:] = twins.images[:1].clone()
    found = find_neighbours(Colours(), plain_eye(twins)[0], Sheet(5, columns=40, rows=40))
    assert found.ratio is None
    assert "no ratio" in found.line()
    one = Pack(twins.images[:1], twins.labels[:1], COLOURS, 32, {})
    with pytest.raises(FeaturesError, match="one image"):
        find_neighbours(Colours(), plain_eye(one)[0], Sheet())
    with pytest.raises(FeaturesError, match="other classes"):
        find_neighbours(Colours(class_names=("a", "b")), plain_eye(twins)[0], Sheet())


@dataclass
class _Made:
    make: Callable[[Tensor, int, int], Tensor]
    class_names: Sequence[str] = COLOURS
    truncation: float = 1.0

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        return self.make(labels, seed, first)
