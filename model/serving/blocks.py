"""The parts of the generator as it serves: norms folded into scales and shifts, biases added in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import AttentionTrace, SelfAttention
from model.layers import ConditionalBatchNorm, UpBlock, enlarging_kernel
from model.serving.convolutions import Convolution, Enlarging
from model.serving.int8 import ActivationRange, Int8Convolution, quantise


@dataclass(frozen=True)
class Norm:
    """A conditional batch norm in eval mode as x·scale + shift: its statistics and tables made one.

    A shared class embedding becomes tables too; the part of z stays a matrix. The shift holds the bias of the
    convolution before it.
    """

    table: Tensor  # [classes, 2C]: scale, then shift
    from_z: Tensor  # [2C, part of z]; of no columns where the norm sees no z

    @classmethod
    def of(
        cls,
        source: ConditionalBatchNorm,
        classes: int,
        vector: Tensor | None,
        part: int,
        bias: Tensor | None = None,
    ) -> Norm:
        """vector: what `source` projects for each class; its last `part` places are z's, 0."""
        mean, variance = source.norm.running_mean, source.norm.running_var
        assert mean is not None
        assert variance is not None
        if bias is not None:
            mean = mean - bias
        deviation = torch.sqrt(variance + source.norm.eps)
        gamma, beta = source.scale_and_shift(torch.arange(classes, device=mean.device), vector)
        scale = gamma / deviation
        table = torch.cat([scale, beta - mean * scale], dim=1)
        from_z = table.new_zeros(table.shape[1], part)
        if part and source.to_gamma is not None and source.to_beta is not None:
            z_to_scale = source.to_gamma.weight[:, -part:] / deviation[:, None]
            z_to_shift = source.to_beta.weight[:, -part:] - mean[:, None] * z_to_scale
            from_z = torch.cat([z_to_scale, z_to_shift])
        return cls(table, from_z)

    def in_steps(self, steps: Tensor) -> Norm:
        """The same, in steps of 8 bits [C], and half a step more, since `levels` cuts off."""
        twice = steps.repeat(2)
        half = torch.zeros_like(twice)
        half[len(steps) :] = 0.5
        return Norm(self.table / twice + half, self.from_z / twice[:, None])


class FusedUpBlock(nn.Module):
    """An UpBlock whose norms come as rows of a table, and whose biases are all added in one place."""

    def __init__(
        self, source: UpBlock, side: int, dtype: torch.dtype, after: tuple[Tensor, Tensor] | None
    ) -> None:
        """side: of the map that comes in, pixels. after: scale and shift [out] of what the block puts out."""
        super().__init__()
        second, skip, bias = _with(after, source)
        self.widths = (source.conv1.in_channels,) * 2 + (source.conv1.out_channels,) * 2
        self.conv1 = Enlarging(source.conv1.weight.to(dtype), side)
        self.conv2 = Convolution(second.to(dtype), bias.to(dtype), 2 * side)
        self.skip = Convolution(skip.to(dtype), None, side)

    def forward(self, x: Tensor, rows: Tensor, ranges: list[ActivationRange] | None = None) -> Tensor:
        """rows [B, both norms' scale and shift]. ranges: gets those of the convolutions' inputs."""
        scale1, shift1, scale2, shift2 = rows.split_with_sizes(self.widths, dim=1)
        h = scaled(x, scale1, shift1).relu_()
        if ranges is not None:
            ranges.append(ActivationRange.of(h))
        h = scaled(self.conv1(h), scale2, shift2).relu_()
        if ranges is not None:
            ranges.append(ActivationRange.of(h))
        return _plus_doubled(self.conv2(h), self.skip(x))


class Int8UpBlock(nn.Module):
    """The same in float32 with its two 3×3 convolutions in 8 bits."""

    def __init__(
        self,
        source: UpBlock,
        side: int,
        after: tuple[Tensor, Tensor] | None,
        ranges: Sequence[ActivationRange],
    ) -> None:
        """ranges: of the inputs of its two 3×3 convolutions."""
        super().__init__()
        second, skip, bias = _with(after, source)
        self.widths = (source.conv1.in_channels,) * 2 + (source.conv1.out_channels,) * 2
        self.conv1 = Int8Convolution(_corners(source.conv1.weight), None, side, ranges[0])
        self.conv2 = Int8Convolution(second, bias, 2 * side, ranges[1])
        self.skip = Convolution(skip, None, side)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """rows [B, both norms' scale and shift], in the convolutions' steps."""
        scale1, shift1, scale2, shift2 = rows.split_with_sizes(self.widths, dim=1)
        corners = self.conv1(quantise(scaled(x, scale1, shift1)))
        batch, _, height, width = x.shape
        channels = self.widths[2]
        # kernel (r, c) makes, of the window that ends at pixel (i, j), pixel (2i - r, 2j - c) of the doubled
        # map: read where it lies, as [B, H, 2, W, 2, C]
        image, _, row, column = corners.stride()
        steps = (image, row, row + 2 * channels, column, column + channels, 1)
        h = torch.empty(batch, height, 2, width, 2, channels)
        shift2, scale2 = (t[:, None, None, None, None] for t in (shift2, scale2))
        torch.addcmul(shift2, corners.as_strided(h.shape, steps), scale2, out=h)
        h = quantise(h).view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
        return _plus_doubled(self.conv2(h), self.skip(x))


def _with(after: tuple[Tensor, Tensor] | None, block: UpBlock) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the second convolution and of the skip, and the bias of both, with `after` in them."""
    assert block.conv2.bias is not None
    assert block.skip.bias is not None
    bias = block.conv2.bias + block.skip.bias
    if after is None:
        return block.conv2.weight, block.skip.weight, bias
    scale, shift = after
    by = scale[:, None, None, None]
    return block.conv2.weight * by, block.skip.weight * by, bias * scale + shift


def _plus_doubled(h: Tensor, skipped: Tensor) -> Tensor:
    """h [B, C, 2H, 2W], changed in place, plus nearest ×2 of skipped [B, C, H, W], which is never built."""
    batch, width, rows, columns = skipped.shape
    pixels = h.permute(0, 2, 3, 1).view(batch, rows, 2, columns, 2, width)
    pixels += skipped.permute(0, 2, 3, 1)[:, :, None, :, None]
    return h


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def _corners(weight: Tensor) -> Tensor:
    """×2 and a 3×3 convolution [O, I, 3, 3] as 2×2 ones [4·O, I, 2, 2], for each of two by two pixels."""
    kernel = enlarging_kernel(weight).transpose(0, 1)
    taps = ((3, 1), (2, 0))  # of the transposed kernel, those that meet pixel 0 or 1 of two
    return torch.cat([kernel[:, :, rows][..., columns] for rows in taps for columns in taps])


class FusedAttention(nn.Module):
    """SAGAN's self-attention: one projection for queries, keys and values, the gate in the one back.

    Queries and keys are as wide as values, the rest zeros, since the kernel that never builds the N×N map
    wants one width; zeros in weights cost less than zeros put beside every row.
    """

    def __init__(self, source: SelfAttention, side: int, dtype: torch.dtype) -> None:
        """source: of the form "embedded_gaussian". side: of the maps it will see, pixels."""
        super().__init__()
        f, g = cast(nn.Conv2d, source.f).weight, cast(nn.Conv2d, source.g).weight
        h, v = source.h.weight, source.v.weight
        self.width = h.shape[0]
        self.pool = source.pool
        self.gamma = float(source.gamma)
        wide = torch.zeros(2, *h.shape, device=h.device)
        wide[0, : f.shape[0]], wide[1, : g.shape[0]] = f, g
        self.project = Convolution(torch.cat([*wide, h]).to(dtype), None, side)
        self.lead_back = Convolution((source.gamma * v).to(dtype), None, side)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._rows(x)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self._grid(attended, x)

    def forward_with_map(self, x: Tensor, name: str) -> tuple[Tensor, AttentionTrace]:
        """As SelfAttention.forward_with_map."""
        query, key, value = self._rows(x)
        attention = (query @ key.transpose(1, 2)).float().softmax(dim=-1).to(x.dtype)
        added = self._grid(attention @ value, x)
        side, step = int(x.shape[2]), 2 if self.pool else 1
        share = added.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
        keys = (side // step, side // step)
        return x + added, AttentionTrace(name, (side, side), keys, attention, self.gamma, share)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, H·W, width], [B, keys, width] and [B, keys, width]."""
        projected = self.project(x)
        query, rest = projected[:, : self.width], projected[:, self.width :]
        if self.pool:
            rest = F.max_pool2d(rest, 2)
        key, value = rest.flatten(2).transpose(1, 2).split(self.width, dim=2)
        return query.flatten(2).transpose(1, 2), key, value

    def _grid(self, rows: Tensor, x: Tensor) -> Tensor:
        grid = rows.transpose(1, 2).reshape(x.shape[0], -1, x.shape[2], x.shape[3])
        return cast(Tensor, self.lead_back(grid))


class ToRgb(nn.Module):
    """ReLU and the last 3×3 convolution, two by two pixels at a time: three channels fill no vector unit.

    One 4×4 kernel of stride 2 makes the 12 values of a block; it costs less than half.
    """

    def __init__(
        self, source: nn.Conv2d, side: int, dtype: torch.dtype, ranges: ActivationRange | None = None
    ) -> None:
        """source: 3×3, to 3 channels. side: of the image, pixels. ranges: in float32; None: dtype."""
        super().__init__()
        weight, bias = source.weight, source.bias
        assert bias is not None
        blocks = weight.new_zeros(3, 2, 2, weight.shape[1], 4, 4)
        for row in range(2):
            for column in range(2):
                blocks[:, row, column, :, row : row + 3, column : column + 3] = weight
        kernel, biases = blocks.flatten(0, 2), bias.repeat_interleave(4)
        self.convolution: nn.Module
        if ranges is None:
            self.convolution = Convolution(kernel.to(dtype), biases.to(dtype), side, stride=2)
        else:
            self.convolution = Int8Convolution(kernel, biases, side, ranges, stride=2)

    def in_steps(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The norm before it, counted as it wants its input."""
        if not isinstance(self.convolution, Int8Convolution):
            return scale, shift
        steps = self.convolution.steps
        return scale / steps, shift / steps + 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = quantise(x) if isinstance(self.convolution, Int8Convolution) else F.relu(x)
        return F.pixel_shuffle(self.convolution(x), 2)
