"""The report says no more than the figures, and its charts are the same each time."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from train.experiments.charts import Axes, Line, chart
from train.experiments.measure import METRICS
from train.experiments.report import Report
from train.experiments.results import Results, Run, apart, by_chance
from train.experiments.stopping import Stop, stopping_step, stretches, try_rule
from train.experiments.summary import findings, rule_findings

SVG = "{http://www.w3.org/2000/svg}"


def test_the_stopping_rule_waits_for_the_metric_and_then_for_the_loss() -> None:
    steps = [1, 2, 3, 4, 5, 6]
    falling = [100, 80, 60, 40, 20, 10]
    settled = [100, 50, 49, 48, 20, 10]  # flat at step 3, knowing nothing of what comes
    calm, late = [2.0] * 6, [2.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    assert stopping_step(steps, falling, calm, 0.05) == Stop(None, None)
    assert stopping_step(steps, settled, calm, 0.05) == Stop(3, 3)
    assert stopping_step(steps, settled, late, 0.05) == Stop(3, 5)
    assert stopping_step(steps, settled, [2.0, 1.0] * 3, 0.05) == Stop(3, None)
    worse = [10, 20, 5, 4, 3, 2]  # getting worse is no progress
    assert stopping_step(steps, worse, calm, 0.05) == Stop(2, 2)
    assert stopping_step(steps, settled, [math.nan] * 6, 0.05) == Stop(3, None)
    with pytest.raises(ValueError, match="do not match"):
        stopping_step(steps, falling[1:], calm, 0.05)


def test_the_loss_of_a_stretch_is_the_mean_of_what_was_logged_in_it() -> None:
    log = [(1, 1.0), (2, 3.0), (3, 5.0), (6, 7.0)]
    assert stretches(log, [2, 3, 6]) == [2.0, 5.0, 7.0]
    assert math.isnan(stretches(log, [2, 3, 5])[2])


def made_up(variant: str, *values: float) -> list[Run]:
    """A run a value; at step 10 every metric is the value, at step 5 its double, at step 1 its triple."""
    return [
        Run(
            variant,
            seed,
            {s: dict.fromkeys((m.key for m in METRICS), value * k) for s, k in ((1, 3), (5, 2), (10, 1))},
            [(s, 1.0) for s in range(1, 11)],
        )
        for seed, value in enumerate(values)
    ]


def test_a_difference_counts_only_when_no_seed_of_one_lies_among_the_others() -> None:
    assert apart([1, 2, 3], [4, 5, 6]) is True
    assert apart([4, 5], [1, 2]) is True
    assert apart([1, 4.5, 3], [4, 5, 6]) is False
    assert apart([1], [4, 5, 6]) is None
    assert by_chance(2, 2) == pytest.approx(1 / 3)
    assert by_chance(3, 3) == pytest.approx(0.1)


def results(*runs: list[Run]) -> Results:
    names = [some[0].variant for some in runs]
    return Results([run for some in runs for run in some], names, names, {})


def test_findings_claim_no_more_than_the_seeds_allow() -> None:
    same = " ".join(findings(results(made_up("full", 10, 20), made_up("none", 12, 18))))
    assert "Apart from full: none, of 1 compared; chance alone would part 0.3 of them." in same
    clear = " ".join(findings(results(made_up("full", 20, 20), made_up("bare", 10, 10))))
    assert "Apart from full: bare (-50%), of 1 compared" in clear
    assert "Not compared" not in clear
    single = " ".join(findings(results(made_up("full", 20), made_up("bare", 10))))
    assert "Not compared, as one side has fewer than two seeds: bare." in single
    assert "Apart" not in single
    assert "Best mean Fréchet distance (own features) at step 10: bare 10.00, full 20.00." in single


def test_variants_are_compared_where_all_of_them_are() -> None:
    behind = [Run("none", 0, {1: {}, 5: {}})]
    assert results(made_up("full", 1, 2), behind).common_step == 5
    lost = [Run("none", 0, {1: {}}, diverged=3)]
    assert results(made_up("full", 1), lost).common_step == 10
    assert results().common_step is None


def test_the_rule_is_tried_beside_the_best_and_the_last() -> None:
    figures = {s: {METRICS[0].key: v} for s, v in ((1, 30.0), (5, 29.9), (10, 10.0))}
    run = Run("full", 0, figures, [(s, 1.0) for s in range(11)])
    (trial,) = try_rule([run], 0.05)
    assert (trial.stop.stop, trial.at_stop, trial.best, trial.last) == (5, 29.9, (10, 10.0), (10, 10.0))
    (said,) = rule_findings([trial])
    assert "stopped 1 of 1 runs, 199% above their best" in said
    assert "last milestones are 0% above it" in said
    assert "saves 50% of the steps" in said


@pytest.mark.slow
def test_a_report_shows_every_figure_that_it_writes(experiment: Callable[..., bool], tmp_path: Path) -> None:
    assert experiment(tmp_path, scale=0.0001, only="none", seeds=2)
    markdown = (tmp_path / "report.md").read_text()
    named = re.findall(r"\]\(figures/([^)]+)\)", markdown)
    assert len(named) == len(METRICS) + 2
    assert sorted(named) == sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert "at scale 0.0001" in markdown
    assert "Discriminator's loss (hinge loss)" in markdown
    assert str(tmp_path.parent) not in markdown


def test_a_chart_names_every_line_and_leaves_out_what_is_no_number() -> None:
    lines = [
        Line("a<b", [(0, 1), (1, math.nan), (2, 3)], [(0, 2), (math.nan, math.nan), (2, 4)]),
        Line("lost", [(0, math.nan)]),
    ]
    drawn = chart("T & Co", Axes("x", "y"), lines, 2)
    root = ET.fromstring(drawn)
    words = {node.text for node in root.iter(f"{SVG}text")}
    assert {"T & Co", "a<b", "lost", "x", "y"} <= words
    assert b"nan" not in drawn
    assert drawn == chart("T & Co", Axes("x", "y"), lines, 2)
    assert ET.fromstring(chart("empty", Axes("x", "y"), [])) is not None


def test_a_table_cannot_be_broken_by_its_cells() -> None:
    report = Report("T")
    report.table(["a", "b"], [["x|y", "1.0"], ["z", "**2.0**"]])
    assert "| x/y | 1.0 |" in report.markdown()
    assert "| --- | ---: |" in report.markdown()
