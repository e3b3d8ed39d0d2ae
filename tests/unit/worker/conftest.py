"""A tiny network of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import save_generator
from model.config import ModelConfig
from model.generator import Generator
from model.layers import ConditionalBatchNorm

CLASSES = ("cat", "dog", "ship")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 pixels, three classes, attention at 16×16 with an open gate."""
    torch.manual_seed(0)
    widths = (64, 64, 64, 64)
    generator = Generator(
        ModelConfig(
            resolution=32,
            classes=len(CLASSES),
            generator_widths=widths,
            discriminator_widths=(16, 16, 16, 16),
            generator_attention=(16,),
        )
    )
    generator.attention["16x16"].gamma.data.fill_(0.7)
    for module in generator.modules():
        if isinstance(module, ConditionalBatchNorm):  # as made, every class has the same tables
            module.gamma.data.normal_(1, 0.3)
    generator.to_rgb.weight.data.mul_(8)  # a random network gives grey; this spreads it over all levels
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_generator(path, generator, CLASSES, {"fid": 12.5}, {"licence": "none", "description": "random"})
    return path
