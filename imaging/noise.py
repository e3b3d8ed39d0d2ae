"""The noise of one image: a function of its seed, its index and its truncation, or of those of its ends."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imaging.spec import ImageSpec

_PARALLEL: Final = 1e-6  # sine of an angle under which two draws are one direction


def noise(seed: int, index: int, latent: int, truncation: float = 1.0) -> NDArray[np.float32]:
    """z of one image, [latent]: from a stream of its own, keyed by (seed, index), scaled by truncation."""
    stream = np.random.Generator(np.random.Philox(key=[seed, index]))
    return (stream.standard_normal(latent) * truncation).astype(np.float32)


def noise_of(spec: ImageSpec, latent: int) -> NDArray[np.float32]:
    """z of an image, [latent]. Of a blend: on the great circle from its first end to the next, and so on."""
    if not spec.ends:
        return noise(spec.seed, spec.index, latent, spec.truncation)
    z, weight = np.zeros(latent), 0.0
    for end in spec.ends:
        weight += end.weight
        drawn = np.random.Generator(np.random.Philox(key=[end.seed, end.index])).standard_normal(latent)
        z = slerp(z, drawn, end.weight / weight)
    return (z * spec.truncation).astype(np.float32)


def slerp(a: NDArray[np.float64], b: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """From a (t = 0) to b (t = 1) along a great circle: what lies between is as long as a draw is.

    Shoemake, Animating Rotation with Quaternion Curves, 1985.
    """
    if t >= 1:
        return b
    if t <= 0:
        return a
    cosine = float(a @ b / math.sqrt((a @ a) * (b @ b)))
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    sine = math.sin(angle)
    if sine < _PARALLEL:
        return a + (b - a) * t
    return a * (math.sin((1 - t) * angle) / sine) + b * (math.sin(t * angle) / sine)
