"""A run with the pretrained judge goes on, is saved, and is refused as one with SAGAN's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli import app
from model.checkpoint import load_generator
from tests.unit.train.judged import CPU, begun, judged, tensors
from tests.unit.train.tiny import make_pack, same
from train.data.pack import pack as write_pack
from train.efficientnet import NETWORKS, open_network
from train.errors import PretrainedError
from train.measure.choose import choose
from train.run.augment import to_network
from train.run.distributed import World
from train.run.loop import GENERATOR, STATE, train
from train.run.observers import SNAPSHOTS, Served, Snapshots
from train.run.pretrained_judge import NETWORK
from train.run.saved import StateError
from train.run.state import saved_judge

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

# -- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "precision", "normed"),
    [
        ("pretrained", "float32", "true"),
        ("pretrained", "bf16", "false"),
        ("both", "float32", "false"),
        ("both", "bf16", "true"),
    ],
)
def test_four_steps_are_two_and_two_bit_for_bit(
    judge: str, precision: str, normed: str, tmp_path: Path
) -> None:
    recipe = judged(
        judge,
        optimisation__precision=precision,
        optimisation__generator_spectral_norm=normed,
        optimisation__guide_steps="3",
        optimisation__variety="0.5",
        optimisation__augment="colour,translation,cutout",
        optimisation__augment_after="3",
    )
    whole = begun(recipe, steps=4)
    begun(recipe, steps=2).save(tmp_path / STATE)
    resumed = begun(recipe)
    resumed.load(tmp_path / STATE)
    for _ in range(2):
        resumed.advance()
    assert resumed.step == 4
    assert resumed.losses == whole.losses
    assert same(tensors(resumed), tensors(whole))
    assert whole.finite()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (32, 32), (shade, shade + 5 * i, shade)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    return tmp_path / "images"


def command(data: Path, out: Path, *more: str) -> list[str]:
    settings = ["optimisation.judge=pretrained", "optimisation.steps=3", "optimisation.batch=4"]
    settings += ["schedule.statistics_batches=1", "schedule.log_every=1"]
    told = ["train", "tiny", "--data", str(data), "--out", str(out), "--device", "cpu", *more]
    return told + [word for setting in settings for word in ("--set", setting)]


def test_a_run_that_was_stopped_goes_on_by_the_command_as_if_it_had_not(
    pictures: Path, tmp_path: Path
) -> None:
    write_pack(pictures, tmp_path / "pack.safetensors")
    for out, more in (("whole", ()), ("parts", ("--stop-after", "0")), ("parts", ("--resume",))):
        done = CliRunner().invoke(app, command(tmp_path / "pack.safetensors", tmp_path / out, *more))
        assert done.exit_code == 0, done.output
        assert ("--resume goes on" in done.output) == (more[:1] == ("--stop-after",))
    for file in (STATE, GENERATOR):
        assert same(load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file))


# -- the network's file -------------------------------------------------------------------------------------


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, NETWORK, NETWORKS[NETWORK]._replace(package="not_installed_here"))


def another_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has the file under its name, with other bytes, and code that must not run."""
    package = folder / "looks_like_it"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it ran')")
    (package / "models" / NETWORKS[NETWORK].file).write_bytes(b"not those weights")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(NETWORKS, NETWORK, NETWORKS[NETWORK]._replace(package="looks_like_it"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))


@pytest.mark.parametrize("recipe", ["tiny", "auto"])
def test_without_the_network_a_run_is_refused_in_a_line_before_anything_is_written(
    recipe: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    words = command(pictures, tmp_path / "out")
    words[1] = recipe
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("sagan: ")
    assert done.stderr.endswith("pip install 'sagan-service[pretrained]'.\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_the_network_an_experiment_is_refused_in_a_line_before_anything_is_written(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    words = ["experiment", "attention-sites", "--data", str(pictures), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--recipe", "tiny", "--set", "optimisation.judge=both"])
    assert done.exit_code == 2
    assert "pip install 'sagan-service[pretrained]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_of_other_bytes_is_refused_before_it_is_opened(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_network(tmp_path, monkeypatch)
    done = CliRunner().invoke(app, command(pictures, tmp_path / "out"))
    assert done.exit_code == 2
    assert "is not the published file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(PretrainedError, match="was not opened"):
        begun(judged())


# -- what is saved ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps, a snapshot of each."""
    out = tmp_path_factory.mktemp("run")
    recipe = judged(optimisation__steps="3", schedule__snapshot_every="1", optimisation__generator_lr="0.01")
    observers = [Served(out / GENERATOR, {}), Snapshots(out / SNAPSHOTS, {})]
    train(recipe, make_pack(20), out, World(), observers)
    return out


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_what_is_saved_names_the_network_and_has_nothing_of_it(run: Path) -> None:
    named = {"network": "efficientnet-lite0", "sha256": NETWORKS[NETWORK].sha256}
    assert json.loads(header(run / STATE)["pretrained"]) == named
    assert load_generator(run / GENERATOR).metadata["pretrained"] == named
    eye = open_network(NETWORK)
    frozen = [t.flatten() for t in (*eye.buffers(), *eye.parameters())]
    for file in (STATE, GENERATOR, f"{SNAPSHOTS}/step-0000001.safetensors"):
        for name, tensor in load_file(run / file).items():
            assert not any(torch.equal(tensor.flatten(), other) for other in frozen), name
    assert sum(t.numel() for t in frozen) * 4 > 18e6  # bytes
    assert os.path.getsize(run / GENERATOR) < 1e6


def test_a_plain_run_names_no_network(tmp_path: Path) -> None:
    out = tmp_path / "plain"
    train(
        judged("plain", optimisation__steps="1"), make_pack(20), out, World(), [Served(out / GENERATOR, {})]
    )
    assert "pretrained" not in header(out / STATE)
    assert "pretrained" not in load_generator(out / GENERATOR).metadata


def test_a_state_judged_through_another_network_is_refused(run: Path, tmp_path: Path) -> None:
    state = begun(judged(optimisation__generator_lr="0.01"))
    about = {"network": "efficientnet-lite9", "sha256": "9" * 64}
    kept = load_file(run / STATE)
    save_file(kept, tmp_path / STATE, {**header(run / STATE), "pretrained": json.dumps(about)})
    for look in (lambda: state.load(tmp_path / STATE), lambda: saved_judge(tmp_path / STATE, 2, CPU)):
        with pytest.raises(StateError, match=r"through efficientnet-lite9 \(sha256 9999999999999999…\)"):
            look()
    state.load(run / STATE)
    assert state.step == 3


# -- choosing -----------------------------------------------------------------------------------------------


def test_the_judge_of_a_run_ranks_its_snapshots(run: Path) -> None:
    pack = make_pack(20)
    choice = choose(run, pack, samples=8)
    assert sorted(one.step for one in choice.ranked) == [1, 2, 3]
    assert choice.judge == 3
    scores = [one.score for one in choice.ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    judge, recipe, step = saved_judge(run / STATE, 2, CPU)
    assert (recipe.optimisation.judge, step) == ("pretrained", 3)
    assert not any(p.requires_grad for p in judge.network.parameters())
    state = begun(recipe, pack)
    state.load(run / STATE)
    images, labels = to_network(pack.images[:8]), pack.labels[:8]
    with torch.no_grad():
        found, wanted = judge.scores(images, labels), state.judge.scores(images, labels)
    assert found.shape == (8,)
    assert torch.equal(found, wanted)
    with pytest.raises(StateError, match="no discriminator for 3 classes"):
        saved_judge(run / STATE, 3, CPU)
