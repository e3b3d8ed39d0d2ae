"""The file of a training state: safetensors, with its step, recipe, data and network named in the header."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.errors import TrainError
from train.recipes.recipe import Recipe

STATE = "state.safetensors"  # in the run's folder; --resume goes on from it
FORMAT = "sagan-training-1"


class StateError(TrainError):
    """A saved state that cannot be read, or belongs to another run."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """Header and open file of the state in `path`. Raises StateError."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise StateError(f"{path} is not a training state of ours.")
            _check_header(path, header)
            yield header, file
    except (SafetensorError, OSError) as wrong:
        raise StateError(f"{path} cannot be read ({wrong}).") from None


def _check_header(path: Path, header: Mapping[str, str]) -> None:
    """Raises StateError for one that another hand has changed, RecipeError for a newer version's recipe."""
    try:
        int(header["step"])
        saved_recipe(header)
        for name in ("class_names", "from", "pretrained"):  # older files lack them
            json.loads(header.get(name, "null"))
    except (KeyError, TypeError, ValueError) as wrong:
        raise StateError(f"{path} cannot be read: its header is damaged ({wrong!r}).") from None


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of the state in `path`. Raises StateError."""
    with opened(path) as (header, file):
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def saved_step(path: Path) -> int:
    """The step of the state in `path`, without reading its tensors. Raises StateError."""
    with opened(path) as (header, _):
        return int(header["step"])


def saved_recipe(header: Mapping[str, str]) -> Recipe:
    """The recipe in a state's header; settings newer than the file have their defaults."""
    return Recipe.from_json(json.loads(header["recipe"]))


def check_network(path: Path, header: Mapping[str, str], ours: Mapping[str, str] | None) -> None:
    """Raises StateError unless the state was judged through the same pretrained network as `ours`."""
    theirs = json.loads(header.get("pretrained", "null"))  # null: a plain judge, or an older file
    if theirs is not None and theirs != ours:
        raise StateError(
            f"{path} was judged through {theirs['network']} (sha256 {theirs['sha256'][:16]}…), not through "
            "the network that is here. Use the version of this package that began it, or a new --out."
        )


def same_computation(one: Recipe, other: Recipe) -> bool:
    """Whether a step computes the same by both: how long to train and when to look may differ."""
    return _computation(one) == _computation(other)


def _computation(recipe: Recipe) -> object:
    values = json.loads(json.dumps(recipe.to_json()))
    del values["optimisation"]["steps"]
    return values["model"], values["optimisation"]
