"""A run that begins with another's generator, and a judge that catches up with it first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from model.checkpoint import load_generator
from model.errors import CheckpointError
from tests.unit.train.tiny import make_pack, same, tiny
from train.commands import run
from train.errors import TrainError
from train.recipes.recipe import Recipe
from train.run.distributed import World
from train.run.loop import GENERATOR, STATE, Session, train
from train.run.observers import Served
from train.run.saved import StateError
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of three steps leaves."""
    folder = tmp_path_factory.mktemp("first")
    train(tiny(optimisation__steps="3"), make_pack(20), folder, World(), [Served(folder / GENERATOR, {})])
    return folder / GENERATOR


def begun(recipe: Recipe, path: Path, **pack: object) -> tuple[TrainingState, bool]:
    state = TrainingState(recipe, replace(make_pack(20), **pack), World())  # type: ignore[arg-type]
    return state, state.begin_from(path)


@pytest.mark.parametrize("norm", ["true", "false"])
def test_a_run_begins_with_the_weights_of_another(generator: Path, norm: str) -> None:
    state, known = begun(tiny(optimisation__generator_spectral_norm=norm), generator)
    found = load_generator(generator)
    assert known
    assert same(state.ema.network.state_dict(), found.generator.state_dict())
    ours = {
        name.replace(".parametrizations.weight.original", ".weight"): tensor
        for name, tensor in state.generator.state_dict().items()
    }
    assert all(torch.equal(ours[name], t) for name, t in found.generator.state_dict().items())
    images = 3 * state.recipe.optimisation.batch
    assert state.began_from == {"sha256": found.sha256, "steps": 3, "images_seen": images}


@pytest.mark.parametrize(
    "setting",
    [{}, {"optimisation__generator_spectral_norm": "false", "optimisation__attention_scale": "0.5"}],
)
def test_it_begins_by_making_the_same_images(generator: Path, setting: dict[str, str]) -> None:
    state, _ = begun(tiny(optimisation__seed="1", **setting), generator)  # other u and v than the first had
    z, y = torch.randn(4, state.config.latent), torch.arange(4) % state.config.classes
    with torch.no_grad():
        ours, theirs = state.generator.eval()(z, y), load_generator(generator).generator(z, y)
    # σ of a young average of W/σ is not quite 1; with u and v of other weights, images lie 0.9 apart
    assert (ours - theirs).abs().mean() < 0.1


def test_weights_that_spectral_norm_would_change_are_refused(tmp_path: Path) -> None:
    bare = tiny(optimisation__steps="1", optimisation__generator_spectral_norm="false")
    train(bare, make_pack(20), tmp_path, World(), [Served(tmp_path / GENERATOR, {})])
    with pytest.raises(StateError, match="generator_spectral_norm=false"):
        begun(tiny(), tmp_path / GENERATOR)
    assert begun(bare, tmp_path / GENERATOR)[1]


def test_other_classes_begin_anew_and_all_else_is_taken_over(generator: Path) -> None:
    names = ("left", "right")
    state, known = begun(tiny(optimisation__generator_spectral_norm="false"), generator, class_names=names)
    fresh = TrainingState(tiny(optimisation__generator_spectral_norm="false"), make_pack(20), World())
    assert not known
    theirs = load_generator(generator).generator.state_dict()
    for name, tensor in state.generator.state_dict().items():
        of_a_class = ".norm" in name and name.endswith((".gamma", ".beta"))
        wanted = fresh.generator.state_dict() if of_a_class else theirs
        assert torch.equal(tensor, wanted[name]), name


def test_classes_are_the_same_as_folders_and_as_people_write_them(generator: Path) -> None:
    names = tuple(name.upper() for name in make_pack(20).class_names)
    assert begun(tiny(), generator, class_names=names)[1]


def test_a_generator_of_another_shape_is_refused(generator: Path) -> None:
    with pytest.raises(StateError, match="another shape"):
        begun(tiny(model__latent="16"), generator)


def test_a_part_that_the_recipe_has_no_place_for_is_not_dropped(generator: Path) -> None:
    with pytest.raises(StateError, match="has no place"):
        begun(tiny(model__generator_attention="[]"), generator)


def test_a_scale_beside_spectral_norm_is_kept(tmp_path: Path) -> None:
    scaled = tiny(optimisation__steps="1", optimisation__attention_scale="2")
    train(scaled, make_pack(20), tmp_path, World(), [Served(tmp_path / GENERATOR, {})])
    state, _ = begun(scaled, tmp_path / GENERATOR)
    query = load_generator(tmp_path / GENERATOR).generator.attention["16x16"].f.weight
    torch.testing.assert_close(state.generator.attention["16x16"].f.weight, query, rtol=0.1, atol=0.01)


def test_what_is_no_generator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        begun(tiny(), tmp_path / "no.safetensors")


def test_a_run_remembers_what_it_began_with(generator: Path, tmp_path: Path) -> None:
    served = Served(tmp_path / GENERATOR, {})
    train(tiny(optimisation__steps="1"), make_pack(20), tmp_path, World(), [served], Session(start=generator))
    train(tiny(optimisation__steps="2"), make_pack(20), tmp_path, World(), [served], Session(resume=True))
    assert (tmp_path / STATE).exists()
    found = load_generator(tmp_path / GENERATOR).metadata
    assert found["steps"] == 2
    assert isinstance(found["from"], dict)
    assert found["from"]["sha256"] == load_generator(generator).sha256


def test_to_resume_and_to_begin_anew_at_once_is_refused(generator: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="leave --from out"):
        run(
            "tiny",
            tmp_path,
            tmp_path / "out",
            console=Console(quiet=True),
            session=Session(resume=True, start=generator),
        )


def test_a_generator_in_the_runs_own_folder_is_not_written_over(generator: Path, tmp_path: Path) -> None:
    own = tmp_path / GENERATOR  # without a state, which would be refused as a run
    own.write_bytes(generator.read_bytes())
    with pytest.raises(TrainError, match="choose another --out"):
        run("tiny", tmp_path, tmp_path, console=Console(quiet=True), session=Session(start=own))
    assert own.read_bytes() == generator.read_bytes()


def test_the_judge_learns_alone_at_first(generator: Path) -> None:
    state, _ = begun(tiny(optimisation__judge_first="2"), generator)
    players = (state.generator, state.discriminator)

    def weights() -> list[Tensor]:
        return [torch.cat([p.detach().flatten() for p in player.parameters()]) for player in players]

    def moved() -> tuple[bool, bool]:
        before = weights()
        state.advance()
        after = weights()
        generator, judge = (not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return generator, judge

    assert [moved() for _ in range(3)] == [(False, True), (False, True), (True, True)]


def test_a_scale_on_the_queries_is_folded_into_what_is_saved(tmp_path: Path) -> None:
    recipe = tiny(
        optimisation__steps="1",
        optimisation__generator_spectral_norm="false",
        optimisation__attention_scale="0.5",
    )
    state = TrainingState(recipe, make_pack(20), World())
    query = state.generator.attention["16x16"].f
    assert torch.equal(query.weight, query.parametrizations.weight.original / 2)
    state.advance()
    assert torch.equal(state.generator.folded().attention["16x16"].f.weight, query.weight)
