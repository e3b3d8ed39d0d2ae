"""The generator as it serves: conditional batch norm folded to one scale and shift a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.generator import Generator
from model.layers import ConditionalBatchNorm


class ScaleShift(nn.Module):
    """x·scale[y] + shift[y]: a conditional batch norm in eval mode, its statistics and tables made one."""

    scale: Tensor
    shift: Tensor

    def __init__(self, source: ConditionalBatchNorm) -> None:
        super().__init__()
        mean, variance = source.norm.running_mean, source.norm.running_var
        assert mean is not None
        assert variance is not None
        scale = source.gamma.detach() / torch.sqrt(variance + source.norm.eps)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", source.beta.detach() - mean * scale)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(self.shift[y][:, :, None, None], x, self.scale[y][:, :, None, None])


class FusedGenerator(nn.Module):
    """A copy of a generator for inference: no spectral norm, no batch norm; same calls, same images.

    The fold changes the order of a few float32 products, so images agree with the source's to rounding.
    """

    def __init__(self, source: Generator) -> None:
        super().__init__()
        network = source.folded()
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ConditionalBatchNorm):
                    setattr(module, name, ScaleShift(child))
        self.config = source.config
        self.network = network.to(memory_format=torch.channels_last)
        self.forward = self.network.forward
        self.forward_with_attention = self.network.forward_with_attention
