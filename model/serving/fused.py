"""The generator as it serves: spectral norm, batch norm and biases folded away, weights laid out once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import AttentionTrace, SelfAttention
from model.config import BASE
from model.generator import Generator
from model.layers import ConditionalBatchNorm, UpBlock, enlarging_kernel
from model.serving.int8 import Int8Convolution, Seen, levels

# On a CPU the last blocks see some of a forward's images at a time: what one step of a block leaves is then
# still in a cache when the next one comes, and is not given back to the system in between.
CACHED: Final = 8 << 20  # bytes of a map in float32, of all images that go through a block together


@dataclass(frozen=True)
class Norm:
    """A conditional batch norm in eval mode as x·scale + shift: its statistics and tables made one.

    A shared class embedding becomes tables too; what z adds stays a matrix. The bias of the convolution
    before it is in the shift.
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


def packs(weight: Tensor) -> bool:
    """Whether oneDNN's own layouts can be used for this weight: on a CPU, where torch was built with them.

    For bfloat16 oneDNN wants AVX-512, or refuses.
    """
    ops = torch.ops.mkldnn
    if weight.dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():
        return False
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

    def forward(self, x: Tensor, rows: Tensor, seen: list[Seen] | None = None) -> Tensor:
        """rows [B, both norms' scale and shift]. seen: gets what the convolutions see."""
        scale1, shift1, scale2, shift2 = rows.split_with_sizes(self.widths, dim=1)
        h = _scaled(x, scale1, shift1).relu_()
        if seen is not None:
            seen.append(Seen.of(h))
        h = _scaled(self.conv1(h), scale2, shift2).relu_()
        if seen is not None:
            seen.append(Seen.of(h))
        return _plus_doubled(self.conv2(h), self.skip(x))


class Int8UpBlock(nn.Module):
    """The same in float32 with its two 3×3 convolutions in 8 bits."""

    def __init__(
        self, source: UpBlock, side: int, after: tuple[Tensor, Tensor] | None, seen: Sequence[Seen]
    ) -> None:
        """seen: by each of the two convolutions."""
        super().__init__()
        second, skip, bias = _with(after, source)
        self.widths = (source.conv1.in_channels,) * 2 + (source.conv1.out_channels,) * 2
        self.conv1 = Int8Convolution(_corners(source.conv1.weight), None, side, seen[0])
        self.conv2 = Int8Convolution(second, bias, 2 * side, seen[1])
        self.skip = Convolution(skip, None, side)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """rows [B, both norms' scale and shift], in the convolutions' steps."""
        scale1, shift1, scale2, shift2 = rows.split_with_sizes(self.widths, dim=1)
        corners = self.conv1(levels(_scaled(x, scale1, shift1)))
        batch, _, height, width = x.shape
        channels = self.widths[2]
        # kernel (r, c) makes, of the window that ends at pixel (i, j), pixel (2i - r, 2j - c) of the doubled
        # map: read where it lies, as [B, H, 2, W, 2, C]
        image, _, row, column = corners.stride()
        steps = (image, row, row + 2 * channels, column, column + channels, 1)
        h = torch.empty(batch, height, 2, width, 2, channels)
        shift2, scale2 = (t[:, None, None, None, None] for t in (shift2, scale2))
        torch.addcmul(shift2, corners.as_strided(h.shape, steps), scale2, out=h)
        h = levels(h).view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
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


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
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

    def __init__(self, source: nn.Conv2d, side: int, dtype: torch.dtype, seen: Seen | None = None) -> None:
        """source: 3×3, to 3 channels. side: of the image, pixels. seen: in float32; None: dtype."""
        super().__init__()
        weight, bias = source.weight, source.bias
        assert bias is not None
        blocks = weight.new_zeros(3, 2, 2, weight.shape[1], 4, 4)
        for row in range(2):
            for column in range(2):
                blocks[:, row, column, :, row : row + 3, column : column + 3] = weight
        kernel, biases = blocks.flatten(0, 2), bias.repeat_interleave(4)
        self.convolution: nn.Module
        if seen is None:
            self.convolution = Convolution(kernel.to(dtype), biases.to(dtype), side, stride=2)
        else:
            self.convolution = Int8Convolution(kernel, biases, side, seen, stride=2)

    def in_steps(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The norm before it, counted as it wants its input."""
        if not isinstance(self.convolution, Int8Convolution):
            return scale, shift
        steps = self.convolution.steps
        return scale / steps, shift / steps + 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = levels(x) if isinstance(self.convolution, Int8Convolution) else F.relu(x)
        return F.pixel_shuffle(self.convolution(x), 2)


class Rows(nn.Module):
    """A linear layer, [B, in] -> [B, out], as a 1×1 convolution over a map of B pixels.

    That one is laid out once too, and does not mind how many rows it gets.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.convolution = Convolution(weight[:, :, None, None], bias, 1)

    def forward(self, rows: Tensor) -> Tensor:
        grid = rows[None, None].permute(0, 3, 1, 2)  # [1, in, 1, B], channels_last as it lies
        return cast(Tensor, self.convolution(grid)).permute(0, 2, 3, 1)[0, 0]


class FusedGenerator(nn.Module):
    """A copy of a generator for inference on one device, in one precision; same calls, same images.

    The fold changes the order of a few products, so images agree with the source's to rounding. With `seen`
    most convolutions are in 8 bits, and images agree less: whoever asks for that looks how much.
    """

    def __init__(
        self,
        source: Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        seen: Sequence[Seen] | None = None,
        spared: int = 0,
    ) -> None:
        """device: None: where `source` is. seen: as `seen` of a float32 one gives it; needs has_int8.

        spared: so many of the first blocks stay out of int8. What they lose shows in every pixel, and their
        maps are small.
        """
        super().__init__()
        self.config = config = source.config
        self.dtype = dtype
        self.table: Tensor
        network = source.folded()
        network = network.to(network.to_rgb.weight.device if device is None else device)
        # everything is folded in float32, then rounded once
        self.attention = nn.ModuleDict()
        for name, layer in network.attention.items():
            assert isinstance(layer, SelfAttention)
            fuses = layer.form == "embedded_gaussian"
            side = int(name.split("x")[0])
            self.attention[name] = FusedAttention(layer, side, dtype) if fuses else layer.to(dtype)
        self.to_rgb = ToRgb(network.to_rgb, config.resolution, dtype, seen[-1] if seen else None)
        after = self.to_rgb.in_steps(*_scale_and_shift(network.norm))
        attends_last = config.resolution in config.generator_attention
        # the last norm becomes part of the last block, where no attention stands between them
        self.last = (after[0].to(dtype), after[1].to(dtype)) if attends_last else None
        self._lay_blocks(network, dtype, seen, spared, None if attends_last else after)
        linear, width = network.linear, config.generator_widths[0]
        # rows in the order of channels_last: [pixels, C]
        weight = linear.weight.view(width, BASE * BASE, -1).transpose(0, 1).flatten(0, 1)
        bias = linear.bias.view(width, BASE * BASE).t().flatten()
        self.first = Rows(weight.to(dtype), bias.to(dtype))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self._rest(0, *self._begin(z, y), None).float())

    def forward_with_attention(self, z: Tensor, y: Tensor) -> tuple[Tensor, list[AttentionTrace]]:
        """As Generator.forward_with_attention."""
        traces: list[AttentionTrace] = []
        return torch.tanh(self._rest(0, *self._begin(z, y), traces).float()), traces

    def seen(self, z: Tensor, y: Tensor) -> list[Seen]:
        """What each of its 3×3 convolutions sees over these images."""
        found: list[Seen] = []
        x, rows = self._begin(z, y)
        for side, block, part in self._steps(0, rows):
            x = self._attend(block(x, part, found), side, None)
        found.append(Seen.of(F.relu(x if self.last is None else _scaled_by(x, *self.last))))
        return found

    def _lay_blocks(
        self,
        network: Generator,
        dtype: torch.dtype,
        seen: Sequence[Seen] | None,
        spared: int,
        after: tuple[Tensor, Tensor] | None,
    ) -> None:
        """The blocks, and one table with the rows of all their norms. after: of the last block."""
        config = self.config
        device = network.to_rgb.weight.device
        _, vectors = network.parts(
            torch.zeros(config.classes, config.latent, device=device),
            torch.arange(config.classes, device=device),
        )
        part = config.latent_part if config.hierarchical else 0
        norms: list[Norm] = []
        self.blocks = nn.ModuleList()
        for index, vector in enumerate(vectors):
            source = network.blocks[index]
            assert isinstance(source, UpBlock)
            side = BASE << index
            own = after if index == len(vectors) - 1 else None
            pair = [
                Norm.of(source.norm1, config.classes, vector, part),
                Norm.of(source.norm2, config.classes, vector, part, source.conv1.bias),
            ]
            if seen and index >= spared:
                block = Int8UpBlock(source, side, own, seen[2 * index : 2 * index + 2])
                pair = [pair[0].in_steps(block.conv1.steps), pair[1].in_steps(block.conv2.steps)]
                self.blocks.append(block)
            else:
                self.blocks.append(FusedUpBlock(source, side, dtype, own))
            norms += pair
        self.register_buffer("table", torch.cat([norm.table for norm in norms], dim=1).to(dtype))
        # each block's norms see a part of z of their own
        from_z = [torch.cat([a.from_z, b.from_z]) for a, b in zip(norms[::2], norms[1::2], strict=True)]
        whole: Tensor = torch.block_diag(*from_z)  # type: ignore[no-untyped-call]
        self.from_z = Rows(whole.to(dtype), None) if part else None
        self._widths = [len(matrix) for matrix in from_z]

    def _begin(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The first map, and the rows of all norms."""
        z = z.to(self.dtype)
        rows = self.table[y]
        if self.from_z is not None:
            rows = rows + self.from_z(z[:, self.config.latent_part :])
        x = self.first(z[:, : self.config.latent_part])
        return x.view(len(z), BASE, BASE, -1).permute(0, 3, 1, 2), rows

    def _steps(self, first: int, rows: Tensor) -> Iterator[tuple[int, nn.Module, Tensor]]:
        """From block `first` on: the side of what it puts out, the block, its rows."""
        parts = rows.split_with_sizes(self._widths, dim=1)
        return zip(self.config.generator_sides[first:], self.blocks[first:], parts[first:], strict=True)

    def _rest(self, first: int, x: Tensor, rows: Tensor, traces: list[AttentionTrace] | None) -> Tensor:
        """From block `first` to RGB before its tanh, [B, 3, R, R]."""
        for index, (side, block, part) in enumerate(self._steps(first, rows), first):
            width = self.config.generator_widths[index + 1]
            fit = max(1, CACHED // (4 * side * side * width))
            if traces is None and x.device.type == "cpu" and len(x) > fit:
                groups = zip(torch.split(x, fit), torch.split(rows, fit), strict=True)
                return torch.cat([self._rest(index, *group, None) for group in groups])
            x = self._attend(block(x, part), side, traces)
        if self.last is not None:
            x = _scaled_by(x, *self.last)
        rgb: Tensor = self.to_rgb(x)
        return rgb

    def _attend(self, x: Tensor, side: int, traces: list[AttentionTrace] | None) -> Tensor:
        name = f"{side}x{side}"
        if name not in self.attention:
            return x
        layer = cast(SelfAttention | FusedAttention, self.attention[name])
        if traces is None:
            attended: Tensor = layer(x)
            return attended
        x, trace = layer.forward_with_map(x, name)
        traces.append(trace)
        return x


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as x·scale + shift, [C] each."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def _scaled_by(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _scaled(x, scale[None], shift[None])
