"""The way of a batch of pixels into the discriminator: to floats, mirrored, augmented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

TRANSLATION = 1 / 8  # of the side: an image moves at most so far in each direction
CUTOUT = 1 / 2  # of the side: the square that is cut out
DRAWS = 7  # numbers an image: brightness, saturation, contrast; down, right; top, left
KIND_OF_DRAW = (0, 0, 0, 1, 1, 2, 2)  # the kind that each is of, as AUGMENTATIONS counts them
SMOOTHED = 4  # steps, about, over which the sign of the scores is averaged, as in ADA
_NEUTRAL = (0.5, 0.5, 0.5, 0.5, 0.5, -1.0, -1.0)


def to_network(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, R, R] -> float32 in [-1, 1], channels last."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images [B, C, H, W] where `mirrored` [B] is true."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def draw(batch: int, generator: torch.Generator) -> Tensor:
    """The randomness of one `augment`: uniform in [0, 1), [batch, DRAWS], float32 on the CPU.

    All kinds have their draws, used or not: one kind more or less leaves the others as they were.
    """
    return torch.rand(batch, DRAWS, generator=generator)


def neutral(batch: int) -> Tensor:
    """Draws [batch, DRAWS] by which `augment` changes nothing."""
    return torch.tensor(_NEUTRAL).repeat(batch, 1)


def draw_gates(batch: int, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), [batch, kinds]: which kinds `Adaptive` lets an image have."""
    return torch.rand(batch, len(AUGMENTATIONS), generator=generator)


class Adaptive(nn.Module):
    """ADA (Karras et al. 2020, section 3): how often an image is augmented follows the discriminator.

    An image has each kind with probability p, which rises while the mean sign of D's scores on reals is above
    `target` (D learns the few reals by heart) and falls while it is below. span: images in which p can go
    from 0 to 1. Reals and fakes have the same p. All of it stays on the device.
    """

    p: Tensor
    sign: Tensor

    def __init__(self, target: float, span: float) -> None:
        super().__init__()
        self.target, self.span = target, span
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("sign", torch.zeros(()))  # of the scores on reals, averaged over SMOOTHED steps

    def thin(self, draws: Tensor) -> Tensor:
        """Draws [B, DRAWS] followed by gates [B, kinds] -> the draws, neutral where a gate is shut."""
        draws, gates = draws[:, :DRAWS], draws[:, DRAWS:]
        shown = (gates < self.p)[:, list(KIND_OF_DRAW)]
        return torch.where(shown, draws, draws.new_tensor(_NEUTRAL))

    @torch.no_grad()
    def steer(self, sign: Tensor, images: int) -> None:
        """sign: mean sign of D's scores on the reals of a step of so many `images`."""
        self.sign.lerp_(sign, 1 / SMOOTHED)
        self.p.add_((self.sign - self.target).sign(), alpha=images / self.span).clamp_(0, 1)


def augment(images: Tensor, draws: Tensor, kinds: Sequence[str]) -> Tensor:
    """DiffAugment (Zhao et al. 2020): `images` [B, C, R, R] in [-1, 1], each changed by its own draws.

    draws: [B, DRAWS] in [0, 1), on the device of the images. kinds: names out of AUGMENTATIONS, applied in
    the order they have there. Gradients flow through to the images. Reals and fakes must both be augmented,
    in both networks' losses: else the generator learns to make augmented images. Channels last stays so.
    """
    for name, change in AUGMENTATIONS.items():
        if name in kinds:
            images = change(images, draws)
    return images


def _colour(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness ±0.5, then saturation × 0 to 2, then contrast × 0.5 to 1.5."""
    brightness, saturation, contrast = draws[:, :3, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _translation(images: Tensor, draws: Tensor) -> Tensor:
    """Move by whole pixels, each direction up to TRANSLATION of the side; the uncovered edge is 0."""
    batch, channels, height, width = images.shape
    rows, has_row = _moved(height, draws[:, 3:4])
    columns, has_column = _moved(width, draws[:, 4:5])
    source = (rows[:, :, None] * width + columns[:, None, :]).view(batch, height * width, 1)
    pixels = images.permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # a view of channels last
    moved = pixels.gather(1, source.expand(-1, -1, channels))
    inside = (has_row[:, :, None] & has_column[:, None, :])[:, None]
    return moved.view(batch, height, width, channels).permute(0, 3, 1, 2) * inside


def _moved(side: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The source of each row after a move [B, side], and whether it lies inside the image."""
    reach = int(side * TRANSLATION + 0.5)
    source = torch.arange(side, device=draws.device) - (draws * (2 * reach + 1)).long() + reach
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _cutout(images: Tensor, draws: Tensor) -> Tensor:
    """A square of CUTOUT of the side becomes 0; its centre is anywhere, so part of it may lie outside."""
    rows, columns = _cut(images.shape[2], draws[:, 5:6]), _cut(images.shape[3], draws[:, 6:7])
    return images * ~(rows[:, :, None] & columns[:, None, :])[:, None]


def _cut(side: int, draws: Tensor) -> Tensor:
    """Whether the square covers each row, [B, side]."""
    size = int(side * CUTOUT + 0.5)
    first = (draws * (side + 1 - size % 2)).long() - size // 2
    place = torch.arange(side, device=draws.device)
    return (place >= first) & (place < first + size)


AUGMENTATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "colour": _colour,
    "translation": _translation,
    "cutout": _cutout,
}
