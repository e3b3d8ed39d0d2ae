"""Experiments: a killed one goes on where it was, and nothing is trained or measured twice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from networks import judge_with
from train.data.pack import Pack
from train.errors import ExperimentError, FeaturesError
from train.experiments.catalogue import BASELINE, EXPERIMENTS, MAP_LIMIT, map_bytes, milestones
from train.experiments.runs import Task
from train.measure.features_training import FeaturesRecipe, train_features
from train.recipes.recipe import RecipeError, read_recipe

pytestmark = pytest.mark.slow
SCALE = 0.0004  # attention-sites at 1, 2, 4, 6, 8, 10 and 12 steps
SETTINGS = ("optimisation.batch=4", "schedule.statistics_batches=1")


class Killed(BaseException):
    """Stands for kill -9: nothing catches it and nothing is saved on the way."""


def figures(out: Path) -> dict[str, tuple[object, object]]:
    """What was measured, with the generator it was measured on; without what depends on the clock."""
    read = {
        str(p.relative_to(out)): json.loads(p.read_text()) for p in out.glob("runs/*/*/milestones/*.json")
    }
    return {name: (found["figures"], found["weights"]) for name, found in read.items()}


def told(out: Path) -> str:
    """The report without its folder's name and its table of speeds."""
    text = (out / "report.md").read_text().replace(out.name, "OUT")
    return re.sub(r"## Cost\n.*?(?=\n## )", "", text, flags=re.S)


def test_an_experiment_killed_between_milestones_ends_as_if_it_never_was(
    experiment: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert experiment(whole, only="none")
    measure, seen = Task.measure, []

    def killed(task: Task, step: int, *more: Any) -> None:
        if step in (6, 10) and step not in seen and more:
            seen.append(step)
            raise Killed
        measure(task, step, *more)

    monkeypatch.setattr(Task, "measure", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            experiment(broken, only="none")
    assert experiment(broken, only="none")
    assert seen == [6, 10]
    assert len(figures(whole)) == 7
    assert figures(broken) == figures(whole)
    assert told(broken) == told(whole)


def test_an_experiment_may_be_judged_through_the_pretrained_network(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    settings = (*SETTINGS, "optimisation.judge=pretrained")
    assert experiment(tmp_path, only="none", scale=SCALE / 4, settings=settings)
    assert len(figures(tmp_path)) == 3
    log = (tmp_path / "runs" / "none" / "seed-0" / "log.jsonl").read_text().splitlines()
    assert len(log) == 3
    assert all(math.isfinite(json.loads(line)["loss/generator"]) for line in log)


def test_what_is_there_is_neither_trained_nor_measured_again(
    experiment: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiment(tmp_path, scale=0.0001, only="none")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*") if p.is_file()}
    assert {p.parts[-3 if p.parent.name == "seed-0" else -4] for p in before if p.suffix == ".json"} == {
        "none"
    }
    assert experiment(tmp_path, scale=0.0001)  # the other variants are added
    assert experiment(tmp_path, scale=0.0001, seeds=2, only="none")  # and a seed
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    assert len(list(tmp_path.glob("runs/*/seed-1"))) == 1
    assert len(list(tmp_path.glob("runs/*/seed-0"))) == 4
    measured = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/none/seed-0/milestones/*.json")}
    assert experiment(tmp_path, scale=0.0002, only="none")  # more steps go on from the state that is there
    assert all(p.stat().st_mtime_ns == at for p, at in measured.items())
    steps = sorted(int(p.name[:7]) for p in tmp_path.glob("runs/none/seed-0/milestones/*.none.json"))
    assert steps == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr("train.experiments.command.perform", lambda *_: pytest.fail("nothing was left to do"))
    assert experiment(tmp_path, scale=0.0002, only="none")


def test_another_setting_for_the_same_folder_is_refused_in_a_line(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    experiment(tmp_path, scale=0.0001, only="none")
    for changed, said in (
        ({"samples": 9}, "samples = 8, not 9"),
        ({"settings": ["optimisation.batch=8"]}, "optimisation.batch = 4, not 8"),
        ({"name": "stabilisers", "only": None}, '"attention-sites", not "stabilisers"'),
        ({"scale": 0.00005}, "can grow, not shrink"),
        ({"features": None}, "was begun with --features"),
    ):
        with pytest.raises(ExperimentError, match=re.escape(said)) as refused:
            experiment(tmp_path, **({"scale": 0.0001, "only": "none"} | changed))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "attention-site"}, "Did you mean 'attention-sites'"),
        ({"only": "nowhere"}, "it has full, none"),
        ({"scale": 0}, "above 0"),
        ({"samples": 3}, "More than 5"),
        ({"settings": ["batch"]}, "section.field=value"),
        ({"name": "spatial-blindness", "seeds": 2}, "trains no network"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_written(
    experiment: Callable[..., bool], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises((ExperimentError, FeaturesError, RecipeError), match=re.escape(said)):
        experiment(tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_a_result(experiment: Callable[..., bool], tmp_path: Path) -> None:
    rates = ["optimisation.generator_lr=1e30", "optimisation.discriminator_lr=1e30"]
    asked = {"name": "stabilisers", "only": BASELINE, "scale": 0.0005, "settings": (*SETTINGS, *rates)}
    assert experiment(tmp_path, **asked)
    step = json.loads((tmp_path / "runs" / BASELINE / "seed-0" / "diverged.json").read_text())["step"]
    assert f"{BASELINE}, seed 0: diverged at step {step}" in (tmp_path / "report.md").read_text()
    assert experiment(tmp_path, **asked)  # and is not tried again


def test_time_that_is_up_leaves_everything_to_go_on_from(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    assert not experiment(tmp_path, scale=0.0001, only="none", stop_after=0)
    assert "Not finished yet: none (seed 0)" in (tmp_path / "report.md").read_text()
    assert experiment(tmp_path, scale=0.0001, only="none")


def test_a_variant_that_only_samples_otherwise_trains_nothing(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    assert experiment(tmp_path, name="ablations", only="truncation-0.5", scale=0.0001)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [BASELINE]
    found = figures(tmp_path)
    # added later it is measured on the generators that were kept
    assert experiment(tmp_path, name="ablations", only="truncation-0.7", scale=0.0001)
    assert figures(tmp_path).items() > found.items()
    last = "runs/baseline/seed-0/milestones/0000003.{}.json"
    whole, half = (figures(tmp_path)[last.format(name)] for name in (BASELINE, "truncation-0.5"))
    assert whole[1] == half[1]
    assert whole[0] != half[0]


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != "spatial-blindness"])
@pytest.mark.parametrize("recipe", ["tiny", "small64"])
def test_every_variant_is_a_network_that_can_be_built(name: str, recipe: str) -> None:
    base = read_recipe(recipe)
    variants = EXPERIMENTS[name].variants(base)
    assert len({v.name for v in variants}) == len(variants) > 3
    recipes = [v.recipe(base) for v in variants]
    built = {repr((r.config(2), r.optimisation)) for r in recipes}
    assert len(built) == sum(not v.of for v in variants)  # each that trains is another one
    assert all(r == base for r, v in zip(recipes, variants, strict=True) if v.of)
    assert milestones(EXPERIMENTS[name], 1) == EXPERIMENTS[name].milestones


def test_a_form_whose_map_would_fill_the_memory_is_left_out_and_named() -> None:
    large = read_recipe(
        "imagenet128", {"model.generator_attention": "[64]", "model.discriminator_attention": "[64]"}
    )
    forms = EXPERIMENTS["attention-forms"]
    names = [v.name for v in forms.variants(large)]
    assert "concatenation-full-keys" not in names
    assert "gaussian-full-keys" in names
    assert "concatenation-full-keys (" in " ".join(forms.notes(large))
    assert all(map_bytes(v, large) <= MAP_LIMIT for v in forms.variants(large))


def test_measuring_needs_an_extractor_of_the_same_data(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    other = Pack(
        torch.randint(0, 256, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
        torch.arange(60) % 2,
        ("a", "b"),
        32,
        {},
    )
    train_features(other, tmp_path / "other.safetensors", FeaturesRecipe(epochs=1), (8, 8, 16))
    with pytest.raises(FeaturesError, match="only guesses"):  # of noise there is nothing to know
        experiment(tmp_path / "out", features=tmp_path / "other.safetensors")
    judge_with(tmp_path / "other.safetensors", tmp_path / "other.safetensors", 0.9, 1000)
    with pytest.raises(FeaturesError, match="leave --features out"):
        experiment(tmp_path / "out", features=tmp_path / "other.safetensors")
