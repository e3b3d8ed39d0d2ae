"""The forecast of a run's time."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from train.recipes.recipe import read_recipe
from train.run.observers import Pace, ProgressBar, span


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("train.run.observers.time", SimpleNamespace(monotonic=lambda: self.now))


def state_at(step: int, **optimisation: Any) -> Any:
    recipe = read_recipe("cifar10-cpu")
    recipe = replace(recipe, optimisation=replace(recipe.optimisation, **optimisation))
    world = SimpleNamespace(device=torch.device("cpu"), size=1)
    config = SimpleNamespace(resolution=32)
    losses = {"generator": torch.zeros(())}
    return SimpleNamespace(step=step, recipe=recipe, world=world, config=config, losses=losses)


def foretold(monkeypatch: pytest.MonkeyPatch, step_seconds: float, **options: Any) -> str:
    """What is said of a run whose first step takes 10 s more than the others."""
    clock, screen = Clock(monkeypatch), io.StringIO()
    console = Console(file=screen, width=400)
    total = options.pop("steps", 20_000)
    bar = ProgressBar(console, 0, total, 50, data_seconds=5, **options)
    for step in range(1, 60):
        clock.now += step_seconds + 10 * (step == 1)
        bar.after(state_at(step, steps=total, batch=32))
    return screen.getvalue()


def test_the_time_is_foretold_apart_from_what_starting_took(monkeypatch: pytest.MonkeyPatch) -> None:
    told = foretold(monkeypatch, 0.6)
    threads = torch.get_num_threads()
    assert "Ready in 15 s, 5 s of it for the data." in told
    assert f"About 3 h 20 min for the remaining 19,994 steps at 53 images/s on {threads} CPU thread" in told
    assert "--stop-after 2h ends it sooner with everything saved" in told
    assert told.count("About") == 1
    assert "That is long" not in told
    assert re.search(r"step 50/20000: 53 images/s, .* 3 h 20 min left", told)  # the start does not count


def test_a_limit_says_how_far_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--stop-after ends it near step 150," in foretold(monkeypatch, 0.6, stop_after=100)
    assert "--stop-after" not in foretold(monkeypatch, 0.6, stop_after=100_000, steps=100)


def test_days_on_a_cpu_are_warned_of_with_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    told = foretold(monkeypatch, 30, lighter="--set model.resolution=32")
    assert "About 6 days 23 h" in told
    assert "--set optimisation.steps=1440 would end in 12 h" in told
    assert "--set model.resolution=32" in told


def test_a_slow_step_in_the_middle_does_not_count_as_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace()
    for seconds in (9, 0.7, 0.7, 20, 0.7, 0.7):  # a start, steps, and a recording of the step
        clock.now += seconds
        pace.step(state_at(1))
    assert pace.seconds == pytest.approx(0.7)
    assert pace.start_up == pytest.approx(9 + 20 - 2 * 0.7)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8, "8 s"),
        (720, "12 min"),
        (7200, "2 h"),
        (11_900, "3 h 20 min"),
        (57_650, "16 h"),
        (187_200, "2 days 4 h"),
    ],
)
def test_lengths_of_time_are_told_in_words(seconds: float, text: str) -> None:
    assert span(seconds) == text
