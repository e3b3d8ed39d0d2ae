"""A worker whose engine runs the plain network instead of its own: for ours_way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.network import plain
from model.checkpoint import Checkpoint
from worker.engine import Engine, ThreadBudget
from worker.main import run_worker
from worker.settings import WorkerSettings


class PlainEngine(Engine):
    """Eager float32, as in every peer."""

    def __init__(self, checkpoint: Checkpoint, *rest: Any) -> None:
        super().__init__(checkpoint, *rest)
        network = plain(checkpoint.generator)
        # no job of a comparison mixes classes
        self._network = lambda z, y, _: network(z, y[:, 0])  # type: ignore[assignment]
        self.max_batch = 16
        self._sizes = {share: range(1, self.max_batch + 1) for share in self._budget.shares}

    def verify_batch_sizes(self) -> None:
        """Every size is in use already: a plain network promises nothing about pixels."""


def plain_loader(settings: WorkerSettings) -> Callable[[Path], Engine]:
    budget = ThreadBudget(settings.threads)
    return lambda path: PlainEngine.load(path, torch.device("cpu"), "float32", budget)


if __name__ == "__main__":
    sys.exit(run_worker(WorkerSettings(), plain_loader))
