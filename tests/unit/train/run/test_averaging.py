"""sagan average: the mean of snapshots as one generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli import app
from model.checkpoint import load_generator
from networks import random_checkpoint

CLASSES = ("cat", "dog")


@pytest.fixture
def snapshots(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"step-{step}.safetensors" for step in (1, 2, 3)]
    for seed, path in enumerate(paths):
        random_checkpoint(path, CLASSES, seed=seed)
    return paths


def sagan(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["average", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_each_weight_is_the_mean_and_the_statistics_are_its_own(
    snapshots: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "mean.safetensors"
    assert "the mean of 3 snapshots" in sagan(out, *snapshots, "--batches", 4)
    mean = load_generator(out)
    found = dict(mean.generator.named_parameters())
    for name, values in found.items():
        each = [dict(load_generator(path).generator.named_parameters())[name] for path in snapshots]
        assert torch.allclose(values, torch.stack(each).mean(0), atol=1e-6), name
    assert mean.metadata["averaged"] == [path.name for path in snapshots]
    assert mean.class_names == CLASSES
    buffers = dict(mean.generator.named_buffers())
    moved = [name for name in buffers if name.endswith("running_var")]
    last = dict(load_generator(snapshots[-1]).generator.named_buffers())
    assert any(not torch.allclose(buffers[name], last[name]) for name in moved)
    images = mean.generator(torch.randn(4, mean.config.latent), torch.tensor([0, 1, 0, 1]))
    assert images.isfinite().all()


def test_what_cannot_be_averaged_is_told_in_a_sentence(snapshots: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    assert "two snapshots at least" in sagan(out, snapshots[0], code=2)
    assert "is there already" in sagan(snapshots[1], *snapshots, code=2)
    random_checkpoint(tmp_path / "other.safetensors", ("cat", "cow"))
    assert "is another network" in sagan(out, tmp_path / "other.safetensors", *snapshots, code=2)
    (tmp_path / "odd.safetensors").write_bytes(b"no network")
    assert "odd.safetensors" in sagan(out, tmp_path / "odd.safetensors", *snapshots, code=2)
    assert "missing.safetensors" in sagan(out, snapshots[0], tmp_path / "missing.safetensors", code=2)
    assert not out.exists()
