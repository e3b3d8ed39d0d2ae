"""ADA: how often images are augmented follows the discriminator, alike for reals and fakes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.unit.train.tiny import StopAt, make_pack, same, tiny, weights
from train.recipes.recipe import Recipe, RecipeError
from train.run.augment import AUGMENTATIONS, DRAWS, Adaptive, augment, draw, draw_gates
from train.run.distributed import World
from train.run.judge import SIGN, StepInputs, Verdict
from train.run.loop import Session, train
from train.run.state import TrainingState

ALL = tuple(AUGMENTATIONS)


def adaptive(**settings: str) -> Recipe:
    ours = {"augment": '"colour,translation,cutout"', "augment_target": "0.6", "augment_span": "64"}
    return tiny(**{f"optimisation__{name}": value for name, value in (ours | settings).items()})


def at(p: float) -> Adaptive:
    steered = Adaptive(0.6, 1000)
    steered.p.fill_(p)
    return steered


def drawn(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.cat([draw(batch, generator), draw_gates(batch, generator)], dim=1)


def test_at_nought_nothing_is_changed_and_at_one_everything() -> None:
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    draws = drawn(6)
    torch.testing.assert_close(augment(images, at(0).thin(draws), ALL), images)
    assert torch.equal(at(1).thin(draws), draws[:, :DRAWS])


def test_each_kind_comes_with_its_own_probability() -> None:
    thinned = at(0.25).thin(drawn(4000))
    brightness, down, top = thinned[:, 0] != 0.5, thinned[:, 3] != 0.5, thinned[:, 5] != -1
    for kind in (brightness, down, top):
        assert 0.22 < float(kind.float().mean()) < 0.28
    assert 0.04 < float((brightness & down).float().mean()) < 0.09  # 1/16: independent
    assert torch.equal(brightness, thinned[:, 2] != 0.5)  # one kind's draws come together
    assert torch.equal(down, thinned[:, 4] != 0.5)


def test_gradients_lead_through_to_the_images() -> None:
    images = torch.rand(8, 3, 16, 16, requires_grad=True)
    augment(images, at(0.5).thin(drawn(8)), ("translation",)).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()


def test_the_share_rises_while_reals_are_known_by_heart_and_falls_while_they_are_not() -> None:
    steered = Adaptive(0.6, 1000)
    for _ in range(20):
        steered.steer(torch.tensor(1.0), 10)
    # the average of the sign passes the target at its fourth step
    assert float(steered.p) == pytest.approx(17 * 10 / 1000, abs=0.011)
    high = float(steered.p)
    for _ in range(10):
        steered.steer(torch.tensor(-1.0), 10)
    assert float(steered.p) < high
    for _ in range(300):
        steered.steer(torch.tensor(1.0), 10)
    assert float(steered.p) == 1


@pytest.mark.slow
def test_a_run_logs_its_share_and_steers_by_the_signs_on_reals(monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainingState(adaptive(), make_pack(40), World())
    seen: list[StepInputs] = []
    judge = state._discriminator_loss

    def certain(inputs: StepInputs, fakes: list[torch.Tensor]) -> Verdict:
        seen.append(inputs)
        loss, figures = judge(inputs, fakes)
        return Verdict(loss, {**figures, SIGN: torch.tensor(1.0)})

    monkeypatch.setattr(state, "_discriminator_loss", certain)
    shares = []
    for _ in range(10):
        state.advance()
        shares.append(float(state.losses["augmented"]))
    assert SIGN not in state.losses
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1  # 16 images a step, 64 from none to all
    assert torch.equal(seen[0].for_reals, at(0).thin(drawn(16)))  # none yet
    for draws in (seen[-1].for_reals, seen[-1].for_fakes, seen[-1].for_generator):
        assert draws.shape == (16, DRAWS)
        assert (draws[:, 0] != 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["1", "2"])
def test_a_resumed_run_goes_on_with_its_share(tmp_path: Path, steps: str) -> None:
    recipe = adaptive(steps="6", augment_target="0.01", discriminator_steps=steps)
    train(recipe, make_pack(40), tmp_path / "whole", World(), [])
    train(recipe, make_pack(40), tmp_path / "parts", World(), [StopAt(3, signal.SIGTERM)])
    train(recipe, make_pack(40), tmp_path / "parts", World(), [], Session(resume=True))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert "augment.p" in weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_without_it_is_the_one_it_was(tmp_path: Path) -> None:
    train(tiny(optimisation__steps="2"), make_pack(40), tmp_path, World(), [])
    assert not [name for name in weights(tmp_path) if name.startswith("augment")]


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        ({"augment": '""'}, "fill one"),
        ({"augment_after": "3"}, "set augment_after to 0"),
        ({"augment_target": "1"}, "under 1"),
        ({"augment_span": "0"}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, str], way_out: str) -> None:
    with pytest.raises(RecipeError, match=way_out):
        adaptive(**settings)


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [({"judge": "pretrained"}, "leave it out"), ({"freeze_discriminator": "4"}, "leaves none of 4 blocks")],
)
def test_a_discriminator_that_could_not_learn_is_refused(settings: dict[str, str], way_out: str) -> None:
    with pytest.raises(RecipeError, match=way_out):
        tiny(**{f"optimisation__{n}": v for n, v in ({"freeze_discriminator": "1"} | settings).items()})
