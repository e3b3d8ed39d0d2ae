"""The pretrained judge: a run with it learns, goes on and is refused as one with SAGAN's own."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.train.judged import begun, eyes, judged, pack_of, tensors
from tests.unit.train.tiny import make_pack, same, tiny
from train.data.pack import Pack
from train.efficientnet import open_network
from train.errors import TrainError
from train.recipes.recipe import RecipeError
from train.run.augment import AUGMENTATIONS, augment, flip, neutral, to_network
from train.run.distributed import World
from train.run.execution import Execution
from train.run.loop import train
from train.run.pretrained_judge import NETWORK
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

# -- what learns and what does not --------------------------------------------------------------------------


def test_the_generator_learns_through_the_frozen_network_which_stays_as_its_file_has_it() -> None:
    # the pixels' head and the probe would teach it something as well
    state = begun(judged(optimisation__pixel_head="false", optimisation__guide="0"))
    before = {name: p.detach().clone() for name, p in state.generator.named_parameters()}
    fixed = {name: b.clone() for name, b in state.discriminator.named_buffers() if name.endswith("bias")}
    for _ in range(3):  # an attention's own weights have a gradient once its γ has left 0
        state.advance()
    still = [name for name, p in state.generator.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    eye = eyes(state).eye
    assert same(eye.state_dict(), open_network(NETWORK).state_dict())
    for tensor in (*eye.parameters(), *eye.buffers()):
        assert not tensor.requires_grad
        assert tensor.grad is None
    assert len(fixed) == 4  # how each map is normalised and mixed
    assert all(torch.equal(dict(state.discriminator.named_buffers())[name], b) for name, b in fixed.items())


def test_the_judge_looks_at_images_as_large_as_it_is_told() -> None:
    state = begun(judged(optimisation__judge_side="96"))
    *maps, _ = eyes(state)._look(torch.zeros(2, 3, 32, 32))
    assert [m.shape[-1] for m in maps] == [32, 24, 12, 6, 3]  # the pixels' head sees the image itself
    before = {name: p.detach().clone() for name, p in state.generator.named_parameters()}
    state.advance()
    assert any(not torch.equal(p, before[name]) for name, p in state.generator.named_parameters())


@pytest.mark.parametrize("judge", ["pretrained", "both"])
def test_each_player_learns_from_its_own_loss_alone(judge: str) -> None:
    state = begun(judged(judge))
    inputs = state._drawn(0)
    before = tensors(state)

    def moved() -> set[str]:
        return {n.split(".")[0] for n, t in tensors(state).items() if n in before and not t.equal(before[n])}

    seen = state.judge.look(state._fakes(inputs.z, inputs.y), inputs)
    state._generator_step(inputs, seen, torch.tensor(0.5), torch.tensor(1.0))
    assert moved() == {"generator"}
    assert all(p.grad is None and p.requires_grad for p in state.discriminator.parameters())
    fakes = state._fakes(inputs.z, inputs.y).detach()  # a pass in training moves the batch norms' averages
    before = tensors(state)
    state._discriminator_step(inputs, state.judge.look(fakes, inputs))
    assert {name for name in moved() if "adam" not in name} == {"discriminator"}
    assert all(p.grad is not None for p in state.discriminator.parameters())


def test_maps_and_classes_are_measured_by_the_reals() -> None:
    state = begun(judged())
    with torch.no_grad():
        _, *mixed, pooled = eyes(state)._look(to_network(state.pack.images[:]))
    torch.testing.assert_close(pooled.mean(0), torch.zeros(pooled.shape[1]), rtol=0, atol=1e-3)
    spread = pooled.std(0, correction=0)
    torch.testing.assert_close(spread[spread > 0.1], torch.ones(int((spread > 0.1).sum())), rtol=0, atol=1e-2)
    for maps in mixed:
        assert maps.mean().abs() < 0.1
        assert 0.5 < maps.std() < 2
    known = state.discriminator.known
    assert isinstance(known, Tensor)
    dark, light = (pooled[state.pack.labels == label].mean(0) for label in (0, 1))
    torch.testing.assert_close(
        known / known.std(), torch.stack([dark, light]) / torch.stack([dark, light]).std()
    )


def test_the_generator_begins_where_the_classes_are_seen() -> None:
    pack = pack_of((8, 8, 8))
    twin = pack.images[:8]  # class 1 looks as class 0 does
    pack = Pack(torch.cat([twin, twin, 255 - twin // 4]), pack.labels, pack.class_names, 32, pack.metadata)
    state = begun(judged(), pack)
    assert state.generator.shared is not None
    table = state.generator.shared.weight.detach()
    assert table[:, :3].std(correction=0).item() == pytest.approx(0.5, rel=1e-4)
    assert (table[0] - table[1])[:3].norm() < 0.01 * (table[0] - table[2])[:3].norm()
    assert torch.equal(table, state.ema.network.shared.weight)  # type: ignore[union-attr]


# -- what the judge is shown --------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [(), *[(kind,) for kind in AUGMENTATIONS], tuple(AUGMENTATIONS)])
@pytest.mark.parametrize("side", [8, 32, 64])
def test_neutral_draws_change_nothing(kinds: tuple[str, ...], side: int) -> None:
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = augment(images, neutral(3), kinds)
    torch.testing.assert_close(found, images, rtol=0, atol=1e-6)
    assert "colour" in kinds or torch.equal(found, images)


@pytest.mark.parametrize("judge", ["plain", "pretrained"])
def test_images_are_shown_as_they_are_until_augmentation_begins(judge: str) -> None:
    kinds = {"optimisation__augment": "colour,translation,cutout", "optimisation__augment_after": "1"}
    state = begun(judged(judge, **kinds))
    pixels = state.discriminator
    if judge == "pretrained":
        pixels = pixels.get_submodule("heads.pixels")
    seen: list[Tensor] = []
    pixels.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    made: list[Tensor] = []
    state.generator.register_forward_hook(lambda _, inputs, images: made.append(images.detach()))
    as_they_are = []
    for number in range(2):
        inputs = state._drawn(number)
        state.advance()
        (both, answered), (fakes,) = seen, made
        shown = torch.cat([both, answered])
        plain = torch.cat([flip(to_network(inputs.pixels), inputs.mirrored), fakes, fakes])
        as_they_are.append((shown - plain).abs().amax(dim=(1, 2, 3)) < 2e-6)
        seen.clear()
        made.clear()
    assert as_they_are[0].all()
    assert not as_they_are[1].any()


# -- variety and the guide ----------------------------------------------------------------------------------


def test_variety_asks_as_much_of_a_class_of_one_image_as_of_the_others() -> None:
    recipe = judged(optimisation__variety="1")
    spread = eyes(begun(recipe, pack_of((8, 8, 1, 0)))).network.spread
    assert spread[2:].tolist() == pytest.approx([spread[:2].mean().item()] * 2, rel=1e-5)
    assert 0.3 < spread[0] < 3
    assert torch.equal(eyes(begun(recipe, pack_of((1,) * 4))).network.spread, torch.ones(4))


def test_variety_is_how_far_pairs_of_a_class_lie_apart() -> None:
    state = begun(judged(optimisation__variety="1"), pack_of((8, 8, 8)))
    y = state._drawn(0).y
    assert torch.equal(y[::2], y[1::2])
    assert len(y.unique()) > 1
    state.advance()
    assert state.losses["variety"] > 0
    judge = eyes(state)
    alike = torch.randn(2, judge.network.mean.shape[0]).repeat_interleave(2, dim=0)
    assert judge._variety(alike, torch.zeros(4, dtype=torch.int64)) == 0
    apart = alike * torch.tensor([1.0, -1.0]).repeat(2)[:, None]
    once = judge._variety(apart, torch.zeros(4, dtype=torch.int64))
    assert judge._variety(2 * apart, torch.zeros(4, dtype=torch.int64)) == pytest.approx(
        4 * once.item(), rel=1e-4
    )


def test_without_a_pretrained_judge_variety_is_refused() -> None:
    with pytest.raises(RecipeError, match="plain judge knows no variety"):
        judged("plain", optimisation__variety="1")


def test_a_share_of_the_batch_without_pairs_is_refused_where_variety_needs_them(tmp_path: Path) -> None:
    recipe = judged(optimisation__batch="6", optimisation__variety="1")
    with pytest.raises(TrainError, match="each process's share of batch 6 must be even"):
        train(recipe, make_pack(20), tmp_path, World(rank=0, size=2), [])


def test_the_guide_falls_evenly_and_is_0_from_its_last_step_on() -> None:
    state = begun(judged("plain", optimisation__guide="0.5", optimisation__guide_steps="4"))
    weights = []
    for state.step in range(7):
        weights.append(state._guide())
    assert weights == [0.5, 0.375, 0.25, 0.125, 0, 0, 0]
    assert begun(judged("plain", optimisation__guide="0.5"))._guide() == 0.5


def test_the_guide_is_the_cross_entropy_of_a_probe_that_learns_from_reals_alone() -> None:
    state = begun(judged())
    probe = eyes(state).network.probe
    assert probe is not None
    inputs = state._drawn(0)
    with torch.no_grad():
        seen = state.judge.look(state._fakes(inputs.z, inputs.y), inputs)
        with_it, without = (state.judge.generator_loss(inputs, seen, torch.tensor(g)) for g in (1.0, 0.0))
    # it knows nothing yet
    assert (with_it - without).item() == pytest.approx(math.log(2), abs=1e-4)
    others = [torch.randn_like(tensor) for tensor in seen]
    gradients = []
    for fakes in (seen, others):
        probe.zero_grad()
        state.judge.discriminator_loss(inputs, fakes).loss.backward()  # type: ignore[no-untyped-call]
        assert probe.weight.grad is not None
        gradients.append(probe.weight.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_without_a_guide_there_is_no_probe() -> None:
    state = begun(judged(optimisation__guide="0"), steps=1)
    assert eyes(state).network.probe is None
    assert not any("probe" in name for name, _ in state._tensors())
    assert state.finite()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("judge", "pretraned", "judge has no 'pretraned'. Did you mean 'pretrained'"),
        ("judge", "pretrained,plain", "judge has no"),
        ("judge", "", "judge has no ''. It can be plain, pretrained, both"),
        ("guide", "-1", "guide is -1; it must be at least 0"),
        ("guide", "nan", "guide is nan; it must be at least 0"),
        ("guide_steps", "-1", "at least 0"),
        ("augment_after", "-1", "at least 0"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_with_the_way_out(setting: str, value: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny(**{f"optimisation__{setting}": value})


# -- compiled -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, which it hides elsewhere
def test_what_is_compiled_is_one_graph_each_and_has_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = judged(optimisation__augment="colour,translation,cutout", optimisation__guide_steps="2")
    eager = begun(recipe)
    # traced as one graph each, and no more: differentiating it ahead of time takes as long again
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    compiled = TrainingState(recipe, make_pack(20), World(), Execution(compile=True))
    for _ in range(2):
        eager.advance()
        compiled.advance()
        torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-4, atol=1e-5)


# -- packs and recipes at the edge --------------------------------------------------------------------------


WIDTHS = {"64": "[16,16,16,8,8]", "128": "[16,16,16,8,8,8]"}


def sized(resolution: str) -> dict[str, str]:
    names = ("model__generator_widths", "model__discriminator_widths")
    return {"model__resolution": resolution, **dict.fromkeys(names, WIDTHS[resolution])}


@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        pytest.param((12,), {}, id="one class"),
        pytest.param((12,), {"model__class_embedding": "0"}, id="one class with tables"),
        pytest.param((6, 6), {"model__class_embedding": "0"}, id="two classes with tables"),
        pytest.param((1,) * 12, {}, id="more classes than the embedding is long, an image each"),
        pytest.param((6, 6), {"optimisation__batch": "1"}, id="batch of one"),
        pytest.param(
            (6, 6), {"optimisation__batch": "1", "optimisation__judge": "plain"}, id="plain, of one"
        ),
        pytest.param((8, 8), {"optimisation__batch": "18"}, id="batch of more than there are"),
        pytest.param((6, 6), {"optimisation__discriminator_steps": "2"}, id="two discriminator steps"),
        pytest.param((6, 6), {"optimisation__discriminator_spectral_norm": "false"}, id="no spectral norm"),
        pytest.param((6, 6), {"optimisation__batch": "2", **sized("64")}, id="64 px"),
        pytest.param((3, 3), {"optimisation__batch": "2", **sized("128")}, id="128 px"),
    ],
)
def test_a_step_is_one_whatever_the_pack_and_the_recipe(
    counts: tuple[int, ...], settings: dict[str, str]
) -> None:
    recipe = judged(**settings)
    state = begun(recipe, pack_of(counts, recipe.config(len(counts)).resolution))
    before = state.generator.to_rgb.weight.detach().clone()
    state.advance()
    assert state.finite()
    assert all(torch.isfinite(tensor).all() for tensor in tensors(state).values())
    assert not torch.equal(state.generator.to_rgb.weight, before)


def test_a_class_without_images_is_known_as_the_mean_of_all_and_leaves_the_others_as_they_are() -> None:
    full, gap = begun(judged(), pack_of((8, 8))), pack_of((8, 8))
    gap = Pack(gap.images, gap.labels * 2, ("class 0", "none", "class 1"), 32, gap.metadata)
    state = begun(judged(), gap, steps=1)
    known = eyes(state).network.known
    assert known[1].abs().sum() == 0
    wanted = eyes(full).network.known
    torch.testing.assert_close(
        known[[0, 2]] / known[[0, 2]].std(), wanted / wanted.std(), rtol=1e-3, atol=1e-3
    )
    assert state.finite()
