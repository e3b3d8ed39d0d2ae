"""Classification accuracy score: accuracy on real images of a classifier that saw only generated ones.

Ravuri and Vinyals 2019, with the small classifier of `train.measure.features` in place of their ResNet.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from train.data.pack import Pack
from train.errors import FeaturesError
from train.measure.distances import Labels
from train.measure.features import split
from train.measure.features_training import FeaturesRecipe, fit, fitting_batch, held_out_accuracy
from train.measure.metrics import SAMPLES, Sampler, check_classes, generate, some, stratified

_SEEN = 50_000  # images that a classifier sees in training, at least; few are repeated
_EPOCHS = (8, 30)  # fewest, most


def classification_accuracy(
    sampler: Sampler,
    pack: Pack,
    samples: int = SAMPLES,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    recipe: FeaturesRecipe | None = None,
) -> dict[str, object]:
    """Accuracy on real held-out images of a classifier trained on `samples` generated images alone.

    Beside it stands that of the same classifier trained on as many real images, of the nine tenths of the
    pack that `split` names; their number bounds `samples`. Both are tested on the other tenth.
    recipe: None: as many epochs as show 50,000 images, 8 to 30, in batches that fit as many images.
    Returns {"protocol", "generated", "real"}, ready for JSON.
    Raises FeaturesError where classes, sizes or numbers do not fit.
    """
    check_classes("reference", pack.class_names, "generator", sampler.class_names)
    train, held = split(len(pack))
    samples = min(samples, len(train))  # so that there are as many real ones
    recipe = recipe or FeaturesRecipe(
        batch=fitting_batch(samples), epochs=min(max(_SEEN // samples, _EPOCHS[0]), _EPOCHS[1])
    )
    started = time.monotonic()
    labels = stratified(pack.labels.numpy()[train], samples)
    parts: list[Tensor] = []

    def keep(images: Tensor, labels: Labels) -> None:
        parts.append(images.cpu())

    generate(sampler, labels, seed, keep, progress)
    made = replace(pack, images=torch.cat(parts), labels=torch.from_numpy(labels), shards=())
    if (side := made.images.shape[-1]) != pack.resolution:
        raise FeaturesError(f"The generator makes {side} px and the reference has {pack.resolution} px.")
    # the first images whiten the stem: they must not be of the first classes alone
    order = np.random.Generator(np.random.Philox(key=[recipe.seed, samples])).permutation(samples)
    sources = {"generated": (made, order), "real": (pack, some(train, samples)[order])}
    scores = {}
    for name, (source, chosen) in sources.items():
        network = fit(source, torch.from_numpy(chosen), recipe, device=device, progress=progress)
        scores[name] = held_out_accuracy(network, pack, torch.from_numpy(held), device)
    return {
        "protocol": {
            "score": "accuracy of a small classifier, trained on these images alone, on real ones",
            "images": samples,
            "classes": "in the proportions of nine tenths of the pack",
            "real": "as many, drawn from nine tenths of the pack",
            "tested_on": f"{len(held):,} real images, the other tenth; the generator may have seen them",
            "recipe": asdict(recipe),
            "reference": pack.metadata.get("source"),
            "reference_sha256": pack.metadata.get("sha256"),
            "resolution": pack.resolution,
            "seed": seed,
            "truncation": sampler.truncation,
            "versions": {"torch": torch.__version__},
            "seconds": round(time.monotonic() - started, 1),
        },
        **scores,
    }
