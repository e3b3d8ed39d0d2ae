"""A table: each fault under a steady load, and what became of the accepted jobs."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Final

import typer

from benchmarks.scale_out import fault_services as services
from benchmarks.scale_out.bed import Bed, sleeping_job
from benchmarks.scale_out.fault_kinds import FAULTS, CannotBeMade, Fault, check, small_disk, start_workers
from benchmarks.scale_out.load import Load, MakeSpec, Outcome, outcome, wait_for
from jobs.client import JobClient
from jobs.job import JobSpec

BEFORE: Final = 5.0  # seconds of load before the fault
AFTER: Final = 3.0  # and after it is over


def faults(
    only: Annotated[str, typer.Option(help="Names of faults, comma-separated; all unless told")] = "",
    rate: Annotated[float, typer.Option(help="Jobs a second", min=1)] = 20,
    patience: Annotated[float, typer.Option(help="Seconds in which all jobs must have ended")] = 180,
) -> None:
    """Break one thing after the other under load, and tell what became of the accepted jobs.

    Recovery: seconds from the moment when what was broken is whole again (for a worker that nobody starts
    again: from its death) until every job accepted before has ended. Exit 1 unless every accepted job has
    ended well, once, with images of the model that its record names.
    """
    scenes = _scenes(rate, patience)
    names = [name.strip() for name in only.split(",") if name.strip()] or list(scenes)
    if unknown := [name for name in names if name not in scenes]:
        raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(scenes)}")
    typer.echo("| fault | accepted | ended | failed | doubled | of another model | recovery, s |")
    typer.echo("|---|---|---|---|---|---|---|")
    bad = False
    for name in names:
        what, scene = scenes[name]
        try:
            found, recovery = scene()
        except CannotBeMade as error:
            typer.echo(f"| {what} | not made: {error} | | | | | |")
            continue
        bad |= not found.good
        typer.echo(
            f"| {what} | {found.accepted} | {found.ended} | {found.failed} | {found.doubled} "
            f"| {found.foreign} | {recovery:.1f} |"
        )
    raise typer.Exit(bad)


Scene = Callable[[], tuple[Outcome, float]]


def _scenes(rate: float, patience: float) -> dict[str, tuple[str, Scene]]:
    """Name -> what happens, and how to make it happen."""
    scenes: dict[str, tuple[str, Scene]] = {}
    for name, fault in FAULTS.items():
        scenes[name] = fault.what, _with_sleepers(fault, rate, patience)
    for how in (signal.SIGTERM, signal.SIGKILL):
        scenes[f"api-{how.name[3:].lower()}"] = services.with_api(how), _with_api(how, patience)
    scenes["rolling"] = (
        "another file of the model's name, three workers replaced one by one",
        _with_models(services.prepare_one_model, services.roll, rate, patience),
    )
    scenes["mixed"] = (
        "two workers with different models",
        _with_models(services.prepare_two_models, lambda _: sleep(5), rate, patience),
    )
    return scenes


@contextlib.contextmanager
def _bed(on_a_disk: bool = False) -> Iterator[Bed]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if on_a_disk:
            folder = stack.enter_context(small_disk(folder / "disk"))
        bed = Bed(folder)
        stack.callback(bed.close)
        yield bed


async def _sleeping(store: JobClient, number: int) -> JobSpec:
    return sleeping_job(0.05, number)


def _with_sleepers(fault: Fault, rate: float, patience: float) -> Scene:
    def scene() -> tuple[Outcome, float]:
        check(fault)
        with _bed(fault.on_a_disk) as bed:
            start_workers(bed, fault)
            return _under_load(bed, fault.act, _sleeping, rate, patience)

    return scene


def _with_models(
    prepare: Callable[[Bed], None], act: Callable[[Bed], None], rate: float, patience: float
) -> Scene:
    def scene() -> tuple[Outcome, float]:
        with _bed() as bed:
            prepare(bed)
            return _under_load(bed, act, services.served, rate, patience)

    return scene


def _with_api(how: signal.Signals, patience: float) -> Scene:
    def scene() -> tuple[Outcome, float]:
        with _bed() as bed:
            bed.grow(1)
            return services.end_the_api(bed, how, patience)

    return scene


def _under_load(
    bed: Bed, act: Callable[[Bed], None], make: MakeSpec, rate: float, patience: float
) -> tuple[Outcome, float]:
    with Load(bed.settings, rate, make) as load:
        sleep(BEFORE)
        act(bed)
        whole = monotonic()
        before = [job_id for job_id, at in list(load.accepted.items()) if at <= whole]
        recovery = wait_for(bed.redis, bed.settings, before, patience)
        sleep(AFTER)
    wait_for(bed.redis, bed.settings, load.accepted, patience)
    return outcome(bed.redis, bed.settings, load.accepted), recovery
