"""What the class and z do to the generator's norms: tables, one embedding, parts of z; initial weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imaging.spec import ImageSpec
from model.checkpoint import load_generator, save_generator
from model.config import ModelConfig
from model.discriminator import Discriminator
from model.errors import ConfigError
from model.generator import Generator
from model.layers import ConditionalBatchNorm, SharedEmbedding, effective_state, spectral_normalise
from model.serving.fused import FusedGenerator
from tests.unit.model.test_networks import small
from worker.engine import Engine

CHANGES: list[dict[str, object]] = [
    {},
    {"class_embedding": 6},
    {"hierarchical": True},
    {"class_embedding": 6, "hierarchical": True},
]
ways = pytest.mark.parametrize("changes", CHANGES, ids=["tables", "shared", "parts", "shared and parts"])


def used(changes: dict[str, object]) -> Generator:
    """A generator whose norms have seen images and whose tables, if any, differ between classes."""
    torch.manual_seed(1)
    generator = Generator(small(**changes))
    spectral_normalise(generator)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("gamma", "beta")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for _ in range(5):
            generator(torch.randn(16, 8) * 2, torch.randint(3, (16,)))
    return generator.eval()


def inputs(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(2)), torch.arange(count) % 3


@ways
@torch.no_grad()
def test_the_served_generator_makes_the_same_images(changes: dict[str, object]) -> None:
    generator = used(changes)
    z, y = inputs()
    fused = FusedGenerator(generator)
    torch.testing.assert_close(fused(z, y), generator(z, y), rtol=1e-4, atol=1e-5)
    images, _ = fused.forward_with_attention(z, y)
    torch.testing.assert_close(images, generator(z, y), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, ConditionalBatchNorm | SharedEmbedding) for m in fused.modules())
    # a class costs the same however it was conditioned: one row of each table
    assert fused.table.shape == (3, 2 * sum((16, 16, 16, 16, 16, 8)))
    assert (fused.from_z is not None) == bool(changes.get("hierarchical"))
    short = FusedGenerator(generator, dtype=torch.bfloat16)(z.bfloat16(), y)
    torch.testing.assert_close(short.float(), generator(z, y), rtol=0, atol=0.05)


@pytest.mark.slow
@ways
@torch.no_grad()
def test_a_checkpoint_and_the_worker_make_the_same_images(changes: dict[str, object], tmp_path: Path) -> None:
    generator = used(changes)
    path = tmp_path / "x.safetensors"
    save_generator(path, generator, ("a", "b", "c"))
    found = load_generator(path)
    assert found.config == generator.config
    z, y = inputs()
    torch.testing.assert_close(found.generator(z, y), generator(z, y), rtol=1e-4, atol=1e-5)
    engine = Engine.load(path, torch.device("cpu"))
    together = engine.sample([ImageSpec(k, 5, k, 1.0) for k in range(3)])
    alone = engine.sample([ImageSpec(2, 5, 2, 1.0)])
    assert (together[2] == alone[0]).all()
    assert (together[0] != together[1]).any()


@ways
def test_the_class_and_every_part_of_z_change_the_image(changes: dict[str, object]) -> None:
    generator = used(changes)
    z, y = inputs(1)
    z.requires_grad_()
    image = generator(z, y)
    image.sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).all()
    with torch.no_grad():
        assert not torch.allclose(image, generator(z, y + 1))


def test_a_shared_embedding_is_projected_as_in_biggan() -> None:
    norm = ConditionalBatchNorm(4, tables=0, vector=3).eval()
    x, vector = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    assert norm.to_gamma is not None
    assert norm.to_beta is not None
    found = norm(x, torch.tensor([0, 0]), vector)
    for b in range(2):
        for c in range(4):
            gamma = 1 + norm.to_gamma.weight[c] @ vector[b]
            beta = norm.to_beta.weight[c] @ vector[b]
            wanted = gamma * x[b, c] / (1 + norm.norm.eps) ** 0.5 + beta
            torch.testing.assert_close(found[b, c], wanted)
    assert norm.gamma is None
    assert norm.to_gamma.bias is None


@pytest.mark.parametrize("length", [0, 6])
def test_each_part_of_z_goes_to_one_place(length: int) -> None:
    generator = Generator(small(class_embedding=length, hierarchical=True))
    z, y = inputs()
    first, vectors = generator.parts(z, y)
    assert first.shape == (6, 2)
    assert generator.linear.in_features == 2
    assert [v.shape[1] for v in vectors if v is not None] == [length + 2] * 3
    tails = [v[:, length:] for v in vectors if v is not None]
    assert torch.equal(torch.cat([first, *tails], dim=1), z)
    if length:
        assert generator.shared is not None
        for vector in vectors:
            assert vector is not None
            assert torch.equal(vector[:, :length], generator.shared.weight[y])


def test_projections_have_spectral_norm_and_tables_do_not() -> None:
    generator = Generator(small(class_embedding=6, hierarchical=True))
    spectral_normalise(generator)
    normed = {n.split(".parametrizations")[0] for n, _ in generator.named_parameters() if "parametriz" in n}
    assert {"blocks.0.norm1.to_gamma", "blocks.2.norm2.to_beta", "linear"} <= normed
    assert "shared" not in normed
    tables = Generator(small(hierarchical=True))
    spectral_normalise(tables)
    assert torch.equal(effective_state(tables)["blocks.0.norm1.gamma"], torch.ones(3, 16))
    discriminator = Discriminator(small(class_embedding=6))
    spectral_normalise(discriminator)
    assert any("embedding.parametrizations" in name for name, _ in discriminator.named_parameters())


def test_a_config_written_before_there_were_embeddings_still_loads() -> None:
    config = small()
    before = {k: v for k, v in config.to_json().items() if k not in ("class_embedding", "hierarchical")}
    assert ModelConfig.from_json(before) == config
    assert set(Generator(config).state_dict()) == set(Generator(ModelConfig.from_json(before)).state_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_embedding": -1}, "class_embedding is -1"),
        ({"hierarchical": True, "latent": 10}, "multiples of 4, such as 8"),
        ({"hierarchical": True, "latent": 1}, "such as 4"),
    ],
)
def test_conditioning_that_cannot_be_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**changes)


@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_weights_start_as_they_are_asked_to(kind: type[Generator] | type[Discriminator]) -> None:
    config = small(class_embedding=6)

    def weights(way: str) -> list[Tensor]:
        torch.manual_seed(0)
        network = kind(config, way)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                assert not module.bias.any()
        kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
        return [m.weight for m in network.modules() if isinstance(m, kinds)]

    for weight in weights("orthogonal"):
        rows = weight.flatten(1)
        short = rows if len(rows) <= rows.shape[1] else rows.T
        torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)
    normal = torch.cat([w.flatten() for w in weights("normal")])
    assert normal.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in weights("xavier"):
        fan_out, fan_in = weight.shape[0], weight[0].numel()
        bound = (6 / (fan_in + fan_out * weight[0, 0].numel())) ** 0.5
        assert 0.5 * bound < weight.abs().max() <= bound
    torch.manual_seed(0)
    assert torch.equal(weights("xavier")[0], weights("xavier")[0])
