"""DiffAugment: against one image at a time in plain loops, gradients, and where the trainer puts it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.train.tiny import StopAt, make_pack, same, tiny, weights
from train.recipes.recipe import RecipeError, read_recipe
from train.run.augment import AUGMENTATIONS, DRAWS, augment, draw
from train.run.distributed import World
from train.run.judge import PlainJudge
from train.run.loop import Session, train
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

ALL = tuple(AUGMENTATIONS)


def naive(image: Tensor, draws: list[float], kinds: tuple[str, ...]) -> Tensor:
    """One image [C, R, R], pixel by pixel, as the paper's authors' code has it."""
    side = image.shape[1]
    image = image.clone()
    if "colour" in kinds:
        image = image + draws[0] - 0.5
        grey = image.mean(dim=0)
        image = (image - grey) * 2 * draws[1] + grey
        image = (image - image.mean()) * (draws[2] + 0.5) + image.mean()
    if "translation" in kinds:
        reach = round(side / 8)
        down, right = (int(d * (2 * reach + 1)) - reach for d in draws[3:5])
        moved = torch.zeros_like(image)
        for i in range(side):
            for j in range(side):
                if 0 <= i - down < side and 0 <= j - right < side:
                    moved[:, i, j] = image[:, i - down, j - right]
        image = moved
    if "cutout" in kinds:
        size = side // 2
        centre = [int(d * (side + 1 - size % 2)) for d in draws[5:7]]
        for i in range(centre[0] - size // 2, centre[0] - size // 2 + size):
            for j in range(centre[1] - size // 2, centre[1] - size // 2 + size):
                if 0 <= i < side and 0 <= j < side:
                    image[:, i, j] = 0
    return image


def some(batch: int = 12, side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(batch, 3, side, side, generator=generator) * 2 - 1
    draws = draw(batch, generator)
    draws[0], draws[1] = 0, 1 - 2**-24  # the ends of every range
    return images.to(memory_format=torch.channels_last), draws


@pytest.mark.parametrize("kinds", [(), *[(kind,) for kind in ALL], ("cutout", "translation"), ALL])
@pytest.mark.parametrize("side", [8, 16, 32])
def test_a_batch_is_augmented_as_each_image_would_be_alone(kinds: tuple[str, ...], side: int) -> None:
    images, draws = some(side=side)
    wanted = torch.stack([naive(i, d, kinds) for i, d in zip(images, draws.tolist(), strict=True)])
    found = augment(images, draws, kinds)
    if "colour" in kinds:
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == torch.float32


def test_translation_reaches_an_eighth_in_each_direction_and_every_place_between() -> None:
    side, places = 16, 5
    image = torch.zeros(1, 1, side, side)
    image[0, 0, 8, 8] = 1
    draws = torch.zeros(places * places, DRAWS)
    draws[:, 3:5] = torch.cartesian_prod(*[(torch.arange(places) + 0.5) / places] * 2)
    moved = augment(image.expand(places**2, -1, -1, -1), draws, ("translation",))
    assert {tuple(place[2:].tolist()) for place in moved.nonzero()} == {
        (i, j) for i in range(6, 11) for j in range(6, 11)
    }


@pytest.mark.parametrize("kind", ALL)
def test_gradients_are_those_of_the_same_change_made_slowly(kind: str) -> None:
    images, draws = some(batch=4, side=8)
    images, weight = images.double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    fast, slow = images.clone().requires_grad_(), images.clone().requires_grad_()
    (augment(fast, draws.double(), (kind,)) * weight).sum().backward()  # type: ignore[no-untyped-call]
    made = torch.stack([naive(i, d, (kind,)) for i, d in zip(slow, draws.tolist(), strict=True)])
    (made * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert fast.grad is not None
    assert slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad)
    assert fast.grad.abs().sum() > 0


def test_one_kind_more_leaves_the_others_as_they_were() -> None:
    images, draws = some()
    cut = augment(images, draws, ("cutout",))
    both = augment(images, draws, ("translation", "cutout"))
    assert (both[cut == 0] == 0).all()


def test_the_whole_of_it_is_one_graph_of_fixed_shapes() -> None:
    """What `torch.compile` and CUDA graphs need: no branch on a value, no value read on the host."""
    images, draws = some()
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda i, d: augment(i, d, ALL))(images, draws)
    others, other_draws = images.flip(0), draws.flip(0)
    assert torch.equal(traced(others, other_draws), augment(others, other_draws, ALL))


# -- in the trainer -----------------------------------------------------------------------------------------


def seen_by_the_discriminator(state: TrainingState) -> list[Tensor]:
    """The images of the discriminator's pass and of the generator's, of one step."""
    seen: list[Tensor] = []
    hook = state.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    state.advance()
    hook.remove()
    return seen


def cut_out(images: Tensor) -> Tensor:
    """[B, R, R]: where a pixel is exactly 0 in all three colours."""
    return (images == 0).all(dim=1)


def test_reals_fakes_and_the_generators_answer_are_each_augmented_by_draws_of_their_own() -> None:
    both, answered = seen_by_the_discriminator(
        TrainingState(tiny(optimisation__augment="cutout"), make_pack(), World())
    )
    reals, fakes = both.chunk(2)
    squares = [cut_out(part) for part in (reals, fakes, answered)]
    for square in squares:
        assert square.flatten(1).any(dim=1).all()
        assert (square.flatten(1).sum(dim=1) <= 16 * 16).all()
    assert not torch.equal(squares[0], squares[1])
    assert not torch.equal(squares[1], squares[2])
    # the same fakes: beyond both squares nothing differs
    kept = ~(squares[1] | squares[2])[:, None].expand_as(fakes)
    assert torch.equal(fakes[kept], answered[kept])


def test_without_it_the_discriminator_sees_every_pixel() -> None:
    both, _ = seen_by_the_discriminator(TrainingState(tiny(), make_pack(), World()))
    assert not cut_out(both).any()


def test_an_augmented_run_ends_alike_whenever_it_was_stopped(tmp_path: Path) -> None:
    settings = {"optimisation__augment": "colour,translation,cutout", "optimisation__steps": "3"}
    recipe, pack = tiny(**settings), make_pack()
    train(recipe, pack, tmp_path / "whole", World(), [])
    train(recipe, pack, tmp_path / "stopped", World(), [StopAt(1, signal.SIGINT)])
    assert train(recipe, pack, tmp_path / "stopped", World(), [], Session(resume=True)).finished
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_processes_share_one_draw() -> None:
    recipe, pack = tiny(optimisation__augment="cutout"), make_pack()
    whole, *parts = (
        TrainingState(recipe, pack, world)._drawn(5)[-3:]
        for world in (World(), World(rank=0, size=2), World(rank=1, size=2))
    )
    for drawn, first, second in zip(whole, *parts, strict=True):
        assert drawn.shape == (16, DRAWS)
        assert torch.equal(torch.cat([first, second]), drawn)
    assert len({drawn.sum().item() for drawn in whole}) == 3  # reals, fakes and answers differ


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("color", "augment has no 'color'. Did you mean 'colour'"),
        ("cutout, translate", "Did you mean 'translation'"),
        ("mixup", "It can be colour, translation, cutout"),
        ("3", "of type str"),
    ],
)
def test_an_unknown_augmentation_is_refused_with_the_way_out(value: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe("tiny", {"optimisation.augment": value})


def test_augmentations_are_named_in_any_order_with_or_without_spaces() -> None:
    for value in ("cutout,translation", " translation , cutout"):
        state = TrainingState(tiny(optimisation__augment=value), make_pack(), World())
        assert isinstance(state.judge, PlainJudge)
        assert set(state.judge.kinds) == {"translation", "cutout"}
