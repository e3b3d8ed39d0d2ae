"""The observers of a run: progress, a log, TensorBoard, the served copy; `train.run.grids` draws."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from imaging.files import write_whole
from model.attention import SelfAttention
from model.checkpoint import save_generator
from model.generator import Generator
from train.recipes.recipe import Recipe
from train.run.ema import recompute_statistics
from train.run.saved import STATE, StateError
from train.run.state import TrainingState

BOARD = "tensorboard"  # in the run's folder, from its first moment on
LOG = "log.jsonl"  # in the run's folder: a line of scalars now and then
SNAPSHOTS = "snapshots"  # in the run's folder: generators of earlier steps
SHORT = ("discriminator", "generator")  # losses that the bar shows
QUICK = 300  # seconds; a shorter run needs no advice on ending it sooner
LONG = 24 * 3600  # seconds; a longer run on a CPU is warned of
HALF_A_DAY = 12 * 3600  # seconds
LIGHTER = "a smaller batch, or narrower widths in a new --out"


class Pace:
    """The time of a step, apart from the extra time of the first ones (compiling, warming up)."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.steps: list[float] = []  # seconds of each

    def step(self, state: TrainingState) -> bool:
        """Note a step; true once there are enough of them for a forecast."""
        state.losses["generator"].item()  # waits for the device: else only the launch is timed
        now = time.monotonic()
        self.steps.append(now - self.last)
        self.last = now
        after_first = sum(self.steps[1:])
        # at least two after the first, even where a step takes minutes
        return (
            len(self.steps) > 50
            or (len(self.steps) > 5 and after_first > 3)
            or (len(self.steps) > 2 and after_first > 20)
        )

    @property
    def seconds(self) -> float:
        """Seconds of one step: the median, which ignores single slow ones (a compilation, a capture)."""
        return max(statistics.median(self.steps[1:]), 1e-9)

    @property
    def start_up(self) -> float:
        """Seconds so far beyond the steps at that pace: the making ready of the networks."""
        return max(self.last - self.started - len(self.steps) * self.seconds, 0)


class ProgressBar:
    """Steps, images/s, losses and the time left; without a terminal, a line now and then.

    After the first few steps it says how long the whole will take. state_step: step that the run begins at.
    total: the recipe's steps. stop_after: seconds after which the run ends; None: at its last step.
    data_seconds: time that opening the images took. lighter: advice for quicker steps.
    """

    def __init__(
        self,
        console: Console,
        state_step: int,
        total: int,
        log_every: int,
        *,
        stop_after: float | None = None,
        data_seconds: float = 0,
        lighter: str = LIGHTER,
    ) -> None:
        self.console, self.log_every = console, log_every
        self.stop_after, self.data_seconds, self.lighter = stop_after, data_seconds, lighter
        self.started, self.first = time.monotonic(), state_step
        self.pace: Pace | None = Pace()  # None: the forecast has been made
        self.start_up = 0.0  # seconds spent on no step, once known
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.figures = ""  # last measured
        self.task = self.bar.add_task("", total=total, completed=state_step)

    def after(self, state: TrainingState) -> None:
        self.bar.start()  # not before: a run that is refused closes nothing, and the cursor would stay hidden
        if self.pace is not None and self.pace.step(state):
            self.start_up = self.pace.start_up
            self._foretell(state, self.pace.seconds)
            self.pace = None
        if state.step % self.log_every and state.step != self.first + 1:
            self.bar.update(self.task, completed=state.step)
            return
        steps = state.step - self.first
        # the first line is about the first step, which is nearly all start-up
        seconds = time.monotonic() - self.started - self.start_up
        losses = {name: value.item() for name, value in state.losses.items()}
        pace = "" if self.pace is not None else f"{rate(state, seconds / steps)}, "
        # the bar has room for the two losses alone
        short = " ".join(f"{name[0].upper()} {losses[name]:.2f}" for name in losses if name in SHORT)
        self.bar.update(self.task, completed=state.step, description=pace + short + self.figures)
        if not self.console.is_terminal:
            total = state.recipe.optimisation.steps
            left = "" if self.pace is not None else f", {span((total - state.step) * seconds / steps)} left"
            text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self._say(f"step {state.step}/{total}: {pace}{text}{left}")

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures: all of them without a terminal, else the first and the best in the bar."""
        text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        if not self.console.is_terminal:
            self._say(f"step {step}: measured: {text}")
        (name, value), *_ = figures.items()
        self.figures = f" {name.partition('_')[0].upper()} {value:.3f} (best {figures['best']:.3f})"

    def close(self, state: TrainingState) -> None:
        self.bar.stop()

    def _foretell(self, state: TrainingState, step: float) -> None:
        """Print the time of the start and a forecast of the rest, at `step` seconds a step."""
        self._say(
            f"Ready in {span(self.data_seconds + self.start_up)}, "
            f"{span(self.data_seconds)} of it for the data."
        )
        total = state.recipe.optimisation.steps
        if state.step == total:
            return
        left = (total - state.step) * step
        text = f"About {span(left)} for the remaining {total - state.step:,} steps"
        text += f" at {rate(state, step)} on {machine(state)}"
        rest = None if self.stop_after is None else self.stop_after - (time.monotonic() - self.started)
        if rest is not None and rest < left:
            reached = state.step + max(round(rest / step), 0)
            text += (
                f"; --stop-after ends it near step {reached:,}, with everything saved, and --resume goes on"
            )
        elif left > QUICK:
            text += f"; --stop-after {_half(left)} ends it sooner with everything saved"
        self._say(f"{text}.")
        if rest is None and left > LONG and state.world.device.type == "cpu":
            steps = max(int(HALF_A_DAY / step), 1)
            self._say(
                "That is long; a GPU takes a small part of it. Here, "
                f"--set optimisation.steps={steps} would end in 12 h, and quicker a step is {self.lighter}.",
                style="yellow",
            )

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def span(seconds: float) -> str:
    """A length of time in words: "8 s", "12 min", "3 h 20 min", "2 days 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)  # no forecast is closer
    if hours >= 10:
        hours, minutes = round(seconds / 3600), 0
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def _half(seconds: float) -> str:
    """About half of a length of time, as `--stop-after` takes it."""
    minutes = seconds / 120
    return f"{minutes / 60:.0f}h" if minutes > 90 else f"{minutes:.0f}m"


def rate(state: TrainingState, step: float) -> str:
    """Images/s at `step` seconds a step."""
    optimisation = state.recipe.optimisation
    images = optimisation.batch * optimisation.discriminator_steps / step
    return f"{images:,.0f} images/s" if images >= 10 else f"{images:.1f} images/s"


def machine(state: TrainingState) -> str:
    """The processes and devices of a run, in words."""
    device, size = state.world.device, state.world.size
    if device.type != "cpu":
        return f"{size} × {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    each = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    return f"{size} × {each}" if size > 1 else each


class Scalars:
    """Losses, scores and the attention gates, into TensorBoard and `log.jsonl`; the recipe, as text.

    recipe: None: no text.
    """

    def __init__(self, out: Path, state_step: int, every: int, recipe: Recipe | None = None) -> None:
        self.every = every
        self.path = out / LOG
        _forget_after(self.path, state_step)
        self.board = SummaryWriter(str(out / BOARD), purge_step=state_step + 1)
        if recipe is not None:
            text = json.dumps(recipe.to_json(), indent=2, ensure_ascii=False)
            self.board.add_text("recipe", f"```\n{text}\n```", state_step)  # Markdown
        self.started, self.first = time.monotonic(), state_step

    def after(self, state: TrainingState) -> None:
        if state.step % self.every:
            return
        scalars = {f"loss/{name}": value.item() for name, value in state.losses.items()}
        for role, network in (("generator", state.generator), ("discriminator", state.discriminator)):
            for name, module in network.named_modules():
                if isinstance(module, SelfAttention):
                    scalars[f"gamma/{role}.{name.rpartition('.')[2]}"] = module.gamma.item()
        seconds = time.monotonic() - self.started
        scalars["steps_per_second"] = (state.step - self.first) / seconds
        self.add(state.step, scalars)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """A line of the log, and a point of each curve."""
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        with self.path.open("a") as log:
            log.write(json.dumps({"step": step, **scalars}) + "\n")

    def close(self, state: TrainingState) -> None:
        self.board.close()


class Served:
    """The averaged generator as it serves, written whenever the state is saved."""

    def __init__(self, path: Path, metadata: Mapping[str, object]) -> None:
        self.path, self.metadata = path, metadata

    def after(self, state: TrainingState) -> None:
        if state.due or state.step % state.recipe.schedule.save_every == 0:
            write_served(self.path, state, self.metadata)

    def close(self, state: TrainingState) -> None:
        if (
            self.path.parent / STATE
        ).exists():  # else the run begins anew, and would be refused for this file
            write_served(self.path, state, self.metadata)


class Snapshots:
    """The generator as it would serve, kept every so often, for `sagan choose` to pick from."""

    def __init__(self, folder: Path, metadata: Mapping[str, object]) -> None:
        self.folder, self.metadata = folder, metadata

    def after(self, state: TrainingState) -> None:
        every = state.recipe.schedule.snapshot_every
        if every and state.step % every == 0:
            write_served(self.folder / f"step-{state.step:07d}.safetensors", state, self.metadata)

    def close(self, state: TrainingState) -> None:
        pass


def serving(state: TrainingState) -> Generator | None:
    """The averaged generator as it serves, with its standing statistics. None: it has diverged."""
    schedule, optimisation = state.recipe.schedule, state.recipe.optimisation
    served = state.ema.network.folded()  # a copy: an observer must not change the run
    if not all(torch.isfinite(tensor).all() for tensor in served.state_dict().values()):
        return None
    if schedule.weights == "bf16":
        for parameter in served.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.bfloat16())
    if schedule.statistics_batches:
        recompute_statistics(
            served,
            schedule.statistics_batches,
            optimisation.batch,
            optimisation.seed,
            state.world.device,
        )
    return served


def write_served(
    path: Path,
    state: TrainingState,
    metadata: Mapping[str, object],
    metrics: Mapping[str, object] | None = None,
) -> None:
    """Write the averaged generator with its standing statistics, its figures and its origin.

    A diverged one is not written: the file keeps the last good one, and the loop raises Diverged.
    """
    if (served := serving(state)) is None:
        return
    metadata = {
        **metadata,
        "recipe": state.recipe.to_json(),
        "steps": state.step,
        "images_seen": state.images_seen,
        **({"from": state.began_from} if state.began_from else {}),
        "data": {k: v for k, v in state.pack.metadata.items() if k != "skipped"} | {"licence": state.licence},
        "licence": state.licence,
        "machine": f"{state.world.size} × {state.world.device} on {platform.machine()}",
        "precision": state.precision,
        "torch": torch.__version__,
    }
    if state.pretrained:
        metadata["pretrained"] = state.pretrained
    save_generator(path, served, state.pack.class_names, metrics, metadata)


def check_log(out: Path) -> None:
    """Raises StateError where a run in `out` would write over another's log."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        (out / LOG).open(errors="replace") as log,
    ):
        if (first := log.readline()) and _step(first) == math.inf:
            raise StateError(f"{out / LOG} is no log of a run: move it, or choose another --out.")


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last saved state."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if _step(line) <= step]
        write_whole(log, "".join(line + "\n" for line in lines).encode())


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by the kill
