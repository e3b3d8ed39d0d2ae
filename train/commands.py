"""The work behind `sagan train`, from files to files."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from train.data.licence import NOT_STATED, given_licence
from train.data.pack import Pack, image_progress, open_data
from train.data.sources import AS_IT_IS, Reading
from train.errors import TrainError, told_by_the_system
from train.measure.commands import one_device
from train.measure.during import BEST, Measured, open_extractor
from train.measure.features import Extractor, Features, open_features, split
from train.measure.features_training import FeaturesRecipe, train_features
from train.recipes.recipe import Recipe, overrides_of, settings_of
from train.run.beginning import fitting, open_start
from train.run.distributed import World, joined
from train.run.execution import Execution
from train.run.folder import AUTO, prepare, say
from train.run.grids import SAMPLES, Grids
from train.run.loop import GENERATOR, Observer, Outcome, Session, starting_step, train
from train.run.observers import LIGHTER, SNAPSHOTS, ProgressBar, Scalars, Served, Snapshots, check_log
from train.run.rehearsal import rehearse
from train.run.saved import StateError

_NO_LICENCE = 'The pictures state no licence: --licence "…", or a LICENSE file among them, does.'
SMALLER = "--set model.resolution=32 in a new --out"  # for a recipe that is chosen by the pictures


def run(
    recipe_name: str,
    data: Path,
    out: Path,
    *,
    console: Console,
    device: str = "auto",
    settings: Sequence[str] = (),
    session: Session | None = None,
    reading: Reading = AS_IT_IS,
) -> Outcome:
    """Train `recipe_name` on `data` into the folder `out`; TrainError or ModelError says what to do about it.

    settings: "section.field=value", on top of the recipe. session: None: a new run, to its end; where it
    leaves the execution open, the device decides.
    """
    session = session or Session()
    resume, start = session.resume, session.start
    if resume and start:
        raise TrainError("--resume goes on with the run's own weights: leave --from out.")
    session, overrides = _checked(session), overrides_of(settings)
    with told_by_the_system(out), joined(device) as world:
        console.quiet = console.quiet or not world.leads  # one voice, whoever else writes to it
        began = time.monotonic()
        # before anything there is touched; process 0 reads and writes, the others' hosts need not have it
        first = 0
        if world.leads:
            first = starting_step(out, resume) if resume else _check_place(out)
            overrides = _fitted(overrides, recipe_name, start)
        session = replace(session, execution=_execution(session, world), tell=partial(say, console))
        on_cpu = world.device.type == "cpu"
        if world.leads:
            recipe, pack = prepare(
                recipe_name, data, out, overrides, on_cpu, console, resume=resume, reading=reading
            )
        world.wait()  # until the pictures are packed and the recipe is written
        if not world.leads:  # its console is quiet
            recipe, pack = prepare(
                recipe_name, data, out, overrides, on_cpu, console, resume=True, reading=reading
            )
        if len(pack) < 2:
            raise TrainError(f"{data} has one picture: a network needs many to learn from.")
        observers: list[Observer] = []
        if world.leads:
            bar = ProgressBar(
                console,
                first,
                recipe.optimisation.steps,
                recipe.schedule.log_every,
                stop_after=session.stop_after,
                data_seconds=time.monotonic() - began,
                lighter=SMALLER if recipe_name == AUTO and pack.resolution > 32 else LIGHTER,
            )
            observers = [bar, *_lookers(recipe, pack, out, bar, session, str(world.device))]
            if pack.metadata.get("licence") == NOT_STATED and not session.licence and not resume:
                say(console, _NO_LICENCE)
            console.print(_about(world, pack, recipe.name, out), markup=False, soft_wrap=True)
        return train(recipe, pack, out, world, observers, session)


def _execution(session: Session, world: World) -> Execution:
    """How to work: as asked for, and else as the device allows."""
    wanted = session.execution
    return Execution.fitting(world.device, world.size, wanted.compile, wanted.graph)


def _lookers(
    recipe: Recipe, pack: Pack, out: Path, bar: ProgressBar, session: Session, device: str
) -> list[Observer]:
    """What draws, logs, measures and keeps a run."""
    scalars = Scalars(out, bar.first, recipe.schedule.log_every, recipe)
    about = {"description": recipe.description}
    lookers: list[Observer] = [
        Grids(out, pack, recipe, bar.console, scalars.board),  # before its board is closed
        scalars,
        Served(out / GENERATOR, about),
        Snapshots(out / SNAPSHOTS, about),
    ]
    if (extractor := _extractor(recipe, pack, session)) is not None:
        tell = (lambda step, found: scalars.add(step, _as_curves(found)), bar.measured)
        lookers.insert(0, Measured(out, pack, extractor, bar.first, device, about, tell))
    return lookers


def _extractor(recipe: Recipe, pack: Pack, session: Session) -> tuple[Extractor, str, str] | None:
    """What a run is measured with, as `open_extractor` gives it; None: it is not. Raises TrainError."""
    if recipe.schedule.measure_every:
        return open_extractor(pack, session.features)
    if session.features is not None:
        raise TrainError("--features is to measure by: add --set schedule.measure_every=500 or so.")
    return None


def _as_curves(figures: Mapping[str, float]) -> dict[str, float]:
    return {f"measure/{name}": value for name, value in figures.items()}


def rehearsal(
    recipe_name: str,
    data: Path,
    out: Path,
    *,
    console: Console,
    device: str,
    settings: Sequence[str],
    session: Session,
    reading: Reading = AS_IT_IS,
) -> None:
    """Tell what `run` would do, and write nothing. Raises what it would raise."""
    if recipe_name == "features" or session.resume:
        option = "--resume" if session.resume else "features"
        raise TrainError(f"--dry-run tries a new run of a network: leave {option} out.")
    session = _checked(session)
    with told_by_the_system(out), joined(device) as world:
        _check_place(out)
        overrides = _fitted(overrides_of(settings), recipe_name, session.start)
        session = replace(session, execution=_execution(session, world), tell=partial(say, console))
        recipe, pack = rehearse(recipe_name, data, out, overrides, world, session, console, reading)
        _extractor(recipe, pack, session)
    say(console, f"Nothing has been written to {out}. Without --dry-run it begins.")


def _checked(session: Session) -> Session:
    """With the licence on one line. Raises DataError for one that cannot be shown."""
    return session if session.licence is None else replace(session, licence=given_licence(session.licence))


def _check_place(out: Path) -> int:
    """The step at which a new run in `out` begins. Raises StateError where it would write over a file."""
    step = starting_step(out, resume=False)
    for path in (out / GENERATOR, out / BEST, *(out / SNAPSHOTS).glob("*")):
        if path.exists():
            raise StateError(f"{path} is there already, without a state: move it, or choose another --out.")
    check_log(out)
    return step


def _fitted(overrides: dict[str, str], recipe: str, start: Path | None) -> dict[str, str]:
    """With what `auto` takes over of `start`. Raises TrainError or ModelError for a file of another kind."""
    if start is None:
        return overrides
    found = open_start(start)
    return fitting(found) | overrides if recipe == AUTO else overrides


def run_features(
    data: Path,
    out: Path,
    *,
    console: Console,
    device: str = "auto",
    settings: Sequence[str] = (),
    session: Session | None = None,
    reading: Reading = AS_IT_IS,
    resolution: int | None = None,
) -> Features:
    """Train the classifier that images are measured with; TrainError says what to do about it.

    settings: fields of FeaturesRecipe, "field=value"; those left out fit the number of images.
    session: must say nothing: a classifier is trained in one sitting. resolution: pixels of pictures that are
    no pack yet; None: their own size.
    """
    session = session or Session()
    for option, given in (
        ("--resume", session.resume),
        ("--from", session.start is not None),
        ("--stop-after", session.stop_after is not None),
        ("--licence", session.licence is not None),
        ("--features", session.features is not None),
        ("--compile", session.execution.compile is True),
        ("--no-compile", session.execution.compile is False),
        ("--graph", session.execution.graph is True),
        ("--no-graph", session.execution.graph is False),
    ):
        if given:
            raise TrainError(
                f"{option} is for networks: features are trained whole, in minutes. Leave it out."
            )
    wanted = settings_of("features", FeaturesRecipe, settings)
    _check_features_place(out)
    where = one_device(device)
    with image_progress(console) as progress:
        pack = open_data(data, resolution, reading=reading, progress=progress)
        recipe = FeaturesRecipe.fitting(len(split(len(pack))[0]), **wanted)
        features = train_features(pack, out, recipe, device=where, progress=progress)
    console.print(f"{out}: {features.accuracy:.1%} right on the tenth of the images that it never saw.")
    return features


def _check_features_place(out: Path) -> None:
    """Raises TrainError where another file than a feature extractor would be written over."""
    try:
        if out.is_dir() or (out.exists() and out.stat().st_size):
            open_features(out)
    except TrainError:
        raise TrainError(
            f"{out} is there already and is no feature extractor: choose another --out."
        ) from None


def seconds(text: str) -> float:
    """ "90", "90s", "9m" or "1.5h" as seconds. Raises TrainError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise TrainError(f"{text!r} is not a length of time; write 90s, 9m or 1.5h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _about(world: World, pack: Pack, recipe: str, out: Path) -> str:
    processes = f"{world.size} processes on " if world.size > 1 else ""
    classes = len(pack.class_names)
    of = f"{len(pack):,} images of {classes} class{'es' if classes > 1 else ''}"
    return f"recipe {recipe}: {of}, {processes}{world.device}, into {out} (see {out / SAMPLES})"
