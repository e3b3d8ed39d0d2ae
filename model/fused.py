"""The generator as it serves: spectral norm, batch norm and biases folded away, weights laid out once."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import AttentionTrace, SelfAttention
from model.generator import Generator
from model.layers import ConditionalBatchNorm, UpBlock, enlarging_kernel


class ScaleShift(nn.Module):
    """x·scale[y] + shift[y]: a conditional batch norm in eval mode, its statistics and tables made one.

    A shared class embedding becomes tables too. What a part of z adds to both stays two small matrices.
    The bias of the convolution before it is in the shift.
    """

    scale: Tensor  # [classes, C]
    shift: Tensor
    z_to_scale: Tensor  # [C, part of z]; only where the norm sees one
    z_to_shift: Tensor

    def __init__(
        self,
        source: ConditionalBatchNorm,
        y: Tensor,
        vector: Tensor | None,
        part: int,
        bias: Tensor | None = None,
    ) -> None:
        """y: every class. vector: what `source` projects for each; its last `part` places are z's, 0."""
        super().__init__()
        mean, variance = source.norm.running_mean, source.norm.running_var
        assert mean is not None
        assert variance is not None
        if bias is not None:
            mean = mean - bias
        deviation = torch.sqrt(variance + source.norm.eps)
        gamma, beta = source.scale_and_shift(y, vector)
        scale = gamma / deviation
        self.register_buffer("scale", scale)
        self.register_buffer("shift", beta - mean * scale)
        if part and source.to_gamma is not None and source.to_beta is not None:
            z_to_scale = source.to_gamma.weight[:, -part:] / deviation[:, None]
            self.register_buffer("z_to_scale", z_to_scale)
            self.register_buffer("z_to_shift", source.to_beta.weight[:, -part:] - mean[:, None] * z_to_scale)

    def forward(self, x: Tensor, y: Tensor, part: Tensor | None) -> Tensor:
        scale, shift = self.scale[y], self.shift[y]
        if part is not None:
            scale, shift = scale + F.linear(part, self.z_to_scale), shift + F.linear(part, self.z_to_shift)
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def packs(weight: Tensor) -> bool:
    """Whether oneDNN's own layouts can be used for this weight: on a CPU, where torch was built with them."""
    ops = torch.ops.mkldnn
    return weight.device.type == "cpu" and all(
        hasattr(ops, name)
        for name in (
            "_convolution_pointwise",
            "_convolution_transpose_pointwise",
            "_reorder_convolution_weight",
            "_reorder_convolution_transpose_weight",
        )
    )


class Convolution(nn.Module):
    """A convolution; on a CPU its weights are laid out for oneDNN once, not at every call.

    Laid out so, an image comes out the same in any company: one kernel serves every batch size, which
    F.conv2d and F.linear do not promise. (torch.ops.mkldnn is what torch.compile itself calls on a CPU.)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, side: int, stride: int = 1) -> None:
        """weight [out, in, k, k]; side: of the maps it will see, pixels. Pads as keeps side / stride."""
        super().__init__()
        self.stride = (stride, stride)
        self.padding = ((weight.shape[2] - 1) // 2,) * 2
        self.packed = packs(weight)
        if self.packed:
            shape = (1, weight.shape[1], side, side)
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, self.padding, self.stride, (1, 1), 1, shape
            )
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = weight  # no buffer: oneDNN's layouts cannot be moved or cast
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            packed = torch.ops.mkldnn._convolution_pointwise.default
            return cast(
                Tensor,
                packed(x, self.weight, self.bias, self.padding, self.stride, (1, 1), 1, "none", [], ""),
            )
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Enlarging(nn.Module):
    """×2 (nearest) and a 3×3 convolution without bias, as one transposed 4×4 of stride 2, laid out once."""

    def __init__(self, weight: Tensor, side: int) -> None:
        """weight [out, in, 3, 3]; side: of the maps it will see, pixels."""
        super().__init__()
        self.packed = packs(weight)
        kernel = enlarging_kernel(weight)
        if self.packed:
            shape = (1, weight.shape[1], side, side)
            kernel = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                kernel.contiguous(), (1, 1), (0, 0), (2, 2), (1, 1), 1, shape
            )
        self.weight = kernel

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            packed = torch.ops.mkldnn._convolution_transpose_pointwise.default
            how: Any = ((1, 1), (0, 0), (2, 2), (1, 1), 1, "none", [], "")
            return cast(Tensor, packed(x, self.weight, None, *how))
        return F.conv_transpose2d(x, self.weight, None, stride=2, padding=1)


class FusedUpBlock(nn.Module):
    """An UpBlock whose norms are ScaleShifts and whose biases are all added in one place."""

    def __init__(
        self, source: UpBlock, y: Tensor, vector: Tensor | None, part: int, side: int, dtype: torch.dtype
    ) -> None:
        """side: of the map that comes in, pixels. The rest as for ScaleShift."""
        super().__init__()
        assert source.conv2.bias is not None
        assert source.skip.bias is not None
        bias = source.conv2.bias + source.skip.bias
        self.norm1 = ScaleShift(source.norm1, y, vector, part).to(dtype)
        self.conv1 = Enlarging(source.conv1.weight.to(dtype), side)
        self.norm2 = ScaleShift(source.norm2, y, vector, part, source.conv1.bias).to(dtype)
        self.conv2 = Convolution(source.conv2.weight.to(dtype), bias.to(dtype), 2 * side)
        self.skip = Convolution(source.skip.weight.to(dtype), None, side)

    def forward(self, x: Tensor, y: Tensor, part: Tensor | None) -> Tensor:
        h = self.conv1(self.norm1(x, y, part).relu_())
        h = self.conv2(self.norm2(h, y, part).relu_())
        skipped = self.skip(x)
        batch, width, rows, columns = skipped.shape
        # nearest ×2 as a broadcast: the doubled map is never built
        pixels = h.permute(0, 2, 3, 1).view(batch, rows, 2, columns, 2, width)
        pixels += skipped.permute(0, 2, 3, 1)[:, :, None, :, None]
        return cast(Tensor, h)


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
    """The last 3×3 convolution, two by two pixels at a time: three channels leave most of a vector unit idle.

    One 4×4 kernel of stride 2 makes the 12 values of a block; it costs less than half.
    """

    def __init__(self, weight: Tensor, bias: Tensor, side: int) -> None:
        """weight [3, in, 3, 3]; side: of the image, pixels."""
        super().__init__()
        blocks = weight.new_zeros(3, 2, 2, weight.shape[1], 4, 4)
        for row in range(2):
            for column in range(2):
                blocks[:, row, column, :, row : row + 3, column : column + 3] = weight
        self.convolution = Convolution(blocks.flatten(0, 2), bias.repeat_interleave(4), side, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.convolution(x), 2)


class _First(nn.Module):
    """The linear layer at the start, as a 1×1 convolution: that one does not mind how many rows it gets."""

    def __init__(self, source: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolution = Convolution(source.weight[:, :, None, None].to(dtype), source.bias.to(dtype), 1)

    def forward(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.convolution(z[:, :, None, None])).flatten(1)


class FusedGenerator(nn.Module):
    """A copy of a generator for inference on one device, in one precision; same calls, same images.

    The fold changes the order of a few products, so images agree with the source's to rounding.
    """

    def __init__(
        self, source: Generator, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """device: None: where `source` is."""
        super().__init__()
        self.config = config = source.config
        network = source.folded()
        network = network.to(network.to_rgb.weight.device if device is None else device)
        y = torch.arange(config.classes, device=network.to_rgb.weight.device)
        _, vectors = network.parts(torch.zeros(config.classes, config.latent, device=y.device), y)
        part = config.latent_part if config.hierarchical else 0
        # everything is folded in float32, then rounded once
        for index, side in enumerate(config.generator_sides):
            block = network.blocks[index]
            assert isinstance(block, UpBlock)
            network.blocks[index] = FusedUpBlock(block, y, vectors[index], part, side // 2, dtype)
        for name, layer in network.attention.items():
            assert isinstance(layer, SelfAttention)
            if layer.form == "embedded_gaussian":
                network.attention[name] = FusedAttention(layer, int(name.split("x")[0]), dtype)
        network.linear = cast(nn.Linear, _First(network.linear, dtype))
        rgb = network.to_rgb
        assert rgb.bias is not None
        network.to_rgb = cast(nn.Conv2d, ToRgb(rgb.weight.to(dtype), rgb.bias.to(dtype), config.resolution))
        network.shared = None  # it is in the tables now
        self.network = network.to(dtype)
        self.forward = self.network.forward
        self.forward_with_attention = self.network.forward_with_attention
