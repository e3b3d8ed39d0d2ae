"""Figures while a run trains: in the log, on the screen, and the best generator by them kept."""

from __future__ import annotations

import json
import signal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from model.checkpoint import load_generator
from networks import judge_with
from tests.unit.train.tiny import StopAt, make_pack, same, tiny
from train.commands import run
from train.data.pack import Pack
from train.errors import FeaturesError
from train.measure import during
from train.measure.during import BEST, KEPT, Measured, open_extractor
from train.measure.features_training import FeaturesRecipe, train_features
from train.run.distributed import World
from train.run.loop import Session, train
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pack]:
    pack = make_pack(200)
    file = tmp_path_factory.mktemp("features") / "f.safetensors"
    train_features(pack, file, FeaturesRecipe(epochs=4, batch=32, learning_rate=0.05), (8, 8, 16))
    return file, pack


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(during, "SAMPLES", 20)


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def __call__(self, step: int, figures: Any) -> None:
        self.lines.append((step, dict(figures)))


def observer(out: Path, measured: tuple[Path, Pack], step: int = 0) -> tuple[Measured, Told]:
    file, pack = measured
    told = Told()
    return Measured(out, pack, open_extractor(pack, file), step, "cpu", {"a": "b"}, [told]), told


RECIPE = tiny(schedule__measure_every="2", optimisation__steps="6", optimisation__generator_lr="0.01")


def test_the_best_is_kept_with_its_figures(measured: tuple[Path, Pack], tmp_path: Path) -> None:
    watched, told = observer(tmp_path, measured)
    train(RECIPE, measured[1], tmp_path, World(), [watched])
    assert [step for step, _ in told.lines] == [2, 4, 6]
    figures = [found["kid_own_features"] for _, found in told.lines]
    assert [found["best"] for _, found in told.lines] == [min(figures[: i + 1]) for i in range(3)]
    best = load_generator(tmp_path / BEST)
    kept = best.metrics[KEPT]
    assert isinstance(kept, dict)
    assert kept["generated"]["kid_own_features"] == min(figures)
    assert best.metadata["steps"] == (2, 4, 6)[figures.index(min(figures))]
    assert kept["protocol"]["samples"] == 20


def test_a_resumed_run_measures_the_same_and_knows_the_best(
    measured: tuple[Path, Pack], tmp_path: Path
) -> None:
    watched, whole = observer(tmp_path / "whole", measured)
    train(RECIPE, measured[1], tmp_path / "whole", World(), [watched])
    parts = tmp_path / "parts"
    watched, first = observer(parts, measured)
    train(RECIPE, measured[1], parts, World(), [watched, StopAt(3, signal.SIGTERM)])
    watched, rest = observer(parts, measured, step=3)
    assert watched.best == first.lines[-1][1]["best"]
    train(RECIPE, measured[1], parts, World(), [watched], Session(resume=True))
    assert first.lines + rest.lines == whole.lines
    ours, theirs = (load_generator(folder / BEST) for folder in (parts, tmp_path / "whole"))
    assert same(ours.generator.state_dict(), theirs.generator.state_dict())
    assert ours.metrics == theirs.metrics


def test_a_best_by_other_images_is_no_best(measured: tuple[Path, Pack], tmp_path: Path) -> None:
    watched, _ = observer(tmp_path, measured)
    train(RECIPE, measured[1], tmp_path, World(), [watched])
    watched.protocol = watched.protocol | {"samples": 21}
    assert watched._best() is None
    assert observer(tmp_path, measured)[0].best is None  # a new run


def test_a_run_that_is_measured_takes_the_same_steps(measured: tuple[Path, Pack], tmp_path: Path) -> None:
    states = []
    for every in (0, 1):
        recipe = tiny(schedule__measure_every=str(every))
        watched, _ = observer(tmp_path, measured)
        state = TrainingState(recipe, measured[1], World())
        for _ in range(3):
            state.advance()
            watched.after(state)
        states.append(torch.cat([p.detach().flatten() for p in state.generator.parameters()]))
    assert torch.equal(*states)


def test_figures_are_in_the_log_on_the_screen_and_in_tensorboard(
    measured: tuple[Path, Pack], tmp_path: Path
) -> None:
    file, pack = measured
    written = StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("train.commands.prepare", lambda *_, **__: (RECIPE, pack))
        run(
            "tiny",
            tmp_path,
            tmp_path / "out",
            console=Console(file=written, width=300),
            session=Session(features=file),
        )
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    points = [line for line in lines if "measure/kid_own_features" in line]
    assert [line["step"] for line in points] == [2, 4, 6]
    assert all({"measure/precision", "measure/recall", "measure/best"} <= line.keys() for line in points)
    assert (
        f"step 4: measured: kid_own_features {points[1]['measure/kid_own_features']:.4f}"
        in written.getvalue()
    )
    (events,) = (tmp_path / "out" / "tensorboard").iterdir()
    assert b"measure/kid_own_features" in events.read_bytes()
    assert (tmp_path / "out" / BEST).exists()


def test_without_features_it_says_what_to_do_before_it_trains(
    measured: tuple[Path, Pack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(during, "installed", lambda name: False)
    with pytest.raises(FeaturesError, match="give --features FILE"):
        open_extractor(measured[1], None)
    judge_with(measured[0], tmp_path / "guessing", 0.5, 1000)
    with pytest.raises(FeaturesError, match="only guesses"):
        open_extractor(measured[1], tmp_path / "guessing")
    with pytest.raises(FeaturesError, match="too few to measure by"):
        observer(tmp_path, (measured[0], make_pack(6)))
