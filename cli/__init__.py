"""The console command `sagan`: what each subcommand takes; what it does lives in the packages.

Commands import what they need when they run, so that an image with the API alone needs no torch to start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec

import typer

from cli import images, measuring, service, training
from cli.common import fail

P = ParamSpec("P")

# Each command, and the extra of this package that brings what it imports.
COMMANDS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    ("all", service.serve),
    ("api", service.api),
    ("worker", service.worker),
    ("train", training.train),
    ("worker", images.sample),
    ("worker", images.sheet),
    ("worker", images.attention),
    ("worker", images.reproduce),
    ("worker", service.models),
    ("train", measuring.evaluate),
    ("train", measuring.neighbours),
    ("train", measuring.experiment),
    ("train", training.choose),
    ("bench", service.bench),
)

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n")[0])
data = typer.Typer(no_args_is_help=True, help="Labelled images, packed once into one file.")
app.add_typer(data, name="data")


def _with(extra: str, command: Callable[P, None]) -> Callable[P, None]:
    """The command; where a package is missing, one sentence says which extra brings it."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ModuleNotFoundError as error:
            fail(
                f"`sagan {command.__name__}` needs the package {error.name}, which is not installed here: "
                f"pip install 'sagan-service[{extra}]'"
            )

    return run


for _extra, _command in COMMANDS:
    app.command()(_with(_extra, _command))
data.command()(_with("train", training.pack))
