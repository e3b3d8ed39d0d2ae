"""Kill a training run again and again with SIGKILL, resume it, and compare its end with an undisturbed run's.

    python tests/support/survival.py --kills 200

Prints JSON: what differs (nothing), and in which phase each kill fell. torch is loaded once and every life
of the run is a fork, so that a life costs what it does and not seconds of imports.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from train.commands import run
from train.data.pack import pack
from train.run.grids import Grids
from train.run.loop import GENERATOR, STATE, Session
from train.run.observers import Scalars, Served
from train.run.saved import saved_step
from train.run.state import TrainingState

PHASES = ("starting", "loading", "stepping", "logging", "drawing", "serving", "saving")
STEPS = 4  # of a life that is watched to learn how long things take here
SAVES = STEPS // 2 + 1
SETTINGS = (
    "schedule.log_every=1",
    "schedule.grid_every=3",
    "schedule.save_every=2",
    "schedule.statistics_batches=1",
)


class Phase:
    """The phase a run is in: one byte that the launcher shares, and that survives a kill."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 1)

    @property
    def now(self) -> str:
        return PHASES[self.shared[0]]

    def during(self, owner: type[Any], method: str, name: str) -> None:
        """The phase is `name` while `owner.method` runs."""
        original: Callable[..., Any] = getattr(owner, method)

        def told(*arguments: Any, **named: Any) -> Any:
            before, self.shared[0] = self.shared[0], PHASES.index(name)
            try:
                return original(*arguments, **named)
            finally:
                self.shared[0] = before

        setattr(owner, method, told)


def live(data: Path, out: Path, steps: int) -> int:
    """Fork one life of the run; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if not (resume := (out / STATE).exists()):
            shutil.rmtree(out, ignore_errors=True)  # a generator without its state is not written over
        run(
            "tiny",
            data,
            out,
            console=Console(quiet=True),
            device="cpu",
            session=Session(resume=resume),
            settings=[f"optimisation.steps={steps}", *SETTINGS],
        )
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)  # nothing of the launcher's runs twice


def watch(child: int, phase: Phase) -> Counter[str]:
    """Seconds that a life spends in each phase, until it ends."""
    spent: Counter[str] = Counter()
    last = time.monotonic()
    while _alive(child):
        time.sleep(0.001)
        now = time.monotonic()
        spent[phase.now] += now - last  # type: ignore[assignment]
        last = now
    return spent


def kill_somewhere(child: int, phase: Phase, life: float, save: float, lots: random.Random) -> str:
    """SIGKILL at a random moment; returns the phase it fell into.

    life, save: seconds that a life and a save take. Every third kill waits for a save, since saves are short.
    """
    in_save = lots.random() < 1 / 3
    while in_save and phase.now != "saving" and _alive(child):
        time.sleep(0.0005)
    time.sleep(lots.uniform(0, save if in_save else life))
    if not _alive(child):
        raise SystemExit("the run ended by itself: see above")
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    return phase.now


def _alive(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == 0


def finish(data: Path, out: Path, steps: int) -> None:
    _, status = os.waitpid(live(data, out, steps), 0)
    if status:
        raise SystemExit("the run ended by itself: see above")


def differences(a: Path, b: Path) -> list[str]:
    """Names of the tensors and files in which two finished runs differ."""
    different = []
    for name in (STATE, GENERATOR):
        left, right = load_file(a / name), load_file(b / name)
        different += [f"{name}: keys"] * (left.keys() != right.keys())
        different += [f"{name}: {key}" for key in left if not torch.equal(left[key], right[key])]
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "steps_per_second"}
            for line in (out / "log.jsonl").read_text().splitlines()
        ]
        for out in (a, b)
    ]
    different += ["log.jsonl"] * (logs[0] != logs[1])
    left_pictures, right_pictures = (
        {path.name: path.read_bytes() for path in (out / "samples").iterdir()} for out in (a, b)
    )
    different += ["samples"] * (left_pictures != right_pictures)
    different += [str(path.name) for out in (a, b) for path in out.rglob(".*.part")]
    return different


def photos(folder: Path) -> Path:
    """A pack of two colours."""
    for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            shade = tuple(max(0, c - 10 * i) for c in colour)
            Image.new("RGB", (32, 32), shade).save(folder / "photos" / name / f"{i}.png")
    pack(folder / "photos", folder / "pack.safetensors")
    return folder / "pack.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed if absent")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", file=sys.stderr, flush=True)  # noqa: T201  # to repeat it by, however it ends
    lots, phase = random.Random(seed), Phase()
    torch.set_num_threads(1)  # sums over several depend on how many there are; and none survives a fork
    for owner, method, name in (
        (TrainingState, "load", "loading"),
        (TrainingState, "advance", "stepping"),
        (TrainingState, "save", "saving"),
        (Scalars, "after", "logging"),
        (Grids, "after", "drawing"),
        (Served, "after", "serving"),
    ):
        phase.during(owner, method, name)
    with tempfile.TemporaryDirectory() as folder:
        data = photos(Path(folder))
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        fell: Counter[str] = Counter()
        spent = watch(live(data, Path(folder) / "watched", STEPS), phase)
        reached, pace = 0, 1.0
        for _ in range(asked.kills):
            phase.shared[0] = 0
            child = live(data, killed, 10**6)
            life, save = pace * spent.total(), pace * spent["saving"] / SAVES
            fell[kill_somewhere(child, phase, life, save, lots)] += 1
            before, reached = reached, saved_step(killed / STATE) if (killed / STATE).exists() else 0
            # on a machine that has become busier since, no life would reach a save
            pace = 1.0 if reached > before else 1.15 * pace
        # a step does not depend on the number of steps, so the last life may set it
        steps = reached + 3
        finish(data, killed, steps)
        finish(data, whole, steps)
        found = {
            "seed": seed,
            "kills": asked.kills,
            "fell": {name: fell[name] for name in PHASES},
            "saved_steps": reached,
            "steps": steps,
            "seconds": {name: round(spent[name], 3) for name in PHASES},
            "different": differences(killed, whole),
        }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
