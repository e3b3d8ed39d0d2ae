"""Ways to put an image out of order while its pixels stay the same, or nearly.

Each takes images uint8 [N, 3, R, R] and a strength from 0 (the identity) to 1, and draws from `rng`. The same
draw at another strength disturbs the same images in the same manner, more or less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FIELD_REACH = 1 / 8  # of the side: root mean square of the displacement at strength 1
FIELD_GRID = 4  # random vectors a side that the smooth field is drawn through
BAND_REACH = 1 / 2  # of the side, at strength 1


@dataclass(frozen=True)
class Disturbance:
    """One kind of disorder."""

    name: str
    about: str  # one line; the meaning of strength
    apply: Callable[[Tensor, float, np.random.Generator], Tensor]


def shuffle_patches(images: Tensor, strength: float, rng: np.random.Generator, patch: int) -> Tensor:
    """Move a share `strength` of each image's patches; every one of them changes its place."""
    count, channels, side, _ = images.shape
    grid = side // patch
    if strength == 0 or grid < 2:
        return images.clone()
    cells = images.unfold(2, patch, patch).unfold(3, patch, patch).reshape(count, channels, grid * grid, -1)
    orders = rng.permuted(np.tile(np.arange(grid * grid), (count, 1)), axis=1)
    chosen = torch.from_numpy(orders[:, : max(2, round(strength * grid * grid))])
    sources = torch.arange(grid * grid).repeat(count, 1)
    sources.scatter_(1, chosen, chosen.roll(1, dims=1))  # a cycle in random order, so that none stays
    moved = cells.gather(2, sources[:, None, :, None].expand_as(cells))
    return moved.reshape(count, channels, grid, grid, patch, patch).transpose(3, 4).reshape(images.shape)


def swap_halves(images: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Exchange left and right in a share `strength` of the images."""
    chosen = _some(len(images), strength, rng)
    moved = images.clone()
    moved[chosen] = moved[chosen].roll(images.shape[3] // 2, dims=3)
    return moved


def exchange_halves(images: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Give a share `strength` of the images the right half of another one."""
    chosen = _some(len(images), strength, rng)
    moved, half = images.clone(), images.shape[3] // 2
    moved[chosen, :, :, half:] = images[chosen.roll(1), :, :, half:]
    return moved


def displace(images: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Move every pixel along a smooth random field of `strength` × FIELD_REACH of the side."""
    count, _, side, _ = images.shape
    coarse = torch.from_numpy(rng.standard_normal((count, 2, FIELD_GRID, FIELD_GRID), dtype=np.float32))
    if strength == 0:
        return images.clone()
    field = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
    field = field / field.square().mean(dim=(1, 2, 3), keepdim=True).mul(2).sqrt()
    # centres of pixels in grid_sample's coordinates, which run from -1 to 1
    at = (torch.arange(side, dtype=torch.float32) * 2 + 1) / side - 1
    still = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)
    moved = still + field.permute(0, 2, 3, 1) * (2 * strength * FIELD_REACH)
    drawn = F.grid_sample(images.float(), moved, padding_mode="reflection", align_corners=False)
    return drawn.round().clamp(0, 255).to(torch.uint8)


def shift_band(images: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Roll half of the rows, at a random height, sideways by `strength` × BAND_REACH of the side."""
    count, _, side, _ = images.shape
    top = torch.from_numpy(rng.integers(0, side // 2 + 1, count))
    sign = torch.from_numpy(rng.choice([-1, 1], count))
    by = sign * round(strength * side * BAND_REACH)
    rows, columns = torch.arange(side), torch.arange(side)
    inside = (rows >= top[:, None]) & (rows < top[:, None] + side // 2)
    source = torch.where(inside[:, :, None], (columns - by[:, None, None]) % side, columns)
    return images.gather(3, source[:, None].expand_as(images))


def disturbances(resolution: int) -> tuple[Disturbance, ...]:
    """The disturbances of the experiment, for images of that side."""
    patches = [side for side in (4, 8, 16, 32) if 4 * side <= resolution]  # at least 16 an image
    return (
        *(
            Disturbance(
                f"shuffle-{patch}px",
                f"share of {patch}×{patch} patches that change places within their image, two at least",
                partial(shuffle_patches, patch=patch),
            )
            for patch in patches
        ),
        Disturbance("halves-within", "share of images whose left and right halves are swapped", swap_halves),
        Disturbance("halves-across", "share of images with another's right half", exchange_halves),
        Disturbance(
            "displacement",
            f"pixels moved along a smooth random field of {resolution * FIELD_REACH:g} px (root mean square) "
            "× strength; interpolation blurs a little",
            displace,
        ),
        Disturbance(
            "band",
            f"half of the rows moved round sideways by {resolution * BAND_REACH:g} px × strength",
            shift_band,
        ),
    )


def _some(count: int, share: float, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.permutation(count)[: round(share * count)])
