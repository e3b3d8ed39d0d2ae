"""A recipe: what to build and how to train it, read from a small TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError, WrapValidator
from pydantic.dataclasses import dataclass as checked

from model.config import ModelConfig
from model.errors import ConfigError
from model.layers import INITIALISATIONS
from train.errors import TrainError
from train.run.augment import AUGMENTATIONS

RECIPES = Path(__file__).parent
STRICT = ConfigDict(extra="forbid", strict=True)  # of settings: 1 is no bool, and "3" is no number
T = TypeVar("T")


class RecipeError(TrainError):
    """A recipe that does not exist, cannot be read, or asks for what cannot be."""


def within(least: float, limit: float) -> WrapValidator:
    """A number of at least `least` and under `limit`."""

    def check(value: object, number: Callable[[object], float]) -> float:
        read = number(value)
        if not least <= read < limit:  # so that nan fails
            raise ValueError(f"is {value}; it must be at least {least:g} and under {limit:g}.")
        return read

    return WrapValidator(check)


def named(choices: Collection[str], *, several: bool = False) -> AfterValidator:
    """One of these names; where `several`, a comma list of any number of them."""

    def check(value: str) -> str:
        for part in comma_list(value) if several else [value]:
            if part not in choices:
                raise ValueError(_no_choice(part, choices))
        return value

    return AfterValidator(check)


def comma_list(text: str) -> tuple[str, ...]:
    """ "translation, cutout" as a tuple of names; "" as none."""
    return tuple(part for part in map(str.strip, text.split(",")) if part)


MOST_SIDE = 512  # px to which images are enlarged for a judge; its network learnt from 224

Count = Annotated[int, within(1, 2**31)]
CountOr0 = Annotated[int, within(0, 2**31)]
Seed = Annotated[int, within(0, 2**63)]
Real = Annotated[float, within(0, 3e38)]
Share = Annotated[float, within(0, 1)]
# TOML has no word for None
RealOrNone = Annotated[Real | None, BeforeValidator(lambda value: None if value == "none" else value)]


@checked(frozen=True, config=STRICT)
class Optimisation:
    """The game of the two networks. SAGAN's values are the defaults."""

    steps: Count  # generator steps in all
    batch: Count = 64  # images a discriminator step, over all processes
    discriminator_steps: Count = 1  # for each generator step
    judge_first: CountOr0 = 0  # first steps, in which D alone learns: for a generator that is trained already
    generator_lr: Real = 1e-4  # Adam step of G; TTUR keeps it below D's
    discriminator_lr: Real = 4e-4
    beta1: Share = 0.0
    beta2: Share = 0.9
    generator_spectral_norm: bool = True
    discriminator_spectral_norm: bool = True
    # a fixed factor on G's queries, folded into the saved weights; under 1: softer maps; at 0 it cannot learn
    attention_scale: Annotated[float, within(1e-6, 1e6)] = 1.0
    flips: bool = True  # mirror half of the real images
    # of the passes; auto: bf16 where the device has it
    precision: Literal["auto", "float32", "bf16"] = "auto"
    # DiffAugment on all images for D, a comma list; "": none
    augment: Annotated[str, named(AUGMENTATIONS, several=True)] = ""
    augment_after: CountOr0 = 0  # generator steps without it at the start
    # ADA: the mean sign of D's scores on reals that the share of augmented images is steered to; 0: all are
    augment_target: Share = 0.0
    augment_span: Annotated[float, within(1, 3e38)] = 100_000  # images in which ADA's share goes from 0 to 1
    freeze_discriminator: CountOr0 = 0  # first blocks of the plain D, as --from brought them, that stay so
    # plain: SAGAN's D; pretrained: heads on a frozen pretrained network
    judge: Literal["plain", "pretrained", "both"] = "plain"
    guide: Real = 0.5  # weight in G's loss of the pretrained judge's cross-entropy of the class; 0: none
    guide_steps: CountOr0 = 0  # generator steps in which that weight falls to 0, evenly; 0: it stays
    variety: Real = 0.0  # weight in G's loss of the variety within classes that the pretrained judge misses
    # px to which images are enlarged for the pretrained judge, a multiple of 32; 0: 64 for images of 32, 96
    # for 64, 128 for 128. In larger ones it sees more and takes longer
    judge_side: CountOr0 = 0
    pixel_head: bool = True  # one of the pretrained judge's heads looks at the pixels: the maps miss colours
    # of weights, and of the projections of a class embedding
    initialisation: Annotated[str, named(INITIALISATIONS)] = "xavier"
    ema_half_life: Real = 10_000  # images; 0: no average, the generator as it is
    ema_ramp: RealOrNone = 0.05  # bounds the half-life by this share of the images seen; None: no ramp
    cross_replica_norm: bool = False  # batch norm over all processes' batch; False: each over its own share
    seed: Seed = 0


@checked(frozen=True, config=STRICT)
class Schedule:
    """When to look, in generator steps."""

    log_every: Count = 50
    grid_every: Count = 500
    save_every: Count = 500
    statistics_batches: CountOr0 = 100  # of noise, for the served copy's batch norms; 0: its running averages
    weights: Literal["float32", "bf16"] = "float32"  # of the served copy; bf16 rounds matrices, half the file
    snapshot_every: CountOr0 = 0  # keep the generator as it is then, for `sagan choose`; 0: never
    measure_every: CountOr0 = 0  # figures of few images then, the best generator by them kept; 0: never


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's results, except the data."""

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
    """The recipe called `name`: one of ours, or the path of a TOML file. Raises RecipeError.

    overrides: "section.field" -> TOML value, as `sagan train --set` takes them.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        return parse_recipe(path.stem, path.read_text("utf-8"), overrides)
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
    recipe = Recipe.from_json({"description": "", **values, "name": name})
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """Raises RecipeError for settings that are right one by one and contradict each other."""
    name, optimisation = recipe.name, recipe.optimisation
    if optimisation.variety and optimisation.judge == "plain":
        raise RecipeError(f'recipe {name}: the plain judge knows no variety: choose judge = "pretrained".')
    if optimisation.judge_side:
        _check_side(name, optimisation, recipe.config(1).resolution)
    if optimisation.judge_first >= optimisation.steps:
        raise RecipeError(
            f"recipe {name}: judge_first ({optimisation.judge_first}) leaves the generator none of "
            f"{optimisation.steps} steps to learn in: lower it."
        )
    if optimisation.attention_scale != 1 and recipe.model.get("attention_form") == "gaussian":
        raise RecipeError(f"recipe {name}: attention_scale is a factor on queries, and gaussian has none.")
    if optimisation.augment_target and not comma_list(optimisation.augment):
        raise RecipeError(f"recipe {name}: augment_target steers augment, which is empty: fill one.")
    if optimisation.augment_target and optimisation.augment_after:
        raise RecipeError(
            f"recipe {name}: augment_target begins at no augmentation by itself: set augment_after to 0."
        )
    _check_frozen(name, optimisation, len(recipe.model.get("discriminator_widths", ())))
    if optimisation.variety and optimisation.batch % 2:
        raise RecipeError(
            f"recipe {name}: variety compares pairs, so batch ({optimisation.batch}) must be even."
        )


def _check_side(name: str, optimisation: Optimisation, resolution: int) -> None:
    side = optimisation.judge_side
    if optimisation.judge == "plain":
        raise RecipeError(f'recipe {name}: judge_side is for judge = "pretrained"; the plain judge has none.')
    if side % 32 or not resolution <= side <= MOST_SIDE:
        raise RecipeError(
            f"recipe {name}: judge_side ({side}) must be a multiple of 32 from the images' {resolution} to "
            f"{MOST_SIDE} px; 0 chooses one."
        )


def _check_frozen(name: str, optimisation: Optimisation, blocks: int) -> None:
    frozen = optimisation.freeze_discriminator
    if frozen and optimisation.judge == "pretrained":
        raise RecipeError(
            f"recipe {name}: freeze_discriminator is of the plain judge's blocks; the pretrained judge's "
            "network is frozen as it is, and its heads must learn: leave it out."
        )
    if blocks and frozen >= blocks:
        raise RecipeError(
            f"recipe {name}: freeze_discriminator ({frozen}) leaves none of {blocks} blocks to learn."
        )


def settings_of(section: str, kind: type[T], settings: Sequence[str]) -> dict[str, Any]:
    """The checked fields of the dataclass `kind` that `--set` names, where it is the only section.

    settings: "field=value" or "section.field=value". Raises RecipeError.
    """
    values = {
        key.removeprefix(f"{section}."): setting_value(text) for key, text in overrides_of(settings).items()
    }
    read = _section(section, kind, values)
    return {name: getattr(read, name) for name in values}


def overrides_of(settings: Sequence[str]) -> dict[str, str]:
    """Arguments of `--set`, "section.field=value" each, as `read_recipe` takes them. Raises RecipeError."""
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
    """The value in `--set section.field=text`: as TOML reads it, or else the text itself."""
    try:
        value: object = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
    return value


def _section(recipe: str, kind: type[T], values: Mapping[str, Any]) -> T:
    """A section's settings as its dataclass `kind`. Raises RecipeError for the first that is wrong."""
    try:
        return kind(**values)
    except ValidationError as wrong:
        # first the names that do not exist: of a misspelt one another may seem to be missing
        order = ("unexpected_keyword_argument", "", "missing")
        error = min(wrong.errors(), key=lambda e: order.index(e["type"] if e["type"] in order else ""))
    name, value, hints = str(error["loc"][0]), error["input"], _hints(kind)
    match error["type"]:
        case "unexpected_keyword_argument":
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(hints)}."
            raise RecipeError(f"recipe {recipe}: unknown setting {name!r}. {hint}")
        case "missing":
            raise RecipeError(f"recipe {recipe}: it must say {name}.")
        case "value_error":
            said = str(error["ctx"]["error"])
        case "literal_error" if isinstance(value, str):
            said = _no_choice(value, get_args(hints[name]))
        case _:
            wanted = {"string_type": "str", "literal_error": "str"}.get(
                error["type"], error["type"].removesuffix("_type")
            )
            none = ' or "none"' if type(None) in get_args(hints[name]) else ""
            said = f"is {value!r}; it must be of type {wanted}{none}."
    raise RecipeError(f"recipe {recipe}: {name} {said}")


def _hints(kind: type) -> dict[str, Any]:
    """Types of the settings that `kind` has, by name, without their bounds."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _no_choice(value: str, choices: Collection[str]) -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"It can be {', '.join(choices)}."
    return f"has no {value!r}. {hint}"
