"""A recipe: what to build and how to train it, read from a small TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.errors import ConfigError
from model.layers import INITIALISATIONS
from train.errors import TrainError
from train.run.augment import AUGMENTATIONS

RECIPES = Path(__file__).parent


class RecipeError(TrainError):
    """A recipe that does not exist, cannot be read, or asks for what cannot be."""


@dataclass(frozen=True)
class Optimisation:
    """How the two networks play. SAGAN's values are the defaults."""

    steps: int  # generator steps in all
    batch: int = 64  # images a discriminator step, over all processes
    discriminator_steps: int = 1  # for each generator step
    judge_first: int = 0  # steps at the start in which D alone learns: for a generator that has begun already
    generator_lr: float = 1e-4  # Adam step of G; TTUR keeps it below D's
    discriminator_lr: float = 4e-4
    beta1: float = 0.0
    beta2: float = 0.9
    generator_spectral_norm: bool = True
    discriminator_spectral_norm: bool = True
    attention_scale: float = (
        1.0  # a fixed factor on G's queries, folded into what is saved; under 1: softer maps
    )
    flips: bool = True  # mirror half of the real images
    precision: str = "auto"  # of the passes: "float32", "bf16", or bf16 where the device has it
    augment: str = ""  # DiffAugment on all that D sees: a comma list of AUGMENTATIONS; "": none
    augment_after: int = 0  # generator steps without it at the start
    judge: str = "plain"  # SAGAN's D; "pretrained": heads on a frozen pretrained network; or "both"
    guide: float = 0.5  # weight in G's loss of the pretrained judge's cross-entropy of the class; 0: none
    guide_steps: int = 0  # generator steps in which that weight falls to 0, evenly; 0: it stays
    variety: float = 0.0  # weight in G's loss of what the pretrained judge misses in variety within classes
    pixel_head: bool = True  # one of the pretrained judge's heads looks at the pixels: the maps miss colours
    initialisation: str = "xavier"  # one of INITIALISATIONS; the projections of a class embedding have it too
    ema_half_life: float = 10_000  # images; 0: no average, the generator as it is
    ema_ramp: float | None = 0.05  # the half-life is at most this share of the images seen; "none": no ramp
    cross_replica_norm: bool = False  # batch norm over all processes' batch; False: each over its own share
    seed: int = 0


@dataclass(frozen=True)
class Schedule:
    """When to look, in generator steps."""

    log_every: int = 50
    grid_every: int = 500
    save_every: int = 500
    statistics_batches: int = 100  # of noise, for the served copy's batch norms; 0: its running averages
    weights: str = "float32"  # of the served copy; "bf16" rounds its matrices, which halves the file
    snapshot_every: int = 0  # keep the generator as it is then, for `sagan choose`; 0: never


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
        return parse_recipe(path.stem, path.read_text(), overrides)
    except FileNotFoundError:
        ours = sorted(["auto", *(p.stem for p in RECIPES.glob("*.toml"))])  # auto: see train.data.automatic
        near = difflib.get_close_matches(name, ours, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Ours are {', '.join(ours)}; or give a .toml file."
        raise RecipeError(f"There is no recipe {name!r}. {hint}") from None
    except (OSError, ValueError) as wrong:
        raise RecipeError(f"{path}: not a readable recipe ({wrong}).") from None


def parse_recipe(name: str, text: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a file's text. Raises RecipeError, and ValueError where it is not TOML."""
    values = tomllib.loads(text)
    for key, wanted in (overrides or {}).items():
        section, dot, leaf = key.partition(".")
        if not dot or not isinstance(values.setdefault(section, {}), dict):
            raise RecipeError(f"--set {key}={wanted}: write it as section.field=value.")
        values[section][leaf] = setting_value(wanted)
    if unknown := set(values) - {"description", "model", "optimisation", "schedule"}:
        raise RecipeError(f"recipe {name}: unknown parts: {', '.join(sorted(unknown))}.")
    for section in ("model", "optimisation", "schedule"):
        if not isinstance(values.setdefault(section, {}), dict):
            raise RecipeError(f"recipe {name}: {section} must be a table of settings, [{section}].")
    optimisation = _section(name, Optimisation, values["optimisation"])
    if optimisation.variety and optimisation.judge == "plain":
        raise RecipeError(f'recipe {name}: the plain judge knows no variety: choose judge = "pretrained".')
    if optimisation.judge_first >= optimisation.steps:
        raise RecipeError(
            f"recipe {name}: judge_first ({optimisation.judge_first}) leaves the generator none of "
            f"{optimisation.steps} steps to learn in: lower it."
        )
    if optimisation.attention_scale != 1 and values["model"].get("attention_form") == "gaussian":
        raise RecipeError(f"recipe {name}: attention_scale is a factor on queries, and gaussian has none.")
    if optimisation.variety and optimisation.batch % 2:
        raise RecipeError(
            f"recipe {name}: variety compares pairs, so batch ({optimisation.batch}) must be even."
        )
    return Recipe(
        name=name,
        model=values["model"],
        optimisation=optimisation,
        schedule=_section(name, Schedule, values["schedule"]),
        description=values.get("description", ""),
    )


def settings_of(section: str, kind: type[Any], settings: Sequence[str]) -> dict[str, Any]:
    """What `--set` was given where there is one section alone: its dataclass's fields, checked.

    settings: "field=value" or "section.field=value". Raises RecipeError.
    """
    values = {
        key.removeprefix(f"{section}."): setting_value(text) for key, text in overrides_of(settings).items()
    }
    return _checked(section, kind, values)


def overrides_of(settings: Sequence[str]) -> dict[str, str]:
    """What `--set` was given, "section.field=value" each, as `read_recipe` takes it. Raises RecipeError."""
    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: write it as section.field=value.")
        meant = setting_value(value)
        if isinstance(meant, dict) or (isinstance(meant, float) and not math.isfinite(meant)):
            raise RecipeError(f"--set {setting}: {value.strip()} is not a value that a setting can have.")
        overrides[key.strip()] = value.strip()
    return overrides


def setting_value(text: str) -> object:
    """What `--set section.field=text` means: a TOML value, or else the text itself."""
    try:
        value: object = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
    return value


_KINDS: Mapping[str, Any] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "bool": (bool,),
    "str": (str,),
}
_FROM_0 = ("statistics_batches", "snapshot_every", "augment_after", "guide_steps", "judge_first")
_BOUNDS: Mapping[str, tuple[float, float]] = {  # of numbers: at least, and under
    "seed": (0, 2**63),
    **dict.fromkeys(_FROM_0, (0, 2**31)),
    **dict.fromkeys(("beta1", "beta2", "shift"), (0, 1)),
    "attention_scale": (1e-6, 1e6),  # at 0 attention would learn nothing
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "augment": tuple(AUGMENTATIONS),
    "judge": ("plain", "pretrained", "both"),
    "precision": ("auto", "float32", "bf16"),
    "weights": ("float32", "bf16"),
    "initialisation": tuple(INITIALISATIONS),
}
_LISTS = ("augment",)  # of which more than one may be named, or none


def _section(recipe: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    try:
        return kind(**_checked(recipe, kind, values))
    except TypeError:
        needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        raise RecipeError(f"recipe {recipe}: it must say {', '.join(needed)}.") from None


def _checked(recipe: str, kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section, each of a field that `kind` has, of its type and within its bounds."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(fields)}."
            raise RecipeError(f"recipe {recipe}: unknown setting {name!r}. {hint}")
        wanted = str(fields[name].type)
        if wanted == "float | None" and value == "none":  # TOML has no word for it
            value = None
        if not isinstance(value, _KINDS[wanted]) or (wanted != "bool" and isinstance(value, bool)):
            raise RecipeError(f"recipe {recipe}: {name} is {value!r}; it must be of type {wanted}.")
        if value is not None and wanted.removesuffix(" | None") in ("int", "float"):
            whole = wanted == "int"
            least, limit = _BOUNDS.get(name, (1, 2**31) if whole else (0, 3e38))
            if not least <= value < limit:  # so that nan fails
                raise RecipeError(
                    f"recipe {recipe}: {name} is {value}; it must be at least {least:g} and under {limit:g}."
                )
            value = value if whole else float(value)
        if name in _CHOICES:
            _check_choice(recipe, name, value)
        read[name] = value
    return read


def _check_choice(recipe: str, name: str, value: str) -> None:
    choices = _CHOICES[name]
    for part in comma_list(value) if name in _LISTS else [value]:
        if part not in choices:
            near = difflib.get_close_matches(part, choices, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It can be {', '.join(choices)}."
            raise RecipeError(f"recipe {recipe}: {name} has no {part!r}. {hint}")


def comma_list(text: str) -> tuple[str, ...]:
    """ "translation, cutout" as a tuple of names; "" as none."""
    return tuple(part for part in map(str.strip, text.split(",")) if part)
