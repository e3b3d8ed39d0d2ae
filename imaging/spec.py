"""What one image is made from, and what its file says of how it was made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Self, TypeVar

T = TypeVar("T")

VERSION: Final = 1  # of the JSON in a PNG
SEEDS: Final = 2**63  # that there are, from 0 on


class SpecError(Exception):
    """This file does not say how its image was made, or not in a way that this version reads."""


@dataclass(frozen=True)
class ImageSpec:
    """One image of a given network: its pixels are a function of this alone."""

    class_id: int
    seed: int  # 0 to 2^63 - 1
    index: int  # of the image among those of one seed
    truncation: float  # (0, 1]: z is scaled by it


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
        return json.dumps(
            {
                "model": self.model,
                "model_hash": self.model_hash,
                "precision": self.precision,
                "class_id": image.class_id,
                "class_name": self.class_name,
                "seed": image.seed,
                "truncation": image.truncation,
                "index": image.index,
                "version": VERSION,
            }
        )

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
        if version != VERSION:
            raise SpecError(f"The spec in this PNG is of version {version}; this reads {VERSION}.")
        number, seed = _checked(values, "class_id", int), _checked(values, "seed", int)
        index, truncation = _checked(values, "index", int), _checked(values, "truncation", float)
        for name, fits in (
            ("class_id", number >= 0),
            ("seed", 0 <= seed < SEEDS),
            ("index", 0 <= index < SEEDS),
            ("truncation", 0 < truncation <= 1),  # so that NaN does not
        ):
            if not fits:
                raise SpecError(
                    f"The spec in this PNG has {name} = {_short(values[name])}: no image has that."
                )
        return cls(
            model=_checked(values, "model", str),
            model_hash=_checked(values, "model_hash", str),
            precision=_checked(values, "precision", str),
            class_name=_checked(values, "class_name", str),
            image=ImageSpec(number, seed, index, truncation),
        )


def _checked(values: dict[str, object], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SpecError(f"The spec in this PNG has {name} = {_short(value)}; it must be {kind.__name__}.")
    return value


def _short(value: object) -> str:
    """Of a file that anyone may have written: what fits into a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
