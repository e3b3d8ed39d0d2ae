"""The messages between the processes of a run; none is sent by one alone. `torchrun` sets the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.errors import TrainError

PATIENCE = timedelta(minutes=30)  # with a silent peer: process 0 may be packing, drawing or saving


class PeerLost(TrainError):
    """Another process ended or fell silent."""

    def __init__(self, wrong: object) -> None:
        # gloo's message begins with a place in its source and ends with advice
        first = re.sub(r"^\[[^]]*\] ", "", str(wrong).strip()).split(". ")[0] or type(wrong).__name__
        super().__init__(
            f"another process of this run ended, or did not answer for {PATIENCE.seconds // 60} minutes "
            f"({first}). What it said tells why; --resume goes on from the last saved state."
        )


@dataclass(frozen=True)
class World:
    """This process among its peers. Every message raises PeerLost when one of them is gone."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks to the terminal."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """This process's rows of a batch, which divides by the processes."""
        each = batch // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch that every process has drawn alike."""
        rows = self.rows(len(batch))
        return batch[rows.start : rows.stop]

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all processes, in place. Waits for nothing on the host where the tensor is on a GPU."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Every process's [...] as [processes, ...]; all of one shape."""
        if self.size == 1:
            return tensor[None]
        gathered = tensor.new_empty(self.size, *tensor.shape)
        with _peers():
            dist.all_gather(list(gathered), tensor.contiguous())
        return gathered

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Mean over all processes of float tensors of one type and device, in place and in one message."""
        if self.size == 1:
            return
        flat = self.sum(torch.cat([t.flatten() for t in tensors])).div_(self.size)
        means = torch.split(flat, [t.numel() for t in tensors])
        torch._foreach_copy_(list(tensors), [m.view_as(t) for m, t in zip(means, tensors, strict=True)])

    def average_gradients(self, parameters: Iterable[nn.Parameter], *figures: Tensor) -> None:
        """Mean of the gradients and of some figures over all processes, in one message."""
        self.average([*(p.grad for p in parameters if p.grad is not None), *figures])

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Take over process 0's values, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            copy = tensor.detach().contiguous()  # a message needs rows that follow each other
            with _peers():
                dist.broadcast(copy, src=0)
            tensor.detach().copy_(copy)

    def anyone(self, *flags: bool) -> list[bool]:
        """Whether each flag is true in any process; for all to stop, or to save, at the same step."""
        if self.size == 1:
            return list(flags)
        # on the CPU, whatever the device: a GPU's queue is not waited for
        return [count > 0 for count in self.sum(torch.tensor(flags, dtype=torch.float)).tolist()]

    def wait(self) -> None:
        """Until every process is here."""
        self.anyone(False)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the peers that `torchrun` started, if any. `device`: "auto", "cpu", "cuda" or "cuda:1".

    Raises TrainError for a device that is not there, PeerLost.
    """
    check_device(device)
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    elif device == "cuda":
        device = f"cuda:{local}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World(device=chosen)
        return
    with _peers():
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def check_device(device: str) -> None:
    """Raises TrainError where there is no device of that name; "auto" is always there."""
    try:
        kind = "cpu" if device == "auto" else torch.device(device).type
    except RuntimeError:
        raise TrainError(f'There is no device {device!r}: give "cpu", "cuda" or "cuda:1".') from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise TrainError(f"There is no GPU for --device {device}, or torch here cannot use it.")


@contextmanager
def _peers() -> Iterator[None]:
    """Errors of the back ends at a lost peer as PeerLost."""
    try:
        yield
    except RuntimeError as wrong:  # gloo's own; dist.DistError is one too
        raise PeerLost(wrong) from wrong
