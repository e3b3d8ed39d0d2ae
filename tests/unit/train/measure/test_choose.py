"""Snapshots of a run, and what its discriminator chooses among them."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from cli import app
from model.checkpoint import load_generator, save_generator
from model.errors import CheckpointError
from tests.unit.train.tiny import make_pack, tiny
from train.data.pack import Pack
from train.data.pack import pack as write_pack
from train.errors import TrainError
from train.measure.choose import CHOSEN, ChoiceError, RankedSnapshot, Ranking, choose, rank_correlation
from train.measure.distances import frechet
from train.measure.features import extract, open_features, split
from train.measure.features_training import FeaturesRecipe, train_features
from train.measure.metrics import GeneratorSampler, stratified
from train.run.augment import to_network
from train.run.distributed import World
from train.run.loop import GENERATOR, STATE, train
from train.run.observers import SNAPSHOTS, Served, Snapshots
from train.run.saved import StateError
from train.run.state import TrainingState, saved_judge

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

SETTINGS = {
    "optimisation__steps": "5",
    "schedule__snapshot_every": "2",
    "optimisation__discriminator_lr": "0.01",  # so that the snapshots differ to it
    "optimisation__generator_lr": "0.01",
}


@pytest.fixture(scope="module")
def pack() -> Pack:
    return make_pack(100)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pack: Pack) -> Path:
    """A run of five steps with snapshots of the second and the fourth."""
    out = tmp_path_factory.mktemp("run")
    observers = [Served(out / GENERATOR, {}), Snapshots(out / SNAPSHOTS, {})]
    train(tiny(**SETTINGS), pack, out, World(), observers)
    return out


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, pack: Pack) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    train_features(pack, path, FeaturesRecipe(epochs=6, batch=15, learning_rate=0.05), (8, 8, 16))
    return path


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def test_snapshots_are_generators_as_they_would_serve(run: Path, pack: Pack) -> None:
    snapshots = sorted((run / SNAPSHOTS).iterdir())
    assert [path.name for path in snapshots] == ["step-0000002.safetensors", "step-0000004.safetensors"]
    found = load_generator(snapshots[0])
    assert found.metadata["steps"] == 2
    assert found.class_names == pack.class_names
    again = TrainingState(tiny(**SETTINGS), pack, World())
    for _ in range(2):
        again.advance()
    assert torch.equal(found.generator.to_rgb.weight, again.ema.network.to_rgb.weight)


def test_no_snapshot_is_kept_unless_asked_for(tmp_path: Path, pack: Pack) -> None:
    recipe = tiny(optimisation__steps="2")
    train(recipe, pack, tmp_path, World(), [Snapshots(tmp_path / SNAPSHOTS, {})])
    assert not (tmp_path / SNAPSHOTS).exists()


def test_without_batches_for_statistics_the_running_averages_are_served(tmp_path: Path, pack: Pack) -> None:
    kept = {}
    for batches in ("0", "2"):
        path = tmp_path / batches / GENERATOR
        recipe = tiny(optimisation__steps="2", schedule__statistics_batches=batches)
        train(recipe, pack, path.parent, World(), [Served(path, {})])
        running = load_file(path.parent / STATE)
        served = load_file(path)
        name = "blocks.1.norm1.norm.running_mean"
        kept[batches] = torch.equal(served[name], running[f"generator.{name}"])
    assert kept == {"0": True, "2": False}


def test_the_discriminator_of_a_state_scores_as_it_did_in_the_run(tmp_path: Path, pack: Pack) -> None:
    recipe = tiny(optimisation__steps="3")
    state = TrainingState(recipe, pack, World())
    for _ in range(3):
        state.advance()
    state.save(tmp_path / STATE)
    judge, found, step = saved_judge(tmp_path / STATE, 2, World().device)
    images, labels = to_network(pack.images[:8]), pack.labels[:8]
    with torch.no_grad():
        assert torch.equal(judge.scores(images, labels), state.judge.scores(images, labels))
    assert (found, step) == (recipe, 3)
    assert not any(p.requires_grad for p in judge.network.parameters())
    with pytest.raises(StateError, match="no discriminator for 3 classes"):
        saved_judge(tmp_path / STATE, 3, World().device)


def test_the_snapshot_that_the_last_discriminator_likes_best_is_chosen(copy: Path, pack: Pack) -> None:
    choice = choose(copy, pack, samples=20, seed=3)
    assert [one.step for one in sorted(choice.ranked, key=lambda one: one.step)] == [2, 4, 5]
    assert choice.judge == 5
    assert choice.verdict() == ()
    judge, _, _ = saved_judge(copy / STATE, 2, World().device)
    labels = torch.from_numpy(stratified(pack.labels.numpy(), 20))
    for one in choice.ranked:
        found = load_generator(one.path)
        made = GeneratorSampler(found.generator, found.class_names)(labels, 3, 0)
        with torch.no_grad():
            wanted = judge.scores(to_network(made), labels).mean().item()
        assert one.score == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        assert one.frechet is None
    assert choice.ranked[0].score == max(one.score for one in choice.ranked)
    held = torch.from_numpy(split(100)[1])
    with torch.no_grad():
        real = judge.scores(to_network(pack.images[held]), pack.labels[held]).mean().item()
    assert choice.real == pytest.approx(real, rel=1e-4)
    chosen, best = load_generator(copy / CHOSEN), load_generator(choice.ranked[0].path)
    for (name, a), b in zip(
        chosen.generator.state_dict().items(), best.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    about = chosen.metadata["chosen"]
    assert isinstance(about, dict)
    assert about["among"] == [2, 4, 5]
    assert choose(copy, pack, samples=20, seed=3) == choice


def test_images_are_shown_to_the_judge_with_the_recipes_augmentation(copy: Path, pack: Pack) -> None:
    plain = choose(copy, pack, samples=20)
    state = load_file(copy / STATE)
    with (copy / STATE).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    recipe = json.loads(header["recipe"])
    recipe["optimisation"]["augment"] = "cutout"
    save_file(state, copy / STATE, {**header, "recipe": json.dumps(recipe)})
    assert choose(copy, pack, samples=20).real != plain.real


def test_they_are_augmented_as_often_as_ada_had_come_to(
    tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = {"augment": "cutout", "augment_target": "0.6"}
    recipe = tiny(**(SETTINGS | {f"optimisation__{name}": value for name, value in ada.items()}))
    observers = [Served(tmp_path / GENERATOR, {}), Snapshots(tmp_path / SNAPSHOTS, {})]
    train(recipe, pack, tmp_path, World(), observers)
    seen: list[Tensor] = []

    def look(images: Tensor, draws: Tensor, kinds: Sequence[str]) -> Tensor:
        seen.append(draws)
        return images

    monkeypatch.setattr("train.measure.choose.augment", look)
    for share in (0.0, 1.0):
        tensors = load_file(tmp_path / STATE) | {"augment.p": torch.tensor(share)}
        with safe_open(tmp_path / STATE, framework="pt") as file:
            header = file.metadata()
        save_file(tensors, tmp_path / STATE, header)
        seen.clear()
        choose(tmp_path, pack, None, samples=20)
        assert [float((draws[:, 5] >= 0).float().mean()) for draws in seen] == [share] * len(seen)


def test_with_an_extractor_the_distance_stands_beside_the_score(
    copy: Path, pack: Pack, features: Path
) -> None:
    choice = choose(copy, pack, features, samples=20)
    reference = torch.from_numpy(split(100)[0])
    network = open_features(features).network
    known, _ = extract(network, pack.images[reference])
    labels = torch.from_numpy(stratified(pack.labels.numpy(), 20))
    for one in choice.ranked:
        found = load_generator(one.path)
        made = GeneratorSampler(found.generator, found.class_names)(labels, 0, 0)
        assert one.frechet == pytest.approx(frechet(known, extract(network, made)[0]), rel=1e-3)
    assert "rank correlation" in choice.verdict()[0]
    shown = io.StringIO()
    Console(file=shown, width=120).print(choice.table())
    for one in choice.ranked:
        assert f"{one.frechet:.3f}" in shown.getvalue()
        assert f"{one.score:+.3f}" in shown.getvalue()


def judged(*pairs: tuple[float, float]) -> Ranking:
    ranked = [
        RankedSnapshot(Path(f"{i}"), i, score, 0.5, distance) for i, (score, distance) in enumerate(pairs)
    ]
    return Ranking(tuple(ranked), judge=9, samples=10, real=1.0)


def test_the_verdict_says_where_the_distance_puts_the_chosen_one() -> None:
    assert "number 1 of 3" in judged((3, 10), (2, 20), (1, 30)).verdict()[0]
    assert "+1.00" in judged((3, 10), (2, 20), (1, 30)).verdict()[0]
    assert "number 3 of 3" in judged((3, 30), (2, 20), (1, 10)).verdict()[0]
    assert "-1.00" in judged((3, 30), (2, 20), (1, 10)).verdict()[0]
    assert "too few" in judged((3, 30), (2, 20)).verdict()[0]
    doubted = replace(judged((3, 10), (2, 20), (1, 30)), doubt="It is a poor judge.")
    assert doubted.verdict()[1:] == ("warning: It is a poor judge.",)


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(size=9)
    squares = sum((i - j) ** 2 for i, j in zip(a.argsort().argsort(), b.argsort().argsort(), strict=True))
    assert rank_correlation(a, b) == pytest.approx(1 - 6 * squares / (9 * 80))  # without ties
    assert rank_correlation([1, 2, 2, 4], [1, 3, 3, 9]) == pytest.approx(1)  # by order alone, ties and all
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))


def test_a_run_that_cannot_be_judged_is_refused_and_nothing_written(
    copy: Path, pack: Pack, tmp_path: Path
) -> None:
    with pytest.raises(ChoiceError, match="no folder"):
        choose(tmp_path / "nowhere", pack)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ChoiceError, match="no snapshots"):
        choose(tmp_path / "bare", pack)
    with pytest.raises(TrainError, match="other classes"):
        choose(copy, Pack(pack.images, pack.labels, ("a", "b"), 32, {}))
    with pytest.raises(ChoiceError, match="32 px and the data 64 px"):
        choose(
            copy, Pack(torch.zeros(100, 3, 64, 64, dtype=torch.uint8), pack.labels, pack.class_names, 64, {})
        )
    (copy / STATE).unlink()
    with pytest.raises(StateError, match="cannot be read"):
        choose(copy, pack)
    assert not (copy / CHOSEN).exists()


def test_the_command_prints_the_ranking_and_says_where_the_chosen_one_is(run: Path, tmp_path: Path) -> None:
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), (shade + i,) * 3).save(tmp_path / "images" / name / f"{i}.png")
    data = tmp_path / "pack.safetensors"
    write_pack(tmp_path / "images", data)
    out = shutil.copytree(run, tmp_path / "run")
    done = CliRunner().invoke(
        app, ["choose", str(out), "--data", str(data), "--samples", "8", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert "Judged by the discriminator of step 5, 8 images each" in done.output
    assert f"is now {out / CHOSEN}." in done.output.replace("\n", " ")
    Image.new("RGB", (50, 40), (40, 40, 40)).save(tmp_path / "images" / "dark" / "0.png")
    folder = ["choose", str(out), "--data", str(tmp_path / "images"), "--samples", "8", "--device", "cpu"]
    done = CliRunner().invoke(app, folder)  # of any size, as `evaluate` takes it
    assert done.exit_code == 0, done.output
    assert "is not a pack" in " ".join(done.output.split())
    done = CliRunner().invoke(app, ["choose", str(tmp_path), "--data", str(data)])
    assert done.exit_code == 2
    assert done.stderr.startswith("sagan: ")
    assert done.stderr.count("\n") == 1


def test_a_snapshot_that_is_not_ours_is_named(copy: Path, pack: Pack) -> None:
    (copy / SNAPSHOTS / "step-0000003.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="step-0000003"):
        choose(copy, pack, samples=20)
    assert not (copy / CHOSEN).exists()


def test_a_checkpoint_without_steps_in_it_is_no_snapshot(copy: Path, pack: Pack) -> None:
    path = copy / SNAPSHOTS / "step-0000003.safetensors"
    found = load_generator(copy / GENERATOR)
    save_generator(path, found.generator, found.class_names)
    with pytest.raises(ChoiceError, match=r"step-0000003.*does not say"):
        choose(copy, pack, samples=20)
