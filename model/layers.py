"""What both networks are built of: conditional batch norm, residual blocks, spectral norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model.convolution import Convolution, convolve

INITIAL_ITERATIONS = 15  # power iterations on a fresh weight, so that training starts with a true σ


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift depend on the class, and on a part of z where there is one.

    tables: classes with a row of their own (Dumoulin et al. 2017), which start at γ=1, β=0 and carry no
    spectral norm; 0: no tables, γ=1 and β=0 are what the projections are added to.
    vector: length of a vector, a shared class embedding or a part of z or both, whose projections are
    added to γ and β (Brock et al. 2019, appendix B); 0: none.
    In: [B, C, H, W], labels [B] and the vectors [B, vector].
    """

    def __init__(self, channels: int, tables: int, vector: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gamma = nn.Parameter(torch.ones(tables, channels)) if tables else None
        self.beta = nn.Parameter(torch.zeros(tables, channels)) if tables else None
        self.to_gamma = nn.Linear(vector, channels, bias=False) if vector else None
        self.to_beta = nn.Linear(vector, channels, bias=False) if vector else None

    def forward(self, x: Tensor, y: Tensor, vector: Tensor | None = None) -> Tensor:
        gamma, beta = self.scale_and_shift(y, vector)
        h = self.norm(x)
        # in the precision of what passes through, or a bf16 pass would leave here as float32
        gamma, beta = gamma.to(h.dtype), beta.to(h.dtype)
        return torch.addcmul(beta[:, :, None, None], h, gamma[:, :, None, None])

    def scale_and_shift(self, y: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """γ and β, [B, C] each."""
        if self.to_gamma is None or self.to_beta is None:
            assert self.gamma is not None
            assert self.beta is not None
            return self.gamma[y], self.beta[y]
        gamma, beta = self.to_gamma(vector), self.to_beta(vector)
        if self.gamma is None or self.beta is None:
            return 1 + gamma, beta
        return self.gamma[y] + gamma, self.beta[y] + beta


class SharedEmbedding(nn.Embedding):
    """The class embedding that all norms of a generator project (Brock et al. 2019); no spectral norm."""


class UpBlock(nn.Module):
    """cBN, ReLU, ×2, 3×3; cBN, ReLU, 3×3; skip ×2 and 1×1. [B, in, H, W] -> [B, out, 2H, 2W]."""

    def __init__(self, channels_in: int, channels_out: int, tables: int, vector: int = 0) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(channels_in, tables, vector)
        self.conv1 = Convolution(channels_in, channels_out, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(channels_out, tables, vector)
        self.conv2 = Convolution(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, y: Tensor, vector: Tensor | None = None) -> Tensor:
        h = _double_then(self.conv1, F.relu_(self.norm1(x, y, vector)))
        h = self.conv2(F.relu_(self.norm2(h, y, vector)))
        # a 1×1 convolution and nearest enlargement commute; this order costs a quarter
        doubled: Tensor = h + _double(self.skip(x))
        return doubled


class DownBlock(nn.Module):
    """ReLU, 3×3; ReLU, 3×3, average pool; skip 1×1 and average pool. [B, in, H, W] -> [B, out, H/2, W/2].

    `first`: the block that sees pixels, without the ReLU before its first convolution.
    `pool=False`: the last block, which keeps the side and, its widths being equal, has a plain skip.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, first: bool = False, pool: bool = True
    ) -> None:
        super().__init__()
        self.first = first
        self.pool = pool
        self.conv1 = Convolution(channels_in, channels_out, 3, padding=1)
        self.conv2 = Convolution(channels_out, channels_out, 3, padding=1)
        plain = channels_in == channels_out and not pool
        self.skip = nn.Identity() if plain else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # the first out of place: the skip needs the value before it
        h = F.relu_(self.conv1(x if self.first else F.relu(x)))
        if self.pool:
            # a 1×1 convolution and average pooling commute; this order costs a quarter
            h, x = _then_pool(self.conv2, h), F.avg_pool2d(x, 2)
        else:
            h = self.conv2(h)
        skipped: Tensor = self.skip(x)
        return h + skipped


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _double_then(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(_double(x)) for a 3×3 convolution, at 4/9 of its products: one transposed 4×4 of stride 2.

    Each output pixel sees only 2×2 different input pixels, so the weights that meet the same one are added
    up first (as StyleGAN2's upfirdn does). The same function; sums in another order.
    """
    return convolve(x, enlarging_kernel(conv.weight), conv.bias, 2, 1, transposed=True)


def enlarging_kernel(weight: Tensor) -> Tensor:
    """3×3 kernels [O, I, 3, 3] -> those of the transposed convolution of `_double_then`, [I, O, 4, 4]."""
    return _blurred(weight.flip(2, 3)).transpose(0, 1)


def _then_pool(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """F.avg_pool2d(conv(x), 2) for a 3×3 convolution, at 4/9 of its products: one 4×4 of stride 2."""
    return convolve(x, _blurred(conv.weight) / 4, conv.bias, 2, 1)


def _blurred(weight: Tensor) -> Tensor:
    """3×3 kernels [O, I, 3, 3] convolved with a 2×2 of ones: [O, I, 4, 4], in channels_last.

    As one product with a matrix of zeros and ones, in float32: sums of bf16 would be off twice.
    """
    with torch.autocast(weight.device.type, enabled=False):
        rows = weight.permute(0, 2, 3, 1).flatten(1, 2)  # [O, 9, I]
        side = torch.eye(4, 3, dtype=weight.dtype, device=weight.device)
        side = side + side.roll(1, 0)
        # [16, 9]: which places of a 3×3 kernel each of a 4×4 sums up
        blurred: Tensor = torch.kron(side, side) @ rows
        return blurred.reshape(len(weight), 4, 4, -1).permute(0, 3, 1, 2)


class SpectralNorm(nn.Module):
    """W / σ(W), with σ = uᵀWv from power iteration (Miyato et al. 2018, algorithm 1).

    Reading the weight never moves u and v: `power_iterate` does, once a step, so that every pass of a step
    sees one weight and a resumed run the same one.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(matrix.shape[0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(INITIAL_ITERATIONS):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        matrix, v = self._in_memory_order(weight.float())
        v.copy_(F.normalize(matrix.T @ self.u, dim=0).view_as(v))
        self.u.copy_(F.normalize(matrix @ v.flatten(), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # σ in bf16 would be off by up to 0.4 %
            matrix, v = self._in_memory_order(weight)
            # copies: the buffers move between the forward and the backward of a step
            normalised: Tensor = _Normalised.apply(matrix, self.u.clone(), v.reshape(-1).clone())
            if v.ndim == 3:
                return normalised.view(-1, *v.shape).permute(0, 3, 1, 2)
            return normalised.view_as(weight)

    def _in_memory_order(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight as a matrix without a copy, and v, a view of the buffer in the order of its rows.

        v is [n], or [k, k, I] for a channels_last weight [O, I, k, k].
        """
        if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            v = self.v.view(weight.shape[1:]).permute(1, 2, 0)
            return weight.permute(0, 2, 3, 1).flatten(1), v
        return weight.flatten(1), self.v


class _Normalised(torch.autograd.Function):
    """W / σ of a matrix, σ = uᵀWv, with the gradient in two passes over W where autograd takes seven."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = u @ (matrix @ v)
        normalised = matrix / sigma
        ctx.save_for_backward(normalised, sigma, u, v)
        return normalised

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        normalised, sigma, u, v = ctx.saved_tensors
        grad = grads[0] / sigma
        along = (grad * normalised).sum()
        return torch.addr(grad, -along * u, v), None, None


class Scaled(nn.Module):
    """A weight times a fixed factor: its effect is so much smaller, its step by Adam as large as ever."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight  # what is there already is scaled, not kept


INITIALISATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "xavier": nn.init.xavier_uniform_,  # the authors' code
    "orthogonal": nn.init.orthogonal_,  # BigGAN (Brock et al. 2019)
    "normal": partial(nn.init.normal_, std=0.02),  # DCGAN (Radford et al. 2016)
}


def initialise(network: nn.Module, way: str = "xavier") -> None:
    """Weights by one of INITIALISATIONS, zero biases. Call before `spectral_normalise`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            INITIALISATIONS[way](module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def spectral_normalise(network: nn.Module) -> None:
    """Put spectral norm on every convolution, linear layer and (not shared) embedding of `network`."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and not isinstance(
            module, SharedEmbedding
        ):
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight))


def power_iterate(network: nn.Module) -> None:
    """Move every u and v in `network` by one power iteration."""
    for weight, norm in _normed(network):
        norm.iterate(weight)


def settle(network: nn.Module) -> float:
    """Find every u and v in `network` anew, for weights that were put there.

    Returns the largest σ of those that spectral norm alone changes; 0 for none.
    """
    largest = 0.0
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], SpectralNorm):
            weight, norm = module.original, module[0]
            for _ in range(INITIAL_ITERATIONS):
                norm.iterate(weight)
            if len(module) == 1:
                largest = max(largest, float((norm.u @ (weight.flatten(1) @ norm.v)).detach()))
    return largest


def effective_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict that `network` would have without spectral norm: each weight as W/σ, detached."""
    state: dict[str, Tensor] = {}
    for name in network.state_dict():
        plain = name.replace(".parametrizations.weight.original", ".weight")
        if ".parametrizations." not in plain:  # u and v
            path, _, leaf = plain.rpartition(".")
            state[plain] = getattr(network.get_submodule(path), leaf).detach()
    return state


def _normed(network: nn.Module) -> Iterator[tuple[Tensor, SpectralNorm]]:
    """Every weight before its normalisation, and what normalises it."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], SpectralNorm):
            yield module.original, module[0]
