"""A faster start: work before and beside the worker's imports. Imports the standard library alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Final

# A variable that is new moves the whole environment in memory, and a thread that reads it meanwhile, as
# torch's do, ends the process (glibc before 2.41). Celery and numpy write these while threads run.
WRITTEN_LATER: Final = {
    "CELERY_LOG_FILE": "",
    "CELERY_LOG_LEVEL": "",
    "OPENBLAS_MAIN_FREE": "1",
    "_MP_FORK_LOGFILE_": "",
    "_MP_FORK_LOGFORMAT_": "",
    "_MP_FORK_LOGLEVEL_": "",
}


def begin() -> None:
    """Call it before torch is imported, and `settle` when everything is loaded."""
    for name, value in WRITTEN_LATER.items():
        os.environ.setdefault(name, value)
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
