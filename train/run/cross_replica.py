"""Batch norm over the batch of all processes (Brock et al. 2019, section 3: cross-replica batch norm).

torch.nn.SyncBatchNorm does the same, but on GPUs only: its kernels have no counterpart for the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.run.distributed import World

CHANNEL_DIMS = (0, 2, 3)


class CrossReplicaNorm(nn.BatchNorm2d):
    """A BatchNorm2d that in training sees the shares of all processes, [B/processes, C, H, W], as one batch.

    Its parameters, buffers and names are BatchNorm2d's, so a checkpoint is the same with and without it. The
    shares must have one size. Each pass sends one message: [2, C] float32 of each process.
    """

    def __init__(self, source: nn.BatchNorm2d, world: World) -> None:
        super().__init__(
            source.num_features, source.eps, source.momentum, source.affine, device=torch.device("meta")
        )
        self._parameters, self._buffers = source._parameters, source._buffers
        self.world = world
        self.train(source.training)

    # Dynamo cannot follow a message between processes; the layers around it are still compiled
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        y, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.eps, self.world)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            count = x.numel() // x.shape[1] * self.world.size
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        normalised: Tensor = y
        return normalised


class _Normalise(torch.autograd.Function):
    """x [B, C, H, W], weight and bias [C] -> y and its mean and variance [C] over all, in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: World
    ) -> tuple[Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x.float(), CHANNEL_DIMS, correction=0)
        # mean and variance of each, not sums of x and x²: those lose the variance of a channel whose mean is
        # far from 0. The shares are of one size, so plain means merge them (Chan et al. 1979)
        means, variances = world.gather(torch.stack([mean, variance])).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.world = eps, world
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else weight * inverse
        # the gradient for constant statistics; the sums of g and of g·x̂ over our share come with it
        through, along, plain = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, torch.ones_like(mean) if weight is None else weight,
            mean, variance, None, None, False, ctx.eps, [True, True, True],
        )  # fmt: skip
        sums = ctx.world.sum(torch.stack([along, plain]).float())
        slope, level = (sums / (ctx.world.size * (x.numel() // x.shape[1]))).unbind()
        # the statistics' own part: -scale·(mean of g + x̂·mean of g·x̂), with x̂ = (x - mean)·inverse
        slope = scale * inverse * slope
        level = scale * level - slope * mean
        carried = torch.addcmul(_by_channel(level), x, _by_channel(slope))
        affine = (None, None) if weight is None else (along, plain)
        return (through - carried.to(through.dtype), *affine, None, None)


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def join_norms(network: nn.Module, world: World) -> None:
    """Turn every batch norm of `network`, in place, into one over all processes."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, CrossReplicaNorm(child, world))
