"""States and packs for tests of the pretrained judge."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.unit.train.tiny import make_pack, tiny
from train.data.pack import Pack
from train.recipes.recipe import Recipe
from train.run.distributed import World
from train.run.pretrained_judge import PretrainedJudge
from train.run.state import TrainingState

CPU = torch.device("cpu")


def judged(judge: str = "pretrained", **overrides: str) -> Recipe:
    settings = {"optimisation__batch": "4", "optimisation__precision": "float32"}
    settings |= {"optimisation__judge": judge, "model__class_embedding": "8"}
    return tiny(**(settings | overrides))


def pack_of(counts: tuple[int, ...], resolution: int = 32) -> Pack:
    """Random images, so many of each class."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    shape = (len(labels), 3, resolution, resolution)
    pixels = torch.randint(0, 256, shape, generator=draw).to(torch.uint8)
    return Pack(pixels, labels, tuple(f"class {i}" for i in range(len(counts))), resolution, {"sha256": "0"})


def begun(recipe: Recipe, pack: Pack | None = None, steps: int = 0) -> TrainingState:
    state = TrainingState(recipe, make_pack(20) if pack is None else pack, World())
    for _ in range(steps):
        state.advance()
    return state


def eyes(state: TrainingState) -> PretrainedJudge:
    assert isinstance(state.judge, PretrainedJudge)
    return state.judge


def tensors(state: TrainingState) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state._tensors()}
