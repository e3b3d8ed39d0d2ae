"""The hinge losses of both networks (Lim & Ye 2017; SAGAN eq. 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)); 2 when D knows nothing. Scores [B]."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_hinge(fake: Tensor) -> Tensor:
    """-mean D(fake). Scores [B]."""
    return -fake.mean()
