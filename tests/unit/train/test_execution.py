"""A step carried out in another way is the same step."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from model import layers
from model.layers import DownBlock, UpBlock
from train.data import Pack
from train.distributed import World
from train.execution import Execution, precision
from train.recipe import Recipe, read_recipe
from train.state import TrainingState

CPU = torch.device("cpu")


def random_pack(images: int = 40) -> Pack:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return Pack(pixels, torch.arange(images) % 2, ("even", "odd"), 32, {"sha256": ""})


def recipe(**optimisation: str) -> Recipe:
    settings = {"batch": "8", "augment": "colour,translation,cutout", "precision": "float32", **optimisation}
    return read_recipe("tiny", {f"optimisation.{name}": value for name, value in settings.items()})


def losses(state: TrainingState, steps: int = 3) -> list[dict[str, Tensor]]:
    found = []
    for _ in range(steps):
        state.advance()
        found.append({name: loss.clone().cpu() for name, loss in state.losses.items()})
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, which it hides elsewhere
def test_a_compiled_step_has_the_losses_of_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = losses(TrainingState(recipe(), random_pack(), World()))
    # traced and differentiated ahead of time, as for inductor, but without minutes of its C++
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    state = TrainingState(recipe(), random_pack(), World(), Execution(compile=True))
    torch.testing.assert_close(losses(state), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_step_has_the_losses_of_an_eager_one() -> None:
    world = World(device=torch.device("cuda"))
    eager = losses(TrainingState(recipe(), random_pack(), world), 8)
    recorded = losses(TrainingState(recipe(), random_pack(), world, Execution(graph=True)), 8)
    torch.testing.assert_close(recorded, eager, rtol=1e-2, atol=1e-3)


def test_in_bf16_weights_statistics_and_losses_stay_float32_and_near_those_of_float32() -> None:
    exact = losses(TrainingState(recipe(), random_pack(), World()), 1)
    state = TrainingState(recipe(precision="bf16"), random_pack(), World())
    rounded = losses(state, 1)
    for network in (state.generator, state.discriminator, state.ema.network):
        assert {t.dtype for t in network.state_dict().values()} <= {torch.float32, torch.int64}
    assert {t.dtype for t in rounded[0].values()} == {torch.float32}
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_in_bf16_convolutions_work_in_bf16_and_scores_in_float32() -> None:
    state = TrainingState(recipe(precision="bf16"), random_pack(), World())
    seen: dict[str, torch.dtype] = {}
    hooked = {"convolution": state.discriminator.blocks[1].conv1, "score": state.discriminator}  # type: ignore[union-attr]
    for name, module in hooked.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    state.advance()
    assert seen == {"convolution": torch.bfloat16, "score": torch.float32}


def test_auto_is_float32_where_the_processor_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision("auto", CPU) == "float32"
    assert precision("bf16", CPU) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision("auto", CPU) == "bf16"
    assert precision("float32", CPU) == "float32"
    monkeypatch.setenv(
        "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI"
    )  # oneDNN would emulate it, slower than float32
    assert precision("auto", CPU) == "float32"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert precision("auto", CPU) == "bf16"


def test_merged_convolutions_are_the_two_operations_they_stand_for() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 10, dtype=torch.float64, requires_grad=True)  # not square
    up, down = UpBlock(8, 16, 1).double(), DownBlock(8, 16).double()
    enlarged = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    pairs = (
        (layers._double_then(up.conv1, x), up.conv1(enlarged)),
        (layers._then_pool(down.conv1, x), torch.nn.functional.avg_pool2d(down.conv1(x), 2)),
    )
    for (merged, plain), conv in zip(pairs, (up.conv1, down.conv1), strict=True):
        torch.testing.assert_close(merged, plain)
        wanted = (x, conv.weight, conv.bias)
        g = torch.randn_like(plain)
        torch.testing.assert_close(
            torch.autograd.grad(merged, wanted, g), torch.autograd.grad(plain, wanted, g)
        )
