"""The number formats of a device, and a network in the one that serves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from imaging.noise import noise
from model.errors import PrecisionError
from model.generator import Generator
from model.serving import processor
from model.serving.fused import FusedGenerator
from model.serving.int8 import ActivationRange, has_int8

log = logging.getLogger(__name__)

PRECISIONS: Final = ("float32", "bfloat16", "int8")
WORST: Final = 1.2  # levels of 255: the largest mean difference from float32 that "auto" accepts
RANGED: Final = 64  # images whose activations set the ranges of int8
COMPARED: Final = 32  # other images, on which a network is compared with float32
AT_ONCE: Final = 16  # images in one forward


def has_bf16(device: torch.device) -> bool:
    """Whether it has bf16 instructions; elsewhere bf16 is emulated, slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return processor.has_bf16()


def in_precision(generator: Generator, device: torch.device, precision: str) -> tuple[FusedGenerator, str]:
    """The network as it serves, and its precision: "float32", "bfloat16" or "int8".

    precision: one of these, or "auto": bfloat16 or int8 where the device has it and images stay within WORST
    of float32 on average. For that, int8 leaves some of the first blocks in float32. Raises PrecisionError.
    """
    if precision not in (*PRECISIONS, "auto"):
        raise PrecisionError(
            f"precision is {precision!r}; it must be auto or one of {', '.join(PRECISIONS)}."
        )
    if precision == "int8" and not has_int8(device):
        raise PrecisionError(f"{device} has no instructions for int8. Use the precision auto or float32.")
    exact = FusedGenerator(generator, device)
    there = [name for name, has in (("bfloat16", has_bf16), ("int8", has_int8)) if has(device)]
    with torch.inference_mode():
        for short in {"float32": [], "auto": there}.get(precision, [precision]):
            expected = torch.cat([exact(*some) for some in _images(RANGED, COMPARED, exact)])
            for network in _ways(generator, exact, short):
                apart = _difference(network, expected)
                if apart <= WORST:
                    break
            log.info("%s: images differ from float32 by %.2f of 255 on average", short, apart)
            if apart <= WORST or short == precision:
                return network, short
    return exact, "float32"


def _ways(generator: Generator, exact: FusedGenerator, short: str) -> Iterator[FusedGenerator]:
    """The network in the shorter format, each nearer to float32 than the one before."""
    device = exact.table.device
    if short == "bfloat16":
        yield FusedGenerator(generator, device, torch.bfloat16)
        return
    parts = [exact.activation_ranges(*some) for some in _images(0, RANGED, exact)]
    ranges = [ActivationRange.over(of_one) for of_one in zip(*parts, strict=True)]
    for spared in range(len(exact.blocks)):
        yield FusedGenerator(generator, device, ranges=ranges, spared=spared)


def _difference(network: FusedGenerator, expected: Tensor) -> float:
    """Mean absolute difference of images, in levels of 255."""
    made = [network(*some) for some in _images(RANGED, COMPARED, network)]
    return float((torch.cat(made) - expected).abs().mean()) * 127.5


def _images(first: int, count: int, network: FusedGenerator) -> Iterator[tuple[Tensor, Tensor]]:
    """z and y of a fixed set of images, class after class, a forward at a time."""
    config, device = network.config, network.table.device
    for begin in range(first, first + count, AT_ONCE):
        rows = range(begin, begin + AT_ONCE)
        z = np.stack([noise(row, 0, config.latent) for row in rows])
        y = torch.tensor([row % config.classes for row in rows])
        yield torch.from_numpy(z).to(device, network.dtype), y.to(device)
