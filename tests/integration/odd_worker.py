"""A worker with an odd engine.

TEST_SLOW: seconds that each forward takes longer, TEST_SLOW_MAPS: that each attention map does. TEST_POISON:
a seed that kills the worker. TEST_BROKEN: a seed whose forward fails. TEST_HANG: one whose forward never
returns. TEST_LOST: one that breaks the device.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imaging.spec import ImageSpec
from jobs.job import AttentionMap
from worker.engine import Engine
from worker.main import run_worker
from worker.models import EngineLoader
from worker.settings import WorkerSettings

SLOW = float(os.environ.get("TEST_SLOW", "0"))
SLOW_MAPS = float(os.environ.get("TEST_SLOW_MAPS", "0"))
POISON = int(os.environ.get("TEST_POISON", "-1"))
BROKEN = int(os.environ.get("TEST_BROKEN", "-1"))
HANG = int(os.environ.get("TEST_HANG", "-1"))
LOST = int(os.environ.get("TEST_LOST", "-1"))


class OddEngine(Engine):
    """An engine with a fault."""

    lost = False

    def sample(self, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
        if any(spec.seed == POISON for spec in specs):
            os._exit(9)
        time.sleep(SLOW)
        if any(spec.seed == BROKEN for spec in specs):
            raise ValueError("it is broken")
        if any(spec.seed == HANG for spec in specs):
            time.sleep(3600)
        if any(spec.seed == LOST for spec in specs):
            self.lost = True
        with self._watched():
            if self.lost:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().sample(specs)

    def answers(self) -> bool:
        return not self.lost

    def attention(self, spec: ImageSpec, layer: str) -> tuple[NDArray[np.uint8], AttentionMap]:
        time.sleep(SLOW_MAPS)
        return super().attention(spec, layer)


def odd_loader(settings: WorkerSettings) -> Callable[[Path], Engine]:
    load = EngineLoader(settings)

    def odd(path: Path) -> Engine:
        engine = load(path)
        engine.__class__ = OddEngine
        return engine

    return odd


sys.exit(run_worker(WorkerSettings(), odd_loader))
