"""Convolutions and linear layers with weights laid out once: an image comes out alike in any batch."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import enlarging_kernel


def packs(weight: Tensor) -> bool:
    """Whether oneDNN's own layouts can be used for this weight: on a CPU, where torch was built with them.

    For bfloat16 oneDNN wants AVX-512, or refuses.
    """
    ops = torch.ops.mkldnn
    if weight.dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():
        return False
    return weight.device.type == "cpu" and all(
        hasattr(ops, name)
        for name in (
            "_convolution_pointwise",
            "_convolution_transpose_pointwise",
            "_reorder_convolution_weight",
            "_reorder_convolution_transpose_weight",
        )
    )


class Convolution(nn.Module):
    """A convolution; on a CPU its weights are laid out for oneDNN once, not at every call.

    One kernel then serves every batch size, so an image does not depend on the others of its batch; F.conv2d
    and F.linear do not promise that. (torch.compile calls the same torch.ops.mkldnn on a CPU.)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, side: int, stride: int = 1) -> None:
        """weight [out, in, k, k]; side: of the maps it will see, pixels. Pads as keeps side / stride."""
        super().__init__()
        self.stride = (stride, stride)
        self.padding = ((weight.shape[2] - 1) // 2,) * 2
        self.packed = packs(weight)
        if self.packed:
            shape = (1, weight.shape[1], side, side)
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, self.padding, self.stride, (1, 1), 1, shape
            )
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = weight  # no buffer: oneDNN's layouts cannot be moved or cast
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            packed = torch.ops.mkldnn._convolution_pointwise.default
            return cast(
                Tensor,
                packed(x, self.weight, self.bias, self.padding, self.stride, (1, 1), 1, "none", [], ""),
            )
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Enlarging(nn.Module):
    """×2 (nearest) and a 3×3 convolution without bias, as one transposed 4×4 of stride 2, laid out once."""

    def __init__(self, weight: Tensor, side: int) -> None:
        """weight [out, in, 3, 3]; side: of the maps it will see, pixels."""
        super().__init__()
        self.packed = packs(weight)
        kernel = enlarging_kernel(weight)
        if self.packed:
            shape = (1, weight.shape[1], side, side)
            kernel = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                kernel.contiguous(), (1, 1), (0, 0), (2, 2), (1, 1), 1, shape
            )
        self.weight = kernel

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            packed = torch.ops.mkldnn._convolution_transpose_pointwise.default
            how: Any = ((1, 1), (0, 0), (2, 2), (1, 1), 1, "none", [], "")
            return cast(Tensor, packed(x, self.weight, None, *how))
        return F.conv_transpose2d(x, self.weight, None, stride=2, padding=1)


class Rows(nn.Module):
    """A linear layer, [B, in] -> [B, out], as a 1×1 convolution over B maps of one pixel.

    Its weights are laid out once too, and it gives a row the same result among any number of rows. As one map
    of B pixels it does as well, but from four on oneDNN wants another layout and makes it anew at each call,
    which took up to a third of a forward.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.convolution = Convolution(weight[:, :, None, None], bias, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return cast(Tensor, self.convolution(rows[:, :, None, None])).flatten(1)
