"""The training runs of an experiment: ordinary run folders, with the figures of each milestone beside.

    OUT/runs/VARIANT/seed-N/state.safetensors, log.jsonl      as `sagan train` leaves them
    OUT/runs/VARIANT/seed-N/milestones/0000500.safetensors    the averaged generator as it would be served
    OUT/runs/VARIANT/seed-N/milestones/0000500.NAME.json      its figures, as the variant NAME samples it
    OUT/runs/VARIANT/seed-N/milestones/0000500.NAME.png       its strip of images
    OUT/runs/VARIANT/seed-N/diverged.json                     instead of an end

Each file appears whole. A milestone is measured from its generator's file, now or later with the same result.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from imaging.files import write_whole
from model.checkpoint import load_generator, save_generator
from model.generator import Generator
from train.data.pack import Pack
from train.experiments.catalogue import Variant, with_seed
from train.experiments.measure import Ruler
from train.recipes.recipe import Recipe
from train.run.distributed import World
from train.run.ema import recompute_statistics
from train.run.execution import Execution
from train.run.loop import STATE, Diverged, Observer, Outcome, Session, train
from train.run.observers import ProgressBar, Scalars
from train.run.saved import saved_step
from train.run.state import TrainingState

MILESTONES = "milestones"
DIVERGED = "diverged.json"
RAW = ".raw"  # in the name of a generator with the batch-norm statistics of training


@dataclass
class Task:
    """One training run: its recipe, and the variants that sample its generators."""

    folder: Path
    recipe: Recipe
    looks: Sequence[Variant]
    milestones: Sequence[int]
    ruler: Ruler
    on_milestone: Callable[[], None]  # called when one is measured

    def done(self) -> bool:
        """Whether everything is trained and measured."""
        if (self.folder / DIVERGED).exists():
            return True
        return all(self.figures(look, step).exists() for look in self.looks for step in self.milestones)

    def generator(self, step: int, standing: bool = True) -> Path:
        return self.folder / MILESTONES / f"{step:07d}{'' if standing else RAW}.safetensors"

    def figures(self, look: Variant, step: int) -> Path:
        return self.folder / MILESTONES / f"{step:07d}.{look.name}.json"

    def measure(self, step: int, extra: dict[str, object] | None = None) -> None:
        """Measure the generators kept at `step`, unless their figures are there."""
        for look in self.looks:
            kept, path = self.generator(step, look.standing), self.figures(look, step)
            if not kept.exists():
                continue  # this variant was added after the run had passed the milestone
            loaded = load_generator(kept)
            weights = loaded.metadata["weights"]
            if path.exists() and json.loads(path.read_text())["weights"] == weights:
                continue
            values = self.ruler(loaded.generator, look.truncation)
            write_whole(path.with_suffix(".png"), _strip(self.ruler.strip(loaded.generator, look.truncation)))
            about = {
                "step": step,
                "figures": values,
                "weights": weights,
                "parameters": sum(p.numel() for p in loaded.generator.parameters()),
                "machine": machine(self.ruler.device),
                **(extra or {}),
            }
            write_whole(path, json.dumps(about, indent=1).encode())
            self.on_milestone()


class Keeper:
    """Keeps and measures the averaged generator at each milestone."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task, self.device = task, device
        self.step = 0  # the last one seen
        self._since, self._mark = 0, time.monotonic()

    def after(self, state: TrainingState) -> None:
        if self.step == 0:  # the first step of a session warms up
            self._since, self._mark = state.step, time.monotonic()
        self.step = state.step
        if state.step not in self.task.milestones or not state.finite():
            return  # the loop itself ends a run that is not finite
        seconds, steps = time.monotonic() - self._mark, state.step - self._since
        cost: dict[str, object] = {"steps_per_second": steps / seconds if steps else None}
        if self.device.type == "cuda":
            cost["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        self._keep(state)
        self.task.measure(state.step, cost)
        self._since, self._mark = state.step, time.monotonic()

    def close(self, state: TrainingState) -> None:
        self.step = state.step

    def _keep(self, state: TrainingState) -> None:
        # a resumed run passes a milestone again: the same weights are not kept or measured twice
        about: dict[str, object] = {"step": state.step, "weights": _digest(state.ema.network)}
        for standing in sorted({look.standing for look in self.task.looks}):
            path = self.task.generator(state.step, standing)
            if path.exists() and dict(load_generator(path).metadata) == about:
                continue
            served = state.ema.network.folded()  # a copy, so that measuring a run never changes it
            if standing:
                schedule, optimisation = state.recipe.schedule, state.recipe.optimisation
                recompute_statistics(
                    served, schedule.statistics_batches, optimisation.batch, optimisation.seed, self.device
                )
            save_generator(path, served, state.pack.class_names, metadata=about)


def perform(
    task: Task, pack: Pack, world: World, console: Console, name: str, stop_after: float | None
) -> Outcome | None:
    """Train and measure what a task still lacks; None: another process holds it.

    A run that diverges has ended too; DIVERGED holds the step.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    with _alone(task.folder) as alone:
        if not alone:
            return None
        for step in task.milestones:
            task.measure(step)
        saved, last = task.folder / STATE, task.milestones[-1]
        first = saved_step(saved) if saved.exists() else 0
        if first >= last:
            return Outcome(first, True, "finished")
        console.print(f"{name}: from step {first} to {last}", highlight=False, markup=False)
        every = max(1, last // 20)
        keeper = Keeper(task, world.device)
        observers: list[Observer] = [
            keeper,
            Scalars(task.folder, first, task.recipe.schedule.log_every),
            ProgressBar(console, first, last, every),
        ]
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)
        try:
            return train(
                task.recipe,
                pack,
                task.folder,
                world,
                observers,
                Session(
                    resume=saved.exists(),
                    stop_after=stop_after,
                    execution=Execution.fitting(world.device, world.size, compile=False),  # many short runs
                ),
            )
        except Diverged:
            write_whole(task.folder / DIVERGED, json.dumps({"step": keeper.step}).encode())
            task.on_milestone()
            return Outcome(keeper.step, True, f"diverged at step {keeper.step}")


def task(
    out: Path,
    variant: Variant,
    looks: Sequence[Variant],
    base: Recipe,
    seed: int,
    milestones: Sequence[int],
    ruler: Ruler,
    on_milestone: Callable[[], None],
) -> Task:
    """The run of a variant with seed number `seed`, in the experiment's folder `out`."""
    recipe = with_seed(variant.recipe(base), seed, milestones[-1])
    return Task(run_folder(out, variant.name, seed), recipe, looks, milestones, ruler, on_milestone)


def run_folder(out: Path, variant: str, seed: int) -> Path:
    return out / "runs" / variant / f"seed-{seed}"


def machine(device: str) -> str:
    """The machine that made the figures, in one line."""
    if torch.device(device).type == "cuda":
        where = torch.cuda.get_device_name(torch.device(device))
    else:
        where = f"{_processor()}, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    return f"{where}; torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _digest(network: Generator) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _strip(images: torch.Tensor) -> bytes:
    """uint8 [N, 3, R, R] side by side, a pixel apart, as PNG."""
    side = images.shape[-1] + 1
    sheet = Image.new("RGB", (len(images) * side - 1, side - 1), "white")
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        sheet.paste(Image.fromarray(image), (i * side, 0))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process works in `folder`. The lock ends with its process, however that ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
