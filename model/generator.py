"""The generator: noise and a class in, an image out (SAGAN, Zhang et al. 2019, section 4)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import AttentionTrace, SelfAttention
from model.config import BASE, ModelConfig
from model.layers import SharedEmbedding, UpBlock, effective_state, initialise


class Generator(nn.Module):
    """z [B, latent] and labels y [B] -> images [B, 3, R, R] in [-1, 1]."""

    def __init__(self, config: ModelConfig, initialisation: str = "xavier") -> None:
        super().__init__()
        self.config = config
        widths = config.generator_widths
        self.linear = nn.Linear(config.latent_part, widths[0] * BASE * BASE)
        length = config.class_embedding
        self.shared = SharedEmbedding(config.classes, length) if length else None
        tables = 0 if length else config.classes
        vector = length + (config.latent_part if config.hierarchical else 0)
        self.blocks = nn.ModuleList(UpBlock(a, b, tables, vector) for a, b in pairwise(widths))
        self.attention = nn.ModuleDict(
            {
                f"{side}x{side}": SelfAttention(width, config.attention_form, config.attention_pool)
                for side, width in zip(config.generator_sides, widths[1:], strict=True)
                if side in config.generator_attention
            }
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)
        initialise(self, initialisation)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self._run(z, y, None)

    def forward_with_attention(self, z: Tensor, y: Tensor) -> tuple[Tensor, list[AttentionTrace]]:
        """The same images, and what each attention layer did, in the order they come."""
        traces: list[AttentionTrace] = []
        return self._run(z, y, traces), traces

    def folded(self) -> Generator:
        """A copy in eval mode without gradients, spectral norm folded into its weights."""
        # not deepcopy and remove_parametrizations: the copy shares its class with the original, and
        # removing the one's parametrization takes the other's away
        with torch.device("meta"):
            plain = Generator(self.config)
        plain.load_state_dict({n: t.clone() for n, t in effective_state(self).items()}, assign=True)
        return plain.eval().requires_grad_(False)

    def _run(self, z: Tensor, y: Tensor, traces: list[AttentionTrace] | None) -> Tensor:
        z, vectors = self.parts(z, y)
        x: Tensor = self.linear(z).view(z.shape[0], -1, BASE, BASE)
        x = x.contiguous(memory_format=torch.channels_last)
        for side, block, vector in zip(self.config.generator_sides, self.blocks, vectors, strict=True):
            x = block(x, y, vector)
            name = f"{side}x{side}"
            if name in self.attention:
                layer = cast(SelfAttention, self.attention[name])
                if traces is None:
                    x = layer(x)
                else:
                    x, trace = layer.forward_with_map(x, name)
                    traces.append(trace)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))).float())

    def parts(self, z: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """What the first layer takes of z, and for each block the vector that its norms project."""
        embedded = self.shared(y) if self.shared is not None else None
        if not self.config.hierarchical:
            return z, [embedded] * len(self.blocks)
        first, *parts = z.chunk(len(self.blocks) + 1, dim=1)
        return first, [part if embedded is None else torch.cat([embedded, part], dim=1) for part in parts]
