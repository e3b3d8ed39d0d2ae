"""The trainer: the steps it takes, stopping and resuming, several processes, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from forked import Python
from model.checkpoint import load_generator
from tests.unit.train.tiny import StopAt, make_pack, same, tiny, weights
from train.commands import run, seconds
from train.errors import TrainError
from train.run.augment import flip, to_network
from train.run.distributed import World
from train.run.ema import Ema, recompute_statistics
from train.run.loop import GENERATOR, STATE, Session, train
from train.run.losses import discriminator_hinge, generator_hinge
from train.run.observers import Scalars, Served
from train.run.saved import StateError
from train.run.state import TrainingState

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

ROOT = Path(__file__).parents[4]


# -- the step -----------------------------------------------------------------------------------------------


def test_hinge_losses_are_the_papers() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert discriminator_hinge(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert generator_hinge(fake).item() == pytest.approx(1 / 3)


def test_pixels_become_the_range_of_tanh_and_flips_mirror_left_and_right() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(2, 3, 2, 2)
    images = to_network(pixels)
    assert images[0, 0, 0].tolist() == [-1, 1]
    flipped = flip(images, torch.tensor([True, False]))
    assert flipped[0, 0, 0].tolist() == [1, -1]
    assert torch.equal(flipped[1], images[1])


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order() -> None:
    recipe = tiny(optimisation__flips="false")
    pack = make_pack(40)
    state = TrainingState(recipe, pack, World())
    shown = to_network(torch.cat([state._drawn(play).pixels for play in range(5)]))  # two epochs
    whole = to_network(pack.images).flatten(1).sum(1).sort().values
    first, second = shown[:40].flatten(1).sum(1), shown[40:].flatten(1).sum(1)
    torch.testing.assert_close(first.sort().values, whole)
    torch.testing.assert_close(second.sort().values, whole)
    assert not torch.equal(first, second)


def test_real_labels_go_with_real_images_and_fake_labels_with_fakes() -> None:
    state = TrainingState(tiny(), make_pack(), World())
    seen: list[tuple[Tensor, Tensor]] = []
    state.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    made: list[Tensor] = []
    state.generator.register_forward_pre_hook(lambda _, inputs: made.append(inputs[1]))
    state.advance()
    (both, labels), (_, answered) = seen
    reals, real_labels = both[:16], labels[:16]
    bright = (reals.mean(dim=(1, 2, 3)) > 0).long()
    assert torch.equal(real_labels, bright)  # the pack's class 1 is the light one
    assert torch.equal(labels[16:], made[0])
    assert torch.equal(answered, made[0])


def test_each_step_trains_each_network_by_its_own_loss_alone() -> None:
    state = TrainingState(tiny(), make_pack(), World())
    before = [p.clone() for p in state.discriminator.parameters()]
    play = state._drawn(0)
    seen = state.judge.look(state._fakes(play.z, play.y), play)
    state._generator_step(play, seen, torch.tensor(0.0), torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip(before, state.discriminator.parameters(), strict=True))
    assert all(p.grad is None for p in state.discriminator.parameters())
    generator = [p.clone() for p in state.generator.parameters()]
    state._discriminator_step(play, state.judge.look(state._fakes(play.z, play.y), play))
    assert all(torch.equal(a, b) for a, b in zip(generator, state.generator.parameters(), strict=True))


def test_more_discriminator_steps_show_more_images() -> None:
    state = TrainingState(tiny(optimisation__discriminator_steps="3"), make_pack(), World())
    calls = []
    state.discriminator_adam.register_step_post_hook(lambda *_: calls.append(1))
    state.advance()
    assert len(calls) == 3
    assert state.images_seen == 3 * 16


def test_spectral_norm_can_be_left_out_of_either_network() -> None:
    state = TrainingState(tiny(optimisation__generator_spectral_norm="false"), make_pack(), World())
    assert not any("parametrizations" in name for name in state.generator.state_dict())
    assert any("parametrizations" in name for name in state.discriminator.state_dict())
    state.advance()
    assert state.finite()


# -- the average --------------------------------------------------------------------------------------------


def test_the_average_halves_the_distance_in_one_half_life_and_the_ramp_shortens_it() -> None:
    generator = TrainingState(tiny(), make_pack(), World()).generator
    for ramp, seen, kept in ((None, 10_000, 0.5), (0.05, 2_000, 0.5**10)):
        ema = Ema(generator, half_life=1_000, ramp=ramp)
        start = ema.network.to_rgb.bias.clone()
        with torch.no_grad():
            generator.to_rgb.bias.add_(1)
        ema.update(generator, torch.tensor(ema.weight(batch=1_000, images_seen=seen)))
        moved = (generator.to_rgb.bias - ema.network.to_rgb.bias) / (generator.to_rgb.bias - start)
        assert moved.tolist() == pytest.approx([kept] * 3, abs=1e-3)


def test_standing_statistics_are_the_means_over_noise_and_repeatable() -> None:
    generator = TrainingState(tiny(), make_pack(), World()).generator.folded()
    with torch.no_grad():
        generator.blocks[0].norm1.norm.running_mean.fill_(99)  # type: ignore[union-attr, operator]
    recompute_statistics(generator, batches=8, batch=32, seed=3)
    first = {n: b.clone() for n, b in generator.named_buffers()}
    recompute_statistics(generator, batches=8, batch=32, seed=3)
    assert same(first, dict(generator.named_buffers()))
    norm = generator.blocks[0].norm1.norm  # type: ignore[union-attr]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum == 0.1
    assert norm.running_mean is not None
    draw = torch.Generator().manual_seed(3)
    inputs = []
    for _ in range(8):
        z = torch.randn(32, 32, generator=draw)
        torch.randint(2, (32,), generator=draw)
        inputs.append(generator.linear(z).view(32, -1, 4, 4).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, torch.stack(inputs).mean(0), rtol=1e-4, atol=1e-5)
    assert not generator.training


# -- stopping and resuming ----------------------------------------------------------------------------------


def test_a_run_stopped_at_any_step_and_resumed_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    recipe, pack = tiny(), make_pack()
    train(recipe, pack, tmp_path / "whole", World(), [])
    wanted = weights(tmp_path / "whole")
    for step, number in ((1, signal.SIGINT), (2, signal.SIGTERM), (5, signal.SIGINT)):
        out = tmp_path / f"stopped-{step}"
        outcome = train(recipe, pack, out, World(), [StopAt(step, number)])
        assert (outcome.step, outcome.finished, outcome.reason) == (step, False, signal.Signals(number).name)
        outcome = train(recipe, pack, out, World(), [], Session(resume=True))
        assert (outcome.step, outcome.finished) == (6, True)
        assert same(weights(out), wanted)


def cli(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cli", *map(str, arguments)]


def training(pack_file: Path, out: Path, steps: int) -> list[str]:
    quick = ["--set", "schedule.save_every=3", "--set", "schedule.statistics_batches=1"]
    return cli(
        "train", "tiny", "--data", pack_file, "--out", out, "--set", f"optimisation.steps={steps}", *quick
    )


@pytest.fixture
def environment() -> dict[str, str]:
    # one thread, as sums over several depend on how many there are
    return {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def test_a_run_killed_and_resumed_ends_with_the_same_weights(tmp_path: Path, pack_file: Path) -> None:
    steps, out, log = 12, tmp_path / "killed", tmp_path / "log"
    whole = Python(training(pack_file, tmp_path / "whole", steps)[1:], {}, log)
    assert whole.wait(60) == 0, whole.output
    killed = Python(training(pack_file, out, steps)[1:], {}, log)
    while not (out / STATE).exists():
        assert killed.returncode is None, killed.output
        time.sleep(0.01)
    killed.kill()
    with safe_open(out / STATE, framework="pt") as file:
        reached = int(file.metadata()["step"])
    assert reached >= 3
    resumed = Python([*training(pack_file, out, steps)[1:], "--resume"], {}, log)
    assert resumed.wait(60) == 0, resumed.output
    assert same(weights(out), weights(tmp_path / "whole"))
    assert same(load_file(out / GENERATOR), load_file(tmp_path / "whole" / GENERATOR))


def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    recipe, pack = tiny(schedule__log_every="1", schedule__grid_every="100"), make_pack()
    log = tmp_path / "log.jsonl"
    train(recipe, pack, tmp_path, World(), [Scalars(tmp_path, 0, 1), StopAt(3, signal.SIGINT)])
    with log.open("a") as file:  # what a killed run leaves after its last saved state
        file.write(json.dumps({"step": 4, "loss/generator": 0}) + '\n{"step": 5, "lo')
    train(recipe, pack, tmp_path, World(), [Scalars(tmp_path, 3, 1)], Session(resume=True))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert {
        "loss/discriminator",
        "loss/generator",
        "gamma/generator.16x16",
        "gamma/discriminator.16x16",
    } <= set(json.loads(log.read_text().splitlines()[0]))


def test_a_second_interrupt_ends_at_once_and_says_what_is_saved(tmp_path: Path) -> None:
    for step, kept in ((1, "No state had been saved yet"), (3, "The last good state is in")):
        told: list[str] = []
        twice = [StopAt(step, signal.SIGINT), StopAt(step, signal.SIGINT), Served(tmp_path / GENERATOR, {})]
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), make_pack(), tmp_path, World(), twice, Session(tell=told.append))
        assert kept in told[-1]
        assert (tmp_path / GENERATOR).exists() == (tmp_path / STATE).exists()  # else it could not begin anew


def test_time_can_be_limited(tmp_path: Path) -> None:
    outcome = train(tiny(), make_pack(), tmp_path, World(), [], Session(stop_after=0))
    assert (outcome.step, outcome.finished, outcome.reason) == (1, False, "time is up")
    assert (tmp_path / STATE).exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from imaging.files import write_whole
from train.data.pack import pack

out, pictures = map(Path, sys.argv[1:])
writers = [
    lambda: pack(pictures, out / "data.safetensors", shards=2),
    lambda: write_whole(out / "state.safetensors", b"half"),
    lambda: write_whole(out / "snapshots" / "step-0000002.safetensors", b"half"),
    lambda: write_whole(out / "features.safetensors", b"half"),
]
for write in writers:
    if not (child := os.fork()):
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        write()
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_what_killed_writers_left_in_a_runs_folder_goes_with_the_next_run(
    tmp_path: Path, pack_file: Path
) -> None:
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "-c", KILLED, out, pack_file.parent / "images"], cwd=ROOT, check=True, timeout=300
    )
    left = {path.name.split(".")[1] for path in out.rglob(".*")}
    assert left >= {"data", "data-00000-of-00002", "state", "step-0000002", "features"}
    assert not [path for path in out.rglob("*.safetensors") if not path.name.startswith(".")]
    train(tiny(optimisation__steps="1"), make_pack(), out, World(), [])
    assert [path.name for path in out.rglob("*") if path.is_file()] == [STATE]


@pytest.mark.parametrize(
    ("text", "wanted"), [("90", 90), ("90s", 90), ("9m", 540), ("1.5h", 5400), ("9 m", None), ("", None)]
)
def test_lengths_of_time(text: str, wanted: float | None) -> None:
    if wanted is None:
        with pytest.raises(TrainError, match="write 90s"):
            seconds(text)
    else:
        assert seconds(text) == wanted


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tiny(optimisation__steps="1"), make_pack(), tmp_path, World(), [])
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(StateError, match="--resume"):
        train(tiny(), make_pack(), tmp_path, World(), [])
    assert (tmp_path / STATE).read_bytes() == before


def test_a_refused_run_leaves_the_log_of_the_one_that_is_there(tmp_path: Path, pack_file: Path) -> None:
    def start() -> None:
        settings = ["optimisation.steps=2", "schedule.log_every=1", "schedule.statistics_batches=1"]
        run("tiny", pack_file, tmp_path, console=Console(quiet=True), device="cpu", settings=settings)

    start()
    before = (tmp_path / "log.jsonl").read_bytes()
    assert before.count(b"\n") == 2
    with pytest.raises(StateError, match="holds a run already"):
        start()
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_resuming_what_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Nothing to resume"):
        train(tiny(), make_pack(), tmp_path, World(), [], Session(resume=True))
    train(tiny(optimisation__steps="1"), make_pack(), tmp_path, World(), [])
    with pytest.raises(StateError, match="other data"):
        train(tiny(), make_pack(seed=1), tmp_path, World(), [], Session(resume=True))
    with pytest.raises(StateError, match="another recipe"):
        train(
            tiny(optimisation__generator_lr="0.5"), make_pack(), tmp_path, World(), [], Session(resume=True)
        )
    (tmp_path / STATE).write_bytes(b"not a state")
    with pytest.raises(StateError, match="cannot be read"):
        train(tiny(), make_pack(), tmp_path, World(), [], Session(resume=True))


# -- several processes --------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_two_processes_over_gloo_train_one_network(
    tmp_path: Path, pack_file: Path, environment: dict[str, str]
) -> None:
    command = training(pack_file, tmp_path / "two", 4)[3:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "cli", *command, "--device", "cpu"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 1  # one voice
    found = load_generator(tmp_path / "two" / GENERATOR)
    assert found.metadata["steps"] == 4
    with safe_open(tmp_path / "two" / STATE, framework="pt") as file:
        assert file.metadata()["step"] == "4"


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="does not divide by 3"):
        train(tiny(), make_pack(), tmp_path, World(rank=0, size=3), [])
