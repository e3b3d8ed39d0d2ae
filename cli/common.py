"""What commands share: their options, what they say, and how torch's threads wait."""

from __future__ import annotations

import ctypes
import math
import os
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console()

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_BUSY = 0.25  # cores that others keep busy, above which a machine is not quiet

Port = Annotated[int, typer.Option(help="TCP port", envvar="PORT", min=0, max=65535)]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every interface")]
Checkpoint = Annotated[Path, typer.Argument(help="A .safetensors file written by `sagan train`")]
Device = Annotated[str, typer.Option(help='"cpu", "cuda" or "cuda:1"; "auto": a GPU if there is one')]
Seed = Annotated[int, typer.Option(help="Seed of the images", min=0, max=2**63 - 1)]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for other programs")]


def within_truncation(value: float) -> float:
    if not 0 < value <= 1:  # so that nan fails
        fail(f"truncation is {value}; it must be above 0 and at most 1.")
    return value


def picture(path: Path, *suffixes: str) -> Path:
    """A picture's place: nothing is written over but a picture of our own. Fails before the work."""
    from imaging.marks import made_here

    if path.suffix.lower() not in suffixes:
        fail(f"--out {path}: its name must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        fail(f"--out {path} is a folder: give the name of a file in it.")
    if path.exists() and not made_here(path):
        fail(f"--out {path} is there already and was not made by sagan: remove it, or choose another name.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        fail(f"Not a directory: {above}, in --out {path}")
    if not os.access(above, os.W_OK):
        fail(f"Nothing may be written to {above}: choose another --out.")
    return path


def png(path: Path) -> Path:
    return picture(path, ".png")


def film(path: Path) -> Path:
    return picture(path, ".webp", ".gif", ".png", ".mp4")


def moving(path: Path) -> Path:
    return picture(path, ".webp", ".gif")


Truncation = Annotated[
    float,
    typer.Option(
        help="Scale of the noise, (0, 1]: lower is less varied; far down all blur into one",
        callback=within_truncation,
    ),
]


def wait_passively(quiet: bool | None = None) -> None:
    """Before torch is loaded: let its threads sleep while they wait for each other, not spin for long.

    Spinning from one layer to the next, some 0.2 ms, makes steps up to a tenth faster on idle cores, and
    twice as slow at worst beside a busy process (benchmarks/README.md). quiet: cores are idle; None: looks.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "GOMP_SPINCOUNT" not in os.environ and (busy_cores() < _BUSY if quiet is None else quiet):
        os.environ["GOMP_SPINCOUNT"] = "10000"


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: a step asks for the same maps again, and new pages cost up to a tenth.

    A setting of the user's, or another libc, is left alone.
    """
    names = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in names):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


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


def table(*columns: str) -> Table:
    made = Table(*columns, box=None, show_header=any(columns), pad_edge=False)
    made.columns[0].no_wrap = True  # an id is copied whole
    return made


def add_row(to: Table, *cells: str, style: str = "") -> None:
    to.add_row(*map(Text, cells), style=style)  # as text: a name may hold what rich takes for markup


def show(what: Table, *, stderr: bool = False) -> None:
    to = Console(stderr=stderr)
    if not to.is_terminal:
        to.width = 200  # a pipe has none
    to.print(what)


def warn(doubt: str | None) -> None:
    """On standard error, so that what is piped on stays as it is. None: nothing to warn of."""
    if doubt:
        Console(stderr=True).print(
            f"sagan: warning: {doubt}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )


def refuse(what: str) -> None:
    """One line on standard error that says why not; names in it may have line breaks and odd letters."""
    line = " ".join(what.splitlines()).encode(errors="replace").decode()
    Console(stderr=True).print(f"sagan: {line}", highlight=False, markup=False, soft_wrap=True)


def fail(error: Exception | str) -> NoReturn:
    if isinstance(error, OSError):
        error = f"{error.strerror or error}: {error.filename}"
    refuse(str(error))
    raise typer.Exit(2) from None
