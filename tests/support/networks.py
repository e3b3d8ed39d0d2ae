"""Files for tests of several packages: a tiny network of random weights, an extractor of any accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.checkpoint import save_generator
from model.config import ModelConfig
from model.generator import Generator
from model.layers import ConditionalBatchNorm


def random_checkpoint(
    path: Path,
    classes: tuple[str, ...],
    *,
    attention: tuple[int, ...] = (16,),
    width: int = 16,
    seed: int = 0,
    metrics: dict[str, object] | None = None,
    metadata: dict[str, object] | None = None,
) -> str:
    """Write a 32-pixel network of random weights, its attention gates open; returns its sha256."""
    torch.manual_seed(seed)
    generator = Generator(
        ModelConfig(
            resolution=32,
            classes=len(classes),
            generator_widths=(width,) * 4,
            discriminator_widths=(16,) * 4,
            generator_attention=attention,
            latent=32,
        )
    )
    with torch.no_grad():
        for name, parameter in generator.attention.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.7)
        for module in generator.modules():
            if isinstance(module, ConditionalBatchNorm):  # as made, every class has the same tables
                assert module.gamma is not None
                module.gamma.normal_(1, 0.3)
        generator.to_rgb.weight.mul_(8)  # a random network gives grey; this spreads it over all levels
    return save_generator(path, generator, classes, metrics, metadata)


def judge_with(features: Path, path: Path, accuracy: float, held_out: int) -> Path:
    """The extractor in `features`, written to `path` as if it had so many held-out images right."""
    with safe_open(features, framework="pt") as file:
        about = json.loads(file.metadata()["features"])
    about |= {"accuracy": accuracy, "held_out": held_out}
    save_file(load_file(features), path, {"features": json.dumps(about)})
    return path
