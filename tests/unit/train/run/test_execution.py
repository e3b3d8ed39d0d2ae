"""A step carried out in another way is the same step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from model import layers
from model.layers import DownBlock, UpBlock
from train.data.pack import Pack
from train.errors import TrainError
from train.recipes.recipe import Recipe, read_recipe
from train.run.distributed import World
from train.run.execution import CaptureFailed, Execution, Replayed, precision
from train.run.loop import STATE
from train.run.saved import saved_step
from train.run.state import TrainingState

ROOT = Path(__file__).parents[4]
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, which it hides elsewhere
def test_a_compiled_step_has_the_losses_of_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = losses(TrainingState(recipe(), random_pack(), World()))
    # traced and differentiated ahead of time, as for inductor, but without minutes of its C++
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    state = TrainingState(recipe(), random_pack(), World(), Execution(compile=True))
    torch.testing.assert_close(losses(state), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("judge", ["plain", "pretrained"])
def test_a_recorded_step_is_an_eager_one(judge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kernels that are chosen by timing, or round to TF32, differ from run to run by more than a wrong step.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    world = World(device=torch.device("cuda"))
    states = []
    for graph in (False, True):
        state = TrainingState(recipe(judge=f'"{judge}"'), random_pack(), world, Execution(graph=graph))
        torch.backends.cudnn.benchmark = False  # which the state has set
        states.append((losses(state, 8), dict(state._tensors())))
    (eager, expected), (recorded, found) = states
    torch.testing.assert_close(recorded, eager, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Failing:
    """What torch.cuda offers to record with, on a machine that cannot."""

    def wait_stream(self, stream: object) -> None:
        pass

    @staticmethod
    @contextmanager
    def graph(graph: object, stream: object) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_a_step_that_cannot_be_recorded_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stand_in in {
        "Stream": Failing,
        "current_stream": Failing,
        "stream": nullcontext,
        "CUDAGraph": object,
        "graph": Failing.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    step = Replayed(lambda inputs: {"loss": inputs[0] + 1})
    for _ in range(3):
        assert step([torch.ones(1)])["loss"] == 2
    with pytest.raises(CaptureFailed, match=r"\(operation not permitted when stream is capturing\)"):
        step([torch.ones(1)])


@pytest.mark.slow
def test_a_run_that_cannot_be_recorded_goes_on_in_a_new_process(tmp_path: Path) -> None:
    for i, (image, label) in enumerate(zip(random_pack().images, random_pack().labels, strict=True)):
        folder = tmp_path / "images" / str(int(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "import train.run.execution, train.run.state\n"
        "from cli import app\n"
        "print('started as', os.getpid(), sys.argv[-1], flush=True)\n"
        "class Broken(train.run.execution.Replayed):\n"
        "    def __init__(self, compute):\n"
        "        self.compute, self.calls = compute, 0\n"
        "    def __call__(self, inputs):\n"
        "        self.calls += 1\n"
        "        if self.calls > 3: raise train.run.execution.CaptureFailed('It cannot be recorded.')\n"
        "        return self.compute(inputs)\n"
        "train.run.state.Replayed = Broken\n"
        "def fitting(cls, device, processes, compile, graph):\n"
        "    return cls(graph=graph is None)\n"
        "train.run.execution.Execution.fitting = classmethod(fitting)\n"
        "app()\n"
    )
    out = tmp_path / "run"
    settings = ("optimisation.steps=5", "optimisation.batch=4", "schedule.statistics_batches=1")
    command = [
        *(sys.executable, str(program), "train", "tiny", "--data", str(tmp_path / "images")),
        *("--out", str(out), "--device", "cpu", *(word for s in settings for word in ("--set", s))),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    starts = [line.split() for line in done.stdout.splitlines() if line.startswith("started as")]
    assert [words[3] for words in starts] == ["schedule.statistics_batches=1", "--no-graph"]
    assert starts[0][2] == starts[1][2]  # whoever watches the process still does
    assert "It cannot be recorded. It starts again without: --no-graph." in done.stderr
    assert saved_step(out / STATE) == 5


def test_recording_is_for_one_process_on_a_gpu() -> None:
    cuda = torch.device("cuda")
    assert Execution.fitting(cuda, 1).graph
    assert not Execution.fitting(cuda, 1, graph=False).graph
    assert not Execution.fitting(cuda, 2).graph
    assert not Execution.fitting(CPU, 1).graph
    for device, processes in ((CPU, 1), (cuda, 2)):
        with pytest.raises(TrainError, match="Leave it out"):
            Execution.fitting(device, processes, graph=True)


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
