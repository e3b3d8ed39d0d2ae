"""What a recipe can ask of a network's quality: each line does what it says, and a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_generator
from model.discriminator import Discriminator
from model.generator import Generator
from tests.unit.train.tiny import make_pack, same, tiny, weights
from train.recipes.recipe import Recipe
from train.run.distributed import World
from train.run.ema import Ema, recompute_statistics
from train.run.loop import GENERATOR, STATE, Session, train
from train.run.observers import Served
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size


@pytest.mark.parametrize(
    "settings",
    [
        {"model__class_embedding": "8"},
        {"model__hierarchical": "true"},
        {"model__class_embedding": "8", "model__hierarchical": "true"},
    ],
    ids=["shared", "parts", "shared and parts"],
)
def test_every_conditioning_trains_resumes_and_is_served(tmp_path: Path, settings: dict[str, str]) -> None:
    recipe, pack = tiny(optimisation__steps="2", **settings), make_pack()
    train(recipe, pack, tmp_path / "whole", World(), [Served(tmp_path / GENERATOR, {})])
    train(tiny(optimisation__steps="1", **settings), pack, tmp_path / "two", World(), [])
    train(recipe, pack, tmp_path / "two", World(), [], Session(resume=True))
    assert same(weights(tmp_path / "two"), weights(tmp_path / "whole"))
    state = TrainingState(recipe, pack, World())
    before = {n: p.clone() for n, p in state.generator.named_parameters()}
    state.advance()
    state.advance()
    moved = {n for n, p in state.generator.named_parameters() if not torch.equal(p, before[n])}
    wanted = {n for n in before if ".to_gamma" in n or ".to_beta" in n or n.startswith("shared")}
    assert wanted
    assert wanted <= moved
    found = load_generator(tmp_path / GENERATOR)
    z, y = torch.randn(3, recipe.config(2).latent), torch.tensor([0, 1, 0])
    recompute_statistics(state.ema.network, 2, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.generator(z, y), state.ema.network(z, y))


@pytest.mark.parametrize("way", ["xavier", "orthogonal", "normal"])
def test_both_networks_start_as_the_recipe_says(way: str) -> None:
    recipe, pack = tiny(optimisation__initialisation=way), make_pack()
    state = TrainingState(recipe, pack, World())
    torch.manual_seed(recipe.optimisation.seed)
    generator, discriminator = Generator(state.config, way), Discriminator(state.config, way)
    names = dict(state.generator.named_parameters())
    assert torch.equal(names["to_rgb.parametrizations.weight.original"], generator.to_rgb.weight)
    names = dict(state.discriminator.named_parameters())
    assert torch.equal(names["linear.parametrizations.weight.original"], discriminator.linear.weight)
    assert (way == "xavier") == (recipe == tiny())


def test_a_state_of_a_recipe_without_these_lines_goes_on(tmp_path: Path) -> None:
    pack = make_pack()
    train(tiny(optimisation__steps="1"), pack, tmp_path, World(), [])
    with (tmp_path / STATE).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    recipe = json.loads(header["recipe"])
    for name in ("augment", "initialisation"):
        del recipe["optimisation"][name]
    del recipe["schedule"]["snapshot_every"]
    save_file(load_file(tmp_path / STATE), tmp_path / STATE, {**header, "recipe": json.dumps(recipe)})
    assert train(tiny(optimisation__steps="2"), pack, tmp_path, World(), [], Session(resume=True)).finished
    assert Recipe.from_json(recipe) == tiny(optimisation__steps="1")


def test_the_average_can_be_without_ramp_or_left_out() -> None:
    generator = TrainingState(tiny(), make_pack(), World()).generator
    without = tiny(optimisation__ema_ramp="none").optimisation
    assert without.ema_ramp is None
    assert Ema(generator, 1000, without.ema_ramp).weight(1000, images_seen=1) == pytest.approx(0.5)
    none = tiny(optimisation__ema_half_life="0").optimisation
    assert Ema(generator, none.ema_half_life, none.ema_ramp).weight(1, images_seen=10**6) == 1
    assert Recipe.from_json(json.loads(json.dumps(tiny(optimisation__ema_ramp="none").to_json()))) == tiny(
        optimisation__ema_ramp="none"
    )


def test_statistics_and_snapshots_can_be_turned_off() -> None:
    schedule = tiny(schedule__statistics_batches="0", schedule__snapshot_every="0").schedule
    assert (schedule.statistics_batches, schedule.snapshot_every) == (0, 0)
