"""Experiments: that they go on where they were killed, say only what the figures say, and disturb as told."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from support import judge_with
from train.data.pack import Pack, open_pack
from train.errors import ExperimentError, FeaturesError
from train.experiments import blindness
from train.experiments.catalogue import BASELINE, EXPERIMENTS, MAP_LIMIT, map_bytes, milestones
from train.experiments.command import run_experiment
from train.experiments.disorder import disturbances
from train.experiments.findings import Run, apart, by_chance, common_step, compared, judge, judged_lines
from train.experiments.measure import METRICS
from train.experiments.report import Report, Series, chart, ticks
from train.experiments.runs import Task
from train.experiments.stopping import Stop, stopping_step, stretches
from train.measure.features_training import FeaturesRecipe, train_features
from train.recipes.recipe import RecipeError, read_recipe

SCALE = 0.0004  # attention-sites at 1, 2, 4, 6, 8, 10 and 12 steps
XHTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"
SETTINGS = ["optimisation.batch=4", "schedule.statistics_batches=1"]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it and nothing is saved on the way."""


@pytest.fixture(scope="module")
def pack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    from train.data.pack import pack

    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(45):
            pixels = draw.integers(level - 50, level + 50, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    pack(folder / "images", folder / "pack.safetensors")
    return folder / "pack.safetensors"


@pytest.fixture(scope="module")
def features_file(pack_file: Path) -> Path:
    path = pack_file.with_name("features.safetensors")
    train_features(open_pack(pack_file), path, FeaturesRecipe(8, 16, 0.05), (8, 8, 16))
    return path


@pytest.fixture
def experiment(pack_file: Path, features_file: Path) -> Callable[..., bool]:
    def run(out: Path, name: str = "attention-sites", **changed: Any) -> bool:
        asked: dict[str, Any] = {"samples": 8, "features": features_file, "device": "cpu"}
        if name != "spatial-blindness":
            asked |= {"recipe": "tiny", "scale": SCALE, "settings": SETTINGS}
        return run_experiment(name, pack_file, out, console=Console(quiet=True), **(asked | changed))

    return run


def figures(out: Path) -> dict[str, tuple[object, object]]:
    """What was measured, with the generator it was measured on; without what depends on the clock."""
    read = {
        str(p.relative_to(out)): json.loads(p.read_text()) for p in out.glob("runs/*/*/milestones/*.json")
    }
    return {name: (found["figures"], found["weights"]) for name, found in read.items()}


def told(out: Path) -> str:
    """The report without its folder's name and its table of speeds."""
    text = (out / "report.md").read_text().replace(out.name, "OUT")
    return re.sub(r"## Cost\n.*?(?=\n## )", "", text, flags=re.S)


# -- the runs -------------------------------------------------------------------------------------------


def test_an_experiment_killed_between_milestones_ends_as_if_it_never_was(
    experiment: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert experiment(whole, only="none")
    measure, seen = Task.measure, []

    def killed(task: Task, step: int, *more: Any) -> None:
        if step in (6, 10) and step not in seen and more:
            seen.append(step)
            raise Killed
        measure(task, step, *more)

    monkeypatch.setattr(Task, "measure", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            experiment(broken, only="none")
    assert experiment(broken, only="none")
    assert seen == [6, 10]
    assert len(figures(whole)) == 7
    assert figures(broken) == figures(whole)
    assert told(broken) == told(whole)


def test_an_experiment_may_be_judged_through_the_pretrained_network(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    settings = [*SETTINGS, "optimisation.judge=pretrained"]
    assert experiment(tmp_path, only="none", scale=SCALE / 4, settings=settings)
    assert len(figures(tmp_path)) == 3
    log = (tmp_path / "runs" / "none" / "seed-0" / "log.jsonl").read_text().splitlines()
    assert len(log) == 3
    assert all(math.isfinite(json.loads(line)["loss/generator"]) for line in log)


def test_what_is_there_is_neither_trained_nor_measured_again(
    experiment: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiment(tmp_path, scale=0.0001, only="none")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/*") if p.is_file()}
    assert {p.parts[-3 if p.parent.name == "seed-0" else -4] for p in before if p.suffix == ".json"} == {
        "none"
    }
    assert experiment(tmp_path, scale=0.0001)  # the other variants are added
    assert experiment(tmp_path, scale=0.0001, seeds=2)  # and a seed
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    assert len(list(tmp_path.glob("runs/*/seed-1"))) == 4
    measured = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/none/seed-0/milestones/*.json")}
    assert experiment(tmp_path, scale=0.0002, only="none")  # more steps go on from the state that is there
    assert all(p.stat().st_mtime_ns == at for p, at in measured.items())
    steps = sorted(int(p.name[:7]) for p in tmp_path.glob("runs/none/seed-0/milestones/*.none.json"))
    assert steps == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr("train.experiments.command.perform", lambda *_: pytest.fail("nothing was left to do"))
    assert experiment(tmp_path, scale=0.0002, only="none")


def test_another_setting_for_the_same_folder_is_refused_in_a_line(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    experiment(tmp_path, scale=0.0001, only="none")
    for changed, said in (
        ({"samples": 9}, "samples = 8, not 9"),
        ({"settings": ["optimisation.batch=8"]}, "optimisation.batch = 4, not 8"),
        ({"name": "stabilisers", "only": None}, '"attention-sites", not "stabilisers"'),
        ({"scale": 0.00005}, "can grow, not shrink"),
        ({"features": None}, "was begun with --features"),
    ):
        with pytest.raises(ExperimentError, match=re.escape(said)) as refused:
            experiment(tmp_path, **({"scale": 0.0001, "only": "none"} | changed))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "attention-site"}, "Did you mean 'attention-sites'"),
        ({"only": "nowhere"}, "it has full, none"),
        ({"scale": 0}, "above 0"),
        ({"samples": 3}, "More than 5"),
        ({"settings": ["batch"]}, "section.field=value"),
        ({"name": "spatial-blindness", "seeds": 2}, "trains no network"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_written(
    experiment: Callable[..., bool], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises((ExperimentError, FeaturesError, RecipeError), match=re.escape(said)):
        experiment(tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_a_result(experiment: Callable[..., bool], tmp_path: Path) -> None:
    rates = ["optimisation.generator_lr=1e30", "optimisation.discriminator_lr=1e30"]
    asked = {"name": "stabilisers", "only": BASELINE, "scale": 0.0005, "settings": SETTINGS + rates}
    assert experiment(tmp_path, **asked)
    step = json.loads((tmp_path / "runs" / BASELINE / "seed-0" / "diverged.json").read_text())["step"]
    assert f"{BASELINE}, seed 0: diverged at step {step}" in (tmp_path / "report.md").read_text()
    assert experiment(tmp_path, **asked)  # and is not tried again


def test_time_that_is_up_leaves_everything_to_go_on_from(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    assert not experiment(tmp_path, scale=0.0001, only="none", stop_after=0)
    assert "Not finished yet: none (seed 0)" in (tmp_path / "report.md").read_text()
    assert experiment(tmp_path, scale=0.0001, only="none")


def test_a_variant_that_only_samples_otherwise_trains_nothing(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    assert experiment(tmp_path, name="ablations", only="truncation-0.5", scale=0.0001)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [BASELINE]
    found = figures(tmp_path)
    # added later it is measured on the generators that were kept
    assert experiment(tmp_path, name="ablations", only="truncation-0.7", scale=0.0001)
    assert figures(tmp_path).items() > found.items()
    last = "runs/baseline/seed-0/milestones/0000003.{}.json"
    whole, half = (figures(tmp_path)[last.format(name)] for name in (BASELINE, "truncation-0.5"))
    assert whole[1] == half[1]
    assert whole[0] != half[0]


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != "spatial-blindness"])
@pytest.mark.parametrize("recipe", ["tiny", "small64"])
def test_every_variant_is_a_network_that_can_be_built(name: str, recipe: str) -> None:
    base = read_recipe(recipe)
    variants = EXPERIMENTS[name].variants(base)
    assert len({v.name for v in variants}) == len(variants) > 3
    recipes = [v.recipe(base) for v in variants]
    built = {repr((r.config(2), r.optimisation)) for r in recipes}
    assert len(built) == sum(not v.of for v in variants)  # each that trains is another one
    assert all(r == base for r, v in zip(recipes, variants, strict=True) if v.of)
    assert milestones(EXPERIMENTS[name], 1) == EXPERIMENTS[name].milestones


def test_a_form_whose_map_would_fill_the_memory_is_left_out_and_named() -> None:
    large = read_recipe(
        "imagenet128", {"model.generator_attention": "[64]", "model.discriminator_attention": "[64]"}
    )
    forms = EXPERIMENTS["attention-forms"]
    names = [v.name for v in forms.variants(large)]
    assert "concatenation-full-keys" not in names
    assert "gaussian-full-keys" in names
    assert "concatenation-full-keys (" in " ".join(forms.notes(large))
    assert all(map_bytes(v, large) <= MAP_LIMIT for v in forms.variants(large))


# -- what is said ---------------------------------------------------------------------------------------


def test_the_stopping_rule_waits_for_the_metric_and_then_for_the_loss() -> None:
    steps = [1, 2, 3, 4, 5, 6]
    falling = [100, 80, 60, 40, 20, 10]
    settled = [100, 50, 49, 48, 20, 10]  # flat at step 3, knowing nothing of what comes
    calm, late = [2.0] * 6, [2.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    assert stopping_step(steps, falling, calm, 0.05) == Stop(None, None)
    assert stopping_step(steps, settled, calm, 0.05) == Stop(3, 3)
    assert stopping_step(steps, settled, late, 0.05) == Stop(3, 5)
    assert stopping_step(steps, settled, [2.0, 1.0] * 3, 0.05) == Stop(3, None)
    assert stopping_step(steps, [10, 20, 5, 4, 3, 2], calm, 0.05) == Stop(
        2, 2
    )  # getting worse is no progress
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


def test_findings_claim_no_more_than_the_seeds_allow() -> None:
    same = " ".join(compared(made_up("full", 10, 20) + made_up("none", 12, 18), ["full", "none"], 10))
    assert "No variant differs from full by more than the spread of the seeds" in same
    assert "0.3 of these 1 comparison." in same
    clear = " ".join(compared(made_up("full", 20, 20) + made_up("none", 10, 10), ["full", "none"], 10))
    assert "none is better by 50%" in clear
    assert "No variant differs" not in clear
    single = " ".join(compared(made_up("full", 20) + made_up("none", 10), ["full", "none"], 10))
    assert "only one seed" in single
    assert "better by" not in single
    # everything else here is better when higher, so the metrics disagree, and the findings say so
    assert "none has the best mean Fréchet distance (own features) at step 10, 10.00 (full: 20.00)" in single
    assert "precision (full)" in single


def test_variants_are_compared_where_all_of_them_are() -> None:
    behind = [Run("none", 0, {1: {}, 5: {}})]
    assert common_step(made_up("full", 1, 2) + behind, ["full", "none"]) == 5
    lost = [Run("none", 0, {1: {}}, diverged=3)]
    assert common_step(made_up("full", 1) + lost, ["full", "none"]) == 10
    assert common_step([], ["full"]) is None


def test_the_rule_is_judged_beside_the_best_and_the_last() -> None:
    still = Run(
        "full",
        0,
        {s: {METRICS[0].key: v} for s, v in ((1, 30.0), (5, 29.9), (10, 10.0))},
        [(s, 1.0) for s in range(11)],
    )
    (judged,) = judge([still], 0.05)
    assert (judged.stop.stop, judged.at_stop, judged.best, judged.last) == (5, 29.9, (10, 10.0), (10, 10.0))
    said = " ".join(judged_lines([judged]))
    assert "199% above the run's best" in said
    assert "loses to taking the last" in said
    assert "saved 50% of the steps" in said


# -- the report -----------------------------------------------------------------------------------------


def test_the_html_is_well_formed_and_needs_nothing_outside_it(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    assert experiment(tmp_path, scale=0.0001, only="none", seeds=2)
    text = (tmp_path / "report.html").read_text()
    root = ET.fromstring(text)
    assert not [n for n in root.iter() if n.tag.rpartition("}")[2] in ("script", "link", "iframe")]
    sources = [n.attrib["src"] for n in root.iter(f"{XHTML}img")]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in text
    assert len(list(root.iter(f"{SVG}svg"))) == len(METRICS) + 1
    markdown = (tmp_path / "report.md").read_text()
    named = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert len(named) == len(METRICS) + 2
    assert all((tmp_path / name).exists() for name in named)
    assert "scale 0.0001" in markdown.lower()
    assert str(tmp_path.parent) not in markdown + text


def test_a_chart_draws_every_series_and_leaves_out_what_is_no_number() -> None:
    drawn = chart(
        "T & Co",
        "x",
        "y",
        [Series("a<b", [(0, 1), (1, math.nan), (2, 3)]), Series("none", [(0, math.nan)])],
        2,
    )
    root = ET.fromstring(drawn)
    lines = list(root.iter(f"{SVG}polyline"))
    assert len(lines) == 1
    assert len(lines[0].attrib["points"].split()) == 2
    assert "a<b" in {n.text for n in root.iter(f"{SVG}text")}
    assert ET.fromstring(chart("empty", "x", "y", [])) is not None


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 10) == pytest.approx([0, 2, 4, 6, 8, 10])
    assert ticks(0.13, 0.62) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert len(ticks(3, 3)) > 1


def test_a_table_cannot_be_broken_by_its_cells() -> None:
    report = Report("T")
    report.table(["a", "b"], [["x|y", "1.0"], ["z", "**2.0**"]])
    assert "| x/y | 1.0 |" in report.markdown()
    assert "| --- | ---: |" in report.markdown()


# -- disorder -------------------------------------------------------------------------------------------

KINDS = {d.name: d for d in disturbances(32)}


def noise_images(count: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("name", KINDS)
def test_strength_0_changes_nothing_and_more_strength_changes_more(name: str) -> None:
    images = noise_images()
    assert torch.equal(KINDS[name].apply(images, 0.0, rng()), images)
    before = images.clone()
    changed = [float((KINDS[name].apply(images, s, rng()) != images).float().mean()) for s in (0.2, 1.0)]
    assert torch.equal(images, before)
    assert 0 < changed[0] <= changed[1]
    assert torch.equal(KINDS[name].apply(images, 0.4, rng()), KINDS[name].apply(images, 0.4, rng()))


def patches(image: Tensor, side: int) -> list[bytes]:
    cells = image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return [cell.contiguous().numpy().tobytes() for cell in cells]


@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_shuffling_moves_its_share_of_patches_and_loses_none(side: int, strength: float) -> None:
    images = noise_images()
    shuffled = KINDS[f"shuffle-{side}px"].apply(images, strength, rng())
    for image, other in zip(images, shuffled, strict=True):
        a, b = patches(image, side), patches(other, side)
        assert Counter(a) == Counter(b)
        assert sum(x != y for x, y in zip(a, b, strict=True)) == round(strength * len(a))


def test_halves_are_swapped_within_and_exchanged_across() -> None:
    images = noise_images()
    within = KINDS["halves-within"].apply(images, 0.5, rng())
    changed = [i for i in range(12) if not torch.equal(within[i], images[i])]
    assert len(changed) == 6
    assert all(
        torch.equal(within[i], torch.cat([images[i, :, :, 16:], images[i, :, :, :16]], 2)) for i in changed
    )
    across = KINDS["halves-across"].apply(images, 1.0, rng())
    assert torch.equal(across[..., :16], images[..., :16])
    rights = {images[i, :, :, 16:].numpy().tobytes(): i for i in range(12)}
    found = [rights[across[i, :, :, 16:].contiguous().numpy().tobytes()] for i in range(12)]
    assert sorted(found) == list(range(12))
    assert all(i != j for i, j in enumerate(found))


def test_a_band_keeps_its_rows_and_moves_half_of_them_round() -> None:
    images = noise_images()
    moved = KINDS["band"].apply(images, 0.5, rng())
    for image, other in zip(images, moved, strict=True):
        rows = [r for r in range(32) if not torch.equal(image[:, r], other[:, r])]
        assert rows == list(range(rows[0], rows[0] + 16))
        assert any(torch.equal(other[:, rows], image[:, rows].roll(by, 2)) for by in (-8, 8))


def test_displacement_has_the_size_that_is_told() -> None:
    ramp = (torch.arange(32).repeat(32, 1) * 4 + 64).to(torch.uint8).expand(40, 3, 32, 32).contiguous()
    moved = KINDS["displacement"].apply(ramp, 0.5, rng()).float() - ramp.float()
    inner = moved[:, :, 8:24, 8:24] / 4  # pixels sideways; away from the edge, where it is reflected
    assert (
        1.0 < float(inner.square().mean().sqrt()) < 3.0
    )  # told: 2 px, root mean square over both directions


def test_the_card_shows_every_disturbance() -> None:
    card = blindness.card(32)[None].repeat(4, 1, 1, 1)
    card[1:] = card[1:].flip(2)
    for kind in disturbances(32):
        assert not torch.equal(kind.apply(card, 1.0, rng())[0], card[0]), kind.name


def test_spatial_blindness_sees_what_is_there_and_shows_no_image_of_the_data(
    experiment: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blindness, "STRENGTHS", (0.1, 1.0))
    monkeypatch.setattr(blindness, "DISTURBED_SPLITS", 1)
    monkeypatch.setattr(blindness, "SPLITS", 4)
    assert not experiment(tmp_path, name="spatial-blindness", samples=30, stop_after=0)
    assert "Nothing has been measured yet" in (tmp_path / "report.md").read_text()
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
    for kind in KINDS:
        assert f"\n- {kind}: seen " in text
    ET.fromstring((tmp_path / "report.html").read_text())
    assert [p.name for p in (tmp_path / "figures").glob("*.png")] == ["disturbances.png"]


def test_a_measure_sees_where_it_first_leaves_its_spread_on_the_worse_side() -> None:
    measure = blindness.MEASURES[0]
    sight = blindness.Sight(measure, "band", [(0.1, 1.0), (0.2, 3.5), (0.4, -4.0)])
    assert sight.first == 0.2
    assert sight.fooled
    never = blindness.Sight(blindness.MEASURES[1], "band", [(0.1, -1.0), (1.0, 3.0)])
    assert never.first is None
    assert not never.fooled
    said = " ".join(blindness.findings([sight, never]))
    assert f"band: seen first at strength 0.2, by {measure.title}; at no strength by" in said


def test_measuring_needs_an_extractor_of_the_same_data(
    experiment: Callable[..., bool], tmp_path: Path
) -> None:
    other = Pack(noise_images(60), torch.arange(60) % 2, ("a", "b"), 32, {})
    train_features(other, tmp_path / "other.safetensors", FeaturesRecipe(epochs=1), (8, 8, 16))
    with pytest.raises(FeaturesError, match="only guesses"):  # of noise there is nothing to know
        experiment(tmp_path / "out", features=tmp_path / "other.safetensors")
    judge_with(tmp_path / "other.safetensors", tmp_path / "other.safetensors", 0.9, 1000)
    with pytest.raises(FeaturesError, match="leave --features out"):
        experiment(tmp_path / "out", features=tmp_path / "other.safetensors")
