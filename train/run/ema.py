"""The averaged generator, which is sampled, shown and shipped (Karras et al. 2018, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.generator import Generator
from model.layers import effective_state


class Ema:
    """An exponential moving average of a generator's effective weights (spectral norm folded).

    half_life: images after which a weight counts half. ramp: the half-life is at most this share of the
    images seen so far, which forgets the blurry beginning; None: no ramp.
    """

    def __init__(self, source: Generator, half_life: float, ramp: float | None) -> None:
        self.half_life = half_life
        self.ramp = ramp
        self.network = source.folded()

    def weight(self, batch: int, images_seen: int) -> float:
        """How far a step of `batch` images moves the average towards its source, 0 to 1."""
        half_life = self.half_life
        if self.ramp is not None:
            half_life = min(half_life, images_seen * self.ramp)
        return float(1 - 0.5 ** (batch / max(half_life, 1e-8)))

    @torch.no_grad()
    def update(self, source: Generator, weight: Tensor) -> None:
        """Move towards `source` by `weight`, a scalar on the device, where a recorded step can vary it."""
        effective = effective_state(source)
        names, averages = zip(*self.network.named_parameters(), strict=True)
        apart = torch._foreach_sub([effective[name] for name in names], averages)
        torch._foreach_mul_(apart, weight)
        torch._foreach_add_(averages, apart)
        # statistics are not averaged: the served copy gets its own (`recompute_statistics`)
        for name, buffer in self.network.named_buffers():
            buffer.copy_(effective[name])


@torch.no_grad()
def recompute_statistics(
    generator: Generator, batches: int, batch: int, seed: int = 0, device: torch.device | str = "cpu"
) -> None:
    """Standing statistics (Brock et al. 2019): batch-norm means over `batches` of noise, in place."""
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    draw = torch.Generator().manual_seed(seed)
    generator.train()
    for _ in range(batches):
        z = torch.randn(batch, generator.config.latent, generator=draw)
        y = torch.randint(generator.config.classes, (batch,), generator=draw)
        generator(z.to(device), y.to(device))
    generator.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
