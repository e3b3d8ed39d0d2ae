"""`python -m worker`: the worker process."""

from __future__ import annotations

import sys

from worker import startup

if __name__ == "__main__":
    startup.begin()
    from worker.main import run_worker
    from worker.settings import WorkerSettings

    sys.exit(run_worker(WorkerSettings()))
