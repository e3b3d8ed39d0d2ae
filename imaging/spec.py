"""What one image is made from, and what its file says of how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

T = TypeVar("T")

VERSION: Final = 1  # of the JSON in a PNG, for an image of one class and one draw
BLENDED: Final = 2  # of that of a blend: an older release would make another image
MOST_ENDS: Final = 32  # of a blend
MOST_CLASSES: Final = 8  # that an image may be a mixture of
SEEDS: Final = 2**63  # that there are, from 0 on


class SpecError(Exception):
    """This file does not say how its image was made, or not in a way that this version reads."""


Mixture = tuple[tuple[int, float], ...]  # classes and their weights, which sum to 1


@dataclass(frozen=True)
class End:
    """A part of a blend: classes, a draw of noise, and how much of the image it makes."""

    classes: Mixture
    seed: int
    index: int
    weight: float  # above 0; those of a blend sum to 1


@dataclass(frozen=True)
class ImageSpec:
    """One image of a given network: its pixels are a function of this alone."""

    class_id: int
    seed: int  # 0 to 2^63 - 1
    index: int  # of the image among those of one seed
    truncation: float  # (0, 1]: z is scaled by it
    # Of a blend, whose heaviest end then stands above. Its noise lies on the great circle between theirs, its
    # class on the straight line between the rows of the class tables. (): one class and one draw.
    ends: tuple[End, ...] = ()

    @classmethod
    def blend(cls, ends: tuple[End, ...], truncation: float) -> Self:
        """The image between these ends; a plain one where only one draw and one class have a weight."""
        ends = tuple(end for end in ends if end.weight > 0)
        heaviest = max(ends, key=lambda end: end.weight)
        class_id = max(heaviest.classes, key=lambda part: part[1])[0]
        plain = len(ends) == 1 and len(heaviest.classes) == 1
        return cls(class_id, heaviest.seed, heaviest.index, truncation, () if plain else ends)

    @property
    def classes(self) -> Mixture:
        """Its classes and their weights, which sum to 1, in the order in which the ends name them."""
        if not self.ends:
            return ((self.class_id, 1.0),)
        weights: dict[int, float] = {}
        for end in self.ends:
            for class_id, weight in end.classes:
                weights[class_id] = weights.get(class_id, 0.0) + weight * end.weight
        return tuple(weights.items())


@dataclass(frozen=True)
class Provenance:
    """An image spec, and the network that it is for: enough to make the image again and compare."""

    model: str
    model_hash: str  # sha256 hex of the checkpoint file
    precision: str  # of the forward; pixels depend on it
    class_name: str
    image: ImageSpec

    def to_json(self) -> str:
        """As it stands in a PNG. ASCII, so that a tEXt chunk can hold it."""
        image = self.image
        values: dict[str, object] = {
            "model": self.model,
            "model_hash": self.model_hash,
            "precision": self.precision,
            "class_id": image.class_id,
            "class_name": self.class_name,
            "seed": image.seed,
            "truncation": image.truncation,
            "index": image.index,
            "version": BLENDED if image.ends else VERSION,
        }
        if image.ends:
            values["ends"] = [
                {
                    "class_weights": dict(end.classes),
                    "seed": end.seed,
                    "index": end.index,
                    "weight": end.weight,
                }
                for end in image.ends
            ]
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises SpecError, with one line that says what is wrong."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"The spec in this PNG is not JSON ({error}).") from error
        if not isinstance(values, dict):
            raise SpecError("The spec in this PNG is not a JSON object.")
        version = _checked(values, "version", int)
        if version not in (VERSION, BLENDED):
            raise SpecError(
                f"The spec in this PNG is of version {version}; this reads {VERSION} to {BLENDED}."
            )
        number, seed, index = (_counted(values, name) for name in ("class_id", "seed", "index"))
        truncation = _checked(values, "truncation", float)
        if not 0 < truncation <= 1:  # so that NaN does not fit
            raise _none_has(values, "truncation")
        return cls(
            model=_checked(values, "model", str),
            model_hash=_checked(values, "model_hash", str),
            precision=_checked(values, "precision", str),
            class_name=_checked(values, "class_name", str),
            image=ImageSpec(number, seed, index, truncation, _ends(values) if version == BLENDED else ()),
        )


def _ends(values: dict[str, object]) -> tuple[End, ...]:
    given = _checked(values, "ends", list)
    ends = []
    for end in given[: MOST_ENDS + 1]:
        if not isinstance(end, dict):
            raise _none_has(values, "ends")
        weights = _checked(end, "class_weights", dict)
        classes = tuple(
            (int(number), _checked(weights, number, float))
            for number in weights
            if number.isdecimal() and len(number) < 10
        )
        if len(classes) < len(weights) or not _shares(weight for _, weight in classes):
            raise _none_has(end, "class_weights")
        ends.append(
            End(classes, _counted(end, "seed"), _counted(end, "index"), _checked(end, "weight", float))
        )
    named = {number for end in ends for number, _ in end.classes}
    if len(ends) > MOST_ENDS or len(named) > MOST_CLASSES or not _shares(end.weight for end in ends):
        raise _none_has(values, "ends")
    return tuple(ends)


def _shares(weights: Iterable[float]) -> bool:
    """Whether these are shares of a whole."""
    known = list(weights)
    return all(weight > 0 for weight in known) and math.isclose(sum(known), 1.0, abs_tol=1e-9)


def _counted(values: dict[str, object], name: str) -> int:
    number = _checked(values, name, int)
    if not 0 <= number < SEEDS:
        raise _none_has(values, name)
    return number


def _none_has(values: dict[str, object], name: str) -> SpecError:
    return SpecError(f"The spec in this PNG has {name} = {_short(values[name])}: no image has that.")


def _checked(values: dict[str, object], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SpecError(f"The spec in this PNG has {name} = {_short(value)}; it must be {kind.__name__}.")
    return value


def _short(value: object) -> str:
    """Of a file that anyone may have written: what fits into a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
