"""What there is to look at: pictures by the clock, and the real ones beside them; in TensorBoard too."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from model.checkpoint import load_generator
from tests.unit.train.tiny import make_pack, tiny
from train.run import moments
from train.run.distributed import World
from train.run.grids import AUGMENTED, REAL, Grids
from train.run.loop import GENERATOR, STATE, Session, train
from train.run.moments import Moments
from train.run.observers import Scalars, Served
from train.run.saved import saved_step
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_moments_come_at_30_s_at_2_min_and_then_every_5_and_later_where_a_look_is_dear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(moments, "time", clock)
    looked = Moments()
    found = []
    for second in range(0, 1000, 10):
        clock.now = float(second)
        if looked.passed():
            found.append(second)
    assert found == [30, 120, 420, 720]
    looked.took(60)  # so that looking takes a twentieth of the time
    clock.now += 1190
    assert not looked.passed()
    clock.now += 20
    assert looked.passed()


def test_a_slow_run_is_shown_and_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    class Look:
        def after(self, state: TrainingState) -> None:
            if state.step == 3:
                found.append(
                    (saved_step(tmp_path / STATE), load_generator(tmp_path / GENERATOR).metadata["steps"])
                )

        def close(self, state: TrainingState) -> None:
            pass

    monkeypatch.setattr("train.run.loop.Moments", lambda: Moments(first=[0.0], every=1e6))
    recipe = tiny(optimisation__steps="4", schedule__save_every="100", schedule__grid_every="100")
    pack, screen = make_pack(), io.StringIO()
    grids = Grids(tmp_path, pack, recipe, Console(file=screen, width=300))
    train(recipe, pack, tmp_path, World(), [grids, Served(tmp_path / GENERATOR, {}), Look()])
    assert found == [(2, 2)]  # agreed on after the first step
    steps = [path.name for path in sorted((tmp_path / "samples").glob("step-*"))]
    assert steps == ["step-0000002.png", "step-0000004.png"]
    assert screen.getvalue().count("The first samples are in") == 1


def test_real_pictures_lie_beside_the_samples_as_the_network_gets_them(tmp_path: Path) -> None:
    pack = make_pack(12)  # six of each class: rows of ten have room left
    recipe = tiny(optimisation__augment="cutout", optimisation__flips="false")
    scalars = Scalars(tmp_path, 0, 1, recipe)
    grids = Grids(tmp_path, pack, recipe, Console(quiet=True), scalars.board)
    with Image.open(grids.folder / REAL) as real, Image.open(grids.folder / AUGMENTED) as augmented:
        left = real.width - (10 * 33 - 1)
        assert left > 0  # the names
        plain, cut = np.asarray(real)[:, left:], np.asarray(augmented)[:, left:]
    second = pack.images[2].permute(1, 2, 0).numpy()  # classes take turns
    assert np.array_equal(plain[:32, 33:65], second)
    assert (plain[:32, 6 * 33 : 6 * 33 + 32] == 255).all()
    changed = (plain[:32, 33:65] != cut[:32, 33:65]).any(axis=2)
    assert 0 < changed.sum() < 32 * 32  # a square of it
    scalars.board.close()
    told = EventAccumulator(str(tmp_path / "tensorboard"))
    told.Reload()
    assert set(told.Tags()["images"]) == {"real", "real, augmented"}
    assert "recipe/text_summary" in told.Tags()["tensors"]


def test_a_licence_goes_with_the_network_and_stays_when_the_run_goes_on(tmp_path: Path) -> None:
    pack = make_pack()
    pack = replace(pack, metadata={**pack.metadata, "licence": "not stated"})
    recipe = tiny(optimisation__steps="2")
    observers = [Served(tmp_path / GENERATOR, {})]
    train(recipe, pack, tmp_path, World(), observers, Session(licence="CC BY 4.0, the Example Zoo"))
    longer = tiny(optimisation__steps="3")
    train(longer, pack, tmp_path, World(), observers, Session(resume=True))
    found = load_generator(tmp_path / GENERATOR).metadata
    assert found["steps"] == 3
    assert found["licence"] == "CC BY 4.0, the Example Zoo"
    assert isinstance(found["data"], dict)
    assert found["data"]["licence"] == "CC BY 4.0, the Example Zoo"
