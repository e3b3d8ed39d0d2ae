"""The smallest things that train: a recipe, a pack, a signal at a step, and states to compare."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from train.data.pack import Pack
from train.recipes.recipe import Recipe, read_recipe
from train.run.loop import STATE
from train.run.state import TrainingState


def tiny(**overrides: str) -> Recipe:
    settings = {"optimisation.steps": "6", "schedule.save_every": "2", "schedule.statistics_batches": "2"}
    return read_recipe("tiny", settings | {k.replace("__", "."): v for k, v in overrides.items()})


def make_pack(images: int = 40, seed: int = 0) -> Pack:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 2
    pixels = torch.randint(0, 128, (images, 3, 32, 32), generator=draw) + 127 * labels[:, None, None, None]
    return Pack(pixels.to(torch.uint8), labels, ("dark", "light"), 32, {"sha256": str(seed)})


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / STATE)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class StopAt:
    """Sends this process a signal once a step is done."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def after(self, state: TrainingState) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), self.number)

    def close(self, state: TrainingState) -> None:
        pass
