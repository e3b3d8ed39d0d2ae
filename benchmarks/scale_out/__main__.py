"""How far the queue alone carries: workers that sleep instead of making images, and Redis by itself.

    python -m benchmarks.scale_out workers [--rounds 3]     throughput of 1, 2, 4 and 8 workers
    python -m benchmarks.scale_out broker                   Redis' CPU a job, and its ceiling
    python -m benchmarks.scale_out depth                    submission, memory and priority at a depth
    python -m benchmarks.scale_out kills                    20,000 jobs while workers and Redis are killed
    python -m benchmarks.scale_out faults [--only NAMES]    a table: each fault, and what became of the jobs

Each starts a Redis of its own. A sleeping worker is `sagan worker` in all but its engine.
"""

from __future__ import annotations

import typer

from benchmarks.scale_out.bed import run_sleeper
from benchmarks.scale_out.broker import broker
from benchmarks.scale_out.depth import depth
from benchmarks.scale_out.faults import faults
from benchmarks.scale_out.kills import kills
from benchmarks.scale_out.throughput import workers

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)
for command in (workers, broker, depth, kills, faults):
    app.command()(command)


@app.command(hidden=True)
def sleeper() -> None:
    """One worker that sleeps; the other commands start it."""
    raise typer.Exit(run_sleeper())


if __name__ == "__main__":
    app()
