"""A worker with an odd engine.

TEST_SLOW: seconds that each forward takes longer, TEST_SLOW_MAPS: that each attention map does. TEST_POISON:
a seed that kills the worker. TEST_BROKEN: a seed whose forward fails.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from imaging.spec import ImageSpec
from jobs.job import AttentionMap
from worker.engine import Engine, load_engines
from worker.main import run_worker
from worker.settings import WorkerSettings

SLOW = float(os.environ.get("TEST_SLOW", "0"))
SLOW_MAPS = float(os.environ.get("TEST_SLOW_MAPS", "0"))
POISON = int(os.environ.get("TEST_POISON", "-1"))
BROKEN = int(os.environ.get("TEST_BROKEN", "-1"))


class OddEngine(Engine):
    """An engine with a fault."""

    def sample(self, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
        if any(spec.seed == POISON for spec in specs):
            os._exit(9)
        time.sleep(SLOW)
        if any(spec.seed == BROKEN for spec in specs):
            raise ValueError("it is broken")
        return super().sample(specs)

    def attention(self, spec: ImageSpec, layer: str) -> tuple[NDArray[np.uint8], AttentionMap]:
        time.sleep(SLOW_MAPS)
        return super().attention(spec, layer)


def load(settings: WorkerSettings) -> Mapping[str, Engine]:
    engines = load_engines(settings)
    for engine in engines.values():
        engine.__class__ = OddEngine
    return engines


sys.exit(run_worker(WorkerSettings(), load))
