"""Reports on generated images: figures with their extractor, reference and number of images.

Figures compare only where all three agree. FID and IS are defined by the Inception network: figures in our
own classifier's features have names of their own.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from imaging.levels import to_levels
from imaging.noise import noise
from model.generator import Generator
from model.serving.fused import FusedGenerator
from train.data.pack import Pack
from train.data.sources.base import same_classes
from train.errors import FeaturesError
from train.measure.distances import (
    KID_SIZE,
    KID_SUBSETS,
    NEIGHBOURS,
    SPLITS,
    Labels,
)
from train.measure.features import (
    SPATIAL_CHANNELS,
    SPLIT_SEED,
    Extractor,
    Features,
    FeatureSet,
    look,
    open_trusted,
    split,
)
from train.measure.figures import (
    INCEPTION_KID_SUBSETS,
    INCEPTION_NEIGHBOUR_IMAGES,
    NEAREST,
    NEAREST_IMAGES,
    NEIGHBOUR_IMAGES,
    inception_figures,
    own_figures,
)
from train.measure.inception import Inception

SAMPLES = 5000  # generated images, unless told
REFERENCE_IMAGES = 10_000  # of "train", at most: more take minutes on a CPU and change little
INCEPTION_SAMPLES = (10_000, 50_000)  # the second for packs of at least as many images
_BATCH = 250  # images


class Sampler(Protocol):
    """A source of images of given classes, to be measured."""

    @property
    def class_names(self) -> Sequence[str]: ...

    @property
    def truncation(self) -> float: ...

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        """Images uint8 [B, 3, R, R] of the classes `labels` [B]; image i is number first + i of `seed`."""
        ...


@dataclass(frozen=True)
class GeneratorSampler:
    """Images of a generator, each a function of (seed, number, class) alone."""

    generator: Generator | FusedGenerator
    class_names: Sequence[str]
    truncation: float = 1.0
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        latent = self.generator.config.latent
        z = np.stack([noise(seed, first + i, latent, self.truncation) for i in range(len(labels))])
        latents = torch.from_numpy(z).to(self.device)
        images: Tensor = self.generator(latents, labels.to(self.device))
        return to_levels(images).cpu()


def evaluate(
    sampler: Sampler,
    features_file: Path,
    reference_pack: Pack,
    samples: int = SAMPLES,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    reference: str = "train",
) -> dict[str, object]:
    """Every figure in own features for `samples` generated images, and the same for real ones.

    Classes are drawn as often as the reference has them. reference: "train": at most 10,000 images of the
    nine tenths of the pack that `split` names; "held-out": the other tenth; "all". The second row is of real
    images outside of its reference: a perfect generator's figures at that number of images.
    Returns {"protocol", "generated", "real_held_back"}, ready for JSON; where the extractor is a poor judge,
    or the images are few, the protocol has a "warning". Raises FeaturesError where classes, sizes or numbers
    do not fit, and for an extractor that only guesses.
    """
    features = open_trusted(features_file)
    _check(sampler, features, reference_pack)
    names = features.class_names
    yardstick = Yardstick(
        features.network.to(device),
        NEIGHBOURS + 1,
        lambda known, images: own_figures(known, images, names, seed, device),
        {
            "features": "own classifier (not Inception: this is no FID)",
            "features_sha256": features.sha256,
            "features_accuracy": features.accuracy,
            **({"warning": features.doubt} if features.doubt else {}),
            "features_pack_sha256": features.metadata.get("pack_sha256"),
            "kid": f"cubic kernel, mean of {KID_SUBSETS} subsets of at most {KID_SIZE}",
            "neighbours": f"{NEIGHBOURS} nearest, among at most {NEIGHBOUR_IMAGES:,} images of each set",
            "spatial": f"{SPATIAL_CHANNELS} channels of the map before the last block, each place a feature",
            "intra_class": "mean over classes; classes with one image in either set are left out",
        },
    )
    chosen = choose_reference(reference, len(reference_pack), samples, REFERENCE_IMAGES)
    return compare(sampler, yardstick, reference_pack, chosen, samples, seed, device, progress)


def evaluate_with_inception(
    sampler: Sampler,
    inception: Inception,
    reference_pack: Pack,
    samples: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    reference: str = "all",
) -> dict[str, object]:
    """FID, Inception score, KID, precision ... coverage, intra-class FID and sFID; else as `evaluate`.

    samples: None: 50,000 where the pack has as many images, else 10,000. No reference is cut short.
    """
    check_classes("reference", reference_pack.class_names, "generator", sampler.class_names)
    names = tuple(reference_pack.class_names)
    if samples is None:
        samples = INCEPTION_SAMPLES[len(reference_pack) >= INCEPTION_SAMPLES[1]]
    yardstick = Yardstick(
        inception.to(device),
        SPLITS,
        lambda known, images: inception_figures(known, images, names, seed, device),
        {
            **inception.protocol,
            "inception_score": f"{SPLITS} splits in torch-fidelity's order, logits without their bias",
            "kid": f"cubic kernel, mean of {INCEPTION_KID_SUBSETS} subsets of at most {KID_SIZE}",
            "neighbours": f"{NEIGHBOURS} nearest, among at most {INCEPTION_NEIGHBOUR_IMAGES:,} images "
            "of each set",
            "intra_fid": "mean over classes; classes with one image in either set are left out",
        },
    )
    chosen = choose_reference(reference, len(reference_pack), samples, None)
    return compare(sampler, yardstick, reference_pack, chosen, samples, seed, device, progress)


def stratified(labels: Labels, samples: int) -> Labels:
    """`samples` labels in the proportions of `labels`, in order of class."""
    return np.sort(labels)[((np.arange(samples) + 0.5) * len(labels) / samples).astype(np.int64)]


def generate(
    sampler: Sampler,
    labels: Labels,
    seed: int,
    use: Callable[[Tensor, Labels], object],
    progress: Progress | None = None,
) -> None:
    """Give images uint8 [B, 3, R, R] of the classes [N], with their labels, to `use`, batch by batch."""
    task = progress.add_task("generated images", total=len(labels)) if progress else None
    for start in range(0, len(labels), _BATCH):
        part = labels[start : start + _BATCH]
        use(sampler(torch.from_numpy(part), seed, start), part)
        if progress and task is not None:
            progress.advance(task, len(part))


def some(indices: Labels, count: int) -> Labels:
    """At most `count` of the indices, always the same ones, sorted."""
    rng = np.random.Generator(np.random.Philox(key=[SPLIT_SEED, len(indices)]))
    return np.sort(rng.permutation(indices)[:count])


@dataclass(frozen=True)
class Yardstick:
    """An extractor with the figures in its features, and how they are to be read."""

    extractor: Extractor
    least: int  # images that a set must have
    measure: Callable[[FeatureSet, FeatureSet], dict[str, object]]  # reference, images
    protocol: Mapping[str, object]
    # features of the pack's images of these numbers; None: the extractor looks at them
    see: Callable[[Labels], FeatureSet] | None = None


@dataclass(frozen=True)
class Reference:
    """The images of a pack that others are measured against, and the real ones for the second row."""

    images: Labels  # indices into the pack, sorted
    real: Labels  # of the second row, which is measured against the images that are not in it
    text: str


def choose_reference(which: str, count: int, samples: int, limit: int | None) -> Reference:
    """The reference called `which` in a pack of `count` images. Raises FeaturesError for another name.

    samples: images of the second row, at most. limit: images of "train", at most; None: all.
    """
    train, held = split(count)
    if which == "train":
        return Reference(
            some(train, limit or count),
            some(held, samples),
            "drawn from nine tenths of the pack; real_held_back from the other tenth",
        )
    if which == "held-out":
        return Reference(
            held,
            some(train, samples),
            "the tenth of the pack that no extractor trains on, though a generator may have; "
            "real_held_back from the other nine tenths",
        )
    if which == "all":
        return Reference(
            np.arange(count),
            some(held, samples),
            "all images of the pack; real_held_back: images of one tenth against all the others",
        )
    raise FeaturesError(f"There is no reference {which!r}: choose all, train or held-out.")


def _compare_nearest(rows: Mapping[str, dict[str, object]]) -> None:
    """Add to each row how far the nearest real images are, as a share of the held-back reals' distance."""
    others = cast(float, rows["real_held_back"][NEAREST])
    for row in rows.values():
        row[f"{NEAREST}_ratio"] = cast(float, row[NEAREST]) / others if others > 0 else None


def compare(
    sampler: Sampler,
    yardstick: Yardstick,
    pack: Pack,
    reference: Reference,
    samples: int,
    seed: int,
    device: str,
    progress: Progress | None,
) -> dict[str, object]:
    """The report of one yardstick."""
    extractor, least = yardstick.extractor, yardstick.least
    see = yardstick.see or partial(look_at_pack, extractor, pack, device=device, progress=progress)
    if min(samples, len(reference.images), len(reference.real)) < least:
        raise FeaturesError(
            f"At least {least} generated and {10 * least} real images are needed, "
            f"not {samples} and {len(pack)}."
        )
    started = time.monotonic()
    known = see(reference.images)
    parts: list[FeatureSet] = []
    generate(
        sampler,
        stratified(known.labels, samples),
        seed,
        lambda images, labels: parts.append(look(extractor, images, labels, device)),
        progress,
    )
    real = see(reference.real)
    rows = {
        "generated": yardstick.measure(known, FeatureSet.joined(parts)),
        "real_held_back": yardstick.measure(known[~np.isin(reference.images, reference.real)], real),
    }
    _compare_nearest(rows)
    protocol = _warned(yardstick.protocol, min(samples, len(reference.images)), known.features.shape[1])
    return {
        "protocol": {
            **protocol,
            "reference": pack.metadata.get("source"),
            "reference_sha256": pack.metadata.get("sha256"),
            "reference_images": len(reference.images),
            "reference_split": reference.text,
            "resolution": pack.resolution,
            "samples": samples,
            "classes": "in the reference's proportions",
            "nearest_real": f"median distance to the nearest reference image, of at most {NEAREST_IMAGES:,}; "
            "ratio: as a share of real_held_back's; half is copying; null: most real images have a twin",
            "seed": seed,
            "truncation": sampler.truncation,
            "arithmetic": "features in float32 without TF32, figures in float64",
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            "versions": {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "seconds": round(time.monotonic() - started, 1),
        },
        **rows,
    }


def _warned(protocol: Mapping[str, object], images: int, width: int) -> dict[str, object]:
    """The protocol, with a warning where so few images are too few for a Fréchet distance of that width."""
    doubts = [str(protocol["warning"])] if protocol.get("warning") else []
    if images <= width:
        doubts.append(
            f"A Fréchet distance of {images:,} images in {width:,} features mostly tells how few they are: "
            "go by KID, or measure with more."
        )
    return {**protocol, **({"warning": " ".join(doubts)} if doubts else {})}


def look_at_pack(
    extractor: Extractor, pack: Pack, indices: Labels, device: str, progress: Progress | None
) -> FeatureSet:
    """The extractor's view of the pack's images `indices`, in their order."""
    parts = []
    task = progress.add_task("real images", total=len(indices)) if progress else None
    for start in range(0, len(indices), _BATCH):
        index = torch.from_numpy(indices[start : start + _BATCH])
        parts.append(look(extractor, pack.images[index], pack.labels[index].numpy(), device))
        if progress and task is not None:
            progress.advance(task, len(index))
    return FeatureSet.joined(parts)


def _check(sampler: Sampler, features: Features, pack: Pack) -> None:
    if pack.resolution != features.network.config.resolution:
        raise FeaturesError(
            f"The extractor sees {features.network.config.resolution} px and the reference has "
            f"{pack.resolution} px: train features on that pack."
        )
    check_classes("generator", sampler.class_names, "extractor", features.class_names)
    check_classes("reference", pack.class_names, "extractor", features.class_names)


def check_classes(what: str, names: Sequence[str], whose: str, known: Sequence[str]) -> None:
    """Raises FeaturesError unless both have the same classes in the same order."""
    if not same_classes(names, known):
        raise FeaturesError(
            f"The {what} has other classes ({len(names)}: {', '.join(list(names)[:3])} …) than the "
            f"{whose} ({len(known)}: {', '.join(list(known)[:3])} …)."
        )
