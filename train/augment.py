"""What happens to a batch of pixels on its way into the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor


def to_network(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, R, R] -> float32 in [-1, 1], channels last."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right those images [B, C, H, W] for which `mirrored` [B] is true."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
