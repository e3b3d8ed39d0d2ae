"""The weights of another run's generator, for a run to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from model.checkpoint import Checkpoint, load_generator
from model.generator import Generator
from model.layers import Scaled, settle
from train.data.sources.base import same_classes
from train.run.saved import StateError

_NORMED = 1.5  # a σ above this is no averaged W/σ, which stays near 1


def take_over(
    path: Path, generator: Generator, average: Generator, class_names: Sequence[str]
) -> tuple[Checkpoint, bool]:
    """Fill a run's generator and its average with the weights in `path`; whether also those of the classes.

    Weights of classes are taken over where both have the same classes, and begin anew elsewhere. Raises
    StateError for a generator of another shape, and for one trained without spectral norm where this one has
    it, since dividing by σ would make another network of it; CheckpointError for another file.
    """
    found = load_generator(path)
    known = same_classes(found.class_names, class_names)
    theirs = found.generator.state_dict()
    used: set[str] = set()
    with torch.no_grad():
        for network in (generator, average):
            for name, tensor in network.state_dict().items():
                plain = name.replace(".parametrizations.weight.original", ".weight")
                used.add(plain)
                if ".parametrizations." in plain or (_of_a_class(plain) and not known):
                    continue
                if plain not in theirs or theirs[plain].shape != tensor.shape:
                    raise StateError(
                        f"{path} has another shape than this recipe's generator ({plain} does not fit): "
                        "use the recipe that it was trained with."
                    )
                tensor.copy_(theirs[plain])
                if scale := _scale(network, name):
                    tensor.div_(scale)  # the file holds the product
    if left := sorted(theirs.keys() - used):
        raise StateError(
            f"{path} has {left[0]}, for which this recipe's generator has no place: use the recipe that "
            "it was trained with."
        )
    if settle(generator) > _NORMED:
        raise StateError(
            f"{path} was trained without spectral norm in the generator, and this recipe has it, which "
            "would make another network of it: add --set optimisation.generator_spectral_norm=false."
        )
    return found, known


def _scale(network: nn.Module, name: str) -> float | None:
    """The fixed factor on the weight `name`; None: there is none."""
    owner = network.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, parametrize.ParametrizationList) and isinstance(owner[0], Scaled):
        return owner[0].factor
    return None


def _of_a_class(name: str) -> bool:
    """Whether a generator's tensor has a row for each class."""
    return name == "shared.weight" or (name.endswith((".gamma", ".beta")) and ".norm" in name)
