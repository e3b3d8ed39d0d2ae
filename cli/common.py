"""What commands share: their options, what they say, and how torch's threads wait."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

console = Console()

_BUSY = 0.25  # cores that others keep busy, above which a machine is not quiet

Port = Annotated[int, typer.Option(help="TCP port", envvar="PORT", min=0, max=65535)]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every interface")]
Checkpoint = Annotated[Path, typer.Argument(help="A .safetensors file written by `sagan train`")]
Device = Annotated[str, typer.Option(help='"cpu", "cuda" or "cuda:1"; "auto": a GPU if there is one')]
Seed = Annotated[int, typer.Option(help="Seed of the images", min=0, max=2**63 - 1)]


def within_truncation(value: float) -> float:
    if not 0 < value <= 1:  # so that nan fails
        fail(f"truncation is {value}; it must be above 0 and at most 1.")
    return value


def png(path: Path) -> Path:
    """A picture's place, so that no checkpoint and no pack is written over."""
    if path.suffix.lower() != ".png":
        fail(f"--out {path}: its name must end in .png.")
    if path.is_dir():
        fail(f"--out {path} is a folder: give the name of a file in it.")
    return path


Truncation = Annotated[
    float,
    typer.Option(help="Scale of the noise, (0, 1]: lower is safer, less varied", callback=within_truncation),
]


def wait_passively(quiet: bool | None = None) -> None:
    """Before torch is loaded: let its threads sleep while they wait for each other, not spin for long.

    Spinning from one layer to the next, some 0.2 ms, makes steps up to a tenth faster on idle cores, and
    twice as slow at worst beside a busy process (benchmarks/README.md). quiet: cores are idle; None: looks.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "GOMP_SPINCOUNT" not in os.environ and (busy_cores() < _BUSY if quiet is None else quiet):
        os.environ["GOMP_SPINCOUNT"] = "10000"


def busy_cores(seconds: float = 0.2) -> float:
    """How many cores other processes keep busy now; infinite where the system does not tell."""

    def ticks() -> int:
        user, nice, system, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
        return user + nice + system

    try:
        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds
    except (OSError, ValueError):
        return math.inf


def tell(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def warn(doubt: str | None) -> None:
    """On standard error, so that what is piped on stays as it is. None: nothing to warn of."""
    if doubt:
        Console(stderr=True).print(
            f"sagan: warning: {doubt}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )


def fail(error: Exception | str) -> NoReturn:
    if isinstance(error, OSError):
        error = f"{error.strerror}: {error.filename}"
    Console(stderr=True).print(f"sagan: {error}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(2) from None
