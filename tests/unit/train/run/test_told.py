"""What a run tells, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from model.checkpoint import load_generator
from tests.unit.train.tiny import make_pack, tiny
from train.commands import run
from train.errors import TrainError
from train.recipes.recipe import Recipe
from train.run.distributed import World
from train.run.grids import Grids
from train.run.loop import GENERATOR, STATE, Diverged, train
from train.run.observers import SNAPSHOTS, Served, Snapshots
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

ROOT = Path(__file__).parents[4]


# -- what is told -------------------------------------------------------------------------------------------


def test_a_network_that_diverges_ends_the_run_and_leaves_the_last_good_state(tmp_path: Path) -> None:
    class Poison:
        def after(self, state: TrainingState) -> None:
            if state.step == 3:
                with torch.no_grad():
                    state.generator.to_rgb.bias.fill_(float("nan"))

        def close(self, state: TrainingState) -> None:
            pass

    watching = [Poison(), Served(tmp_path / GENERATOR, {}), Snapshots(tmp_path / SNAPSHOTS, {})]
    with pytest.raises(Diverged, match=r"before step 4.*last good state"):
        train(tiny(schedule__snapshot_every="1"), make_pack(), tmp_path, World(), watching)
    with safe_open(tmp_path / STATE, framework="pt") as file:
        assert file.metadata()["step"] == "2"
    assert load_generator(tmp_path / GENERATOR).metadata["steps"] == 2
    assert {load_generator(path).metadata["steps"] for path in (tmp_path / SNAPSHOTS).iterdir()} == {1, 2, 3}


def test_a_collapse_is_told_at_the_next_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.run.grids.SETTLED", 32)  # images: two steps of this recipe

    class Collapse:
        def after(self, state: TrainingState) -> None:
            with torch.no_grad():
                state.ema.network.to_rgb.weight.zero_()

        def close(self, state: TrainingState) -> None:
            pass

    recipe, pack = tiny(optimisation__steps="2", schedule__grid_every="1"), make_pack()
    grids = Grids(tmp_path, pack, recipe, Console(width=200))
    train(recipe, pack, tmp_path, World(), [Collapse(), grids])
    told = capsys.readouterr().out
    assert "step 2: the samples hardly differ" in told
    assert "step 1:" not in told
    assert [p.name for p in sorted((tmp_path / "samples").glob("step-*"))] == [
        "step-0000001.png",
        "step-0000002.png",
    ]


def test_the_served_copy_says_where_it_comes_from(tmp_path: Path) -> None:
    recipe, pack = tiny(optimisation__steps="2"), make_pack()
    pack = replace(pack, metadata={**pack.metadata, "licence": "for tests"})
    train(recipe, pack, tmp_path, World(), [Served(tmp_path / GENERATOR, {"description": "two greys"})])
    found = load_generator(tmp_path / GENERATOR)
    assert found.class_names == ("dark", "light")
    assert found.metadata["steps"] == 2
    assert found.metadata["images_seen"] == 32
    assert found.metadata["licence"] == "for tests"
    assert found.metadata["description"] == "two greys"
    assert Recipe.from_json(found.metadata["recipe"]) == recipe  # type: ignore[arg-type]


def test_images_of_another_size_are_refused_with_the_way_out(tmp_path: Path, pack_file: Path) -> None:
    with pytest.raises(TrainError, match="32"):
        run("folder64", pack_file, tmp_path / "out", console=Console(quiet=True), device="cpu")
