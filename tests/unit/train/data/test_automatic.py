"""The recipe that is chosen by the pictures and the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from train.data.automatic import Survey, choose, to_toml
from train.recipes.recipe import RecipeError, parse_recipe


def chosen(
    images: int, side: int, on_cpu: bool, pretrained: bool = False, **overrides: str
) -> dict[str, Any]:
    settings = {key.replace("__", "."): value for key, value in overrides.items()}
    choices = choose(Survey(images, (side,) * 8, pretrained=pretrained), on_cpu, settings)
    return {choice.name: choice.value for choice in choices}


def reason(name: str, survey: Survey, on_cpu: bool, **overrides: str) -> str:
    settings = {key.replace("__", "."): value for key, value in overrides.items()}
    return next(c.reason for c in choose(survey, on_cpu, settings) if c.name == name)


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("images", [16, 300, 5_000, 30_000, 2_000_000])
@pytest.mark.parametrize("side", [5, 32, 100, 4000])
def test_every_choice_makes_a_recipe_that_builds(
    images: int, side: int, on_cpu: bool, pretrained: bool
) -> None:
    choices = choose(Survey(images, (side,), pretrained=pretrained), on_cpu, {})
    recipe = parse_recipe("auto", to_toml('of "my" photos', choices))
    assert recipe.config(classes=1).generator_attention
    assert recipe.optimisation.flips
    assert bool(recipe.optimisation.augment) == (images < 100_000)
    assert all(choice.reason for choice in choices)
    assert len({(choice.section, choice.name) for choice in choices}) == len(choices)


def test_the_pretrained_judge_is_for_few_pictures_and_for_cpus_where_it_is_installed() -> None:
    def judge(images: int, on_cpu: bool, pretrained: bool) -> str:
        return str(chosen(images, 99, on_cpu, pretrained)["judge"])

    assert judge(300, on_cpu=True, pretrained=True) == "pretrained"
    assert judge(300, on_cpu=False, pretrained=True) == "pretrained"
    assert judge(2_000_000, on_cpu=True, pretrained=True) == "pretrained"
    assert judge(2_000_000, on_cpu=False, pretrained=True) == "plain"
    assert judge(300, on_cpu=True, pretrained=False) == "plain"
    few, many = Survey(300, (99,)), Survey(2_000_000, (99,))
    assert "pip install 'sagan-service[pretrained]'" in reason("judge", few, on_cpu=True)
    assert "pip install" not in reason("judge", many, on_cpu=False)
    assert "a CPU" in reason("judge", replace(few, pretrained=True), on_cpu=True)
    assert "fewer than 20,000 pictures" in reason("judge", replace(few, pretrained=True), on_cpu=False)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_other_choices_are_those_of_the_judge_asked_for(on_cpu: bool) -> None:
    plain = chosen(300, 99, on_cpu)
    assert chosen(300, 99, on_cpu, pretrained=True, optimisation__judge="plain") == plain
    assert (plain["generator_lr"], plain["discriminator_lr"], plain["batch"]) == (2e-4, 4e-4, 32)
    assert not {"class_embedding", "beta2", "guide", "variety", "augment_after"} & plain.keys()
    seeing = chosen(300, 99, on_cpu, pretrained=True)
    assert chosen(300, 99, on_cpu, optimisation__judge="pretrained") == seeing
    assert (seeing["generator_lr"], seeing["discriminator_lr"], seeing["class_embedding"]) == (1e-3, 1e-3, 64)
    assert "colour" not in seeing["augment"]
    # refused by the recipe, not here
    with pytest.raises(RecipeError, match="Did you mean 'plain'"):
        parse_recipe("auto", to_toml("", choose(Survey(300, (99,)), on_cpu, {"optimisation.judge": "plan"})))


def test_what_counts_in_steps_follows_the_steps_and_the_batch_asked_for() -> None:
    seeing = chosen(300, 99, True, True)
    shown = seeing["steps"] * seeing["batch"]
    assert 60_000 <= shown <= 120_000  # half an hour to an hour on two cores
    assert seeing["guide_steps"] == seeing["steps"] // 2
    assert seeing["augment_after"] == 3 * 300 // 16
    larger = chosen(300, 99, True, True, optimisation__batch="64")
    assert larger["steps"] * 64 == pytest.approx(shown, rel=0.05)
    assert larger["augment_after"] == 3 * 300 // 64
    fewer = chosen(300, 99, True, True, optimisation__steps="100")
    assert (fewer["steps"], fewer["guide_steps"], fewer["augment_after"]) == (100, 50, 10)
    assert seeing["variety"] > 0
    assert "variety" not in chosen(300, 99, True, True, optimisation__batch="15")  # it compares pairs
    # what is no number is refused by the recipe
    wrong = choose(Survey(300, (99,), pretrained=True), True, {"optimisation.steps": "many"})
    with pytest.raises(RecipeError, match="steps is 'many'"):
        parse_recipe("auto", to_toml("", wrong))


def test_the_resolution_is_what_pictures_their_number_and_the_device_allow() -> None:
    assert chosen(50_000, 500, on_cpu=False)["resolution"] == 128
    assert chosen(50_000, 500, on_cpu=True)["resolution"] == 64
    assert chosen(300, 500, on_cpu=False)["resolution"] == 64
    assert chosen(50_000, 63, on_cpu=False)["resolution"] == 32
    assert chosen(50_000, 7, on_cpu=False)["resolution"] == 32
    # a quarter of small ones does not decide, more of them do
    assert choose(Survey(300, (8, 8, *[99] * 6)), True, {})[0].value == 64
    assert choose(Survey(300, (8, 8, 8, *[99] * 5)), True, {})[0].value == 32


def test_the_least_is_32_pixels_and_the_most_that_a_network_has() -> None:
    assert "enlarged" in choose(Survey(300, (8,) * 8), True, {})[0].reason
    assert chosen(300, 8, on_cpu=True, model__resolution="128")["resolution"] == 128
    with pytest.raises(RecipeError, match="32, 64, 128"):
        chosen(300, 500, on_cpu=True, model__resolution="48")
    with pytest.raises(RecipeError, match="resolution of 48"):
        choose(Survey(300, (), 48), True, {})


def test_what_is_asked_for_stands_in_the_recipe() -> None:
    asked = {"optimisation.flips": "false", "optimisation.seed": "7", "schedule.grid_every": "9"}
    recipe = parse_recipe("auto", to_toml("", choose(Survey(300, (64,)), True, asked)))
    assert (recipe.optimisation.flips, recipe.optimisation.seed, recipe.schedule.grid_every) == (False, 7, 9)
