"""Networks in fewer bits: what they lose, and who decides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.errors import PrecisionError
from model.serving import precision
from model.serving.fused import FusedGenerator
from model.serving.int8 import ActivationRange, Int8Convolution, has_int8, quantise
from model.serving.precision import in_precision
from tests.unit.model.test_networks import lively

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(not has_int8(CPU), reason="this processor has no instructions for int8")


def test_levels_round_cut_off_and_saturate() -> None:
    counted = torch.tensor([-3.2, -0.4, 0.4, 0.6, 254.4, 254.6, 300.0, 1e4])
    assert quantise(counted + 0.5).tolist() == [0, 0, 0, 1, 254, 255, 255, 255]


def test_a_range_leaves_out_the_few_largest_values() -> None:
    x = torch.rand(2, 3, 100, 100)
    x[:, 1, 0, 0] = 50.0
    ends = ActivationRange.of(x).end
    assert ends.shape == (3,)
    assert 0.99 < ends[0] <= 1
    assert ends[1] == 50  # one of 10,000 values: 2 of 20,000
    x[0, 1, 0, 0] = 100.0
    assert ActivationRange.of(x).end[1] == 50


@needs_int8
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 4)])
def test_a_convolution_in_8_bits_is_near_the_exact_one(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    spread = torch.logspace(-2, 2, 16)  # of the channels: steps of their own take it up
    x = torch.rand(3, 16, 8, 8) * spread[:, None, None]
    weight, bias = torch.randn(24, 16, kernel, kernel) / spread[:, None, None], torch.randn(24)
    convolution = Int8Convolution(weight, bias, 8, ActivationRange.of(x), stride=stride)
    counted = (x / convolution.steps[:, None, None] + 0.5).contiguous(memory_format=torch.channels_last)
    exact = F.conv2d(x, weight, bias, stride, 1)
    apart = (convolution(quantise(counted)) - exact).std() / exact.std()
    assert apart < 0.01


@needs_int8
@pytest.mark.parametrize(
    "changes",
    [{}, {"generator_attention": (32,)}, {"hierarchical": True, "class_embedding": 4}],
)
def test_a_generator_in_8_bits_makes_nearly_the_same_images(changes: dict[str, object]) -> None:
    generator = lively(**changes)
    exact = FusedGenerator(generator)
    torch.manual_seed(2)
    z, y = torch.randn(16, 8), torch.arange(16) % 3
    with torch.inference_mode():
        ranges = exact.activation_ranges(z, y)
        apart = []
        for spared in (0, 1, 3):
            network = FusedGenerator(generator, ranges=ranges, spared=spared)
            images, traces = network.forward_with_attention(z, y)
            torch.testing.assert_close(network(z, y), images, rtol=0, atol=0.02)
            assert len(traces) == len(generator.config.generator_attention)
            apart.append(float((images - exact(z, y)).abs().mean() * 127.5))
    assert 0 < apart[2] < apart[0] < 3


@needs_int8
def test_auto_takes_8_bits_only_where_images_stay_near(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = lively()
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    monkeypatch.setattr(precision, "WORST", 100.0)
    assert in_precision(generator, CPU, "auto")[1] == "int8"
    monkeypatch.setattr(precision, "WORST", 0.0)
    assert in_precision(generator, CPU, "auto")[1] == "float32"
    assert in_precision(generator, CPU, "int8")[1] == "int8"  # who asks for it gets it
    monkeypatch.setattr(precision, "has_int8", lambda device: False)
    monkeypatch.setattr(precision, "WORST", 100.0)
    assert in_precision(generator, CPU, "auto")[1] == "float32"
    with pytest.raises(PrecisionError, match="float32"):
        in_precision(generator, CPU, "int8")


def test_instructions_that_onednn_may_not_use_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True)
    found = {}
    for limit in (
        "",
        "AVX2",
        "AVX512_CORE",
        "AVX512_CORE_VNNI",
        "avx512_core_bf16",
        "AVX512_CORE_AMX",
        "ALL",
    ):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        found[limit] = (has_int8(CPU), precision.has_bf16(CPU))
    assert found == {
        "": (True, True),
        "AVX2": (False, False),
        "AVX512_CORE": (False, False),
        "AVX512_CORE_VNNI": (True, False),
        "avx512_core_bf16": (True, True),
        "AVX512_CORE_AMX": (True, True),
        "ALL": (True, True),
    }


def test_a_network_in_bfloat16_takes_z_as_it_comes_and_stays_near() -> None:
    generator = lively()
    z, y = torch.randn(4, generator.config.latent), torch.tensor([0, 1, 2, 0])
    short, name = in_precision(generator, CPU, "bfloat16")
    with torch.inference_mode():
        images = short(z, y)
        torch.testing.assert_close(images, short(z.bfloat16(), y), rtol=0, atol=0)
        assert 0 < float((images - generator(z, y)).abs().mean() * 127.5) < 3
    assert (name, images.dtype) == ("bfloat16", torch.float32)


def test_a_precision_that_is_not_known_is_told() -> None:
    with pytest.raises(PrecisionError, match="float32, bfloat16, int8"):
        in_precision(lively(), CPU, "int4")
