"""One process of test_judge_distributed.py: as peers.py, with the pretrained judge."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peers import run
from train.recipes.recipe import Recipe, read_recipe
from train.run.distributed import joined

STEPS = 4


def recipe() -> Recipe:
    return read_recipe(
        "tiny",
        {
            "model.class_embedding": "8",
            "optimisation.judge": "pretrained",
            "optimisation.steps": str(STEPS),
            "optimisation.batch": "8",
            "optimisation.precision": "float32",
            "optimisation.cross_replica_norm": "true",
            "optimisation.augment": "translation,cutout",
            "optimisation.augment_after": "2",
            "schedule.save_every": "2",
        },
    )


def main(folder: Path) -> None:
    with joined("cpu") as world:
        shards = folder / f"host-{world.rank}" / "pack.safetensors"  # with those of its own shards alone
        found = {
            "one file": run(folder / "pack.safetensors", folder / "two" / "one file", world, recipe()),
            "shards": run(shards, folder / "two" / "shards", world, recipe()),
        }
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
