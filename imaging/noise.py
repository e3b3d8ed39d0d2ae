"""The noise of one image: a function of its seed, its index and its truncation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def noise(seed: int, index: int, latent: int, truncation: float = 1.0) -> NDArray[np.float32]:
    """z of one image, [latent]: from a stream of its own, keyed by (seed, index), scaled by truncation."""
    stream = np.random.Generator(np.random.Philox(key=[seed, index]))
    return (stream.standard_normal(latent) * truncation).astype(np.float32)
