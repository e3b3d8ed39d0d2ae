"""A recipe: what to build and how to train it, read from a small TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.errors import ConfigError
from train.errors import TrainError

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(TrainError):
    """A recipe that does not exist, cannot be read, or asks for what cannot be."""


@dataclass(frozen=True)
class Optimisation:
    """How the two networks play. SAGAN's values are the defaults."""

    steps: int  # generator steps in all
    batch: int = 64  # images a discriminator step, over all processes
    discriminator_steps: int = 1  # for each generator step
    generator_lr: float = 1e-4  # Adam step of G; TTUR keeps it below D's
    discriminator_lr: float = 4e-4
    beta1: float = 0.0
    beta2: float = 0.9
    generator_spectral_norm: bool = True
    discriminator_spectral_norm: bool = True
    flips: bool = True  # mirror half of the real images
    ema_half_life: float = 10_000  # images
    ema_ramp: float | None = 0.05  # the half-life is at most this share of the images seen; None: no ramp
    seed: int = 0


@dataclass(frozen=True)
class Schedule:
    """When to look, in generator steps."""

    log_every: int = 50
    grid_every: int = 500
    save_every: int = 500
    statistics_batches: int = 100  # of noise, for the served copy's batch-norm statistics


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes, but for the data."""

    name: str
    model: Mapping[str, Any]  # ModelConfig less `classes`, which the data decides
    optimisation: Optimisation
    schedule: Schedule = field(default_factory=Schedule)
    description: str = ""

    def config(self, classes: int) -> ModelConfig:
        try:
            return ModelConfig.from_json({**self.model, "classes": classes})
        except ConfigError as wrong:
            raise RecipeError(f"recipe {self.name}: {wrong}") from None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        return cls(
            name=values["name"],
            model=values["model"],
            optimisation=_section(values["name"], Optimisation, values["optimisation"]),
            schedule=_section(values["name"], Schedule, values["schedule"]),
            description=values["description"],
        )


def read_recipe(name: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe called `name`: one of ours, or the path of a TOML file.

    `overrides` are "section.field" -> TOML value, as `sagan train --set` takes them.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        ours = sorted(p.stem for p in RECIPES.glob("*.toml"))
        near = difflib.get_close_matches(name, ours, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Ours are {', '.join(ours)}; or give a .toml file."
        raise RecipeError(f"There is no recipe {name!r}. {hint}") from None
    except (OSError, ValueError) as wrong:
        raise RecipeError(f"{path}: not a readable recipe ({wrong}).") from None
    for key, text in (overrides or {}).items():
        section, dot, leaf = key.partition(".")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            value = text
        if not dot or not isinstance(values.setdefault(section, {}), dict):
            raise RecipeError(f"--set {key}={text}: write it as section.field=value.")
        values[section][leaf] = value
    if unknown := set(values) - {"description", "model", "optimisation", "schedule"}:
        raise RecipeError(f"{path}: unknown parts: {', '.join(sorted(unknown))}.")
    return Recipe(
        name=path.stem,
        model=values.get("model", {}),
        optimisation=_section(path.stem, Optimisation, values.get("optimisation", {})),
        schedule=_section(path.stem, Schedule, values.get("schedule", {})),
        description=values.get("description", ""),
    )


def _section(recipe: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"recipe {recipe}: unknown setting {name!r}.{hint}")
        wanted = str(fields[name].type)
        kinds = {"int": int, "float": (int, float), "bool": bool, "float | None": (int, float, type(None))}
        if not isinstance(value, kinds[wanted]) or (wanted != "bool" and isinstance(value, bool)):  # type: ignore[arg-type]
            raise RecipeError(f"recipe {recipe}: {name} is {value!r}; it must be of type {wanted}.")
        if wanted == "int" and name != "seed" and value < 1:
            raise RecipeError(f"recipe {recipe}: {name} is {value}; it must be at least 1.")
    try:
        return kind(**values)
    except TypeError:
        needed = [f.name for f in fields.values() if f.default is dataclasses.MISSING]
        raise RecipeError(f"recipe {recipe}: it must say {', '.join(needed)}.") from None
