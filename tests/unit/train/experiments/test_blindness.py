"""Spatial blindness: what it measures, keeps and says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.experiments import blindness
from train.experiments.blindness_report import findings
from train.experiments.disorder import disturbances


class Killed(BaseException):
    """Stands for kill -9: nothing catches it and nothing is saved on the way."""


@pytest.mark.slow
def test_spatial_blindness_sees_what_is_there_and_shows_no_image_of_the_data(
    experiment: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blindness, "STRENGTHS", (0.1, 1.0))
    monkeypatch.setattr(blindness, "DISTURBED_SPLITS", 1)
    monkeypatch.setattr(blindness, "SPLITS", 4)
    assert not experiment(tmp_path, name="spatial-blindness", samples=30, stop_after=0)
    assert "Nothing is measured yet" in (tmp_path / "report.md").read_text()
    kept = blindness.Study._kept

    def killed(study: blindness.Study, name: str, *more: Any) -> dict[str, float]:
        if name == "band-1-0":
            raise Killed
        return kept(study, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(blindness.Study, "_kept", killed)
        with pytest.raises(Killed):
            experiment(tmp_path, name="spatial-blindness", samples=30)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("measured/own/*.json")}
    assert len(before) == 4 + 2 * 6 - 1
    assert experiment(tmp_path, name="spatial-blindness", samples=30)
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    text = (tmp_path / "report.md").read_text()
    for kind in disturbances(32):
        assert f"(figures/own-{kind.name}.svg)" in text
        assert (tmp_path / "figures" / f"own-{kind.name}.svg").exists()
    assert "- Seen at some strength, of 6 disturbances: " in text
    assert [p.name for p in (tmp_path / "figures").glob("*.png")] == ["disturbances.png"]


def test_a_measure_sees_where_it_first_leaves_its_spread_on_the_worse_side() -> None:
    measure = blindness.MEASURES[0]
    sight = blindness.Sight(measure, "band", [(0.1, 1.0), (0.2, 3.5), (0.4, -4.0)])
    assert sight.first == 0.2
    assert sight.fooled
    never = blindness.Sight(blindness.MEASURES[1], "band", [(0.1, -1.0), (1.0, 3.0)])
    assert never.first is None
    assert not never.fooled
    seen, first, fooled = findings([sight, never])
    assert f"of 1 disturbances: {measure.title} 1, {never.measure.title} 0" in seen
    assert f"{measure.title} 1, {never.measure.title} 0" in first
    assert fooled.endswith(f"{measure.title} (band).")
