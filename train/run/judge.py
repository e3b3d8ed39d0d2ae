"""The judge: it tells real images from generated ones, and the generator learns from its scores.

It is SAGAN's discriminator, or small heads on a frozen network (see `train.run.pretrained_judge`), or both.
A judge looks at the fakes once a step; the losses of both networks are of that one look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.discriminator import Discriminator
from model.layers import spectral_normalise
from train.recipes.recipe import Optimisation, comma_list
from train.run.augment import Adaptive, augment, flip, to_network
from train.run.execution import Passes
from train.run.losses import discriminator_hinge, generator_hinge

SIGN = "sign_real"  # the figure that steers ADA


class StepInputs(NamedTuple):
    """The inputs of one discriminator step: this process's share, B images."""

    pixels: Tensor  # uint8 [B, 3, R, R]
    labels: Tensor  # [B]
    mirrored: Tensor  # bool [B], which reals are flipped
    z: Tensor  # [B, latent]
    y: Tensor  # [B], the fakes' labels
    for_reals: Tensor  # [B, DRAWS], DiffAugment's
    for_fakes: Tensor
    for_generator: Tensor  # for the same fakes in the generator's loss, where the judge looks at them anew

    def thinned(self, adaptive: Adaptive) -> StepInputs:
        """The same, drawn with gates, as ADA has it."""
        return self._replace(
            for_reals=adaptive.thin(self.for_reals),
            for_fakes=adaptive.thin(self.for_fakes),
            for_generator=adaptive.thin(self.for_generator),
        )

    def reals(self) -> Tensor:
        """[B, 3, R, R] in [-1, 1], some mirrored."""
        return flip(to_network(self.pixels), self.mirrored)


class Verdict(NamedTuple):
    """The outcome of one discriminator step."""

    loss: Tensor  # for the judge's own optimiser
    # scalars to log, without gradient: score_real, score_fake ...; "sign_real", mean sign of the scores on
    # reals, is not logged but steers ADA
    figures: Mapping[str, Tensor]


class Judge(Protocol):
    """One way to judge. It never waits for the device: a step can be recorded as a CUDA graph."""

    @property
    def network(self) -> nn.Module:
        """All of the judge that learns: its optimiser moves it and a state saves it."""

    def normalise(self) -> None:
        """Put spectral norm on the network."""

    def look(self, fakes: Tensor, inputs: StepInputs) -> list[Tensor]:
        """Its view of images [B, 3, R, R] in [-1, 1]; gradients lead back to them."""

    def discriminator_loss(self, inputs: StepInputs, seen: Sequence[Tensor]) -> Verdict:
        """The loss of the reals and of the fakes `seen`, which carry no gradient here."""

    def generator_loss(self, inputs: StepInputs, seen: Sequence[Tensor], guide: Tensor) -> Tensor:
        """The generator's loss. guide: weight of the class's cross-entropy in it, a scalar."""

    def scores(self, images: Tensor, y: Tensor) -> Tensor:
        """Scores [B] of images [B, 3, R, R] in [-1, 1], unaugmented; higher: more real."""


class PlainJudge:
    """SAGAN's own: the discriminator looks at pixels, in each network's loss under draws of its own."""

    def __init__(self, config: ModelConfig, optimisation: Optimisation, passes: Passes) -> None:
        self.network = Discriminator(config, optimisation.initialisation)
        self.kinds = comma_list(optimisation.augment)
        self.passes = passes

    def normalise(self) -> None:
        spectral_normalise(self.network)

    def look(self, fakes: Tensor, inputs: StepInputs) -> list[Tensor]:
        return [fakes]

    def discriminator_loss(self, inputs: StepInputs, seen: Sequence[Tensor]) -> Verdict:
        # one pass over both halves: every weight is normalised once
        images = torch.cat([inputs.reals(), seen[0]])
        images = augment(images, torch.cat([inputs.for_reals, inputs.for_fakes]), self.kinds)
        with self.passes.autocast():
            scores = self.network(images, torch.cat([inputs.labels, inputs.y]))
        real, fake = scores.chunk(2)
        figures = {"score_real": real.detach().mean(), "score_fake": fake.detach().mean()}
        return Verdict(discriminator_hinge(real, fake), {**figures, SIGN: real.detach().sign().mean()})

    def generator_loss(self, inputs: StepInputs, seen: Sequence[Tensor], guide: Tensor) -> Tensor:
        images = augment(seen[0], inputs.for_generator, self.kinds)
        with self.passes.autocast():
            return generator_hinge(self.network(images, inputs.y))

    def scores(self, images: Tensor, y: Tensor) -> Tensor:
        scores: Tensor = self.network(images, y)
        return scores


def plain_part(judge: Judge) -> PlainJudge | None:
    """The plain judge, alone or beside another; None: there is none."""
    for one in judge.judges if isinstance(judge, BothJudges) else (judge,):
        if isinstance(one, PlainJudge):
            return one
    return None


class BothJudges:
    """Two judges whose losses are added; of a figure that both have, the second's is logged.

    ADA follows the first, which is the one that learns by heart.
    """

    def __init__(self, first: Judge, second: Judge) -> None:
        self.judges = (first, second)
        self.network = nn.ModuleList(judge.network for judge in self.judges)

    def normalise(self) -> None:
        for judge in self.judges:
            judge.normalise()

    def look(self, fakes: Tensor, inputs: StepInputs) -> list[Tensor]:
        seen = [judge.look(fakes, inputs) for judge in self.judges]
        self._first = len(seen[0])
        return [tensor for part in seen for tensor in part]

    def discriminator_loss(self, inputs: StepInputs, seen: Sequence[Tensor]) -> Verdict:
        a, b = (
            judge.discriminator_loss(inputs, part)
            for judge, part in zip(self.judges, self._parts(seen), strict=True)
        )
        return Verdict(a.loss + b.loss, {**a.figures, **b.figures, SIGN: a.figures[SIGN]})

    def generator_loss(self, inputs: StepInputs, seen: Sequence[Tensor], guide: Tensor) -> Tensor:
        parts = zip(self.judges, self._parts(seen), strict=True)
        a, b = (judge.generator_loss(inputs, part, guide) for judge, part in parts)
        return a + b

    def scores(self, images: Tensor, y: Tensor) -> Tensor:
        a, b = (judge.scores(images, y) for judge in self.judges)
        return a + b

    def _parts(self, seen: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return seen[: self._first], seen[self._first :]
