"""The mean of a run's snapshots: a longer average of the generator, made after the fact.

An average over more of a run than `ema_half_life` says, for which nothing has to be trained again (stochastic
weight averaging, Izmailov et al. 2018; post-hoc averages of snapshots, Karras et al. 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_generator, save_generator
from train.errors import TrainError
from train.run.ema import recompute_statistics

BATCH = 32  # images of a batch of the statistics


@torch.no_grad()
def average(snapshots: Sequence[Path], out: Path, batches: int = 120) -> None:
    """Write the mean of the generators in `snapshots` to `out`, with the last one's classes and metadata.

    batches: of 32 images, from which batch-norm statistics are made anew. Raises TrainError, CheckpointError.
    """
    if len(snapshots) < 2:
        raise TrainError("A mean needs two snapshots at least: those in RUN/snapshots.")
    if out.exists():
        raise TrainError(f"{out} is there already: remove it, or choose another name.")
    loaded = [load_generator(path) for path in snapshots]
    last = loaded[-1]
    for path, one in zip(snapshots, loaded, strict=True):
        if (one.config, one.class_names) != (last.config, last.class_names):
            raise TrainError(f"{path} is another network than {snapshots[-1]}, or has other classes.")
    networks = [dict(one.generator.named_parameters()) for one in loaded]
    for name, parameter in last.generator.named_parameters():
        mean = torch.stack([network[name].double() for network in networks]).mean(0)
        parameter.copy_(mean)
    recompute_statistics(last.generator, batches, BATCH)
    averaged = {"averaged": [path.name for path in snapshots]}
    save_generator(out, last.generator, last.class_names, metadata={**last.metadata, **averaged})
