"""Convolutions of a bf16 step on a CPU have the gradients of torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import convolution
from model.convolution import Convolution, convolve
from model.layers import SpectralNorm

CASES = [  # side, kernel, stride, transposed: maps of 4 and 8 px have a gradient of their own
    *((side, 3, 1, False) for side in (4, 8, 16)),
    *((side, 4, 2, False) for side in (8, 12, 16, 32)),
    *((side, 4, 2, True) for side in (4, 6, 8, 16)),
]


def tensors(side: int, kernel: int, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x [2, 5, side, side], a weight for 7 outputs, its bias: all in float32, with values that bf16 has."""
    draw = torch.Generator().manual_seed(side)
    shape = (5, 7) if transposed else (7, 5)
    x = torch.randn(2, 5, side, side, generator=draw)
    weight, bias = torch.randn(*shape, kernel, kernel, generator=draw), torch.randn(7, generator=draw)
    return tuple(t.bfloat16().float().requires_grad_() for t in (x, weight, bias))  # type: ignore[return-value]


@pytest.mark.parametrize(("side", "kernel", "stride", "transposed"), CASES)
def test_the_gradients_are_those_of_the_same_convolution_in_float32(
    side: int, kernel: int, stride: int, transposed: bool
) -> None:
    x, weight, bias = tensors(side, kernel, transposed)
    way = F.conv_transpose2d if transposed else F.conv2d
    plain = way(x, weight, bias, stride, 1)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = torch.autograd.grad(plain, (x, weight, bias), upstream.float())
    with torch.autocast("cpu", torch.bfloat16):
        ours = convolve(x, weight, bias, stride, 1, transposed=transposed)
    assert ours.dtype == torch.bfloat16
    # without AVX-512 these are torch's own kernels, which add up in bf16
    room = 2**-7 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 2**-3
    torch.testing.assert_close(ours.float(), plain, rtol=2**-8, atol=room * float(plain.detach().abs().max()))
    for found, want in zip(torch.autograd.grad(ours, (x, weight, bias), upstream), wanted, strict=True):
        assert found.dtype == torch.float32  # of the parameters, whatever the pass
        torch.testing.assert_close(found, want, rtol=2**-7, atol=room * float(want.abs().max()))


@pytest.mark.parametrize(("side", "product"), [(8, True), (16, False)])
def test_small_maps_alone_take_the_product(monkeypatch: pytest.MonkeyPatch, side: int, product: bool) -> None:
    taken = []
    ours = convolution._weights_gradient
    monkeypatch.setattr(convolution, "_weights_gradient", lambda *a: taken.append(1) or ours(*a))  # type: ignore[func-returns-value]
    layer = Convolution(3, 4, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.backward(layer(torch.randn(1, 3, side, side)).float().sum())
    assert bool(taken) == product


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_what_needs_no_gradient_has_none(wanted: str) -> None:
    names = ("x", "weight", "bias")
    inputs = dict(zip(names, tensors(8, 3, transposed=False), strict=True))
    for name in {"x", "bias"} - {wanted}:  # a frozen weight takes torch's own way
        inputs[name].requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.backward(convolve(inputs["x"], inputs["weight"], inputs["bias"], 1, 1).float().sum())
    assert {n for n in names if inputs[n].grad is not None} == {wanted, "weight"}


def test_in_float32_a_convolution_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, plain = Convolution(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours(x), plain(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_normalised_weight_is_autograds(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    norm = SpectralNorm(weight.float()).double()
    upstream = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    plain = weight / (norm.u @ (weight.flatten(1) @ norm.v))
    ours = norm(weight)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, weight, upstream), torch.autograd.grad(plain, weight, upstream)
    )
    assert float((norm.u @ (weight.flatten(1) @ norm.v)).detach()) == pytest.approx(
        float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)), rel=0.05
    )
