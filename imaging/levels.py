"""A network's images to pixels of 256 levels."""

from __future__ import annotations

import torch
from torch import Tensor


def to_levels(images: Tensor) -> Tensor:
    """[..., R, R] in [-1, 1] -> uint8 of the same shape, on the same device."""
    return ((images.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_pixels(images: Tensor) -> Tensor:
    """[B, 3, R, R] in [-1, 1] -> uint8 [B, R, R, 3], on the same device."""
    return to_levels(images).permute(0, 2, 3, 1).contiguous()
