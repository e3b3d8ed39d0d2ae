"""The generator as it serves: spectral norm, batch norm and biases folded away, weights laid out once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import AttentionTrace, SelfAttention
from model.config import BASE
from model.generator import Generator
from model.layers import UpBlock
from model.serving.blocks import FusedAttention, FusedUpBlock, Int8UpBlock, Norm, ToRgb, scaled
from model.serving.convolutions import Rows
from model.serving.int8 import ActivationRange

# On a CPU the last blocks take a forward's images a few at a time: the maps of one step are then still in a
# cache when the next step reads them, and their memory is not returned to the system in between.
CACHED: Final = 8 << 20  # bytes of a float32 map of the images that go through a block together


class FusedGenerator(nn.Module):
    """A copy of a generator for inference on one device, in one precision; same calls, same images.

    The fold changes the order of a few products, so images agree with the source's to rounding. With `ranges`
    most convolutions are in 8 bits, and images agree less: `in_precision` measures how much.
    """

    def __init__(
        self,
        source: Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        ranges: Sequence[ActivationRange] | None = None,
        spared: int = 0,
    ) -> None:
        """device: None: that of `source`. ranges: from `activation_ranges` of a float32 copy; needs has_int8.

        spared: so many of the first blocks stay in float32. Their loss shows in every pixel, and their maps
        are small.
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
        self.to_rgb = ToRgb(network.to_rgb, config.resolution, dtype, ranges[-1] if ranges else None)
        after = self.to_rgb.in_steps(*_scale_and_shift(network.norm))
        attends_last = config.resolution in config.generator_attention
        # the last norm becomes part of the last block, where no attention stands between them
        self.last = (after[0].to(dtype), after[1].to(dtype)) if attends_last else None
        self._lay_blocks(network, dtype, ranges, spared, None if attends_last else after)
        linear, width = network.linear, config.generator_widths[0]
        # rows in the order of channels_last: [pixels, C]
        weight = linear.weight.view(width, BASE * BASE, -1).transpose(0, 1).flatten(0, 1)
        bias = linear.bias.view(width, BASE * BASE).t().flatten()
        self.first = Rows(weight.to(dtype), bias.to(dtype))

    def forward(self, z: Tensor, y: Tensor, shares: Tensor | None = None) -> Tensor:
        """As Generator.forward. With shares [B, M], which sum to 1, y is [B, M]: the classes of mixtures."""
        return torch.tanh(self._rest(0, *self._begin(z, y, shares), None).float())

    def forward_with_attention(
        self, z: Tensor, y: Tensor, shares: Tensor | None = None
    ) -> tuple[Tensor, list[AttentionTrace]]:
        """As Generator.forward_with_attention, and `forward`."""
        traces: list[AttentionTrace] = []
        return torch.tanh(self._rest(0, *self._begin(z, y, shares), traces).float()), traces

    def activation_ranges(self, z: Tensor, y: Tensor) -> list[ActivationRange]:
        """The ranges of the inputs of each 3×3 convolution over these images."""
        found: list[ActivationRange] = []
        x, rows = self._begin(z, y)
        for side, block, part in self._steps(0, rows):
            x = self._attend(block(x, part, found), side, None)
        found.append(ActivationRange.of(F.relu(x if self.last is None else _scaled_by(x, *self.last))))
        return found

    def _lay_blocks(
        self,
        network: Generator,
        dtype: torch.dtype,
        ranges: Sequence[ActivationRange] | None,
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
            if ranges and index >= spared:
                block = Int8UpBlock(source, side, own, ranges[2 * index : 2 * index + 2])
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

    def _begin(self, z: Tensor, y: Tensor, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first map, and the rows of all norms."""
        z = z.to(self.dtype)
        rows = self.table[y] if shares is None else self._mixed(y, shares)
        if self.from_z is not None:
            rows = rows + self.from_z(z[:, self.config.latent_part :])
        x = self.first(z[:, : self.config.latent_part])
        return x.view(len(z), BASE, BASE, -1).permute(0, 3, 1, 2), rows

    def _mixed(self, y: Tensor, shares: Tensor) -> Tensor:
        """The table's rows on the line between classes; y and shares (float32) [B, M].

        A class with a share of 1 keeps its row to the last bit.
        """
        rows = self.table[y[:, 0]] * shares[:, :1]
        for part in range(1, y.shape[1]):
            # two steps: fused into one, they round differently by a row's place in memory, thus in the batch
            rows = rows + self.table[y[:, part]] * shares[:, part : part + 1]
        return rows.to(self.dtype)

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
    return scaled(x, scale[None], shift[None])
