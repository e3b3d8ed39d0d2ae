"""Images a second of a training step by how torch's threads wait for each other, beside busy loops.

    python -m benchmarks.waiting [--recipe cifar10-cpu] [--batch 64] [--threads 2]

Each way is a process of its own, since libgomp reads it once; they take turns, --rounds times, and all but
the one in turn are stopped, or their waiting threads would be neighbours too.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated

import torch
import typer

from benchmarks import machine
from benchmarks.train_step import Row, build
from train.recipes.recipe import read_recipe

WAYS: Mapping[str, Mapping[str, str]] = {
    "libgomp's own": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "passive, GOMP_SPINCOUNT=10000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"},
}


def serve(
    pipe: multiprocessing.connection.Connection, recipe: str, settings: dict[str, str], threads: int
) -> None:
    """A way's process: makes steps for as long as it is told to, and says how many images a second."""
    torch.set_num_threads(threads)
    read = read_recipe(recipe, settings)
    state = build(Row("ours"), read, torch.device("cpu"))
    for _ in range(3):
        state.advance()
    pipe.send("ready")
    while seconds := pipe.recv():
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            state.advance()
            steps += 1
        pipe.send(read.optimisation.batch * steps / (time.perf_counter() - began))


def start(
    way: Mapping[str, str], *arguments: object
) -> tuple[multiprocessing.process.BaseProcess, multiprocessing.connection.Connection]:
    """The process of a way, ready and stopped."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    os.environ.update(way)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, *arguments), daemon=True
    )
    process.start()
    ours.recv()
    os.kill(process.pid or 0, signal.SIGSTOP)
    return process, ours


def main(
    recipe: Annotated[str, typer.Option(help="Whose networks")] = "cifar10-cpu",
    batch: Annotated[int, typer.Option(help="Images a step")] = 64,
    threads: Annotated[int, typer.Option(help="Of each process")] = 2,
    loops: Annotated[int, typer.Option(help="Most busy loops beside it")] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each way")] = 3,
    seconds: Annotated[float, typer.Option(help="Length of a turn")] = 4.0,
) -> None:
    """Print the table."""
    cpu = torch.device("cpu")
    settings = {"optimisation.batch": str(batch)}
    typer.echo(
        f"{recipe}, batch {batch}, {threads} threads, {machine.described(cpu)}; other processes keep "
        f"{machine.neighbours():.2f} cores busy; {rounds} rounds of {seconds:g} s, median (range)\n"
    )
    running = {name: start(way, recipe, settings, threads) for name, way in WAYS.items()}
    typer.echo(f"| images/s beside busy loops | {' | '.join(WAYS)} |\n|{'---|' * (len(WAYS) + 1)}")
    for count in range(loops + 1):
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        with ExitStack() as busy:
            for _ in range(count):
                loop = busy.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                busy.callback(loop.kill)
            for _ in range(rounds):
                for name, (process, pipe) in running.items():
                    os.kill(process.pid or 0, signal.SIGCONT)
                    pipe.send(seconds)
                    rates[name].append(pipe.recv())
                    os.kill(process.pid or 0, signal.SIGSTOP)
        cells = [f"{statistics.median(r):.1f} ({min(r):.1f} to {max(r):.1f})" for r in rates.values()]
        typer.echo(f"| {count} | {' | '.join(cells)} |")
    for process, _ in running.values():
        process.kill()


if __name__ == "__main__":
    typer.run(main)
