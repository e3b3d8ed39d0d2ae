"""Two processes over gloo with the pretrained judge end where one does, each with its own shards alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import judge_peers
from forked import run_peers
from judge_peers import STEPS, recipe
from peers import run
from train.data.pack import pack
from train.run.distributed import World
from train.run.loop import STATE

pytestmark = pytest.mark.slow
SHARDS = 4
# As in test_distributed.py: sums in another order differ in their last bits, and where a weight's gradient is
# nearly 0 Adam makes a whole step out of those bits. One process alone, with batch norms that round as two
# processes' do, differed from two by 0.02 after four steps; scores and losses are sums over five heads here.
FIRST_STEP = 5e-5  # losses, of a size of 10
LATER = 5e-2

Curve = list[dict[str, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in one file and in four shards, two on each host; what one process and two made of them."""
    folder = tmp_path_factory.mktemp("judged")
    draw = np.random.default_rng(0)
    for name, level in (("dark", 60), ("grey", 120), ("light", 180)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = draw.integers(level - 50, level + 50, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    pack(folder / "images", folder / "pack.safetensors")
    pack(folder / "images", folder / "cut" / "pack.safetensors", shards=SHARDS)
    shards = sorted((folder / "cut").glob("pack-*"))
    for rank in (0, 1):
        (folder / f"host-{rank}").mkdir()
        for path in [folder / "cut" / "pack.safetensors", *shards[rank * 2 : rank * 2 + 2]]:
            shutil.copy(path, folder / f"host-{rank}")
    run_peers(2, [judge_peers.__file__, folder], folder)
    alone = {
        name: run(folder / at / "pack.safetensors", folder / "one" / name, World(), recipe())
        for name, at in (("one file", ""), ("shards", "cut"))
    }
    (folder / "alone.json").write_text(json.dumps(alone))
    return folder


def apart(a: Curve, b: Curve) -> float:
    assert len(a) == len(b) > 0
    return max(abs(x[name] - y[name]) for x, y in zip(a, b, strict=True) for name in x | y)


def state(folder: Path, processes: str, data: str) -> dict[str, Tensor]:
    return load_file(folder / processes / data / STATE)


@pytest.mark.parametrize("data", ["one file", "shards"])
def test_two_processes_have_the_losses_of_one(folder: Path, data: str) -> None:
    alone, first, second = (
        json.loads((folder / f"{name}.json").read_text())[data] for name in ("alone", 0, 1)
    )
    assert len(alone) == STEPS
    assert apart(first[:1], alone[:1]) < FIRST_STEP
    assert apart(first, alone) < LATER
    assert first == second


@pytest.mark.parametrize("data", ["one file", "shards"])
def test_two_processes_have_the_weights_of_one(folder: Path, data: str) -> None:
    one, two = state(folder, "one", data), state(folder, "two", data)
    assert one.keys() == two.keys()
    names = [name for name in one if "_adam." not in name]
    off = torch.cat([(one[name].double() - two[name].double()).abs().flatten() for name in names])
    off = off.sort().values
    assert off[int(len(off) * 0.99)] < 1e-4
    assert off[-1] < recipe().optimisation.discriminator_lr * STEPS


def measured(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = tuple(f"discriminator.{part}" for part in ("mix.", "mean", "deviation", "known", "spread"))
    return {name: tensor for name, tensor in tensors.items() if name.startswith(parts)}


def test_the_reals_are_measured_once_each_whoever_reads_them(folder: Path) -> None:
    whole = measured(state(folder, "one", "one file"))
    assert len(whole) == 4 * 2 + 4
    # one process reads a pack of one file first, so nothing is summed in another order
    alike = measured(state(folder, "two", "one file"))
    assert all(torch.equal(alike[name], tensor) for name, tensor in whole.items())
    for processes in ("one", "two"):
        torch.testing.assert_close(measured(state(folder, processes, "shards")), whole, rtol=1e-4, atol=1e-5)
