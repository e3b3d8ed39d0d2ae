"""A small classifier of a pack's own classes, whose last features judge generated images.

Its distances are comparable only between models measured with the same extractor file, whose hash
therefore stands beside every figure; they are not FID, which needs the Inception network of that name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass as checked
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from train.data.pack import Pack
from train.errors import FeaturesError
from train.recipes.recipe import STRICT, Count, Real, Seed, Share

FORMAT = "sagan-features-1"
HELD_OUT = 0.1  # share of a pack that the extractor never trains on
LEAST_STEPS = 500  # optimiser steps; a pack of few images is shown again and again until then
LEAST_BATCH = 32  # images; as far down as a batch is halved for a small pack
EPOCH_STEPS = 16  # in an epoch, before a batch is halved
POOR = 0.25  # skill under which figures are not to be trusted
SPLIT_SEED = 0  # the same for every pack, so that anyone can name the held-out images again
SPATIAL_CHANNELS = 7  # of an inner map that keeps its places, as sFID takes them (Nash et al. 2021)


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


@checked(frozen=True, config=STRICT)
class FeaturesRecipe:
    """How it is trained; the defaults are for 16,000 images and more, `fitting` is for any number."""

    epochs: Count = 8
    batch: Count = 256  # images a step
    learning_rate: Real = 0.2  # top of the one-cycle schedule; SGD with Nesterov momentum 0.9
    weight_decay: Real = 5e-4
    shift: Share = 1 / 8  # of the side; images move up to this far in each direction, reflected at the edge
    flips: bool = True
    seed: Seed = 0

    @classmethod
    def fitting(cls, images: int, **settings: Any) -> FeaturesRecipe:
        """For so many images to train on; `settings` are fields, and win.

        The batch is halved, down to 32, while an epoch has fewer than 16 steps; then there are as many more
        epochs as 500 steps take. From 4,096 images on the batch is the default, from 16,128 on all of it.
        """
        recipe = cls(**settings)
        if "batch" not in settings:
            recipe = replace(recipe, batch=fitting_batch(images, recipe.batch))
        if "epochs" not in settings:
            steps = max(1, images // recipe.batch)  # an epoch
            recipe = replace(recipe, epochs=max(recipe.epochs, math.ceil(LEAST_STEPS / steps)))
        return recipe


class Extractor(Protocol):
    """What looks at images: our own classifier, or Inception."""

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images uint8 [B, 3, R, R]: features [B, D], features with their places [B, S], logits [B, K]."""
        ...


@dataclass(frozen=True)
class Seen:
    """What an extractor sees in N images, float32 on the CPU."""

    features: npt.NDArray[np.float32]  # [N, D]
    spatial: npt.NDArray[np.float32]  # [N, S]: a map's channels with their places, flattened
    logits: npt.NDArray[np.float32]  # [N, K]
    labels: npt.NDArray[np.int64]  # [N], what the images are, or were asked to be

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Seen:
        return Seen(self.features[index], self.spatial[index], self.logits[index], self.labels[index])

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(cls)
            )
        )


@dataclass(frozen=True)
class Features:
    """An extractor as its file has it."""

    network: FeatureNet
    class_names: tuple[str, ...]
    accuracy: float  # 0 to 1, on the held-out images of its pack
    metadata: dict[str, Any]  # pack_sha256, licence, recipe, seconds ...
    sha256: str  # of the file

    @property
    def guess(self) -> float:
        """Accuracy of always naming the pack's largest class; of older files, as if all were equal."""
        return float(self.metadata.get("guess", 1 / len(self.class_names)))

    @property
    def is_guessing(self) -> bool:
        """Whether the held-out images leave it possible: the accuracy is within two standard errors of it."""
        error = math.sqrt(self.guess * (1 - self.guess) / self.metadata["held_out"])
        return self.accuracy <= self.guess + 2 * error

    @property
    def doubt(self) -> str | None:
        """Why figures in these features are not to be trusted, a sentence; None: nothing speaks against it.

        The measure is skill, (accuracy - guess) / (1 - guess): 0 for guessing, 1 for always right.
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
        """Features that know where: 7 channels of the map before the last block, 7×7, flattened [B, 343]."""
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


def fitting_batch(images: int, batch: int = FeaturesRecipe.batch) -> int:
    """`batch`, halved while an epoch of so many images has fewer than 16 steps, but not below 32."""
    while batch >= 2 * LEAST_BATCH and images < EPOCH_STEPS * batch:
        batch //= 2
    return batch


def split(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sorted indices of a pack's training part and of its held-out tenth; the same for the same count."""
    order = np.random.Generator(np.random.Philox(key=[SPLIT_SEED, count])).permutation(count)
    held = max(1, round(HELD_OUT * count))
    return np.sort(order[held:]), np.sort(order[:held])


def train_features(
    pack: Pack,
    out: Path,
    recipe: FeaturesRecipe | None = None,
    widths: tuple[int, ...] = FeaturesConfig.widths,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Features:
    """Train an extractor on nine tenths of a pack, measure it on the rest, write and return it.

    recipe: None: what fits the number of images. How far the extractor is to be trusted is in its `doubt`.
    Raises FeaturesError where the pack does not fit or the loss is no longer finite.
    """
    started = time.monotonic()
    train, held = (torch.from_numpy(part) for part in split(len(pack)))
    recipe = recipe or FeaturesRecipe.fitting(len(train))
    network = fit(pack, train, recipe, widths, device, progress)
    accuracy = held_out_accuracy(network, pack, held, device)
    metadata = {
        "format": FORMAT,
        "config": asdict(network.config),
        "class_names": pack.class_names,
        "accuracy": accuracy,
        "guess": float(pack.labels.bincount().max()) / len(pack),
        "held_out": len(held),
        "trained_on": len(train),
        "pack": pack.metadata.get("source"),
        "pack_sha256": pack.metadata.get("sha256"),
        "licence": pack.metadata.get("licence"),
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started, 1),
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    _write(out, save(weights, {"features": json.dumps(metadata)}))
    return open_features(out)


def fit(
    pack: Pack,
    train: Tensor,
    recipe: FeaturesRecipe,
    widths: tuple[int, ...] = FeaturesConfig.widths,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FeatureNet:
    """A classifier trained on the images `train` [N] of a pack, in eval mode on `device`.

    Raises FeaturesError where the pack does not fit or the loss is no longer finite.
    """
    config = FeaturesConfig(pack.resolution, len(pack.class_names), widths)
    if len(train) < 2:
        raise FeaturesError(f"Features need at least 2 images to train on, not {len(train)}.")
    network = _initial(config, pack.images[train[:5000]], recipe.seed).to(device)
    _fit(network, pack, train, recipe, device, progress)
    return network.eval().requires_grad_(False)


def held_out_accuracy(network: FeatureNet, pack: Pack, held: Tensor, device: str = "cpu") -> float:
    """Share, 0 to 1, of the images `held` [N] of a pack that the classifier gets right."""
    _, predicted = extract(network, pack.images[held], device)
    return float(np.mean(predicted == pack.labels[held].numpy()))


def open_trusted(path: Path) -> Features:
    """As `open_features`, to measure with. Raises FeaturesError also for one that only guesses."""
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
        int(about["held_out"])  # what the accuracy is worth
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
) -> Seen:
    """What the extractor sees in images uint8 [N, 3, R, R] of classes [N]."""
    # TF32 would move the figures in their third digit, and only on some GPUs
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [extractor.views(part.to(device)) for part in torch.split(images, batch)]
    features, spatial, logits = (torch.cat(view).cpu().numpy() for view in zip(*parts, strict=True))
    return Seen(features, spatial, logits, labels)


def extract(
    network: FeatureNet, images: Tensor, device: str = "cpu", batch: int = 500
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Features [N, D] and predicted classes [N] of images uint8 [N, 3, R, R]."""
    seen = look(network, images, np.zeros(len(images), np.int64), device, batch)
    return seen.features.astype(np.float64), seen.logits.argmax(1)


def _initial(config: FeaturesConfig, images: Tensor, seed: int) -> FeatureNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureNet(config)
        nn.init.normal_(network.head.weight, std=0.01)
    kernel, stride = network.stem.kernel_size[0], network.stem.stride[0]
    x = images.float() / 127.5 - 1
    sample = F.unfold(x, kernel, stride=max(stride, 4)).transpose(1, 2).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(sample.T.cov() if len(sample) > 1 else sample.T @ sample)
    half = config.stem // 2  # the other half is the same with the opposite sign: ReLU keeps both
    values, vectors = values.flip(0)[:half], vectors.flip(1)[:, :half]
    filters = (vectors / (values.clamp(min=0) + 1e-2).sqrt()).T.float()
    filters = filters.reshape(-1, 3, kernel, kernel)
    with torch.no_grad():
        network.stem.weight[: len(filters)] = filters
        network.stem.weight[half : half + len(filters)] = -filters
    network.stem.weight.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def _fit(
    network: FeatureNet,
    pack: Pack,
    train: Tensor,
    recipe: FeaturesRecipe,
    device: str,
    progress: Progress | None,
) -> None:
    network.train()
    rng = torch.Generator().manual_seed(recipe.seed)
    batch = min(recipe.batch, len(train))
    steps = len(train) // batch
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        parameters, recipe.learning_rate, 0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * steps + 1, pct_start=0.25
    )
    task = progress.add_task("features", total=recipe.epochs * steps * batch) if progress else None
    for epoch in range(recipe.epochs):
        order = train[torch.randperm(len(train), generator=rng)]
        total = torch.zeros((), device=device)
        for index in torch.split(order[: steps * batch], batch):
            images = augment(pack.images[index], recipe, rng).to(device)
            loss = F.cross_entropy(network(images)[1], pack.labels[index].to(device))
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.detach()
            if progress and task is not None:
                progress.advance(task, batch)
        mean = float(total) / steps
        if not math.isfinite(mean):
            raise FeaturesError(f"The loss is {mean} after epoch {epoch + 1}: lower the learning rate.")
        if progress and task is not None:
            progress.update(task, description=f"features, epoch {epoch + 1}, loss {mean:.3f}")


def augment(images: Tensor, recipe: FeaturesRecipe, rng: torch.Generator) -> Tensor:
    """Each image moved by its own amount, reflected at the edge, half of them mirrored; uint8 as before."""
    count, _, height, width = images.shape
    rows = _moved(count, height, recipe.shift, rng)
    columns = _moved(count, width, recipe.shift, rng)
    if recipe.flips:
        mirrored = torch.rand(count, generator=rng) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    # the indexed axes come first: [B, H, W, C], which is channels_last already
    return images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _moved(count: int, side: int, shift: float, rng: torch.Generator) -> Tensor:
    """Indices [count, side] of the source pixel of each pixel along one axis."""
    reach = int(side * shift)
    by = torch.randint(-reach, reach + 1, (count, 1), generator=rng)
    index = (torch.arange(side) + by).abs()
    return side - 1 - (side - 1 - index).abs()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise FeaturesError(f"The features cannot be written to {path} ({error.strerror}).") from error
    finally:
        partial.unlink(missing_ok=True)
