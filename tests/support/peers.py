"""One process of test_distributed.py: trains with its peers, and writes its findings to the test's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from train.data.pack import open_pack
from train.recipes.recipe import Recipe, read_recipe
from train.run.cross_replica import CrossReplicaNorm
from train.run.distributed import World, joined
from train.run.loop import Session, train
from train.run.state import TrainingState

STEPS = 6
LATER = 3  # the step at which a run moves to another number of processes


def recipe(steps: int = STEPS, *, cross_replica_norm: bool = True, precision: str = "float32") -> Recipe:
    """float32 unless told: "auto" would let the machine decide how close two runs come."""
    return read_recipe(
        "tiny",
        {
            "optimisation.steps": str(steps),
            "optimisation.cross_replica_norm": str(cross_replica_norm).lower(),
            "optimisation.precision": precision,
            "schedule.log_every": "1",
            "schedule.save_every": "2",
        },
    )


class Losses:
    """Keeps every loss of every step."""

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []

    def after(self, state: TrainingState) -> None:
        self.curve.append({name: value.item() for name, value in state.losses.items()})

    def close(self, state: TrainingState) -> None:
        pass


def run(
    pack: Path, out: Path, world: World, recipe: Recipe, *, resume: bool = False
) -> list[dict[str, float]]:
    """The losses of each step, as this process saw them."""
    losses = Losses()
    train(recipe, open_pack(pack), out, world, [losses], Session(resume=resume))
    return losses.curve


def norm_errors(world: World) -> dict[str, float]:
    """How far our norm over the shares is from BatchNorm2d over the whole batch."""
    draw = torch.Generator().manual_seed(1)
    whole, ours = nn.BatchNorm2d(6), CrossReplicaNorm(nn.BatchNorm2d(6), world)
    with torch.no_grad():
        for parameter, other in zip(whole.parameters(), ours.parameters(), strict=True):
            parameter.copy_(torch.randn(6, generator=draw))
            other.copy_(parameter)
    errors: dict[str, float] = {}

    def compare(name: str, found: Tensor | None, wanted: Tensor | None) -> None:
        assert found is not None
        assert wanted is not None
        error = (found - wanted).abs().max() / wanted.abs().max()
        errors[name] = max(errors.get(name, 0.0), error.item())

    for _ in range(3):
        # uneven shares, and a channel whose mean is far from 0, as sums of squares would not survive
        x = torch.randn(8, 6, 4, 4, generator=draw) + torch.arange(8.0)[:, None, None, None]
        x[:, 0] += 1000
        weights = torch.randn(x.shape, generator=draw)
        everything, share = x.clone().requires_grad_(), world.share(x).clone().requires_grad_()
        wanted, found = whole(everything), ours(share)
        compare("output", found, world.share(wanted))
        for module in (whole, ours):
            module.zero_grad()
        (wanted * weights).square().mean().backward()
        (found * world.share(weights)).square().mean().backward()
        world.average_gradients(ours.parameters())
        assert share.grad is not None
        assert everything.grad is not None
        # each process has the mean over its own share as its loss
        compare("gradient", share.grad / world.size, world.share(everything.grad))
        for name in ("weight", "bias"):
            compare(name, getattr(ours, name).grad, getattr(whole, name).grad)
    for name in ("running_mean", "running_var"):
        compare(name, getattr(ours, name), getattr(whole, name))
    assert ours.state_dict().keys() == whole.state_dict().keys()
    assert ours.num_batches_tracked is not None
    assert int(ours.num_batches_tracked) == 3
    return errors


def words(world: World) -> list[object]:
    """What this process gets from each of the world's calls."""
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2))
    a.grad, b.grad = torch.full((2,), 1.0 + world.rank), torch.full((2, 2), 10.0 * world.rank)
    loss = torch.tensor(float(world.rank))
    world.average_gradients([a, b], loss)
    followed = torch.arange(4.0).view(2, 2).T * (world.rank + 1)  # not contiguous
    world.follow([followed])
    share = world.share(torch.arange(4)).tolist()
    told = world.anyone(world.rank == 1, False)
    return [a.grad.tolist(), b.grad.tolist(), loss.item(), followed.tolist(), share, told]


def main(folder: Path) -> None:
    with joined("cpu") as world:
        root = folder / str(world.size)
        shards = root / f"host-{world.rank}" / "pack.safetensors"  # with those of its own shards alone
        # only process 0 has a folder to write into, as on hosts that share no disk
        out = root if world.leads else root / "nowhere"
        found = {
            "words": words(world),
            "norm": norm_errors(world),
        }
        if world.size == 2:
            single = folder / "pack.safetensors"
            found["one file"] = run(single, out / "one", world, recipe())
            found["own norms"] = run(single, out / "own", world, recipe(1, cross_replica_norm=False))
            found["bf16"] = run(single, out / "bf16", world, recipe(precision="bf16"))
            run(shards, out / "moved", world, recipe(LATER))
        else:
            found["shards"] = run(shards, out / "shards", world, recipe())
            found["moved"] = run(shards, out / "moved", world, recipe(), resume=True)
        (root / f"{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
