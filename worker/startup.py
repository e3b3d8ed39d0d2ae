"""A faster start: work before and beside the worker's imports. Imports the standard library alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from importlib.util import find_spec
from pathlib import Path
from threading import Thread


def begin() -> None:
    """Call it before torch is imported, and `settle` when everything is loaded."""
    gc.disable()  # imports make a million objects and no garbage, and each collection visits them all
    Thread(target=_load_libraries, name="libraries", daemon=True).start()


def settle() -> None:
    """Collect garbage again, but never among the objects of the imports."""
    gc.freeze()
    gc.enable()


def give_back() -> None:
    """Return memory that only loading needed to the system: some hundred megabytes."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _load_libraries() -> None:
    """Load torch's libraries, hundreds of megabytes, while Python loads other modules."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return
    folder = Path(found.origin).parent / "lib"
    for name in ("libtorch_global_deps.so", "libtorch_cpu.so", "libtorch_cuda.so"):
        with contextlib.suppress(OSError):  # elsewhere on this system: torch itself will find it
            ctypes.CDLL(str(folder / name))
