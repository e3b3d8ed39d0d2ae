"""The console command `sagan`: what each subcommand takes; what it does lives in the packages.

Imports are made inside the commands, so that an image with the API alone needs no torch to start.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n")[0])
data = typer.Typer(no_args_is_help=True, help="Labelled images, packed once into one file.")
app.add_typer(data, name="data")
console = Console()

_BUSY = 0.25  # cores that others keep busy, above which a machine is not quiet

Port = Annotated[int, typer.Option(help="TCP port", envvar="PORT", min=0, max=65535)]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every interface")]
Checkpoint = Annotated[Path, typer.Argument(help="A .safetensors file written by `sagan train`")]
Device = Annotated[str, typer.Option(help='"cpu", "cuda" or "cuda:1"; "auto": a GPU if there is one')]
Seed = Annotated[int, typer.Option(help="Seed of the images", min=0, max=2**63 - 1)]


def _within_truncation(value: float) -> float:
    if not 0 < value <= 1:  # so that nan fails
        _fail(f"truncation is {value}; it must be above 0 and at most 1.")
    return value


def _png(path: Path) -> Path:
    """A picture's place, so that no checkpoint and no pack is written over."""
    if path.suffix.lower() != ".png":
        _fail(f"--out {path}: its name must end in .png.")
    if path.is_dir():
        _fail(f"--out {path} is a folder: give the name of a file in it.")
    return path


Truncation = Annotated[
    float,
    typer.Option(help="Scale of the noise, (0, 1]: lower is safer, less varied", callback=_within_truncation),
]


@app.command()
def serve(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Everything in one command: API, worker and, unless SAGAN_REDIS_URL is set, a private Redis."""
    from worker.embedded import run

    raise typer.Exit(run(host=host, port=port))


@app.command()
def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(help="Processes; /metrics counts the requests of one", min=1)] = 1,
) -> None:
    """The HTTP face alone. It needs a Redis (SAGAN_REDIS_URL) and a worker beside it."""
    import logging

    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        server_header=False,
        access_log=False,  # the app writes a line a request itself
        timeout_graceful_shutdown=5,  # seconds: event streams never end by themselves
    )


@app.command()
def worker() -> None:
    """A Celery worker alone: it loads the checkpoints (SAGAN_CHECKPOINTS) and takes jobs from Redis."""
    _wait_passively(quiet=True)  # its forwards have a thread or two each
    from worker import start

    start.begin()
    from worker.main import run_worker
    from worker.settings import WorkerSettings

    raise typer.Exit(run_worker(WorkerSettings()))


@app.command()
def train(
    source: Annotated[Path, typer.Option("--data", help="Folder or zip of pictures, pack, CIFAR-10, ...")],
    out: Annotated[Path, typer.Option(help="Folder of the run; for features: the file")],
    recipe: Annotated[
        str, typer.Argument(help='A recipe\'s name, a .toml file, "auto": by the pictures, or "features"')
    ] = "auto",
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out")] = False,
    start: Annotated[
        Path | None, typer.Option("--from", help="A generator of the same shape whose weights to begin with")
    ] = None,
    stop_after: Annotated[str | None, typer.Option(help="Stop in time, all saved: 90s, 9m, 1.5h")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value; for features field=value")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; unless told, on a GPU")
    ] = None,
    graph: Annotated[
        bool | None,
        typer.Option("--graph/--no-graph", help="Record a step as a CUDA graph; unless told, on one GPU"),
    ] = None,
) -> None:
    """Labelled images -> checkpoint. Ctrl-C saves; --resume goes on exactly where it stopped.

    `sagan train --data my-photos --out runs/mine` is enough for a folder of photos (one of folders, where
    there are classes): it looks at them, chooses a recipe, says why and how long it will take.

    `sagan train features` trains the small classifier that `sagan evaluate` measures with.
    """
    _wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.execution import CaptureFailed
    from train.loop import STATE
    from train.run import run, run_features, seconds

    try:
        limit = seconds(stop_after) if stop_after else None
        if recipe == "features":
            features = run_features(
                source,
                out,
                console=console,
                device=device,
                resume=resume,
                start=start,
                stop_after=limit,
                settings=settings or [],
                compile=compile,
                graph=graph,
            )
            _warn(features.doubt)
            return
        outcome = run(
            recipe,
            source,
            out,
            console=console,
            device=device,
            resume=resume,
            start=start,
            stop_after=limit,
            settings=settings or [],
            compile=compile,
            graph=graph,
        )
    except CaptureFailed as error:
        if (out / STATE).exists() and not resume:  # saved within the first steps
            _fail(f"{error} Go on by --resume --no-graph.")
        _warn(f"{error} It starts again without: --no-graph.")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--no-graph"])
    except (TrainError, ModelError) as error:
        _fail(error)
    if outcome.finished:
        _tell(f"step {outcome.step}: finished. The generator is in {out}/generator.safetensors.")
    else:
        _tell(f"step {outcome.step}: stopped ({outcome.reason}), all saved; --resume goes on.")


@app.command()
def sample(
    checkpoint: Checkpoint,
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="Number or name of the class")],
    out: Annotated[Path, typer.Option(help="Folder for the PNGs")] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, max=10_000)] = 1,
    seed: Seed = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
) -> None:
    """Make images from a checkpoint without any server: the same pixels that the service would make."""
    from worker.offline import OfflineError, write_samples

    try:
        for path in write_samples(checkpoint, class_name, out, count, seed, truncation, device):
            _tell(str(path))
    except (OfflineError, OSError) as error:
        _fail(error)


@app.command()
def sheet(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The sheet, a PNG", callback=_png)] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(help="Images a class", min=1, max=100)] = 10,
    rows: Annotated[
        int | None, typer.Option(help="So many classes, spread over all; unless told, every class", min=1)
    ] = None,
    seed: Seed = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
) -> None:
    """A contact sheet for a model card: the first images of one seed, unpicked, a row a class."""
    from worker.offline import OfflineError, write_sheet

    try:
        write_sheet(checkpoint, out, columns, rows, seed, truncation, device)
    except (OfflineError, OSError) as error:
        _fail(error)
    _tell(str(out))


@app.command()
def attention(
    checkpoint: Checkpoint,
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="Number or name of the class")],
    out: Annotated[Path, typer.Option(help="The figure, a PNG", callback=_png)] = Path("attention.png"),
    seed: Seed = 0,
    index: Annotated[int, typer.Option(help="Which image of that seed", min=0)] = 0,
    truncation: Truncation = 1.0,
    layer: Annotated[str | None, typer.Option(help='Such as "16x16"; the first one unless told')] = None,
    device: Device = "auto",
) -> None:
    """Draw what the generator attended to: five points and where each one looks."""
    from app.overlay import Look, default_points, figure
    from app.pictures import write
    from model.checkpoint import write_whole
    from worker.offline import OfflineError, attend

    try:
        pixels, found = attend(checkpoint, class_name, seed, index, truncation, layer, device)
        points = default_points(found, len(pixels))
        title = f"{checkpoint.stem}, class {class_name}, seed {seed}, image {index}"
        write_whole(out, write(figure(pixels, found, points, Look(), title)))
    except (OfflineError, OSError) as error:
        _fail(error)
    _tell(str(out))


@app.command()
def reproduce(
    image: Annotated[Path, typer.Argument(help="A PNG that this service made")],
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints")] = Path("checkpoints"),
    device: Device = "auto",
) -> None:
    """Make an image again from the recipe inside its PNG, and compare."""
    from worker.offline import OfflineError, compare

    try:
        verdict = compare(image, checkpoints, device)
    except OfflineError as error:
        _fail(error)
    _tell(verdict.text)
    raise typer.Exit(0 if verdict.same else 1)


@app.command()
def models(
    folder: Annotated[Path, typer.Argument(help="Folder of checkpoints")] = Path("checkpoints"),
) -> None:
    """List the checkpoints in a folder, and say of a bad one what is wrong with it."""
    from worker.offline import describe

    for line in describe(folder):
        _tell(line)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    source: Annotated[Path, typer.Option("--data", help="The pack to measure by, and its classes")],
    features: Annotated[
        Path | None, typer.Option(help="File that `sagan train features` wrote on that pack")
    ] = None,
    inception: Annotated[
        bool, typer.Option("--inception", help="FID and its relatives, torch-fidelity fetching the weights")
    ] = False,
    inception_weights: Annotated[
        Path | None, typer.Option(help="FID and its relatives, with the weights in this file")
    ] = None,
    cas: Annotated[
        bool, typer.Option("--cas", help="Train a classifier on generated images, test it on real ones")
    ] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="In the features of a network that ImageNet taught")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(help="Images to make; unless told 5,000, for Inception 10,000 or 50,000", min=2),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="all, train or held-out images; unless told train, for Inception all")
    ] = None,
    seed: Seed = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="As a worker runs it: auto, float32, bfloat16, int8; unless told as trained"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Write the figures into the checkpoint")] = False,
) -> None:
    """Measure a generator beside real images: in our own classifier's features (not FID), in those of a
    network that ImageNet taught, in Inception's, or by what a classifier learns from its images.
    """
    _wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.run import check_keepable, keep_figures, run_evaluation

    try:
        if keep:
            check_keepable(checkpoint)  # before the long work
        figures = run_evaluation(
            checkpoint,
            source,
            features,
            inception,
            inception_weights,
            cas,
            pretrained,
            samples=samples,
            reference=reference,
            seed=seed,
            truncation=truncation,
            device=device,
            precision=precision,
        )
        console.print_json(data=figures)
        for report in figures.values():
            if isinstance(report, dict) and "protocol" in report:
                _warn(report["protocol"].get("warning"))
        if keep:
            keep_figures(checkpoint, figures)
    except (TrainError, ModelError) as error:
        _fail(error)


@app.command()
def neighbours(
    checkpoint: Checkpoint,
    source: Annotated[Path, typer.Option("--data", help="The pack it was trained on")],
    out: Annotated[Path, typer.Option(help="The picture, a PNG", callback=_png)] = Path("neighbours.png"),
    columns: Annotated[int, typer.Option(help="Real images beside a generated one", min=1, max=100)] = 8,
    rows: Annotated[int, typer.Option(help="Generated images to show", min=1, max=1000)] = 10,
    samples: Annotated[int, typer.Option(help="Generated images to measure", min=1)] = 1000,
    seed: Seed = 0,
    truncation: Truncation = 1.0,
    device: Device = "auto",
) -> None:
    """Draw the real images that are nearest to generated ones, in the features of a network that ImageNet
    taught, and compare their distance with that of real images to each other: copies are far nearer.
    """
    _wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.run import run_neighbours

    try:
        run_neighbours(
            checkpoint,
            source,
            out,
            samples=samples,
            columns=columns,
            rows=rows,
            seed=seed,
            truncation=truncation,
            device=device,
            console=console,
        )
    except (TrainError, ModelError) as error:
        _fail(error)
    _tell(str(out))


@app.command()
def experiment(
    name: Annotated[
        str,
        typer.Argument(
            help="attention-sites, spatial-blindness, stabilisers, attention-forms or ablations",
        ),
    ],
    source: Annotated[Path, typer.Option("--data", help="A pack, or anything `sagan data pack` reads")],
    out: Annotated[Path, typer.Option(help="Folder of the experiment: its runs, figures and report")],
    recipe: Annotated[str | None, typer.Option(help="Base recipe; unless told, the experiment's own")] = None,
    scale: Annotated[float, typer.Option(help="Times the experiment's steps and milestones")] = 1.0,
    seeds: Annotated[int, typer.Option(help="Runs a variant", min=1)] = 1,
    only: Annotated[str | None, typer.Option(help="One variant, by name")] = None,
    features: Annotated[
        Path | None, typer.Option(help="File that `sagan train features` wrote; else one is trained first")
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="spatial-blindness: look through Inception as well")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images a milestone", min=6)] = 2000,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.field=value")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Stop in time, all kept: 90s, 20m, 1.5h")] = None,
    device: Device = "auto",
) -> None:
    """Put a question to several variants of a recipe, and write a report with tables, curves and samples.

    The same command goes on where it was, however it ended; more seeds, variants or scale reuse what is
    there. Started twice at once, the two share the work.
    """
    _wait_passively()
    from train.errors import TrainError
    from train.experiments.command import run_experiment
    from train.run import seconds

    try:
        finished = run_experiment(
            name,
            source,
            out,
            console=console,
            recipe=recipe,
            scale=scale,
            seeds=seeds,
            only=only,
            features=features,
            inception_weights=inception_weights,
            samples=samples,
            settings=settings or [],
            stop_after=seconds(stop_after) if stop_after else None,
            device=device,
        )
    except TrainError as error:
        _fail(error)
    _tell(f"{'Finished' if finished else 'Stopped, all kept; the same command goes on'}. {out}/report.html")


@app.command()
def choose(
    run: Annotated[Path, typer.Argument(help="Folder of a run with schedule.snapshot_every")],
    source: Annotated[Path, typer.Option("--data", help="The pack it was trained on, or one like it")],
    features: Annotated[
        Path | None, typer.Option(help="File that `sagan train features` wrote, to check the ranking by")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images of each snapshot", min=2)] = 2000,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Let a run's last discriminator judge the run's snapshots; the best becomes chosen.safetensors there."""
    _wait_passively()
    from model.errors import ModelError
    from train.errors import TrainError
    from train.run import run_choice

    try:
        run_choice(run, source, features, samples=samples, seed=seed, device=device, console=console)
    except (TrainError, ModelError) as error:
        _fail(error)


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="Where the service is, such as http://127.0.0.1:8000")],
    class_name: Annotated[str, typer.Option("--class", help="Number or name of the class")] = "0",
    model: Annotated[str | None, typer.Option(help="Unless told, the service's default")] = None,
    count: Annotated[int, typer.Option(help="Images a job", min=1, max=64)] = 1,
    clients: Annotated[str, typer.Option(help="Closed loop: so many at once; 1,8,32: in turn")] = "8",
    rate: Annotated[
        float | None, typer.Option(help="Open loop instead: requests a second, whatever comes of them")
    ] = None,
    even: Annotated[bool, typer.Option("--even", help="With --rate: equal gaps, not random ones")] = False,
    seconds: Annotated[float, typer.Option(help="Measured time of each load", min=0.1)] = 10.0,
    warm_up: Annotated[float, typer.Option(help="Seconds before that", min=0.0)] = 2.0,
    seed: Seed = 0,
    api_key: Annotated[
        str | None, typer.Option(help="Key of a service that asks for one", envvar="SAGAN_API_KEY")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and bench.svg")] = None,
) -> None:
    """Put load on a running service: images a second, latency percentiles, and every error by its kind.

    A latency counts from when the request should have been sent, so that a stall hides nothing.
    """
    import shlex
    import sys

    from bench.client import BenchError
    from bench.command import Question, loads, run

    # as typed, for the file; the key is nobody else's business
    command = shlex.join(["sagan", *("…" if api_key and word == api_key else word for word in sys.argv[1:])])
    try:
        wanted = loads(clients, rate, even=even, seed=seed)
        question = Question(class_name, model, count, seed, api_key)
        run(url, question, wanted, seconds, warm_up, out, console, command)
    except BenchError as error:
        _fail(error)


@data.command()
def pack(
    source: Annotated[Path, typer.Argument(help="Folder or zip of class folders, CIFAR-10, Stanford Dogs")],
    out: Annotated[Path, typer.Argument(help="The pack, a .safetensors file")],
    resolution: Annotated[
        int | None, typer.Option(help="Pixels a side; unless told, the images' own")
    ] = None,
    min_crop: Annotated[int, typer.Option(help="Stanford Dogs: shortest crop kept, source pixels")] = 48,
    shards: Annotated[
        int, typer.Option(help="Files beside OUT to deal the images to, for several hosts; 1: only OUT")
    ] = 1,
    licence: Annotated[str | None, typer.Option(help="Note that models trained on it will carry")] = None,
) -> None:
    """Read labelled images once, into one file that opens at once. Bad pictures are named and left out."""
    from train import data as packs
    from train.errors import TrainError

    try:
        with packs.image_progress(console) as progress:
            report = packs.pack(
                source,
                out,
                resolution,
                min_crop=min_crop,
                shards=shards,
                licence=licence,
                progress=progress,
            )
    except TrainError as error:
        _fail(error)
    for line in report.lines():
        _tell(line)  # file names may look like markup


def _wait_passively(quiet: bool | None = None) -> None:
    """Before torch is loaded: let its threads sleep while they wait for each other, not spin for long.

    Spinning from one layer to the next, some 0.2 ms, makes steps up to a tenth faster on idle cores, and
    twice as slow at worst beside a busy process (benchmarks/README.md). quiet: cores are idle; None: looks.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "GOMP_SPINCOUNT" not in os.environ and (_busy_cores() < _BUSY if quiet is None else quiet):
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _busy_cores(seconds: float = 0.2) -> float:
    """How many cores other processes keep busy now; infinite where the system does not tell."""

    def ticks() -> int:
        user, nice, system, *_ = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
        return user + nice + system

    try:
        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds
    except (OSError, ValueError):
        return math.inf


def _tell(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _warn(doubt: str | None) -> None:
    """On standard error, so that what is piped on stays as it is. None: nothing to warn of."""
    if doubt:
        Console(stderr=True).print(
            f"sagan: warning: {doubt}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )


def _fail(error: Exception | str) -> NoReturn:
    if isinstance(error, OSError):
        error = f"{error.strerror}: {error.filename}"
    Console(stderr=True).print(f"sagan: {error}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
