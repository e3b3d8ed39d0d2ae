"""Self-attention over a feature map (SAGAN, Zhang et al. 2019, eq. 1-3), and its map on request."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import AttentionForm

# places of a map up to which a CPU builds it: torch's fused kernel takes up to seven times as
# long there, forward and backward in bf16
_BUILT = 2**15


@dataclass(frozen=True)
class AttentionTrace:
    """What one attention layer did in one forward."""

    name: str  # the layer: side of its feature map, "16x16"
    query_grid: tuple[int, int]  # rows, columns
    key_grid: tuple[int, int]
    map: Tensor  # [B, queries, keys], both row by row; each row sums to 1
    gamma: float  # the gate
    share: Tensor  # [B], ‖γ·v(o)‖ / ‖x‖: how much the layer adds to what passes through it


class SelfAttention(nn.Module):
    """y = x + γ·v(softmax(f(x)ᵀ g(x)) h(x)), with keys and values on a 2×2 max-pooled grid.

    f makes queries, g keys (both C/8 wide), h values (C/2), v leads back to C; all are 1×1 convolutions
    without bias, as in the authors' code. γ starts at 0, so a new layer is the identity.

    Other pairwise forms (Wang et al. 2018, eq. 2-6): `gaussian` compares x with itself, `dot_product`
    divides by the number of keys, not by a softmax, `concatenation` is ReLU(wᵀ[f(x), g(x)]) over that number.

    In and out: [B, C, H, W]; C a multiple of 8, H and W even.
    """

    def __init__(self, channels: int, form: AttentionForm = "embedded_gaussian", pool: bool = True) -> None:
        super().__init__()
        self.form = form
        self.pool = pool
        embedded = form != "gaussian"
        self.f = nn.Conv2d(channels, channels // 8, 1, bias=False) if embedded else nn.Identity()
        self.g = nn.Conv2d(channels, channels // 8, 1, bias=False) if embedded else nn.Identity()
        self.h = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.v = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.w = nn.Linear(2 * (channels // 8), 1, bias=False) if form == "concatenation" else None
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._project(x)
        softmax = self.form in ("embedded_gaussian", "gaussian")
        if softmax and not (x.device.type == "cpu" and query.shape[1] * key.shape[1] <= _BUILT):
            # A head (fused kernels take four dimensions) and zeros up to a common width, which leave the
            # products as they are, let a kernel run that never builds the N×N map.
            width = max(query.shape[-1], value.shape[-1])
            query, key, padded = (F.pad(t, (0, width - t.shape[-1]))[:, None] for t in (query, key, value))
            # scale=1: SAGAN does not divide by √d
            out = F.scaled_dot_product_attention(query, key, padded, scale=1.0)[:, 0, :, : value.shape[-1]]
        else:
            out = self._pairwise(query, key) @ value
        return x + self.gamma * self._lead_back(out, x)

    def forward_with_map(self, x: Tensor, name: str) -> tuple[Tensor, AttentionTrace]:
        """The same y, and the [B, H·W, keys] map it came from; rows are queries."""
        query, key, value = self._project(x)
        attention = self._pairwise(query, key)
        added = self.gamma * self._lead_back(attention @ value, x)
        rows, columns = int(x.shape[2]), int(x.shape[3])
        step = 2 if self.pool else 1
        trace = AttentionTrace(
            name=name,
            query_grid=(rows, columns),
            key_grid=(rows // step, columns // step),
            map=attention,
            gamma=float(self.gamma.detach()),
            share=added.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1),
        )
        return x + added, trace

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, H·W, C/8], [B, keys, C/8], [B, keys, C/2]."""
        query, key, value = self.f(x), self.g(x), self.h(x)
        if self.pool:
            key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        return _to_rows(query), _to_rows(key), _to_rows(value)

    def _pairwise(self, query: Tensor, key: Tensor) -> Tensor:
        if self.w is not None:
            left, right = self.w.weight[0].chunk(2)
            pairs = F.relu((query @ left)[:, :, None] + (key @ right)[:, None, :])
            return pairs / key.shape[1]
        products = query @ key.transpose(1, 2)
        if self.form == "dot_product":
            return products / key.shape[1]
        return products.softmax(dim=-1).to(products.dtype)  # over the keys, not the queries

    def _lead_back(self, out: Tensor, x: Tensor) -> Tensor:
        grid = out.transpose(1, 2).reshape(x.shape[0], -1, x.shape[2], x.shape[3])
        if x.is_contiguous(memory_format=torch.channels_last):
            grid = grid.contiguous(memory_format=torch.channels_last)
        back: Tensor = self.v(grid)
        return back


def _to_rows(grid: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H·W, C], row by row."""
    return grid.flatten(2).transpose(1, 2)
