"""A recipe chosen by the number and size of the pictures and by the device. Each line says why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from model.config import BASE, RESOLUTIONS
from train.errors import DataError
from train.recipes.recipe import RecipeError, setting_value

AT_LEAST = 16  # pictures; fewer teach nothing
MANY = 100_000  # pictures; from here on DiffAugment is no help
SOME = 10_000  # pictures; with fewer it changes colours as well
SMALL = 2_000  # pictures; with fewer 128 px are not worth it
ENOUGH = 20_000  # pictures; on a GPU they teach SAGAN's discriminator; the pretrained was tried with fewer
WHY = "  # "  # between a setting and its reason
UNCHANGED = 3  # epochs of the pictures as they are, before DiffAugment joins in


@dataclass(frozen=True)
class Survey:
    """The facts that a recipe is chosen by."""

    images: int
    sides: tuple[int, ...]  # shorter sides of a sample of the pictures, pixels, sorted; (): not known
    resolution: int | None = None  # pixels of packed pictures; None: to be chosen
    pretrained: bool = False  # the pretrained judge's network is on this machine

    @property
    def small(self) -> int:
        """The shorter side that three quarters of the pictures reach, pixels."""
        return self.sides[len(self.sides) // 4] if self.sides else RESOLUTIONS[0]


class Line(NamedTuple):
    """One line of the recipe."""

    section: str
    name: str
    value: object  # of a type that TOML has
    reason: str

    def setting(self) -> str:
        """The line as TOML, without its reason."""
        # numbers, booleans, strings and lists of them are written alike in JSON and in TOML
        return f"{self.name} = {json.dumps(self.value, ensure_ascii=False, default=str)}"


def choose(survey: Survey, on_cpu: bool, overrides: Mapping[str, str]) -> list[Line]:
    """The recipe's lines for these pictures. `overrides` ("section.field" -> TOML value) win.

    A value may bring its reason, as a comment.

    Raises DataError for too few pictures, RecipeError for a resolution that no network has.
    """
    check_enough(survey.images)
    images = survey.images
    asked = {key: setting_value(text) for key, text in overrides.items()}
    resolution, why = _resolution(survey, on_cpu, asked.get("model.resolution"))
    judge, why_judge = _judge(survey, on_cpu, asked.get("optimisation.judge"))
    rest = _judged_plainly if judge == "plain" else _judged_by_pretrained
    choices = [
        Line("model", "resolution", resolution, why),
        Line("optimisation", "judge", judge, why_judge),
        Line("optimisation", "flips", True, "mirrored pictures count too; false for writing and the like"),
        *rest(images, resolution, on_cpu, asked),
    ]
    if on_cpu:
        choices.append(Line("schedule", "statistics_batches", 20, "enough, and quick on a CPU"))
    reasons = {key: text.partition(WHY)[2] or "asked for" for key, text in overrides.items()}
    return _overridden(choices, asked, reasons)


def _judged_plainly(
    images: int, resolution: int, on_cpu: bool, asked: Mapping[str, object]
) -> Iterator[Line]:
    """The lines that suit SAGAN's own discriminator, which must learn to see."""
    line = partial(Line, "optimisation")
    width, why_width = _width(images, on_cpu)
    site = min(resolution // 2, 16 if on_cpu else 32)
    yield from _networks(resolution, width, why_width, site, _why_site(site, on_cpu))
    batch = 32 if on_cpu or images < 500 else 64
    # images shown in all: each so many times, but enough for a new network, and no more than time allows
    least, each, most = (200_000, 500, 640_000) if on_cpu else (1_600_000, 2_000, 6_400_000)
    steps = _round(min(max(each * images, least), most) / batch)
    yield line("steps", steps, _why_steps(steps, batch, images))
    yield line("batch", batch, _why_batch(few=batch == 32))
    yield line("generator_lr", 2e-4, "twice SAGAN's: a small network and few steps")
    yield line("discriminator_lr", 4e-4, "SAGAN's")
    yield line("augment", *_augment(images, colour=True))
    yield line("ema_half_life", 20_000, "images: what is kept is an average of many steps")


def _judged_by_pretrained(
    images: int, resolution: int, on_cpu: bool, asked: Mapping[str, object]
) -> Iterator[Line]:
    """The lines that suit heads on a network that sees already: they teach much in few steps."""
    line = partial(Line, "optimisation")
    large = resolution > 64
    width = (256 if large else 128) if on_cpu else (384 if large else 256)
    why_width = "what a CPU can train in an hour or a few" if on_cpu else "enough under this judge"
    site = min(resolution // 2, 32)
    yield from _networks(resolution, width, why_width, site, _why_site(site, on_cpu=False))
    yield Line("model", "class_embedding", 64, "classes begin where the pretrained network sees them")
    batch = _whole(asked, "optimisation.batch", 16 if on_cpu else 64)
    # images shown in all, as above
    least, each, most = (60_000, 200, 640_000) if on_cpu else (1_000_000, 200, 4_000_000)
    shown = min(max(each * images, least), most)
    steps = _whole(asked, "optimisation.steps", _round(shown / batch))
    yield line("steps", steps, _why_steps(steps, batch, images))
    yield line("batch", batch, _why_batch(few=on_cpu))
    yield line("generator_lr", 1e-3, "ten times SAGAN's: few steps, and this judge allows it")
    yield line("discriminator_lr", 1e-3, "the same: the judge knows much already")
    yield line("beta2", 0.99, "a longer memory of squared gradients, for those rates")
    yield line("guide", 0.5, "what the judge knows of the class helps the generator")
    yield line("guide_steps", max(steps // 2, 1), "less and less, over half the run")
    if batch % 2 == 0:  # it compares pairs
        why = "without it a run of few classes came to make one image of each, over and over"
        yield line("variety", 3.0, why)
    augment, why_augment = _augment(images, colour=False)
    yield line("augment", augment, why_augment)
    if augment:
        after = min(UNCHANGED * images // batch, steps // 10)
        yield line("augment_after", after, "steps without it: first the pictures as they are")
    half_life = 10_000 if on_cpu else 50_000
    yield line("ema_half_life", half_life, "images: what is kept is an average of many steps")
    if on_cpu:
        yield Line("schedule", "grid_every", 250, "steps: the first sheet of samples after minutes")


def _networks(resolution: int, width: int, why_width: str, site: int, why_site: str) -> Iterator[Line]:
    # as SAGAN's: the same at 4 and 8 pixels, then half at each level
    widths = [width >> max(level - 1, 0) for level in range((resolution // BASE).bit_length())]
    yield Line("model", "generator_widths", widths, f"channels at 4 to {resolution} px: {why_width}")
    yield Line("model", "discriminator_widths", widths[::-1], "the same, the other way round")
    yield Line("model", "generator_attention", [site], why_site)
    yield Line("model", "discriminator_attention", [site], "as in the generator")


def _judge(survey: Survey, on_cpu: bool, asked: object) -> tuple[str, str]:
    if asked is not None:
        return str(asked), "asked for"
    if not on_cpu and survey.images >= ENOUGH:
        return "plain", f"SAGAN's own discriminator: {ENOUGH:,} pictures and more teach it what to look at"
    if survey.pretrained:
        when = "on a CPU" if on_cpu else f"with fewer than {ENOUGH:,} pictures"
        return "pretrained", f"heads on a network that ImageNet taught to see: recognisable far sooner {when}"
    return "plain", (
        "SAGAN's own discriminator, as no other is installed: pip install 'sagan-service[pretrained]' "
        "would give recognisable pictures sooner"
    )


def check_enough(images: int) -> None:
    """Raises DataError for too few pictures to learn from."""
    if images < AT_LEAST:
        raise DataError(
            f"{pictures(images)} cannot be trained on: {AT_LEAST} are the least, and some hundreds of each "
            "class are needed for new pictures rather than copies."
        )


def to_toml(description: str, choices: Sequence[Line]) -> str:
    """The recipe as a file that `read_recipe` reads, each line with its reason."""
    lines = [
        "# Chosen by `sagan train auto`. Change what you like and give this file's path to `sagan train` in",
        "# place of `auto`, with a new --out. In a run that goes on, only `steps` and [schedule] may change.",
        f"description = {json.dumps(description, ensure_ascii=False)}",
    ]
    section = ""
    for choice in choices:
        if choice.section != section:
            section = choice.section
            lines += ["", f"[{section}]"]
        lines.append(f"{choice.setting()}{WHY}{choice.reason}")
    return "\n".join(lines) + "\n"


def _resolution(survey: Survey, on_cpu: bool, asked: object) -> tuple[int, str]:
    if survey.resolution is not None:  # packed already
        asked, why = survey.resolution, "the pack's"
    else:
        why = "asked for"
    if asked is not None:
        if not isinstance(asked, int) or asked not in RESOLUTIONS:
            raise RecipeError(
                f"A resolution of {asked} cannot be trained: there are networks for "
                f"{', '.join(map(str, RESOLUTIONS))} px. Pack or ask for one of these."
            )
        return asked, why
    small = survey.small
    fitting = [side for side in RESOLUTIONS if side <= small]
    if not fitting:
        return RESOLUTIONS[0], f"the least there is; the pictures have only {small} px and are enlarged"
    bounds = [
        (fitting[-1], f"three quarters of the pictures have {small} px or more on their shorter side"),
        (128 if survey.images >= SMALL else 64, f"as much as fewer than {SMALL:,} pictures can fill"),
        (64 if on_cpu else 128, "as much as a CPU can train in hours"),
    ]
    return min(bounds, key=lambda bound: bound[0])


def _width(images: int, on_cpu: bool) -> tuple[int, str]:
    if on_cpu:
        return 128, "what a CPU can train in hours"
    if images < 5_000:
        return 256, "enough for fewer than 5,000 pictures"
    if images < 50_000:
        return 512, "enough for fewer than 50,000 pictures"
    return 1024, "SAGAN's"


def _why_site(site: int, on_cpu: bool) -> str:
    if on_cpu:
        return "self-attention at this map; at larger ones it costs a CPU too much"
    return f"self-attention at this map{', as in SAGAN' if site == 32 else ''}"


def _augment(images: int, colour: bool) -> tuple[str, str]:
    """DiffAugment's kinds, and why.

    colour: whether colours may change; in short runs under the pretrained judge that bleaches whites.
    """
    if images >= MANY:
        return "", f"no DiffAugment: {MANY:,} pictures and more do without"
    if images >= SOME or not colour:
        return "translation,cutout", f"DiffAugment: fewer than {MANY:,} pictures would be learned by heart"
    return "colour,translation,cutout", f"DiffAugment in full: fewer than {SOME:,} pictures"


def _why_batch(few: bool) -> str:
    return "images a step" + (": few, so that there are many steps" if few else "")


def _why_steps(steps: int, batch: int, images: int) -> str:
    return f"each picture is shown {steps * batch / images:,.0f} times"


def _whole(asked: Mapping[str, object], key: str, otherwise: int) -> int:
    """The positive whole number asked for; anything else is refused when the recipe is read."""
    value = asked.get(key)
    return value if isinstance(value, int) and value > 0 else otherwise


def _overridden(choices: list[Line], asked: Mapping[str, object], reasons: Mapping[str, str]) -> list[Line]:
    result = [
        Line(c.section, c.name, asked[key], reasons[key]) if (key := f"{c.section}.{c.name}") in asked else c
        for c in choices
    ]
    known = {f"{c.section}.{c.name}" for c in choices}
    for key, value in asked.items():
        section, dot, name = key.partition(".")
        if not dot:
            raise RecipeError(f"--set {key}={value}: write it as section.field=value.")
        if key not in known:
            result.append(Line(section, name, value, reasons[key]))
    order = ("model", "optimisation", "schedule")
    return sorted(result, key=lambda c: order.index(c.section) if c.section in order else len(order))


def _round(steps: float) -> int:
    """`steps` to two figures."""
    scale = int(10 ** max(len(str(int(steps))) - 2, 0))
    return max(round(steps / scale) * scale, 1)


def pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count:,} pictures"
