"""The choice of a run's snapshot to serve, by the run's last discriminator.

A discriminator that has seen the whole run ranks the run's generators (skill rating, Olsson et al. 2018) and
costs no training. Its ranking can be checked: with an extractor, the Fréchet distance in own features stands
beside each score, and their rank correlation below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from torch import Tensor

from model.checkpoint import Checkpoint, load_generator, save_generator
from train.data.pack import Pack
from train.errors import TrainError
from train.measure.distances import frechet
from train.measure.features import look, open_trusted, split
from train.measure.metrics import (
    REFERENCE_IMAGES,
    GeneratorSampler,
    Sampler,
    check_classes,
    generate,
    some,
    stratified,
)
from train.recipes.recipe import comma_list
from train.run.augment import Adaptive, augment, draw, draw_gates, to_network
from train.run.judge import Judge
from train.run.loop import GENERATOR, STATE
from train.run.observers import SNAPSHOTS
from train.run.saved import opened
from train.run.state import saved_judge

CHOSEN = "chosen.safetensors"  # in the run's folder
SAMPLES = 2000  # images of each snapshot
FEW = 3  # snapshots; with fewer a rank correlation says nothing

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


class ChoiceError(TrainError):
    """A run whose snapshots cannot be judged."""


@dataclass(frozen=True)
class RankedSnapshot:
    """One snapshot and the judge's view of it."""

    path: Path
    step: int
    score: float  # mean of the discriminator's scores; higher looks more real to it
    convincing: float  # share of its images that score above the median real one, 0 to 1
    frechet: float | None  # in own features, lower is better; None: without an extractor


@dataclass(frozen=True)
class Ranking:
    """Every snapshot, the best first, and how far to trust the order."""

    ranked: tuple[RankedSnapshot, ...]
    judge: int  # step of the discriminator
    samples: int  # images of each snapshot
    real: float  # mean score of real images, at most `samples` of them
    doubt: str | None = None  # why the distances are not to be trusted; None: no reason is known

    def table(self) -> Table:
        """For a terminal."""
        table = Table(
            title=f"Judged by the discriminator of step {self.judge}, {self.samples:,} images each",
            caption=f"Real images score {self.real:+.3f}.",
        )
        for name in ("step", "score", "above the median real", "Fréchet distance, own features"):
            table.add_column(name, justify="right")
        for one in self.ranked:
            distance = "" if one.frechet is None else f"{one.frechet:.3f}"
            table.add_row(str(one.step), f"{one.score:+.3f}", f"{one.convincing:.1%}", distance)
        return table

    def verdict(self) -> tuple[str, ...]:
        """Lines on whether the distance agrees with the choice, and doubts about it; () without distances."""
        distances = [one.frechet for one in self.ranked if one.frechet is not None]
        if not distances:
            return ()
        doubts = (f"warning: {self.doubt}",) if self.doubt else ()
        place = sorted(distances).index(distances[0]) + 1
        text = f"By the Fréchet distance in own features the chosen one is number {place} of {len(distances)}"
        if len(distances) < FEW:
            return (f"{text}; too few to compare the two orders.", *doubts)
        closeness = rank_correlation([one.score for one in self.ranked], [-d for d in distances])
        return (
            f"{text}; Spearman's rank correlation of score and closeness is {closeness:+.2f} "
            "(+1: the same order, 0: no relation).",
            *doubts,
        )


def choose(
    run: Path,
    pack: Pack,
    features: Path | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    device: str = "cpu",
    shown: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> Ranking:
    """Judge every snapshot in the folder `run`, and write the best one to `chosen.safetensors` there.

    Every snapshot makes its images of the same noise, with the pack's classes in proportion. As in training,
    the discriminator sees them and the real ones under the recipe's DiffAugment, with the same draws for all.
    The real ones are the tenth of the pack that the extractor never saw; the discriminator saw them, unless
    it was trained on another pack. shown: a wrapper of the snapshots, such as a progress bar.
    Raises TrainError or ModelError, and then writes nothing.
    """
    paths = candidates(run)
    names = load_generator(paths[0]).class_names
    check_classes("data", pack.class_names, "run", names)
    saved, recipe, step = saved_judge(run / STATE, len(names), torch.device(device))
    resolution = recipe.config(len(names)).resolution
    if pack.resolution != resolution:
        raise ChoiceError(
            f"The run has {resolution} px and the data {pack.resolution} px: "
            "give the pack that it was trained on."
        )
    judge = _Judge(saved, comma_list(recipe.optimisation.augment), samples, seed, device)
    if recipe.optimisation.augment_target:
        judge.thin(run / STATE)
    eye = _Eye(features, pack, device) if features else None
    held = some(split(len(pack))[1], samples)
    real = judge.scores(_Reals(pack, held), pack.labels.numpy()[held], None)
    labels = stratified(pack.labels.numpy(), samples)
    judged = []
    for path in shown(paths):
        found = load_generator(path)
        sampler = GeneratorSampler(found.generator.to(device), names, device=device)
        scores = judge.scores(sampler, labels, eye)
        judged.append(
            RankedSnapshot(
                path=path,
                step=_steps(path, found),
                score=float(scores.mean()),
                convincing=float((scores > np.median(real)).mean()),
                frechet=eye.distance() if eye else None,
            )
        )
    ranked = tuple(sorted(judged, key=lambda one: one.score, reverse=True))
    best = load_generator(ranked[0].path)
    about = {
        "by": f"the highest mean score of the run's discriminator at step {step}",
        "among": sorted({one.step for one in judged}),
        "samples": samples,
        "seed": seed,
    }
    save_generator(run / CHOSEN, best.generator, names, best.metrics, {**best.metadata, "chosen": about})
    return Ranking(ranked, step, samples, float(real.mean()), eye.doubt if eye else None)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: Pearson's of the ranks, where equal values share their mean rank; nan for a constant."""
    ranks = []
    for values in (np.asarray(a), np.asarray(b)):
        below = (values[:, None] > values).sum(1)
        equal = (values[:, None] == values).sum(1)
        ranks.append(below + (equal - 1) / 2)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _steps(path: Path, found: Checkpoint) -> int:
    steps = found.metadata.get("steps")
    if not isinstance(steps, int):
        raise ChoiceError(
            f"{path} does not say of which step it is: a run of `sagan train` did not write it."
        )
    return steps


def candidates(run: Path) -> list[Path]:
    """The snapshots, and the run's last generator if it is none of them. Raises ChoiceError."""
    snapshots = sorted((run / SNAPSHOTS).glob("*.safetensors"))
    if not run.is_dir():
        raise ChoiceError(f"There is no folder {run}: give the --out of a run of `sagan train`.")
    if not snapshots:
        raise ChoiceError(
            f"{run} has no snapshots to choose from: train with --set schedule.snapshot_every=1000 or so."
        )
    last, latest = run / GENERATOR, snapshots[-1]
    if last.exists() and _steps(last, load_generator(last)) != _steps(latest, load_generator(latest)):
        return [*snapshots, last]
    return snapshots


class _Judge:
    """The discriminator, and DiffAugment as in training: image i of every set has the same draws."""

    def __init__(self, judge: Judge, kinds: Sequence[str], samples: int, seed: int, device: str) -> None:
        self.judge, self.kinds, self.seed, self.device = judge, kinds, seed, device
        self.draws = draw(samples, torch.Generator().manual_seed(seed)).to(device)

    def thin(self, state: Path) -> None:
        """Augment as often as ADA had come to in that state."""
        adaptive = Adaptive(target=0, span=1)
        with opened(state) as (_, file):
            adaptive.p.copy_(file.get_tensor("augment.p"))
        gates = draw_gates(len(self.draws), torch.Generator().manual_seed(self.seed + 1))
        self.draws = adaptive.to(self.device).thin(torch.cat([self.draws, gates.to(self.device)], dim=1))

    def scores(self, sampler: Sampler, labels: Labels, eye: _Eye | None) -> Array:
        """Scores [N] of the sampler's images of the classes `labels` [N]; `eye` looks at them too."""
        parts: list[Array] = []

        @torch.inference_mode()
        def use(images: Tensor, asked: Labels) -> None:
            first = sum(map(len, parts))
            seen = augment(
                to_network(images.to(self.device)), self.draws[first : first + len(asked)], self.kinds
            )
            found = self.judge.scores(seen, torch.from_numpy(asked).to(self.device))
            parts.append(found.double().cpu().numpy())
            if eye is not None:
                eye.look(images, asked)

        generate(sampler, labels, self.seed, use)
        return np.concatenate(parts)


class _Eye:
    """An extractor that collects features until their distance from real images is asked for."""

    def __init__(self, file: Path, pack: Pack, device: str) -> None:
        features = open_trusted(file)
        self.doubt = features.doubt
        check_classes("data", pack.class_names, "extractor", features.class_names)
        self.network, self.device = features.network.to(device), device
        self.seen: list[npt.NDArray[np.float32]] = []
        reference = some(split(len(pack))[0], REFERENCE_IMAGES)
        generate(_Reals(pack, reference), pack.labels.numpy()[reference], 0, self.look)
        self.known, self.seen = np.concatenate(self.seen), []

    def look(self, images: Tensor, labels: Labels) -> None:
        self.seen.append(look(self.network, images, labels, self.device).features)

    def distance(self) -> float:
        """Fréchet distance from real images of all those seen since the last call."""
        seen, self.seen = np.concatenate(self.seen), []
        return frechet(self.known, seen, self.device)


@dataclass(frozen=True)
class _Reals:
    """Images of a pack as if they were generated."""

    pack: Pack
    indices: Labels
    truncation: float = 1.0

    @property
    def class_names(self) -> Sequence[str]:
        return self.pack.class_names

    def __call__(self, labels: Tensor, seed: int, first: int) -> Tensor:
        return self.pack.images[torch.from_numpy(self.indices[first : first + len(labels)])]
