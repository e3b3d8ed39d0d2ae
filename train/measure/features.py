"""A small classifier of a pack's own classes, whose last features judge generated images.

Distances in its features compare only between models measured with the same file, so the file's hash stands
beside every figure. They are not FID, which needs the Inception network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from train.errors import FeaturesError

FORMAT = "sagan-features-1"
HELD_OUT = 0.1  # share of a pack; the extractor never trains on it
POOR = 0.25  # skill under which figures are not to be trusted
SPLIT_SEED = 0  # the same for every pack, so that anyone can name the held-out images again
SPATIAL_CHANNELS = 7  # of an inner map, place by place, as sFID takes them (Nash et al. 2021)


@dataclass(frozen=True)
class FeaturesConfig:
    """Shape of the network."""

    resolution: int  # px, 32 or a multiple of it
    classes: int
    widths: tuple[int, ...] = (32, 128, 256)  # channels of the blocks; the last is the number of features
    stem: int = 24  # channels of the first convolution, even

    def __post_init__(self) -> None:
        if self.resolution < 32 or self.resolution % 32:
            raise FeaturesError(f"Features need 32 px or a multiple of it, not {self.resolution}.")
        if self.classes < 2:
            raise FeaturesError(f"Features need at least 2 classes to tell apart, not {self.classes}.")


class Extractor(Protocol):
    """A network that turns images into features: our own classifier, Inception, or a pretrained one."""

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, D], spatial features [B, S] and logits [B, K] of images uint8 [B, 3, R, R]."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """An extractor's view of N images, float32 on the CPU."""

    features: npt.NDArray[np.float32]  # [N, D]
    spatial: npt.NDArray[np.float32]  # [N, S]: channels of a map, place by place
    logits: npt.NDArray[np.float32]  # [N, K]
    labels: npt.NDArray[np.int64]  # [N], the classes of the images, or those they were asked to be

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> FeatureSet:
        return FeatureSet(self.features[index], self.spatial[index], self.logits[index], self.labels[index])

    @classmethod
    def joined(cls, parts: Sequence[FeatureSet]) -> FeatureSet:
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(cls)
            )
        )


@dataclass(frozen=True)
class Features:
    """An extractor and what its file says of it."""

    network: FeatureNet
    class_names: tuple[str, ...]
    accuracy: float  # 0 to 1, on the held-out images of its pack
    metadata: dict[str, Any]  # pack_sha256, licence, recipe, seconds ...
    sha256: str  # of the file

    @property
    def guess(self) -> float:
        """Accuracy of always naming the pack's largest class; where a file lacks it, as of equal classes."""
        return float(self.metadata.get("guess", 1 / len(self.class_names)))

    @property
    def is_guessing(self) -> bool:
        """Whether the accuracy on the held-out images is within two standard errors of a guess."""
        error = math.sqrt(self.guess * (1 - self.guess) / self.metadata["held_out"])
        return self.accuracy <= self.guess + 2 * error

    @property
    def doubt(self) -> str | None:
        """Why figures in these features are not to be trusted, in a sentence; None: no reason is known.

        It goes by skill, (accuracy - guess) / (1 - guess): 0 for guessing, 1 for always right.
        """
        known = (
            f"{self.accuracy:.1%} right on {self.metadata['held_out']:,} images that it never saw, where a "
            f"guess has {self.guess:.1%}"
        )
        if self.is_guessing:
            return f"The classifier only guesses ({known}): figures in its features mean nothing."
        if self.accuracy - self.guess < POOR * (1 - self.guess):
            return f"The classifier is a poor judge ({known}): figures in its features say little."
        return None


class _Block(nn.Module):
    """Convolution, halving by max-pool, and a residual convolution: [B, C, H, W] -> [B, width, H/2, W/2]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(F.max_pool2d(self.down(x), 2)))
        return x + F.relu(self.conv_norm(self.conv(x)))


class FeatureNet(nn.Module):
    """Images uint8 [B, 3, R, R] -> features [B, D] and logits [B, classes].

    The first convolution brings any resolution to about 32×32 and is a fixed whitening of the training
    images' patches, after the fast CIFAR-10 recipes of Page 2019 and Jordan 2024.
    """

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config = config
        stride = config.resolution // 32
        self.stem = nn.Conv2d(3, config.stem, stride + 1, stride)
        inputs = (config.stem, *config.widths)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in itertools.pairwise(inputs)))
        self.head = nn.Linear(config.widths[-1], config.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, _, logits = self.views(images)
        return features, logits

    def spatial(self, images: Tensor) -> Tensor:
        """7 channels of the map before the last block, 7×7, place by place: [B, 343]."""
        return self.views(images)[1]

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, D], spatial features [B, S] and logits [B, classes] in one pass.

        Raises FeaturesError for images of another type or size.
        """
        side = self.config.resolution
        if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            raise FeaturesError(
                f"The extractor sees uint8 [N, 3, {side}, {side}], not {images.dtype} {list(images.shape)}."
            )
        x = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        inner = self.blocks[:-1](F.relu(self.stem(x)))
        features = self.blocks[-1](inner).mean((2, 3))
        return features, inner[:, :SPATIAL_CHANNELS].flatten(1), self.head(features)


def split(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sorted indices of a pack's training part and of its held-out tenth; the same for the same count."""
    order = np.random.Generator(np.random.Philox(key=[SPLIT_SEED, count])).permutation(count)
    held = max(1, round(HELD_OUT * count))
    return np.sort(order[held:]), np.sort(order[:held])


def open_trusted(path: Path) -> Features:
    """The extractor in a file, to measure with. Raises FeaturesError also for one that only guesses."""
    features = open_features(path)
    if features.is_guessing:
        raise FeaturesError(f"{path}: {features.doubt} Train it on more images, or with --set epochs=50.")
    return features


def open_features(path: Path) -> Features:
    """The extractor in a file, in eval mode on the CPU. Raises FeaturesError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["features"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        if about["format"] != FORMAT:
            raise FeaturesError(f"{path} has features of another format than {FORMAT}: train them again.")
        config = FeaturesConfig(**about["config"] | {"widths": tuple(about["config"]["widths"])})
        network = FeatureNet(config)
        network.load_state_dict(weights)
        class_names, accuracy = tuple(about["class_names"]), float(about["accuracy"])
        int(about["held_out"])  # a file without it cannot say what its accuracy is worth
    except FileNotFoundError:
        raise FeaturesError(f"There is no file {path}.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FeaturesError(
            f"{path} is not a feature extractor ({str(error).splitlines()[0]}): make one with "
            "`sagan train features --data PACK --out FILE`."
        ) from error
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Features(network.eval().requires_grad_(False), class_names, accuracy, about, digest)


@torch.inference_mode()
def look(
    extractor: Extractor,
    images: Tensor,
    labels: npt.NDArray[np.int64],
    device: str = "cpu",
    batch: int = 250,
) -> FeatureSet:
    """The extractor's view of images uint8 [N, 3, R, R] of classes [N]."""
    # TF32 would move the figures in their third digit, and only on some GPUs
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [extractor.views(part.to(device)) for part in torch.split(images, batch)]
    features, spatial, logits = (torch.cat(view).cpu().numpy() for view in zip(*parts, strict=True))
    return FeatureSet(features, spatial, logits, labels)


def extract(
    network: FeatureNet, images: Tensor, device: str = "cpu", batch: int = 500
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Features [N, D] and predicted classes [N] of images uint8 [N, 3, R, R]."""
    seen = look(network, images, np.zeros(len(images), np.int64), device, batch)
    return seen.features.astype(np.float64), seen.logits.argmax(1)
