"""A shorter start: what can be done before, and beside, the worker's own imports. Standard library alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from importlib.util import find_spec
from pathlib import Path
from threading import Thread


def begin() -> None:
    """To be called before torch is imported; `settle` when everything is loaded."""
    gc.disable()  # imports make a million objects, none of them garbage, and each collection looks at all
    Thread(target=_load_libraries, name="libraries", daemon=True).start()


def settle() -> None:
    """Collect garbage again, but leave out what is there now and stays."""
    gc.freeze()
    gc.enable()


def give_back() -> None:
    """Give the system the memory that loading took and no longer needs: some hundred megabytes."""
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def _load_libraries() -> None:
    """Have the system load torch's libraries, hundreds of megabytes, while Python loads other modules."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return
    folder = Path(found.origin).parent / "lib"
    for name in ("libtorch_global_deps.so", "libtorch_cpu.so", "libtorch_cuda.so"):
        with contextlib.suppress(OSError):  # not on this system: torch knows better where it has them
            ctypes.CDLL(str(folder / name))
