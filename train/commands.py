"""The work behind the commands `sagan train`, `evaluate`, `neighbours` and `choose`, from files to files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import torch
from rich.console import Console
from rich.progress import track

from imaging.files import write_whole
from model.checkpoint import load_generator, save_generator
from model.config import ModelConfig
from model.generator import Generator
from model.serving.fused import FusedGenerator
from model.serving.precision import in_precision
from train.data.pack import Pack, image_progress, is_source, open_data
from train.efficientnet import open_network
from train.errors import TrainError
from train.measure.cas import classification_accuracy
from train.measure.choose import CHOSEN, choose
from train.measure.during import BEST, Measured, open_extractor
from train.measure.eye import NETWORK, PretrainedEye, evaluate_with_pretrained
from train.measure.features import Features, open_trusted, split
from train.measure.features_training import FeaturesRecipe, train_features
from train.measure.inception import open_inception
from train.measure.metrics import SAMPLES as MEASURED
from train.measure.metrics import GeneratorSampler, evaluate, evaluate_with_inception
from train.measure.neighbours import Sheet, find_neighbours
from train.recipes.recipe import overrides_of, settings_of
from train.run.beginning import Start, fitting, open_start
from train.run.distributed import World, check_device, joined
from train.run.execution import Execution
from train.run.folder import AUTO, prepare
from train.run.loop import GENERATOR, Observer, Outcome, Session, starting_step, train
from train.run.observers import LIGHTER, SAMPLES, SNAPSHOTS, Grids, ProgressBar, Scalars, Served, Snapshots

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
) -> Outcome:
    """Train `recipe_name` on `data` into the folder `out`; TrainError or ModelError says what to do about it.

    settings: "section.field=value", on top of the recipe. session: None: a new run, to its end; where it
    leaves the execution open, the device decides.
    """
    session = session or Session()
    resume, start = session.resume, session.start
    if resume and start:
        raise TrainError("--resume goes on with the run's own weights: leave --from out.")
    overrides = overrides_of(settings)
    with _told_by_the_system(out), joined(device) as world:
        console.quiet = console.quiet or not world.leads  # one voice, whoever else writes to it
        began = time.monotonic()
        # before anything there is touched; process 0 reads and writes, the others' hosts need not have it
        first = starting_step(out, resume) if world.leads else 0
        if start is not None and world.leads:
            found = _check_start(start, out)
            if recipe_name == AUTO:
                overrides = fitting(found) | overrides
        wanted = session.execution
        execution = Execution.fitting(world.device, world.size, wanted.compile, wanted.graph)
        on_cpu = world.device.type == "cpu"
        if world.leads:
            recipe, pack = prepare(recipe_name, data, out, overrides, on_cpu, console, resume=resume)
        world.wait()  # until the pictures are packed and the recipe is written
        if not world.leads:
            quiet = Console(quiet=True)
            recipe, pack = prepare(recipe_name, data, out, overrides, on_cpu, quiet, resume=True)
        if len(pack) < 2:
            raise TrainError(f"{data} has one picture: a network needs many to learn from.")
        observers: list[Observer] = []
        if world.leads:
            schedule = recipe.schedule
            bar = ProgressBar(
                console,
                first,
                recipe.optimisation.steps,
                schedule.log_every,
                stop_after=session.stop_after,
                data_seconds=time.monotonic() - began,
                lighter=SMALLER if recipe_name == AUTO and pack.resolution > 32 else LIGHTER,
            )
            observers = [
                bar,
                scalars := Scalars(out, first, schedule.log_every),
                Grids(out, pack, recipe, console),
                Served(out / GENERATOR, {"description": recipe.description}),
                Snapshots(out / SNAPSHOTS, {"description": recipe.description}),
            ]
            if schedule.measure_every:
                extractor = open_extractor(pack, session.features)
                tell = (lambda step, found: scalars.add(step, _as_curves(found)), bar.measured)
                about = {"description": recipe.description}
                observers.append(Measured(out, pack, extractor, first, str(world.device), about, tell))
            console.print(_about(world, pack, recipe.name, out), markup=False, soft_wrap=True)
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        return train(recipe, pack, out, world, observers, replace(session, execution=execution, tell=say))


def _as_curves(figures: Mapping[str, float]) -> dict[str, float]:
    return {f"measure/{name}": value for name, value in figures.items()}


def _check_start(start: Path, out: Path) -> Start:
    """The networks in `start`. Raises TrainError or ModelError where a run in `out` cannot begin so."""
    for written in (out / GENERATOR, out / BEST):
        if start.exists() and written.exists() and start.samefile(written):
            raise TrainError(f"{start} would be written over by this run: choose another --out.")
    return open_start(start)


def run_features(
    data: Path,
    out: Path,
    *,
    console: Console,
    device: str = "auto",
    settings: Sequence[str] = (),
    session: Session | None = None,
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
    where = _one_device(device)
    with image_progress(console) as progress:
        pack = open_data(data, resolution, progress=progress)
        recipe = FeaturesRecipe.fitting(len(split(len(pack))[0]), **wanted)
        features = train_features(pack, out, recipe, device=where, progress=progress)
    console.print(f"{out}: {features.accuracy:.1%} right on the tenth of the images that it never saw.")
    return features


@dataclass(frozen=True)
class Measures:
    """The measurements to make of a checkpoint, with how many images and against which real ones."""

    features: Path | None = None  # file of the own classifier; None: not in its features
    inception: bool = False
    inception_weights: Path | None = None  # its file, which implies `inception`; None: the library's download
    cas: bool = False
    pretrained: bool = False
    samples: int | None = None  # generated images; None: each measurement's own number
    reference: str | None = None  # "train", "held-out" or "all"; None: each measurement's own
    resolution: int | None = None  # pixels of real images that are no pack yet; None: the generator's


def run_evaluation(
    checkpoint: Path,
    data: Path,
    measures: Measures,
    *,
    seed: int = 0,
    truncation: float = 1.0,
    device: str = "auto",
    precision: str | None = None,
) -> dict[str, object]:
    """The reports asked for: "own_features", "inception", "pretrained", "cas", each with its protocol.

    precision: measure the generator as a worker runs it in that; None: as it was trained.
    Raises TrainError or ModelError.
    """
    features, reference = measures.features, measures.reference
    inception = measures.inception or measures.inception_weights is not None
    if not (features or inception or measures.cas or measures.pretrained):
        raise TrainError(
            "Nothing to measure with: give --features FILE, --pretrained, --inception-weights FILE, "
            "--inception or --cas."
        )
    where = _one_device(device)
    # all files are opened before the long work
    eye = open_inception(measures.inception_weights) if inception else None
    network = open_network(NETWORK) if measures.pretrained else None
    if features:
        open_trusted(features)
    loaded = load_generator(checkpoint)
    generator: Generator | FusedGenerator = loaded.generator.to(where)
    if precision is not None:
        generator, precision = in_precision(loaded.generator, torch.device(where), precision)
    sampler = GeneratorSampler(generator, loaded.class_names, truncation, where)
    pack = _real_images(data, loaded.config, measures.resolution)
    reports: dict[str, dict[str, object]] = {}
    samples = measures.samples or MEASURED
    with image_progress() as progress:
        if features:
            reports["own_features"] = evaluate(
                sampler, features, pack, samples, seed, where, progress, reference or "train"
            )
        if eye:
            reports["inception"] = evaluate_with_inception(
                sampler, eye, pack, measures.samples, seed, where, progress, reference or "all"
            )
        if network:
            reports["pretrained"] = evaluate_with_pretrained(
                sampler, network, pack, samples, seed, where, progress, reference or "train"
            )
        if measures.cas:
            reports["cas"] = classification_accuracy(sampler, pack, samples, seed, where, progress)
    about: dict[str, object] = {"checkpoint": checkpoint.name, "checkpoint_sha256": loaded.sha256}
    if precision is not None:
        about["precision"] = precision
    return {name: about | report for name, report in reports.items()}


def run_neighbours(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    sheet: Sheet,
    seed: int,
    truncation: float,
    device: str,
    console: Console,
) -> None:
    """Draw the real images that are nearest to generated ones, and tell how near those are.

    Raises TrainError or ModelError, and then writes nothing.
    """
    where = _one_device(device)
    network = open_network(NETWORK)
    loaded = load_generator(checkpoint)
    sampler = GeneratorSampler(loaded.generator.to(where), loaded.class_names, truncation, where)
    pack = _real_images(data, loaded.config)
    with _told_by_the_system(out), image_progress() as progress:
        eye = PretrainedEye(pack, network, where, progress=progress)
        found = find_neighbours(sampler, eye, sheet, seed, progress)
        write_whole(out, found.picture)
    console.print(found.line(), highlight=False, markup=False, soft_wrap=True)


def run_choice(
    run_folder: Path,
    data: Path,
    features: Path | None,
    *,
    samples: int,
    seed: int,
    device: str,
    console: Console,
) -> None:
    """Let a run's discriminator rank its snapshots; the best becomes `chosen.safetensors` there.

    features: file of the own classifier, to check the ranking by; None: unchecked.
    Raises TrainError or ModelError, and then writes nothing.
    """
    where = _one_device(device)
    pack = open_data(data)
    shown = partial(track, description="snapshots", console=Console(stderr=True))
    choice = choose(run_folder, pack, features, samples=samples, seed=seed, device=where, shown=shown)
    console.print(choice.table())
    for line in (*choice.verdict(), f"{choice.ranked[0].path.name} is now {run_folder / CHOSEN}."):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _real_images(data: Path, config: ModelConfig, resolution: int | None = None) -> Pack:
    """The images at `data` for a generator of that shape; pictures that are no pack yet are packed so.

    resolution: pixels that the user named; None: none. Raises TrainError.
    """
    if resolution is not None and resolution != config.resolution:
        raise TrainError(
            f"The generator makes {config.resolution} px, so it cannot be measured at {resolution} px: leave "
            "--resolution out."
        )
    if not is_source(data):
        pack = open_data(data)
        _check_size(config, pack, data)
        return pack
    with image_progress() as progress:
        return open_data(data, config.resolution, progress=progress)


def _check_size(config: ModelConfig, pack: Pack, data: Path) -> None:
    """Raises TrainError for real images of another size than the generator's."""
    if config.resolution != pack.resolution:
        raise TrainError(
            f"The generator makes {config.resolution} px and {data} has {pack.resolution} px: pack its "
            f"source again by `sagan data pack … --resolution {config.resolution}`."
        )


def check_keepable(checkpoint: Path) -> None:
    """Raises TrainError where `keep_figures` could not write."""
    if checkpoint.exists() and not os.access(checkpoint, os.W_OK):
        raise TrainError(f"{checkpoint} may not be written to: --keep cannot keep figures in it.")
    with _told_by_the_system(checkpoint), TemporaryFile(dir=checkpoint.parent):
        pass


def keep_figures(checkpoint: Path, figures: Mapping[str, object]) -> None:
    """Write the figures into the checkpoint's header, where `/models` and the page find them.

    Raises TrainError, and writes nothing, for Inception's with other weights than the published.
    """
    inception = figures.get("inception")
    if isinstance(inception, dict) and not inception["protocol"]["weights_published"]:
        raise TrainError("Figures with other Inception weights than the published are no FID: not kept.")
    loaded = load_generator(checkpoint)
    metrics = {**loaded.metrics, **figures}
    with _told_by_the_system(checkpoint):
        save_generator(checkpoint, loaded.generator, loaded.class_names, metrics, loaded.metadata)


def _one_device(device: str) -> str:
    """`device`; "auto" is a GPU if there is one. Raises TrainError for a device that is not there."""
    check_device(device)
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


@contextmanager
def _told_by_the_system(out: Path) -> Iterator[None]:
    """Errors of the file system (no permission, no room) as one line."""
    try:
        yield
    except OSError as error:
        at = error.filename or out
        raise TrainError(
            f"{error.strerror or error}: {at}. What had been saved in {out} before is whole."
        ) from error


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
