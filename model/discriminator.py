"""The discriminator, with the projection of the class (Miyato & Koyama 2018, eq. 4)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import SelfAttention
from model.config import ModelConfig
from model.layers import DownBlock, initialise


class Discriminator(nn.Module):
    """Images [B, 3, R, R] in [-1, 1] and labels y [B] -> scores [B], higher for what looks real."""

    def __init__(self, config: ModelConfig, initialisation: str = "xavier") -> None:
        super().__init__()
        self.config = config
        widths = config.discriminator_widths
        blocks = [DownBlock(3, widths[0], first=True)]
        blocks += [DownBlock(a, b) for a, b in pairwise(widths[:-1])]
        blocks += [DownBlock(widths[-2], widths[-1], pool=False)]
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleDict(
            {
                f"{side}x{side}": SelfAttention(width, config.attention_form, config.attention_pool)
                for side, width in zip(config.discriminator_sides, widths[:-1], strict=True)
                if side in config.discriminator_attention
            }
        )
        self.linear = nn.Linear(widths[-1], 1)
        self.embedding = nn.Embedding(config.classes, widths[-1])
        initialise(self, initialisation)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            x = block(x)
            # the last block keeps its side of 4, which must not run that side's attention twice
            side = self.config.discriminator_sides[i] if i < len(self.blocks) - 1 else 0
            if f"{side}x{side}" in self.attention:
                x = self.attention[f"{side}x{side}"](x)
        with torch.autocast(x.device.type, enabled=False):  # sums, and the loss made of them, in float32
            features = F.relu(x.float()).sum(dim=(2, 3))
            score: Tensor = self.linear(features).squeeze(1) + (self.embedding(y) * features).sum(dim=1)
        return score

    def first(self, blocks: int) -> Iterator[nn.Parameter]:
        """The parameters of the first blocks, with the attention between them."""
        sides = self.config.discriminator_sides
        for i in range(blocks):
            yield from self.blocks[i].parameters()
            if i + 1 < blocks and (name := f"{sides[i]}x{sides[i]}") in self.attention:
                yield from self.attention[name].parameters()
