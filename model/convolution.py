"""Convolutions with gradients that suit a CPU in bf16; anywhere else they are torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# px of the smaller map's side. oneDNN sums the gradient of the weights along rows of that map, 32 places at
# once with AMX: of rows of 4 px it uses an eighth of them. On two cores with AMX the product below is 2 to 6
# times as fast at 4 px, 0.7 to 2.4 times at 8 px, and slower from 16 px on.
_SMALL = 8


class Convolution(nn.Conv2d):
    """nn.Conv2d of square kernels, without groups or dilation."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, int(self.stride[0]), int(self.padding[0]))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, *, transposed: bool = False
) -> Tensor:
    """F.conv2d, or F.conv_transpose2d where `transposed`."""
    learns = weight.requires_grad and torch.is_grad_enabled()
    if learns and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        inputs = (None if t is None else t.to(dtype) for t in (x, weight, bias))
        convolved: Tensor = _Convolved.apply(*inputs, stride, padding, transposed)
        return convolved
    return _convolve(x, weight, bias, stride, padding, transposed)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
) -> Tensor:
    way = F.conv_transpose2d if transposed else F.conv2d
    return way(x, weight, bias, stride, padding)


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (stride, padding, transposed)
        return _convolve(x, weight, bias, stride, padding, transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (stride, padding, transposed) = ctx.saved_tensors, ctx.how
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        large, small = (grad, x) if transposed else (x, grad)
        as_product = of_weight and small.shape[-1] <= _SMALL
        found: list[Tensor | None] = [None, None]
        if of_x or not as_product:
            how = ([stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1)
            wanted = [of_x, of_weight and not as_product, False]
            found = list(torch.ops.aten.convolution_backward(grad, x, weight, None, *how, wanted)[:2])
        if as_product:
            found[1] = _weights_gradient(large, small, weight.shape[-1], stride, padding)
        # not oneDNN's, which makes the bias's with the weights' and takes twice as long where transposed
        of_all = grad.sum((0, 2, 3)) if of_bias else None
        return *found, of_all, None, None, None


def _weights_gradient(large: Tensor, small: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """[O, I, k, k] of maps `large` [B, I, H, H] and `small` [B, O, h, h], as one product over all places."""
    rows = F.pad(large.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    batch, side, channels = rows.shape[0], small.shape[-1], rows.shape[-1]
    image, down, across, one = rows.stride()
    seen = rows.as_strided(  # from each place of the small map
        (batch, side, side, kernel, kernel, channels),
        (image, stride * down, stride * across, down, across, one),
    )
    places = batch * side**2
    summed = small.permute(0, 2, 3, 1).reshape(places, -1).T @ seen.reshape(places, -1)
    return summed.view(-1, kernel, kernel, channels).permute(0, 3, 1, 2)
