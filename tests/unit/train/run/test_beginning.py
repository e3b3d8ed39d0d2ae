"""A run that begins with another's generator, and a judge that catches up with it first."""

from __future__ import annotations

import signal
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import load_generator
from model.errors import CheckpointError
from tests.unit.train.tiny import StopAt, make_pack, same, tiny
from train.commands import run
from train.data.automatic import Survey, choose
from train.data.pack import Pack
from train.errors import TrainError
from train.recipes.recipe import Recipe
from train.run.beginning import TakenOver, fitting, open_start
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


def begun(recipe: Recipe, path: Path, **pack: object) -> tuple[TrainingState, TakenOver]:
    state = TrainingState(recipe, replace(make_pack(20), **pack), World())  # type: ignore[arg-type]
    return state, state.begin_from(path)


@pytest.mark.parametrize("norm", ["true", "false"])
def test_a_run_begins_with_the_weights_of_another(generator: Path, norm: str) -> None:
    state, known = begun(tiny(optimisation__generator_spectral_norm=norm), generator)
    found = load_generator(generator)
    assert known.kept == make_pack(20).class_names
    assert same(state.ema.network.state_dict(), found.generator.state_dict())
    ours = {
        name.replace(".parametrizations.weight.original", ".weight"): tensor
        for name, tensor in state.generator.state_dict().items()
    }
    assert all(torch.equal(ours[name], t) for name, t in found.generator.state_dict().items())
    images = 3 * state.recipe.optimisation.batch
    origin = {"sha256": found.sha256, "steps": 3, "images_seen": images, "licence": ""}
    assert state.began_from == origin


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
    assert not begun(bare, tmp_path / GENERATOR)[1].new


def three(*names: str) -> Pack:
    return replace(make_pack(21), class_names=names, labels=torch.arange(21) % 3)


@pytest.mark.parametrize("embedding", ["0", "8"])
def test_a_class_keeps_what_it_had_and_a_new_one_begins_at_the_mean(tmp_path: Path, embedding: str) -> None:
    recipe = tiny(
        optimisation__steps="2",
        optimisation__generator_lr="0.01",  # so that the classes differ
        optimisation__generator_spectral_norm="false",
        model__class_embedding=embedding,
    )
    train(recipe, make_pack(20), tmp_path, World(), [Served(tmp_path / GENERATOR, {})])
    state = TrainingState(recipe, three("Light", "new", "dark"), World())
    found = state.begin_from(tmp_path / GENERATOR)
    assert (found.kept, found.new) == (("Light", "dark"), ("new",))
    theirs = load_generator(tmp_path / GENERATOR).generator.state_dict()
    tables = 0
    for name, tensor in state.generator.state_dict().items():
        wanted = theirs[name]
        if tensor.shape != wanted.shape:
            wanted = torch.stack([wanted[1], wanted.mean(0), wanted[0]])
            assert not torch.equal(wanted[0], wanted[2]), name
            tables += 1
        torch.testing.assert_close(tensor, wanted)
    assert tables == (1 if embedding == "8" else 12)
    text = " ".join(found.lines())
    assert "Classes that it knows: Light, dark." in text
    assert "begun at the mean of its own: new." in text
    assert "The judge begins anew" in text


def test_classes_that_are_not_in_the_data_are_let_go_and_counted(generator: Path) -> None:
    _, found = begun(tiny(), generator, class_names=("left", "light"))
    assert "1 of its 2 classes are not in the data and are let go." in found.lines()


def test_a_state_brings_its_discriminator_too(generator: Path) -> None:
    state = TrainingState(tiny(), three("light", "new", "dark"), World())
    found = state.begin_from(generator.parent / STATE)
    saved = load_file(generator.parent / STATE)
    assert found.lines()[0].endswith("the generator and the discriminator taken over.")
    for name, tensor in state.discriminator.state_dict().items():
        theirs = saved[f"discriminator.{name}"]
        if name == "embedding.parametrizations.weight.original":
            theirs = torch.stack([theirs[1], theirs.mean(0), theirs[0]])
        if not name.endswith((".u", ".v")):
            torch.testing.assert_close(tensor, theirs)
    assert all(
        same({name: t}, {name: saved[f"ema.{name}"]})
        for name, t in state.ema.network.state_dict().items()
        if t.shape == saved[f"ema.{name}"].shape
    )
    assert state.began_from is not None
    assert state.began_from["steps"] == 3
    images, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 2, 2])
    old = TrainingState(tiny(optimisation__steps="3"), make_pack(20), World())
    old.load(generator.parent / STATE)
    with torch.no_grad():  # σ of the classes' table alone has changed
        ours, theirs = state.judge.scores(images, y), old.judge.scores(images, torch.tensor([1, 1, 0, 0]))
    assert (ours - theirs).abs().mean() < 0.3 * theirs.abs().mean()


def test_a_state_that_names_no_classes_gives_them_its_mean(generator: Path, tmp_path: Path) -> None:
    with safe_open(generator.parent / STATE, framework="pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != "class_names"}
    save_file(load_file(generator.parent / STATE), tmp_path / "old.safetensors", header)
    _, found = begun(tiny(), tmp_path / "old.safetensors")
    assert found.new == make_pack(20).class_names
    assert "It does not name its classes: all begin at the mean of its own." in found.lines()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"model__discriminator_widths": "[8, 16, 16, 24]"}, "another shape"),
        ({"optimisation__discriminator_spectral_norm": "false"}, "another shape"),
    ],
)
def test_a_discriminator_of_another_shape_begins_anew_and_says_so(
    generator: Path, setting: dict[str, str], why: str
) -> None:
    _, found = begun(tiny(**setting), generator.parent / STATE)
    assert why in found.lines()[-1]


def test_the_first_blocks_of_the_discriminator_stay_as_they_were(generator: Path, tmp_path: Path) -> None:
    recipe = tiny(optimisation__freeze_discriminator="2", optimisation__steps="2")
    before = load_file(generator.parent / STATE)
    train(recipe, make_pack(20), tmp_path, World(), [], Session(start=generator.parent / STATE))
    train(
        replace(recipe, optimisation=replace(recipe.optimisation, steps=3)),
        make_pack(20),
        tmp_path,
        World(),
        [],
        Session(resume=True),
    )
    after = load_file(tmp_path / STATE)
    moved = {
        name.split(".")[1] + "." + name.split(".")[2]: not torch.equal(after[name], before[name])
        for name in before
        if name.startswith("discriminator.")
        and name.endswith(("conv1.parametrizations.weight.original", "f.parametrizations.weight.original"))
    }
    assert moved == {
        "blocks.0": False,
        "blocks.1": False,
        "blocks.2": True,
        "blocks.3": True,
        "attention.16x16": False,
    }


def test_a_frozen_run_ends_the_same_however_often_it_was_stopped(generator: Path, tmp_path: Path) -> None:
    recipe = tiny(optimisation__freeze_discriminator="1", optimisation__steps="4")
    start = Session(start=generator.parent / STATE)
    train(recipe, make_pack(20), tmp_path / "whole", World(), [], start)
    train(recipe, make_pack(20), tmp_path / "parts", World(), [StopAt(2, signal.SIGTERM)], start)
    train(recipe, make_pack(20), tmp_path / "parts", World(), [], Session(resume=True))
    assert same(load_file(tmp_path / "whole" / STATE), load_file(tmp_path / "parts" / STATE))


def test_blocks_that_nothing_was_brought_for_are_not_frozen(generator: Path, tmp_path: Path) -> None:
    recipe = tiny(optimisation__freeze_discriminator="1")
    with pytest.raises(TrainError, match="give one, or leave it out"):
        train(recipe, make_pack(20), tmp_path, World(), [])
    with pytest.raises(StateError, match="a checkpoint has none"):
        begun(recipe, generator)


def test_auto_takes_the_shape_of_what_it_begins_with(generator: Path, tmp_path: Path) -> None:
    for name, colour in (("light", (250, 250, 250)), ("new", (0, 250, 0))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 40), (colour[0], colour[1], i)).save(
                tmp_path / "photos" / name / f"{i}.png"
            )
    written = StringIO()
    outcome = run(
        "auto",
        tmp_path / "photos",
        tmp_path / "out",
        console=Console(file=written, width=200),
        settings=[
            "optimisation.steps=2",
            "optimisation.judge_first=1",
            "optimisation.judge=plain",
            "optimisation.batch=4",
            "schedule.statistics_batches=1",
        ],
        session=Session(start=generator),
    )
    assert outcome.finished
    assert "Classes new to it, begun at the mean of its own: new." in written.getvalue()
    assert load_generator(tmp_path / "out" / GENERATOR).config.generator_widths == (16, 16, 16, 8)


def test_classes_are_the_same_as_folders_and_as_people_write_them(generator: Path) -> None:
    names = tuple(name.upper() for name in make_pack(20).class_names)
    assert not begun(tiny(), generator, class_names=names)[1].new


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


def test_the_licence_of_the_network_it_began_from_stays(tmp_path: Path) -> None:
    def served(folder: str, session: Session, about: dict[str, object] | None = None) -> str:
        out = tmp_path / folder
        train(
            tiny(optimisation__steps="1"),
            make_pack(20),
            out,
            World(),
            [Served(out / GENERATOR, about or {})],
            session,
        )
        return str(load_generator(out / GENERATOR).metadata["licence"])

    first = served("first", Session(licence="CC BY 4.0"))
    start = tmp_path / "first" / GENERATOR
    assert served("second", Session(start=start, licence="mine")) == (
        f"mine; begun from a network whose pictures have: {first}"
    )
    of_state = Session(start=tmp_path / "first" / STATE)
    assert served("third", of_state).endswith(f"; begun from a network whose pictures have: {first}")


def test_what_auto_takes_over_says_where_it_is_from(generator: Path) -> None:
    settings = fitting(open_start(generator)) | {"optimisation.batch": "8"}
    lines = {line.name: line for line in choose(Survey(100, (40,)), on_cpu=True, overrides=settings)}
    assert lines["resolution"].reason == "as in generator.safetensors"
    assert lines["judge_first"].value == 25
    assert lines["batch"].reason == "asked for"
    assert lines["generator_lr"].value == 2e-4  # the plain judge's own, not the other run's
