"""Self-attention against a float64 reference written straight from the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.attention import SelfAttention
from model.config import AttentionForm


def make(form: AttentionForm = "embedded_gaussian", pool: bool = True, gamma: float = 0.7) -> SelfAttention:
    torch.manual_seed(0)
    layer = SelfAttention(16, form, pool)
    with torch.no_grad():
        layer.gamma.fill_(gamma)
    return layer


def reference(layer: SelfAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """y [B, C, H, W] and the map [B, N, M], one query and one key at a time, in float64."""
    x = x.double()
    batch, channels, height, width = x.shape
    y = x.clone()
    step = 2 if layer.pool else 1
    keys = [(i, j) for i in range(0, height, step) for j in range(0, width, step)]
    maps = torch.zeros(batch, height * width, len(keys), dtype=torch.float64)

    def weight(name: str) -> Tensor:
        kernel: Tensor = getattr(layer, name).weight
        return kernel[:, :, 0, 0].double()  # [out, in]

    def embed(name: str, pixel: Tensor) -> Tensor:
        return pixel if layer.form == "gaussian" else weight(name) @ pixel

    def pooled(features: Tensor, i: int, j: int) -> Tensor:
        """Max over the step × step window of [C, H, W]."""
        return features[:, i : i + step, j : j + step].amax(dim=(1, 2))

    for b in range(batch):
        g = torch.stack([embed("g", x[b, :, i, j]) for i in range(height) for j in range(width)], 1)
        h = torch.stack([weight("h") @ x[b, :, i, j] for i in range(height) for j in range(width)], 1)
        g, h = g.view(-1, height, width), h.view(-1, height, width)
        for q in range(height * width):
            i, j = divmod(q, width)
            query = embed("f", x[b, :, i, j])
            scores = []
            for k in keys:
                key = pooled(g, *k)
                if layer.w is None:
                    scores.append(float(query @ key))
                else:
                    scores.append(max(0.0, float(layer.w.weight[0].double() @ torch.cat([query, key]))))
            if layer.form in ("embedded_gaussian", "gaussian"):
                top = max(scores)
                exponents = [math.exp(s - top) for s in scores]
                row = [e / sum(exponents) for e in exponents]
            else:
                row = [s / len(keys) for s in scores]
            maps[b, q] = torch.tensor(row, dtype=torch.float64)
            o = sum(
                (a * pooled(h, *k) for a, k in zip(row, keys, strict=True)),
                torch.zeros(channels // 2, dtype=torch.float64),
            )
            y[b, :, i, j] += float(layer.gamma) * (weight("v") @ o)
    return y, maps


FORMS: list[tuple[AttentionForm, bool]] = [
    ("embedded_gaussian", True),
    ("embedded_gaussian", False),
    ("gaussian", True),
    ("dot_product", True),
    ("concatenation", True),
]


@pytest.mark.parametrize(("form", "pool"), FORMS)
def test_output_and_map_equal_the_equations(form: AttentionForm, pool: bool) -> None:
    layer = make(form, pool)
    x = torch.randn(2, 16, 4, 6)  # not square: rows and columns must not change places
    with torch.no_grad():
        wanted, wanted_map = reference(layer, x)
        plain = layer(x)
        mapped, trace = layer.forward_with_map(x, "4x6")
    torch.testing.assert_close(plain.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mapped.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace.map.double(), wanted_map, rtol=1e-4, atol=1e-6)
    assert trace.query_grid == (4, 6)
    assert trace.key_grid == ((2, 3) if pool else (4, 6))


def test_rows_of_the_map_sum_to_one_and_columns_do_not() -> None:
    _, trace = make().forward_with_map(torch.randn(1, 16, 8, 8), "8x8")
    torch.testing.assert_close(trace.map.sum(dim=2), torch.ones(1, 64))
    assert (trace.map.sum(dim=1) - 1).abs().max() > 0.1


@pytest.mark.parametrize(("form", "pool"), FORMS)
def test_a_closed_gate_is_the_identity(form: AttentionForm, pool: bool) -> None:
    layer = make(form, pool, gamma=0.0)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(layer(x), x)
    y, trace = layer.forward_with_map(x, "8x8")
    assert torch.equal(y, x)
    assert trace.gamma == 0
    assert trace.share.tolist() == [0, 0]


def test_a_new_layer_starts_with_its_gate_closed() -> None:
    assert SelfAttention(16).gamma.item() == 0


def test_the_share_is_what_attention_adds_relative_to_what_passes_through() -> None:
    layer = make(gamma=0.5)
    x = torch.randn(3, 16, 8, 8)
    y, trace = layer.forward_with_map(x, "8x8")
    wanted = [float((y[i] - x[i]).detach().norm() / x[i].norm()) for i in range(3)]
    assert trace.share.tolist() == pytest.approx(wanted, rel=1e-5)


def test_gradients_agree_whether_or_not_the_map_is_asked_for() -> None:
    layer = make()
    x = torch.randn(2, 16, 8, 8)
    gradients = []
    for run in (layer, lambda x: layer.forward_with_map(x, "8x8")[0]):
        layer.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    assert len(gradients[0]) == 5
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
