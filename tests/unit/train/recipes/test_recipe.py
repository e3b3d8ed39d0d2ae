"""Recipes: those that ship, those that old states hold, and those that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.train.tiny import make_pack, tiny
from train.errors import TrainError
from train.recipes.recipe import Recipe, RecipeError, parse_recipe, read_recipe
from train.run.distributed import World
from train.run.saved import same_computation
from train.run.state import TrainingState

ROOT = Path(__file__).parents[4]
RECIPES = sorted(path.stem for path in (ROOT / "train" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_that_ships_builds_its_networks(name: str) -> None:
    recipe = read_recipe(name)
    config = recipe.config(classes=10)
    assert recipe.description
    assert config.generator_attention
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == replace(
        recipe, model=json.loads(json.dumps(recipe.model))
    )


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("tyny", {}, "Did you mean 'tiny'"),
        ("nowhere.toml", {}, "no recipe"),
        ("tiny", {"optimisation.batchs": "3"}, "Did you mean 'batch'"),
        ("tiny", {"optimisation.batch": "0"}, "at least 1"),
        ("tiny", {"optimisation.batch": "many"}, "of type int"),
        ("tiny", {"optimisation.flips": "1"}, "of type bool"),
        ("tiny", {"batch": "3"}, "section.field=value"),
        ("tiny", {"colour.red": "3"}, "unknown parts"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_the_way_out(
    name: str, overrides: dict[str, str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(name, overrides)


def test_a_model_that_cannot_be_is_refused_by_its_recipe() -> None:
    with pytest.raises(RecipeError, match="resolution is 48"):
        read_recipe("tiny", {"model.resolution": "48"}).config(10)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("optimisation.initialisation", "ortogonal", "Did you mean 'orthogonal'"),
        ("optimisation.initialisation", "zeros", "It can be xavier, orthogonal, normal"),
        ("optimisation.initialisation", "", "initialisation has no ''"),
        ("optimisation.initialisation", "orthogonal,normal", "initialisation has no"),
        ("optimisation.initialisation", "3", "of type str"),
        ("optimisation.discriminator_steps", "0", "at least 1"),
        ("optimisation.generator_lr", "-0.1", "generator_lr is -0.1; it must be at least 0"),
        ("optimisation.generator_lr", "nan", "generator_lr is nan"),
        ("optimisation.generator_lr", "none", "of type float"),
        ("optimisation.ema_half_life", "inf", "under 3e"),
        ("optimisation.ema_ramp", "-1", "ema_ramp is -1"),
        ("optimisation.beta2", "1.0", "beta2 is 1.0; it must be at least 0 and under 1"),
        ("schedule.statistics_batches", "-1", "at least 0"),
        ("schedule.snapshot_every", "-5", "at least 0"),
        ("schedule.save_every", "0", "at least 1"),
        ("schedule.snapshots_every", "5", "Did you mean 'snapshot_every'"),
        ("model.hierarchical", "1", "hierarchical is 1"),
        ("model.class_embedding", "true", "class_embedding is True"),
        ("model.class_embeding", "8", "unknown fields"),
    ],
)
def test_a_wrong_line_is_refused_in_one_line(setting: str, value: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as refused:
        read_recipe("tiny", {setting: value}).config(2)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("side", ["16", "48", "544"])
def test_a_side_that_the_judge_cannot_see_is_refused(side: str) -> None:
    judged = {"optimisation.judge": "pretrained", "optimisation.judge_side": side}
    with pytest.raises(
        RecipeError, match=rf"judge_side \({side}\) must be a multiple of 32 from the images' 32"
    ):
        read_recipe("tiny", judged)
    with pytest.raises(RecipeError, match="the plain judge has none"):
        read_recipe("tiny", {"optimisation.judge_side": "64"})


@pytest.mark.parametrize("section", ["model", "optimisation", "schedule"])
def test_a_section_that_is_no_table_is_refused(section: str) -> None:
    with pytest.raises(RecipeError, match=f"{section} must be a table"):
        parse_recipe("x", f"{section} = 3")


def test_a_wrong_name_is_told_before_what_then_seems_to_be_missing() -> None:
    with pytest.raises(RecipeError, match=r"unknown setting 'stepz'\. Did you mean 'steps'"):
        parse_recipe("x", "[optimisation]\nstepz = 3")
    with pytest.raises(RecipeError, match="it must say steps"):
        parse_recipe("x", "[optimisation]\nbatch = 3")


def test_what_can_be_none_says_how_to_write_it() -> None:
    assert tiny(optimisation__ema_ramp="none").optimisation.ema_ramp is None
    with pytest.raises(RecipeError, match='ema_ramp is True; it must be of type float or "none"'):
        tiny(optimisation__ema_ramp="true")


def test_a_state_of_an_older_version_is_resumed_whatever_the_order_of_its_settings(tmp_path: Path) -> None:
    recipe, path = tiny(), tmp_path / "state.safetensors"
    state = TrainingState(recipe, make_pack(), World())
    written = json.loads(json.dumps(recipe.to_json()))
    older = {name: written["optimisation"][name] for name in reversed(written["optimisation"])}
    for newer in ("judge_first", "pixel_head", "variety", "cross_replica_norm"):
        del older[newer]
    older["steps"] = 2  # which may change, as may the schedule
    held = {"schedule": {"save_every": 7}, "optimisation": older, "model": written["model"]}
    old = Recipe.from_json({**held, "description": "", "name": "tiny"})
    assert same_computation(old, recipe)
    state.advance()
    state.recipe = old
    state.save(path)
    TrainingState(recipe, make_pack(), World()).load(path)
    with pytest.raises(TrainError, match="another recipe"):
        TrainingState(tiny(optimisation__batch="8"), make_pack(), World()).load(path)
