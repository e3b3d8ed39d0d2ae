"""The shape of a network: everything needed to build it, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from model.errors import ConfigError

AttentionForm = Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
RESOLUTIONS = (32, 64, 128)
BASE = 4  # pixels a side of the first feature map


@dataclass(frozen=True)
class ModelConfig:
    """A conditional SAGAN (Zhang et al. 2019). Raises ConfigError when no such network exists."""

    resolution: int  # pixels a side: 32, 64 or 128
    classes: int  # labels run from 0 to classes - 1
    generator_widths: tuple[int, ...]  # channels of the maps at 4, 8, ..., resolution
    discriminator_widths: tuple[int, ...]  # channels of the maps at resolution/2, ..., 8, 4 and 4 again
    generator_attention: tuple[int, ...] = ()  # sides of the feature maps that attend; (): none
    discriminator_attention: tuple[int, ...] = ()
    latent: int = 128  # length of z
    attention_form: AttentionForm = "embedded_gaussian"  # SAGAN's; the others are the non-local block's
    attention_pool: bool = True  # keys and values on a 2×2 max-pooled grid
    class_embedding: int = 0  # length of one embedding that all G's norms project; 0: tables of their own
    hierarchical: bool = False  # z in equal parts: one for G's first layer, one for each block's norms

    def __post_init__(self) -> None:
        if self.resolution not in RESOLUTIONS:
            raise ConfigError(f"resolution is {self.resolution}; it must be one of {RESOLUTIONS}.")
        if self.classes < 1 or self.latent < 1:
            raise ConfigError(f"classes ({self.classes}) and latent ({self.latent}) must be at least 1.")
        if self.class_embedding < 0:
            raise ConfigError(f"class_embedding is {self.class_embedding}; it must be 0 (none) or a length.")
        levels = (self.resolution // BASE).bit_length()  # 4 to resolution, both counted
        for name in ("generator_widths", "discriminator_widths"):
            widths = getattr(self, name)
            if len(widths) != levels or any(w < 8 or w % 8 for w in widths):
                raise ConfigError(
                    f"{name} is {widths}; {self.resolution} px need {levels} widths, each a multiple of 8."
                )
        if self.attention_form not in get_args(AttentionForm):
            raise ConfigError(
                f"attention_form is {self.attention_form!r}; it must be one of {get_args(AttentionForm)}."
            )
        if self.hierarchical and self.latent % levels:
            raise ConfigError(
                f"latent is {self.latent}; hierarchical at {self.resolution} px takes multiples of {levels}, "
                f"such as {max(self.latent // levels, 1) * levels}."
            )
        self._check_sites("generator_attention", self.generator_sides)
        self._check_sites("discriminator_attention", self.discriminator_sides)

    def _check_sites(self, name: str, sides: tuple[int, ...]) -> None:
        sites = getattr(self, name)
        if len(set(sites)) != len(sites) or not set(sites) <= set(sides):
            raise ConfigError(f"{name} is {sites}; it takes different sides out of {sides}.")

    @property
    def latent_part(self) -> int:
        """Length of each part of a hierarchical z; of the whole z otherwise."""
        return self.latent // len(self.generator_widths) if self.hierarchical else self.latent

    @property
    def generator_sides(self) -> tuple[int, ...]:
        """Sides of the maps that the generator's up-blocks put out: 8, 16, ..., resolution."""
        return tuple(2 * BASE << i for i in range(len(self.generator_widths) - 1))

    @property
    def discriminator_sides(self) -> tuple[int, ...]:
        """Sides of the maps that the discriminator's down-blocks put out: resolution/2, ..., 4."""
        return tuple(self.resolution >> i for i in range(1, len(self.discriminator_widths)))

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> ModelConfig:
        """The config that `to_json` wrote; ConfigError for a missing, unknown or mistyped field."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := set(values) - set(fields):
            raise ConfigError(f"unknown fields in the model's config: {', '.join(sorted(unknown))}.")
        read: dict[str, object] = {}
        for name, value in values.items():
            wanted = str(fields[name].type)
            if wanted.startswith("tuple"):
                if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
                    raise ConfigError(f"{name} is {value!r}; it must be a list of integers.")
                value = tuple(value)
            elif wanted in ("int", "bool") and type(value).__name__ != wanted:
                raise ConfigError(f"{name} is {value!r}; it must be of type {wanted}.")
            read[name] = value
        try:
            return cls(**read)  # type: ignore[arg-type]  # checked above and in __post_init__
        except TypeError as missing:
            raise ConfigError(f"the model's config is incomplete: {missing}.") from None
