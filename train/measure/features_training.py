"""The training of the classifier in `train.measure.features`, on nine tenths of a pack."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass as checked
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor, nn

from imaging.files import write_whole
from train.data.pack import Pack
from train.errors import FeaturesError
from train.measure.features import FORMAT, FeatureNet, Features, FeaturesConfig, extract, open_features, split
from train.recipes.recipe import STRICT, Count, Real, Seed, Share

LEAST_STEPS = 500  # optimiser steps; a pack of few images is shown again and again until then
LEAST_BATCH = 32  # images; a batch is halved for a small pack no further than this
EPOCH_STEPS = 16  # an epoch with fewer has its batch halved


@checked(frozen=True, config=STRICT)
class FeaturesRecipe:
    """The settings; the defaults are for 16,000 images and more, `fitting` is for any number."""

    epochs: Count = 8
    batch: Count = 256  # images a step
    learning_rate: Real = 0.2  # top of the one-cycle schedule; SGD with Nesterov momentum 0.9
    weight_decay: Real = 5e-4
    shift: Share = 1 / 8  # of the side; images move up to this far in each direction, reflected at the edge
    flips: bool = True
    seed: Seed = 0

    @classmethod
    def fitting(cls, images: int, **settings: Any) -> FeaturesRecipe:
        """The settings for so many images to train on; `settings` are fields, and win.

        The batch is halved, down to 32, while an epoch has fewer than 16 steps; then epochs are added until
        there are 500 steps. From 4,096 images on the batch is the default, from 16,128 on every setting is.
        """
        recipe = cls(**settings)
        if "batch" not in settings:
            recipe = replace(recipe, batch=fitting_batch(images, recipe.batch))
        if "epochs" not in settings:
            steps = max(1, images // recipe.batch)  # an epoch
            recipe = replace(recipe, epochs=max(recipe.epochs, math.ceil(LEAST_STEPS / steps)))
        return recipe


def fitting_batch(images: int, batch: int = FeaturesRecipe.batch) -> int:
    """`batch`, halved while an epoch of so many images has fewer than 16 steps, but not below 32."""
    while batch >= 2 * LEAST_BATCH and images < EPOCH_STEPS * batch:
        batch //= 2
    return batch


def train_features(
    pack: Pack,
    out: Path,
    recipe: FeaturesRecipe | None = None,
    widths: tuple[int, ...] = FeaturesConfig.widths,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Features:
    """Train an extractor on nine tenths of a pack, measure it on the rest, write and return it.

    recipe: None: the one that fits the number of images. The extractor's `doubt` says how far to trust it.
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
    try:
        write_whole(out, save(weights, {"features": json.dumps(metadata)}))
    except OSError as error:
        raise FeaturesError(f"The features cannot be written to {out} ({error.strerror}).") from error
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
    """uint8 images [B, 3, H, W], each moved by its own amount, reflected at the edge; half are mirrored."""
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
