"""Convolutions in 8 bits on a CPU: activations of 0 to 255 times weights of -127 to 127, sums exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from model.serving.processor import has_vnni

# One value in so many may lie beyond a channel's range: a range for the largest of all would be too coarse.
CLIPPED: Final = 10_000


def has_int8(device: torch.device) -> bool:
    """Whether it has instructions for 8-bit products, and torch oneDNN's convolutions of these."""
    ops = torch.ops.onednn
    there = all(hasattr(ops, name) for name in ("qconv2d_pointwise", "qconv_prepack"))
    return device.type == "cpu" and there and has_vnni()


@dataclass(frozen=True)
class ActivationRange:
    """The values that a convolution gets after a ReLU, by channel: where their range ends, and their mean."""

    end: Tensor  # [C], of the range
    mean: Tensor  # [C]

    @classmethod
    def of(cls, x: Tensor) -> ActivationRange:
        values = x.transpose(0, 1).flatten(1)
        end = values.topk(max(1, values.shape[1] // CLIPPED), dim=1).values[:, -1]
        # in float64: its order of summing, which differs with the threads, is gone when it is rounded
        return cls(end, values.mean(dim=1, dtype=torch.float64).float())

    @classmethod
    def over(cls, parts: Iterable[ActivationRange]) -> ActivationRange:
        """The range over several batches of one size."""
        ends, means = zip(*((part.end, part.mean) for part in parts), strict=True)
        return cls(torch.stack(ends).amax(dim=0), torch.stack(means).mean(dim=0))


def quantise(x: Tensor) -> Tensor:
    """ReLU and uint8 levels of x, counted in steps. It rounds down: x must carry half a step more."""
    # by way of int16: torch has no vector code from float32 to uint8
    return x.to(torch.int16).clamp_(0, 255).to(torch.uint8)


class Int8Convolution(nn.Module):
    """A convolution of uint8 levels, [B, in, H, W] channels_last, to float32.

    Each input channel has its own step, which the norm before it and the weights take up at no cost. Steps
    are chosen so that activations and weights share the loss (SmoothQuant, Xiao et al. 2023, eq. 4, α = 1/2).
    Each output channel's weights have a scale. The bias takes off what their rounding adds on average (Nagel
    et al. 2019, section 4.2).
    """

    steps: Tensor  # [in]: the value of one level of each input channel

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        side: int,
        ranges: ActivationRange,
        padding: int = 1,
        stride: int = 1,
    ) -> None:
        """weight [out, in, k, k]; side: of the maps it will see, pixels."""
        super().__init__()
        ends = ranges.end.clamp(min=1e-6)
        balanced = (ends / weight.abs().amax(dim=(0, 2, 3)).clamp(min=1e-6)).sqrt()
        self.steps = balanced * ((ends / balanced).max() / 255)
        weight = weight * self.steps[None, :, None, None]
        self.scales = weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / 127
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.stride, self.padding = [stride] * 2, [padding] * 2
        whole = (weight / self.scales[:, None, None, None]).round()
        added = whole * self.scales[:, None, None, None] - weight
        more = added.sum(dim=(2, 3)) @ (ranges.mean / self.steps)
        self.bias = -more if bias is None else bias - more
        shape = [1, weight.shape[1], side, side]
        self.weight = torch.ops.onednn.qconv_prepack(
            whole.to(torch.int8), self.scales, 1.0, 0, self.stride, self.padding, [1, 1], 1, shape
        )

    def forward(self, x: Tensor) -> Tensor:
        convolve = torch.ops.onednn.qconv2d_pointwise.default
        how: Any = (self.stride, self.padding, [1, 1], 1, 1.0, 0, torch.float32, "none", [], "")
        return cast(Tensor, convolve(x, 1.0, 0, self.weight, self.scales, self.zeros, self.bias, *how))
