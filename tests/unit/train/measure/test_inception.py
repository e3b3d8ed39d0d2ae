"""Inception: with weights of its shape, as torch-fidelity's own evaluation has it, and when there are none.

The published weights are not here: random ones of the same shapes go the same way.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from train.data.pack import Pack
from train.errors import FeaturesError, TrainError
from train.measure import inception
from train.measure.commands import keep_figures
from train.measure.distances import kernel_distance
from train.measure.features import look
from train.measure.inception import Inception, open_inception
from train.measure.metrics import evaluate_with_inception

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

SMALL = 75  # pixels, the least that the network takes, instead of 299: a sixteenth of the work


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tests share their cores; such small work only waits with more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.object(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", SMALL):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights that keep the maps alive."""
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    with (
        mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
        mock.patch.object(torch, "load"),
    ):
        network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="none")
    state = network.state_dict()
    draw = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.dim() > 1:
            size = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=draw) * (2 / size) ** 0.5
    state["fc.weight"] *= 100  # so that its guesses differ from image to image
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def network(weights: Path) -> Inception:
    return open_inception(weights)


@dataclass
class Noise:
    """A generator whose classes differ in brightness, of images 16×16."""

    class_names: Sequence[str] = ("dark", "light")
    truncation: float = 1.0

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        return noise(labels, seed + first, 90)


def noise(labels: Tensor, seed: int, spread: int) -> Tensor:
    draw = np.random.default_rng(seed)
    base = draw.integers(0, spread, (len(labels), 3, 4, 4)).repeat(4, 2).repeat(4, 3)
    return torch.from_numpy((base + 100 * labels.numpy()[:, None, None, None]).astype(np.uint8))


@pytest.fixture(scope="module")
def pack() -> Pack:
    labels = torch.arange(100) % 2
    return Pack(noise(labels, 5, 150), labels, ("dark", "light"), 16, {"sha256": "abc", "source": "noise"})


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def report(network: Inception, pack: Pack) -> dict[str, Any]:
    return evaluate_with_inception(Noise(), network, pack, samples=24, seed=3)


def test_figures_are_those_of_torch_fidelitys_own_evaluation(
    report: dict[str, Any], weights: Path, pack: Pack
) -> None:
    """The whole way from the same images to FID and the Inception score."""
    made = Noise()(torch.arange(24) // 12, 3, 0)
    second = torch_fidelity.calculate_metrics(
        input1=Images(made),
        input2=Images(pack.images),
        fid=True,
        isc=True,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(weights),
    )
    found = report["generated"]
    assert found["images"] == 24
    assert found["fid"] == pytest.approx(second["frechet_inception_distance"], rel=1e-3)
    assert found["inception_score"] == pytest.approx(second["inception_score_mean"], rel=1e-3)
    assert found["inception_score_std"] == pytest.approx(second["inception_score_std"], rel=1e-3)
    assert found["fid"] > 0.1
    assert found["inception_score"] > 1.05


def test_sfid_is_that_of_seven_channels_of_mixed_6_conv(
    report: dict[str, Any], weights: Path, pack: Pack
) -> None:
    plain = FeatureExtractorInceptionV3("x", ["768"], feature_extractor_weights_path=str(weights))
    kept: list[Tensor] = []
    plain.Mixed_6d.branch1x1.bn.register_forward_hook(lambda _, __, out: kept.append(out.clone().relu()))
    statistics = []
    for images in (pack.images, Noise()(torch.arange(24) // 12, 3, 0)):
        plain(images)
        places = kept.pop().permute(0, 2, 3, 1)[..., :7].flatten(1)  # as the evaluator of ADM flattens it
        statistics.append(fid_features_to_statistics(places.double()))
    second = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert report["generated"]["sfid"] == pytest.approx(second, rel=1e-3)
    assert second > 0.01


def test_kid_is_torch_fidelitys_on_the_same_features(network: Inception, pack: Pack) -> None:
    labels = torch.arange(24) // 12
    real, made = (
        look(network, images, labels.numpy()).features for images in (pack.images[:24], Noise()(labels, 3, 0))
    )
    second = kid_features_to_metric(
        torch.from_numpy(made).double(), torch.from_numpy(real).double(), kid_subset_size=24, kid_subsets=1
    )
    found, _ = kernel_distance(real, made, np.random.default_rng(0), subsets=1)
    assert found == pytest.approx(second["kernel_inception_distance_mean"], rel=1e-3)


def test_the_protocol_says_what_was_measured_with_what(report: dict[str, Any], weights: Path) -> None:
    json.dumps(report, allow_nan=False)
    protocol = report["protocol"]
    assert protocol["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "this is no FID" in protocol["extractor"]  # these weights are not the published ones
    assert torch_fidelity.__version__ in protocol["extractor"]
    assert "299×299" in protocol["resize"]
    assert (protocol["reference_images"], protocol["samples"]) == (100, 24)
    assert (protocol["seed"], protocol["truncation"]) == (3, 1.0)
    assert report["generated"].keys() == report["real_held_back"].keys()
    assert report["real_held_back"]["images"] == 10
    assert set(report["generated"]["intra_fid_by_class"]) == {"dark", "light"}


def test_figures_with_other_weights_are_not_kept_as_fid(report: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no FID: not kept"):
        keep_figures(tmp_path / "any", {"inception": report})


def test_the_published_weights_are_known_by_their_hash(network: Inception) -> None:
    assert not network.published
    published = Inception(network.network, inception.PUBLISHED + "0" * 56, "0.4.0")
    assert published.published
    assert "this is no FID" not in str(published.protocol["extractor"])


def test_batches_of_the_extractor_do_not_matter(
    network: Inception, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = pack.images[:5], pack.labels[:5].numpy()
    whole = look(network, images, labels)
    assert whole.features.shape == (5, 2048)
    assert whole.logits.shape == (5, 1008)
    monkeypatch.setattr(inception, "_BATCH", 2)
    parts = look(network, images, labels)
    assert np.allclose(parts.features, whole.features, rtol=1e-4, atol=1e-4)
    assert np.allclose(parts.spatial, whole.spatial, rtol=1e-4, atol=1e-4)


def test_too_few_images_and_other_classes_are_told(network: Inception, pack: Pack) -> None:
    with pytest.raises(FeaturesError, match="At least 10 generated and 100 real"):
        evaluate_with_inception(Noise(), network, pack, samples=9)
    with pytest.raises(FeaturesError, match="other classes"):
        evaluate_with_inception(Noise(class_names=("a", "b")), network, pack, samples=24)


def test_without_weights_it_says_which_file_is_wanted_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=URLError("no network")))
    with pytest.raises(
        FeaturesError, match=r"weights-inception-2015-12-05-6726825d\.pth .*--inception-weights"
    ) as told:
        open_inception()
    assert "\n" not in str(told.value)
    with pytest.raises(FeaturesError, match="cannot be read"):
        open_inception(tmp_path / "none.pth")


def test_weights_that_the_library_has_already_fetched_are_used(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(weights)
    assert open_inception().sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(FeaturesError, match=r"pip install 'sagan-service\[metrics\]'"):
        open_inception()


class Trap:
    """Runs what it likes when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('it ran')",)


def test_any_other_file_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"x": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "text.pth").write_text("text")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("other.pth", "list.pth", "trap.pth", "trap.pkl", "text.pth", "empty.pth"):
        with pytest.raises(FeaturesError, match="no weights of torch-fidelity's InceptionV3"):
            open_inception(tmp_path / name)
