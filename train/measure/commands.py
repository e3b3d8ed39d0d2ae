"""The work behind `sagan evaluate`, `neighbours` and `choose`, from files to files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import torch
from rich.console import Console
from rich.progress import track

from imaging.files import write_whole
from imaging.marks import marked
from model.checkpoint import load_generator, save_generator
from model.config import ModelConfig
from model.generator import Generator
from model.serving.fused import FusedGenerator
from model.serving.precision import in_precision
from train.data.pack import Pack, image_progress, is_source, open_data
from train.efficientnet import open_network
from train.errors import TrainError, told_by_the_system
from train.measure.cas import classification_accuracy
from train.measure.choose import CHOSEN, candidates, choose
from train.measure.eye import NETWORK, PretrainedEye, evaluate_with_pretrained
from train.measure.features import open_trusted
from train.measure.inception import open_inception
from train.measure.metrics import SAMPLES as MEASURED
from train.measure.metrics import GeneratorSampler, evaluate, evaluate_with_inception
from train.measure.neighbours import Sheet, find_neighbours
from train.run.distributed import check_device


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
    where = one_device(device)
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
    where = one_device(device)
    network = open_network(NETWORK)
    loaded = load_generator(checkpoint)
    sampler = GeneratorSampler(loaded.generator.to(where), loaded.class_names, truncation, where)
    pack = _real_images(data, loaded.config)
    with told_by_the_system(out), image_progress() as progress:
        eye = PretrainedEye(pack, network, where, progress=progress)
        found = find_neighbours(sampler, eye, sheet, seed, progress)
        write_whole(out, marked(found.picture))
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
    where = one_device(device)
    pack = _real_images(data, load_generator(candidates(run_folder)[0]).config)
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
    with told_by_the_system(checkpoint), TemporaryFile(dir=checkpoint.parent):
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
    with told_by_the_system(checkpoint):
        save_generator(checkpoint, loaded.generator, loaded.class_names, metrics, loaded.metadata)


def one_device(device: str) -> str:
    """`device`; "auto" is a GPU if there is one. Raises TrainError for a device that is not there."""
    check_device(device)
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
