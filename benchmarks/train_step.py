"""Images a second of our training step beside the plain eager float32 step of the same network.

    python -m benchmarks.train_step [--recipe cifar10-cpu] [--batch 64] [--device auto] [--threads 1]

Each row is a process of its own, which keeps its state; they take turns, --rounds times, so that a noisy
machine is noisy to all of them. Every row adds one thing to the row above. Images are random, as no time
depends on their content.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from cli.common import keep_freed_memory
from model import layers
from train.data.pack import Pack
from train.recipes.recipe import Recipe, read_recipe
from train.run.augment import to_network
from train.run.distributed import World
from train.run.execution import Execution, precision
from train.run.judge import StepInputs
from train.run.state import TrainingState

CLASSES = 10
IMAGES = 4096  # random ones


@dataclass(frozen=True)
class Row:
    """One way to carry out the same step."""

    name: str
    channels_last: bool = True
    merged: bool = True  # ×2-and-3×3, and 3×3-and-pool, as one 4×4
    keep: bool = False  # freed memory is kept, as `sagan train` does on a CPU
    precision: str = "float32"
    compile: bool = False
    graph: bool = False


def rows(device: torch.device) -> list[Row]:
    """From plain to ours, one thing at a time, as far as the device has it."""
    all_rows = [
        Row("plain eager float32", channels_last=False, merged=False),
        Row("+ channels_last", merged=False),
        Row("+ merged convolutions"),
    ]
    best, keep = precision("auto", device), device.type == "cpu"
    if keep:
        all_rows.append(Row("+ freed memory kept", keep=keep))
    if best == "bf16":
        all_rows.append(Row("+ bf16 autocast", keep=keep, precision=best))
    all_rows.append(Row("+ torch.compile", keep=keep, precision=best, compile=True))
    if device.type == "cuda":
        all_rows.append(Row("+ CUDA graph", precision=best, compile=True, graph=True))
    return all_rows


def random_pack(resolution: int) -> Pack:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, resolution, resolution), dtype=torch.uint8, generator=draw)
    labels = torch.randint(CLASSES, (IMAGES,), generator=draw)
    return Pack(images, labels, tuple(map(str, range(CLASSES))), resolution, {})


def build(row: Row, recipe: Recipe, device: torch.device) -> TrainingState:
    """The training state of a row. It changes this process for good: call it once."""
    if not row.channels_last:
        torch.channels_last = torch.contiguous_format  # for every caller of it
    if not row.merged:
        _unmerge()
    execution = Execution(compile=row.compile, graph=row.graph)
    return TrainingState(recipe, random_pack(recipe.model["resolution"]), World(device=device), execution)


def _unmerge() -> None:
    def double_then(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
        h: Tensor = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h

    def then_pool(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
        return F.avg_pool2d(conv(x), 2)

    layers._double_then, layers._then_pool = double_then, then_pool


def serve_row(
    pipe: multiprocessing.connection.Connection,
    row: Row,
    recipe_name: str,
    settings: dict[str, str],
    device: torch.device,
    threads: int,
) -> None:
    """A row's process: build, warm up, then answer each number of steps with the seconds a step took."""
    torch.set_num_threads(threads)
    if row.keep:
        keep_freed_memory()
    recipe = read_recipe(recipe_name, {**settings, "optimisation.precision": row.precision})
    started = time.perf_counter()
    state = build(row, recipe, device)
    for _ in range(5):
        state.advance()
    machine.wait(device)
    pipe.send(time.perf_counter() - started)
    while steps := pipe.recv():
        started = time.perf_counter()
        for _ in range(steps):
            state.advance()
        machine.wait(device)
        pipe.send((time.perf_counter() - started) / steps)
    if device.type == "cuda":
        pipe.send(torch.cuda.max_memory_reserved(device))
    else:
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that matrix products and convolutions read and write; all between them counts as fused."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(word in func.__name__ for word in ("conv", "mm", "attention")):
            outputs = result if isinstance(result, tuple | list) else [result]
            self.bytes += sum(
                t.numel() * t.element_size() for t in [*args, *outputs] if isinstance(t, Tensor)
            )
        return result


@dataclass(frozen=True)
class Floor:
    """The work that no step can avoid."""

    plain: int  # floating-point operations of the plain network
    merged: int  # and of ours
    bytes: int  # read and written: by products and convolutions, and by Adam and the average


def count(recipe: Recipe, device: torch.device) -> Floor:
    """Count a step of ours and one of the plain network. It changes this process for good."""
    state = build(Row("ours"), recipe, device)
    state.advance()  # Adam's first allocations
    with FlopCounterMode(display=False) as ours, Traffic() as traffic:
        state.advance()
    _unmerge()
    with FlopCounterMode(display=False) as plain:
        state.advance()
    trained = [p.numel() for n in (state.generator, state.discriminator) for p in n.parameters()]
    averaged = sum(p.numel() for p in state.ema.network.parameters())
    # Adam reads weight, gradient and two moments and writes three of them; the average is read and written
    parameters = 4 * (7 * sum(trained) + 3 * averaged)
    return Floor(plain.get_total_flops(), ours.get_total_flops(), traffic.bytes + parameters)


def frozen(recipe: Recipe, device: torch.device) -> tuple[Floor, float]:
    """The frozen network of a pretrained judge, one look at a batch of fakes and back: work and seconds.

    The work is counted in float32, the time is that of the recipe's precision.
    """
    looks = []
    for passes in ("float32", precision(recipe.optimisation.precision, device)):
        state = build(Row(passes, keep=True, precision=passes), _with_precision(recipe, passes), device)
        inputs = state._drawn(0)
        fakes = to_network(inputs.pixels).requires_grad_()

        def look(state: TrainingState = state, inputs: StepInputs = inputs, fakes: Tensor = fakes) -> None:
            seen = state.judge.look(fakes, inputs)
            torch.autograd.backward(seen, [torch.ones_like(tensor) for tensor in seen])

        looks.append(look)
    counted, timed = looks
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        counted()
    times = []
    for _ in range(12):
        began = time.perf_counter()
        timed()
        machine.wait(device)
        times.append(time.perf_counter() - began)
    total = flops.get_total_flops()
    return Floor(total, total, traffic.bytes), statistics.median(times[2:])


def _with_precision(recipe: Recipe, passes: str) -> Recipe:
    wanted: Any = passes
    return replace(recipe, optimisation=replace(recipe.optimisation, precision=wanted))


@contextmanager
def started(
    all_rows: Sequence[Row], *arguments: Any
) -> Iterator[list[tuple[Row, multiprocessing.connection.Connection, float]]]:
    """The process of every row, with its pipe and the seconds of its start."""
    context = multiprocessing.get_context("spawn")
    running, processes = [], []
    try:
        for row in all_rows:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_row, args=(theirs, row, *arguments), daemon=True)
            process.start()
            processes.append(process)
            running.append((row, ours, ours.recv()))
            print(f"{row.name}: ready after {running[-1][2]:.1f} s", file=sys.stderr)  # noqa: T201
        yield running
    finally:
        for process in processes:
            process.join(5)  # each ends after its last answer
            process.terminate()


def _turn(pipe: multiprocessing.connection.Connection, steps: int) -> float:
    pipe.send(steps)
    took: float = pipe.recv()
    return took


def main(
    recipe: Annotated[str, typer.Option(help="Whose network and batch")] = "cifar10-cpu",
    batch: Annotated[int | None, typer.Option(help="Images a step; unless told, the recipe's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads a row")] = torch.get_num_threads(),
    rounds: Annotated[int, typer.Option(help="Turns of each row")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a turn, about")] = 5.0,
    skip: Annotated[list[str] | None, typer.Option(help="Rows to leave out, by a part of the name")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.field=value")] = None,
) -> None:
    busy = machine.neighbours()
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    torch.set_num_threads(threads)
    overrides = dict(setting.split("=", 1) for setting in settings or [])
    if batch:
        overrides["optimisation.batch"] = str(batch)
    read = read_recipe(recipe, overrides)
    images = read.optimisation.batch * read.optimisation.discriminator_steps
    chosen = [row for row in rows(where) if not any(part in row.name for part in skip or [])]
    times: dict[str, list[float]] = {row.name: [] for row in chosen}
    memory: dict[str, int] = {}
    with started(chosen, recipe, overrides, where, threads) as running:
        starts = {row.name: start for row, _, start in running}
        steps = {row.name: max(1, round(seconds / _turn(pipe, 1))) for row, pipe, _ in running}
        for _ in range(rounds):
            for row, pipe, _ in running:
                times[row.name].append(_turn(pipe, steps[row.name]))
        for row, pipe, _ in running:
            pipe.send(0)
            memory[row.name] = pipe.recv()
    dtype = torch.bfloat16 if precision("auto", where) == "bf16" else torch.float32
    rate, traffic = machine.matrix_rate(where, dtype), machine.copy_rate(where)
    floor = count(read, where)
    least = max(floor.merged / rate, floor.bytes / traffic)
    out = typer.echo
    out(f"{recipe}, batch {images}, {machine.described(where)}; {rounds} interleaved rounds of {seconds:g} s")
    out(f"neighbours before the run: {busy:.1f} busy cores")
    out(
        f"a step: {floor.plain / 1e9:.1f} GFLOP plain, {floor.merged / 1e9:.1f} merged, "
        f"{floor.bytes / 1e9:.2f} GB; measured: {rate / 1e12:.2f} TFLOP/s ({dtype}), "
        f"{traffic / 1e9:.0f} GB/s; floor {1e3 * least:.1f} ms"
    )
    if read.optimisation.judge != "plain":
        work, took = frozen(read, where)
        moved = work.bytes * (0.5 if dtype == torch.bfloat16 else 1)
        floor_of_it = max(work.merged / rate, moved / traffic)
        out(
            f"the frozen network, a look at {read.optimisation.batch} fakes and back: {1e3 * took:.0f} ms, "
            f"{took / floor_of_it:.1f} times its floor ({work.merged / 1e9:.1f} GFLOP, {moved / 1e9:.2f} GB)"
        )
    out("")
    out("| row | images/s | × plain (fewest, most) | share of the floor | start-up s | peak memory GB |")
    out("|---|---|---|---|---|---|")
    plain = times[chosen[0].name]
    for row in chosen:
        ours = times[row.name]
        ratios = sorted(p / o for p, o in zip(plain, ours, strict=True))
        step = statistics.median(ours)
        out(
            f"| {row.name} | {images / step:.1f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f}, {ratios[-1]:.2f}) | {least / step:.0%} | {starts[row.name]:.1f} "
            f"| {memory[row.name] / 1e9:.2f} |"
        )


if __name__ == "__main__":
    typer.run(main)
