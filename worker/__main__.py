"""`python -m worker`: the worker process."""

from __future__ import annotations

import sys

from worker import startup

if __name__ == "__main__":
    startup.begin()
    from jobs.settings import read_settings
    from worker.settings import WorkerSettings

    settings = read_settings(WorkerSettings)  # before the imports that take seconds
    from worker.main import run_worker

    sys.exit(run_worker(settings))
