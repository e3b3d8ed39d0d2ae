"""The generator as it serves: conditional batch norm folded to one scale and shift a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.generator import Generator
from model.layers import ConditionalBatchNorm, UpBlock


class ScaleShift(nn.Module):
    """x·scale[y] + shift[y]: a conditional batch norm in eval mode, its statistics and tables made one.

    A shared class embedding becomes tables too. What a part of z adds to both stays two small matrices.
    """

    scale: Tensor  # [classes, C]
    shift: Tensor
    z_to_scale: Tensor  # [C, part of z]; only where the norm sees one
    z_to_shift: Tensor

    def __init__(self, source: ConditionalBatchNorm, y: Tensor, vector: Tensor | None, part: int) -> None:
        """y: every class. vector: what `source` projects for each; its last `part` places are z's, 0."""
        super().__init__()
        mean, variance = source.norm.running_mean, source.norm.running_var
        assert mean is not None
        assert variance is not None
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


class FusedGenerator(nn.Module):
    """A copy of a generator for inference: no spectral norm, no batch norm; same calls, same images.

    The fold changes the order of a few float32 products, so images agree with the source's to rounding.
    """

    def __init__(self, source: Generator) -> None:
        super().__init__()
        self.config = config = source.config
        network = source.folded()
        device = network.to_rgb.weight.device
        y = torch.arange(config.classes, device=device)
        _, vectors = network.parts(torch.zeros(config.classes, config.latent, device=device), y)
        part = config.latent_part if config.hierarchical else 0
        for block, vector in zip(network.blocks, vectors, strict=True):
            assert isinstance(block, UpBlock)
            for name in ("norm1", "norm2"):
                setattr(block, name, ScaleShift(getattr(block, name), y, vector, part))
        network.shared = None  # it is in the tables now
        self.network = network.to(memory_format=torch.channels_last)
        self.forward = self.network.forward
        self.forward_with_attention = self.network.forward_with_attention
