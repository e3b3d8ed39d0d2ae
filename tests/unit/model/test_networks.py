"""Generator and discriminator: shapes, sizes as the architecture implies, spectral norm, conditioning."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.discriminator import Discriminator
from model.errors import ConfigError
from model.generator import Generator
from model.layers import DownBlock, effective_state, power_iterate, spectral_normalise
from model.serving.fused import FusedGenerator

PAPER = ModelConfig(
    resolution=128,
    classes=1000,
    generator_widths=(1024, 1024, 512, 256, 128, 64),
    discriminator_widths=(64, 128, 256, 512, 1024, 1024),
    generator_attention=(32,),
    discriminator_attention=(32,),
)


def small(**changes: object) -> ModelConfig:
    values = {
        "resolution": 32,
        "classes": 3,
        "generator_widths": (16, 16, 16, 8),
        "discriminator_widths": (8, 16, 16, 16),
        "generator_attention": (16,),
        "discriminator_attention": (16,),
        "latent": 8,
    }
    return ModelConfig(**{**values, **changes})  # type: ignore[arg-type]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def conv(a: int, b: int, side: int) -> int:
    return a * b * side * side + b


def attention(channels: int) -> int:
    f_and_g = 2 * channels * (channels // 8)
    h_and_v = 2 * channels * (channels // 2)
    return f_and_g + h_and_v + 1  # and γ


def test_generator_of_the_paper_has_the_parameters_that_its_architecture_implies() -> None:
    widths, classes = PAPER.generator_widths, PAPER.classes
    linear = 128 * 1024 * 16 + 1024 * 16
    blocks = sum(
        2 * classes * a + conv(a, b, 3) + 2 * classes * b + conv(b, b, 3) + conv(a, b, 1)
        for a, b in pairwise(widths)
    )
    head = 2 * 64 + conv(64, 3, 3)
    wanted = linear + blocks + attention(256) + head
    assert wanted == 42_078_852
    with torch.device("meta"):
        assert count(Generator(PAPER)) == wanted


def test_discriminator_of_the_paper_has_the_parameters_that_its_architecture_implies() -> None:
    widths = PAPER.discriminator_widths
    downs = sum(conv(a, b, 3) + conv(b, b, 3) + conv(a, b, 1) for a, b in pairwise((3, *widths[:-1])))
    last = 2 * conv(1024, 1024, 3)  # equal widths: a plain skip
    head = 1024 + 1 + PAPER.classes * 1024
    # at 32×32 the second down-block has just put out 128 channels
    wanted = downs + last + attention(128) + head
    assert wanted == 39_463_618
    with torch.device("meta"):
        assert count(Discriminator(PAPER)) == wanted


@pytest.mark.parametrize("resolution", [32, 64, 128])
@pytest.mark.parametrize("sites", [(), (16,), (8, 16)])
def test_shapes_at_every_resolution_and_choice_of_attention(resolution: int, sites: tuple[int, ...]) -> None:
    levels = {32: 4, 64: 5, 128: 6}[resolution]
    config = small(
        resolution=resolution,
        generator_widths=(8,) * levels,
        discriminator_widths=(8,) * levels,
        generator_attention=sites,
        discriminator_attention=sites,
    )
    generator, discriminator = Generator(config), Discriminator(config)
    y = torch.tensor([0, 2])
    images = generator(torch.randn(2, 8), y)
    assert images.shape == (2, 3, resolution, resolution)
    assert images.abs().max() <= 1
    assert discriminator(images, y).shape == (2,)
    _, traces = generator.forward_with_attention(torch.randn(2, 8), y)
    assert [t.query_grid for t in traces] == [(s, s) for s in sites]


def test_attention_on_the_last_map_of_the_discriminator_runs_once() -> None:
    discriminator = Discriminator(small(discriminator_attention=(4,)))
    calls = []
    discriminator.attention["4x4"].register_forward_hook(lambda *_: calls.append(1))
    discriminator(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert len(calls) == 1


def test_the_class_changes_the_image_and_the_score() -> None:
    generator, discriminator = Generator(small()), Discriminator(small())
    with torch.no_grad():
        generator.blocks[0].norm1.gamma[1].mul_(2)  # type: ignore[union-attr, index]
    z = torch.randn(1, 8).expand(2, 8)
    images = generator.eval()(z, torch.tensor([0, 1]))
    assert not torch.allclose(images[0], images[1])
    same = images[:1].expand(2, -1, -1, -1)
    scores = discriminator(same, torch.tensor([0, 1]))
    assert scores[0] != scores[1]


def test_the_score_is_the_projection_of_the_papers_equation() -> None:
    discriminator = Discriminator(small())
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([2, 0])
    seen = []
    discriminator.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    scores = discriminator(x, y)
    h = seen[0]
    weight, bias = discriminator.linear.weight[0], discriminator.linear.bias
    for i in range(2):
        wanted = h[i] @ weight + bias + discriminator.embedding.weight[y[i]] @ h[i]
        torch.testing.assert_close(scores[i], wanted.squeeze())


def test_the_skip_of_a_down_block_sees_the_value_before_the_relu() -> None:
    block = DownBlock(8, 8, pool=False)
    with torch.no_grad():
        for module in (block.conv1, block.conv2):
            module.weight.zero_()
            assert module.bias is not None
            module.bias.zero_()
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x)  # an in-place ReLU would have cut the negative half


def test_spectral_norms_are_one_after_the_iteration_has_converged() -> None:
    torch.manual_seed(0)
    for network in (Generator(small()), Discriminator(small())):
        spectral_normalise(network)
        for _ in range(100):
            power_iterate(network)
        weights = {n: w for n, w in effective_state(network).items() if n.endswith(".weight") and w.ndim > 1}
        assert len(weights) > 10
        for name, weight in weights.items():
            sigma = torch.linalg.matrix_norm(weight.flatten(1), 2).item()
            assert sigma == pytest.approx(1, abs=1e-2), name


def test_reading_a_weight_does_not_move_the_power_iteration() -> None:
    discriminator = Discriminator(small())
    spectral_normalise(discriminator)
    discriminator.train()
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    assert torch.equal(discriminator(x, y), discriminator(x, y))


def test_folding_leaves_the_original_trainable_and_the_copy_equal() -> None:
    generator = Generator(small())
    spectral_normalise(generator)
    generator.eval()
    z, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    folded = generator.folded()
    torch.testing.assert_close(folded(z, y), generator(z, y))
    power_iterate(generator)
    generator(z, y).sum().backward()  # folding a copy once took the original's weights away
    assert all(p.grad is not None for p in generator.parameters())
    assert not any("parametrizations" in name for name in folded.state_dict())


def lively(**changes: object) -> Generator:
    """In eval mode, with statistics, gates and tables that are not the initial ones."""
    torch.manual_seed(1)
    generator = Generator(small(**changes))
    for _ in range(3):
        generator(torch.randn(16, generator.config.latent) * 2, torch.randint(3, (16,)))
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("gamma", "beta")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return generator.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"generator_attention": (8, 16)},
        {"generator_attention": (32,)},  # between the last block and the last norm
        {"generator_attention": (16,), "attention_form": "dot_product"},
        {"hierarchical": True, "class_embedding": 4},
    ],
)
def test_the_served_generator_makes_the_same_images_and_maps(changes: dict[str, object]) -> None:
    generator = lively(**changes)
    fused = FusedGenerator(generator)
    z, y = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        torch.testing.assert_close(fused(z, y), generator(z, y), rtol=1e-4, atol=1e-5)
        images, traces = fused.forward_with_attention(z, y)
        torch.testing.assert_close(images, generator(z, y), rtol=1e-4, atol=1e-5)
        _, wanted = generator.forward_with_attention(z, y)
    assert [t.name for t in traces] == [f"{side}x{side}" for side in generator.config.generator_attention]
    for a, b in zip(traces, wanted, strict=True):
        torch.testing.assert_close(a.map, b.map, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(a.share, b.share, rtol=1e-3, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def test_images_that_go_through_the_last_blocks_in_groups_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused = FusedGenerator(lively())
    z, y = torch.randn(7, 8), torch.arange(7) % 3
    with torch.no_grad():
        whole = fused(z, y)
        monkeypatch.setattr(
            "model.serving.fused.CACHED", 3 * 4 * 32 * 32 * 8
        )  # three images of the last block
        torch.testing.assert_close(fused(z, y), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resolution": 48}, "resolution is 48"),
        ({"classes": 0}, "at least 1"),
        ({"generator_widths": (16, 16, 16)}, "need 4 widths"),
        ({"discriminator_widths": (16, 16, 16, 12)}, "multiple of 8"),
        ({"generator_attention": (64,)}, "generator_attention"),
        ({"generator_attention": (4,)}, "generator_attention"),
        ({"discriminator_attention": (16, 16)}, "different sides"),
        ({"attention_form": "cosine"}, "attention_form"),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_the_reason(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**changes)
