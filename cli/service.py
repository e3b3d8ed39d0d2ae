"""Commands that serve, and what they serve."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.common import Host, Port, Seed, console, fail, tell, wait_passively

ApiKey = Annotated[
    str | None, typer.Option(help="Key of a service that asks for one", envvar="SAGAN_API_KEY")
]
RootPath = Annotated[
    str | None, typer.Option(help="Path prefix under which a proxy serves this, such as /sagan")
]


def serve(host: Host = "127.0.0.1", port: Port = 8000, root_path: RootPath = None) -> None:
    """Everything in one command: API, worker and, unless SAGAN_REDIS_URL is set, a private Redis."""
    from serve.supervisor import run

    raise typer.Exit(run(host=host, port=port, root_path=root_path))


def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(help="Processes", min=1)] = 1,
    root_path: RootPath = None,
) -> None:
    """The HTTP face alone. It needs a Redis (SAGAN_REDIS_URL) and a worker beside it."""
    from serve.api import NotServing, run

    try:
        run(host, port, workers, root_path)
    except NotServing as error:
        fail(error)


def worker() -> None:
    """A Celery worker alone: it loads the checkpoints (SAGAN_CHECKPOINTS) and takes jobs from Redis."""
    wait_passively(quiet=True)  # its forwards have a thread or two each

    from worker import startup

    startup.begin()
    from jobs.settings import read_settings
    from worker.settings import WorkerSettings

    settings = read_settings(WorkerSettings)  # before the imports that take seconds
    from worker.main import run_worker

    raise typer.Exit(run_worker(settings))


def models(
    where: Annotated[
        str, typer.Argument(help="Folder of checkpoints, or address of a running service")
    ] = "checkpoints",
    api_key: ApiKey = None,
) -> None:
    """List the checkpoints in a folder, bad ones too; or what a running service serves, by which workers."""
    if where.startswith(("http://", "https://")):
        from cli import served

        try:
            lines = list(served.describe(where, api_key))
        except served.NoAnswer as error:
            fail(error)
    else:
        folder = Path(where)
        if not folder.is_dir():
            fail(f"There is no folder {where}. The address of a service begins with http:// or https://.")
        from worker import offline

        lines = list(offline.describe(folder)) or [f"There is no *.safetensors in {where}."]
    for line in lines:
        tell(line)


def bench(
    url: Annotated[str, typer.Argument(help="Where the service is, such as http://127.0.0.1:8000")],
    class_name: Annotated[str, typer.Option("--class", help="Number or name of the class")] = "0",
    model: Annotated[str | None, typer.Option(help="Unless told, the service's default")] = None,
    count: Annotated[int, typer.Option(help="Images a job", min=1, max=64)] = 1,
    clients: Annotated[str, typer.Option(help="Closed loop: so many at once; 1,8,32: in turn")] = "8",
    rate: Annotated[
        float | None, typer.Option(help="Open loop instead: requests a second, whatever comes of them")
    ] = None,
    even: Annotated[bool, typer.Option("--even", help="With --rate: equal gaps, not random ones")] = False,
    seconds: Annotated[float, typer.Option(help="Measured time of each load", min=0.1)] = 10.0,
    warm_up: Annotated[float, typer.Option(help="Seconds before that", min=0.0)] = 2.0,
    seed: Seed = 0,
    api_key: ApiKey = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and bench.svg")] = None,
) -> None:
    """Put load on a running service: images a second, latency percentiles, and every error by its kind.

    A latency counts from when the request should have been sent, so that a stall hides nothing.
    """

    from loadtest.client import BenchError
    from loadtest.command import Question, loads, run

    # as typed, for the file; the key is nobody else's business
    command = shlex.join(["sagan", *("…" if api_key and word == api_key else word for word in sys.argv[1:])])
    try:
        wanted = loads(clients, rate, even=even, seed=seed)
        question = Question(class_name, model, count, seed, api_key)
        run(url, question, wanted, seconds, warm_up, out, console, command)
    except BenchError as error:
        fail(error)
