"""The Inception network that defines FID and its relatives, from torch-fidelity.

Its weights are no part of this project: they come from a file, or by torch-fidelity's own download.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import warnings
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from train.errors import FeaturesError
from train.measure.features import SPATIAL_CHANNELS

PUBLISHED = "6726825d"  # beginning of the sha256 of torch-fidelity's copy of the network of 2015-12-05
_BATCH = 50  # images at 299×299 a forward; the largest map of 50 takes 280 MB


class Inception(nn.Module):
    """Images uint8 [B, 3, R, R] -> features [B, 2048], of `mixed_6/conv` [B, 2023], logits [B, 1008].

    sFID compares the second (Nash et al. 2021): the first 7 channels of a 17×17 map, here
    Mixed_6d.branch1x1. The logits have no bias, as in the Inception score's own code.
    """

    def __init__(self, network: nn.Module, sha256: str, version: str) -> None:
        super().__init__()
        self.network = network
        self.sha256 = sha256  # of the weights' file
        self.version = version  # of torch-fidelity
        self._places: list[Tensor] = []
        network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._keep_places)

    @property
    def published(self) -> bool:
        """Whether these are the weights that define FID."""
        return self.sha256.startswith(PUBLISHED)

    @property
    def protocol(self) -> dict[str, object]:
        known = (
            "the published weights" if self.published else "OTHER WEIGHTS than the published: this is no FID"
        )
        return {
            "extractor": f"torch-fidelity {self.version}, inception-v3-compat, {known}",
            "weights_sha256": self.sha256,
            "weights_published": self.published,
            "resize": "bilinear to 299×299 as TensorFlow 1 has it, of uint8 images, inside the extractor",
            "sfid": f"first {SPATIAL_CHANNELS} channels of mixed_6/conv, 17×17",
        }

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = [self._view(part) for part in torch.split(images, _BATCH)]
        features, spatial, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return features, spatial, logits

    def _view(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, logits = self.network(images)
        return features, self._places.pop(), logits

    def _keep_places(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._places.append(output[:, :SPATIAL_CHANNELS].flatten(1))


def open_inception(weights: Path | None = None) -> Inception:
    """The network with the weights in a file; None: with torch-fidelity's download, or its earlier copy.

    Raises FeaturesError without torch-fidelity, without weights, and for any other file.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError:
        raise FeaturesError(
            "FID and its relatives need torch-fidelity: pip install 'sagan-service[metrics]'."
        ) from None
    path = weights or _downloaded(URL_INCEPTION_V3)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FeaturesError(f"The Inception weights {path} cannot be read ({error.strerror}).") from error
    try:
        # the library unpickles anything in the file: first make sure that it holds tensors alone
        with warnings.catch_warnings(action="ignore"):  # remarks on odd pickles: they are refused anyway
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=io.BytesIO(content),
        )
    except Exception as error:  # unpickling raises nearly anything on other data
        raise FeaturesError(
            f"{path} has no weights of torch-fidelity's InceptionV3: the file that is wanted is "
            f"{_name(URL_INCEPTION_V3)}."
        ) from error
    return Inception(
        network, hashlib.sha256(content).hexdigest(), importlib.metadata.version("torch-fidelity")
    )


def _downloaded(url: str) -> Path:
    """The weights in torch's folder of downloads, fetched if they are not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / _name(url)
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), PUBLISHED, progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        raise FeaturesError(
            f"There are no Inception weights, and torch-fidelity's cannot be downloaded "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): give the file "
            f"{file.name} of its release v0.2.0 as --inception-weights FILE."
        ) from error
    return file


def _name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name
