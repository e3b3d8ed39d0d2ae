"""Figures in the features of an ImageNet network that no generator here learnt from.

A run's pretrained judge sees through EfficientNet-Lite0. This looks through Lite2: a network that trained a
generator must not measure it. The figures have names of their own: FID and IS are defined by Inception.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from train.data.pack import Pack
from train.efficientnet import STRIDES, EfficientNetLite, open_network
from train.errors import FeaturesError
from train.measure.distances import KID_SIZE, KID_SUBSETS, NEIGHBOURS, Labels, accuracy, within_class_variance
from train.measure.features import FeatureSet, split
from train.measure.figures import NEIGHBOUR_IMAGES, figures
from train.measure.metrics import (
    REFERENCE_IMAGES,
    SAMPLES,
    Sampler,
    Yardstick,
    check_classes,
    choose_reference,
    compare,
    look_at_pack,
    some,
)
from train.measure.probe import DECAY, Probe, fit_probe

NETWORK = "lite2"
# px. The network learnt from 260 px and sees little in smaller images: the probe names the breed of 33 of 100
# held-back dogs at 64 px, and of 66 in the same images enlarged to 128.
LEAST_SIDE = 128
_BATCH = 32  # images a forward: more are no faster on a CPU
_NO_PROBE: dict[str, object] = {"probe_accuracy": None, "probe_accuracy_by_class": {}}


class Enlarged(nn.Module):
    """Images uint8 [B, 3, R, R], bilinearly enlarged to `side` -> features [B, 1280].

    side: 128, or for larger images the next multiple of 32. It runs in float32 everywhere: figures must not
    depend on a machine's bf16.
    """

    def __init__(self, network: EfficientNetLite, resolution: int) -> None:
        super().__init__()
        self.network = network
        self.resolution = resolution
        self.side = max(LEAST_SIDE, -(-resolution // STRIDES[-1]) * STRIDES[-1])

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, and neither places nor logits [B, 0]. Raises FeaturesError for images of another size."""
        if images.shape[-1] != self.resolution or images.shape[-2] != self.resolution:
            raise FeaturesError(
                f"The generator makes {images.shape[-1]} px and the reference has {self.resolution} px."
            )
        seen = torch.cat([self._features(part) for part in torch.split(images, _BATCH)])
        return seen, seen[:, :0], seen[:, :0]

    def _features(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1
        if self.side != self.resolution:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
        with torch.autocast(x.device.type, enabled=False):
            return self.network.features(x)


class PretrainedEye:
    """The network's view of a pack: each real image is looked at once, for however many generators."""

    def __init__(
        self,
        pack: Pack,
        network: EfficientNetLite,
        device: str = "cpu",
        reference: str = "train",
        progress: Progress | None = None,
    ) -> None:
        self.pack = pack
        self.device = device
        self.reference = reference
        self.extractor = Enlarged(network, pack.resolution).to(device)
        self._progress = progress
        self._probe: Probe | None = None
        self._known = np.zeros(len(pack), np.bool_)
        # the system gives memory only for rows that are written
        self._features = np.empty((len(pack), network.classify.in_features), np.float32)

    def see(self, indices: Labels) -> FeatureSet:
        """Features of the pack's images of these numbers, without places or logits."""
        new = indices[~self._known[indices]]
        if len(new):
            seen = look_at_pack(self.extractor, self.pack, new, self.device, self._progress)
            self._features[new], self._known[new] = seen.features, True
        found = self._features[indices]
        return FeatureSet(found, found[:, :0], found[:, :0], self.pack.labels.numpy()[indices])

    def measure(self, sampler: Sampler, samples: int = SAMPLES, seed: int = 0) -> dict[str, object]:
        """The report of one generator, as `evaluate_with_pretrained` returns it."""
        check_classes("reference", self.pack.class_names, "generator", sampler.class_names)
        chosen = choose_reference(self.reference, len(self.pack), samples, REFERENCE_IMAGES)
        yardstick = Yardstick(
            self.extractor,
            NEIGHBOURS + 1,
            lambda known, images: self._figures(known, images, seed),
            self._protocol(),
            self.see,
        )
        report = compare(sampler, yardstick, self.pack, chosen, samples, seed, self.device, self._progress)
        row = cast("dict[str, object]", report["real_held_back"])
        del row["typical"]  # numbers of a generator's images make them again
        if self.reference == "held-out":
            row.update(_NO_PROBE)  # it would flatter these images, as it learnt from them
        return report

    def _figures(self, known: FeatureSet, images: FeatureSet, seed: int) -> dict[str, object]:
        share, by_class = within_class_variance(
            known.features, known.labels, images.features, images.labels, self.pack.class_names
        )
        found = figures(known.features, images.features, seed, self.device, "pretrained") | {
            "within_class_variance": share,
            "within_class_variance_by_class": {name: round(part, 4) for name, part in by_class.items()},
            "typical": typical(known, images, len(self.pack.class_names)),
            **_NO_PROBE,
        }
        if (probe := self._fitted()) is not None:
            right = accuracy(images.labels, probe.guess(images.features), self.pack.class_names)
            found |= {f"probe_{name}": value for name, value in right.items()}
        return found

    def _taught(self) -> Labels:
        """Numbers of the images for the probe to learn from."""
        return some(split(len(self.pack))[0], REFERENCE_IMAGES)

    def _fitted(self) -> Probe | None:
        """The probe; None: the pack has a single class."""
        if self._probe is None:
            seen = self.see(self._taught())
            if len(np.unique(seen.labels)) < 2:
                return None
            self._probe = fit_probe(seen.features, seen.labels, self.device)
        return self._probe

    def _protocol(self) -> dict[str, object]:
        side, resolution = self.extractor.side, self.pack.resolution
        return {
            "features": f"EfficientNet-{NETWORK.capitalize()}, taught by ImageNet (not Inception: this is no "
            "FID); a pack of ImageNet's own images, as Stanford Dogs, it may have seen",
            "network_sha256": self.extractor.network.sha256,
            "resize": "none" if side == resolution else f"bilinear from {resolution} to {side} px",
            "kid": f"cubic kernel, mean of {KID_SUBSETS} subsets of at most {KID_SIZE}",
            "neighbours": f"{NEIGHBOURS} nearest, among at most {NEIGHBOUR_IMAGES:,} images of each set",
            "within_class_variance": "trace of the unbiased covariance, mean over classes with two images in "
            "both sets, as a share of the reference's: 1 is as varied",
            "typical": "for each class the number of the image whose standardised features have the smallest "
            "angle to their mean over its reference images; null: it has none in either set",
            "probe": f"logistic regression, L2 {DECAY}, on standardised features of {len(self._taught()):,} "
            "real images of nine tenths of the pack; null for images it learnt from and for a single class",
        }


def typical(known: FeatureSet, images: FeatureSet, classes: int) -> list[int | None]:
    """For each class the row of `images` that is most like the class's mean in `known`; None: there is none.

    By the cosine of standardised features: by distance, pale images near the mean of all would be chosen.
    """
    mean, spread = known.features.mean(0), known.features.std(0) + 1e-6
    reference, x = (known.features - mean) / spread, (images.features - mean) / spread
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    chosen: list[int | None] = []
    for number in range(classes):
        rows, theirs = np.flatnonzero(images.labels == number), reference[known.labels == number]
        fit = x[rows] @ theirs.mean(0) if len(rows) and len(theirs) else None
        chosen.append(None if fit is None else int(rows[fit.argmax()]))
    return chosen


def open_eye(
    pack: Pack, device: str = "cpu", reference: str = "train", progress: Progress | None = None
) -> PretrainedEye:
    """The installed network and a pack. Raises PretrainedError where it is not installed."""
    return PretrainedEye(pack, open_network(NETWORK), device, reference, progress)


def evaluate_with_pretrained(
    sampler: Sampler,
    network: EfficientNetLite,
    reference_pack: Pack,
    samples: int = SAMPLES,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    reference: str = "train",
) -> dict[str, object]:
    """Fréchet distance, KID, precision ... coverage, variance within classes, a probe; else as `evaluate`.

    probe_accuracy is the share of images that a linear probe takes for the class they were asked to be. The
    probe learns from real images of nine tenths of the pack; its accuracy on real_held_back is the ceiling.
    """
    eye = PretrainedEye(reference_pack, network, device, reference, progress)
    return eye.measure(sampler, samples, seed)
