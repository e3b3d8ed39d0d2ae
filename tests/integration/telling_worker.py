"""A worker that tells of each environment variable that is written while several threads run."""

import os
import runpy
import sys

write = os.putenv


def putenv(name: bytes, value: bytes) -> None:
    if len(os.listdir("/proc/self/task")) > 1:
        sys.stderr.write(f"{'written' if name in os.environb else 'ADDED'} {name!r}\n")
    write(name, value)


os.putenv = putenv  # type: ignore[assignment]  # os.environ calls it
runpy.run_module("worker", run_name="__main__")
