"""Figures while a run trains, of few images; the best generator by them is kept.

They are in the features of `sagan evaluate`, own ones or a pretrained network's, but of other numbers of
images: to compare runs by, measure their ends with `sagan evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from model.checkpoint import load_generator
from model.errors import ModelError
from train.data.pack import Pack
from train.efficientnet import installed, open_network
from train.errors import FeaturesError
from train.measure.distances import KID_SUBSETS, NEIGHBOURS, kernel_distance, neighbourhoods
from train.measure.eye import NETWORK, Enlarged
from train.measure.features import Extractor, FeatureSet, look, open_trusted, split
from train.measure.metrics import GeneratorSampler, check_classes, generate, look_at_pack, some, stratified
from train.run.observers import serving, write_served
from train.run.state import TrainingState

BEST = "best.safetensors"  # in the run's folder
KEPT = "while_training"  # the figures' name in that file
SAMPLES = 200  # generated images
REALS = 1000  # at most: the first measurement looks at them
_SEED = 0  # the same noise each time, so that only the generator differs

Tell = Callable[[int, Mapping[str, float]], None]  # a step and its figures, by name


def open_extractor(pack: Pack, features: Path | None) -> tuple[Extractor, str, str]:
    """The network to measure with, its name in figures, and its sha256.

    features: file of the own classifier; None: the pretrained network. Raises FeaturesError.
    """
    if features is not None:
        own = open_trusted(features)
        if own.network.config.resolution != pack.resolution:
            raise FeaturesError(
                f"{features} sees {own.network.config.resolution} px and the data has {pack.resolution} px: "
                "train features on that data."
            )
        check_classes("data", pack.class_names, "extractor", own.class_names)
        return own.network, "own_features", own.sha256
    if not installed(NETWORK):
        raise FeaturesError(
            "schedule.measure_every needs features to measure in: pip install 'sagan-service[pretrained]', "
            "or give --features FILE, or leave it out."
        )
    network = open_network(NETWORK)
    return Enlarged(network, pack.resolution), "pretrained", network.sha256


class Measured:
    """Measures the averaged generator every `schedule.measure_every` steps, while other processes wait.

    tell: gets the figures, and the best KID so far as "best". step: the run goes on from it; 0: it is new.
    """

    def __init__(
        self,
        out: Path,
        pack: Pack,
        extractor: tuple[Extractor, str, str],
        step: int,
        device: str,
        metadata: Mapping[str, object],
        tell: Sequence[Tell],
    ) -> None:
        self.path, self.pack, self.device = out / BEST, pack, device
        self.metadata, self.tell = metadata, tell
        self.extractor, eye, digest = extractor
        here = pack.shards[0] if pack.shards else len(pack)  # other shards may be on other hosts
        train = split(len(pack))[0]
        self.reals = some(train[train < here], REALS)
        if len(self.reals) <= NEIGHBOURS:
            raise FeaturesError(
                f"{len(pack)} images are too few to measure by: leave schedule.measure_every out."
            )
        self.figure = f"kid_{eye}"
        self.protocol: dict[str, object] = {
            "features": eye,
            "features_sha256": digest,
            "reference_sha256": pack.metadata.get("sha256"),
            "reference_images": len(self.reals),
            "samples": SAMPLES,
            "seed": _SEED,
            "warning": "Of few images, to follow one run by: `sagan evaluate` measures what comes out of it.",
        }
        self.best = self._best() if step else None
        self._known: FeatureSet | None = None

    def after(self, state: TrainingState) -> None:
        every = state.recipe.schedule.measure_every
        if not every or state.step % every or (served := serving(state)) is None:
            return
        figures = self._measure(GeneratorSampler(served, self.pack.class_names, device=self.device))
        if self.best is None or figures[self.figure] < self.best:
            self.best = figures[self.figure]
            kept = {KEPT: {"protocol": self.protocol, "generated": figures}}
            write_served(self.path, state, self.metadata, kept)
        for tell in self.tell:
            tell(state.step, figures | {"best": self.best})

    def close(self, state: TrainingState) -> None:
        pass

    def _measure(self, sampler: GeneratorSampler) -> dict[str, float]:
        if self._known is None:
            extractor = cast(Extractor, self.extractor.to(self.device))  # type: ignore[attr-defined]
            self._known = look_at_pack(extractor, self.pack, self.reals, self.device, None)
        known, parts = self._known, list[FeatureSet]()
        generate(
            sampler,
            stratified(known.labels, SAMPLES),
            _SEED,
            lambda images, labels: parts.append(look(self.extractor, images, labels, self.device)),
        )
        made = FeatureSet.joined(parts).features
        rng = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
        kid, _ = kernel_distance(known.features, made, rng, KID_SUBSETS, self.device)
        count = min(len(known), len(made))
        real = known.features[rng.choice(len(known), count, replace=False)]
        spread = np.linspace(0, len(made) - 1, count).round().astype(np.int64)  # over all classes
        near = neighbourhoods(real, made[spread], NEIGHBOURS, self.device)
        return {self.figure: kid} | {n: float(cast(float, near[n])) for n in ("precision", "recall")}

    def _best(self) -> float | None:
        """The figure of the file that is there; None: there is none, or one by other images or features."""
        try:
            kept = load_generator(self.path).metrics.get(KEPT)
        except ModelError:
            return None
        if not isinstance(kept, dict) or kept["protocol"] != self.protocol:
            return None
        return float(kept["generated"][self.figure])
