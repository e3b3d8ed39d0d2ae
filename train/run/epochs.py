"""Which images a batch has: epochs without replacement, in an order that every process knows.

The batch over all processes is, shard by shard, batch/shards images of each, drawn from that shard in epochs
of its own. A process takes its rows of it and reads only the shards they lie in. So what a step sees depends
on the seed, the step and the number of shards (a pack in one file being one), never on that of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from train.errors import TrainError


class Epochs:
    """The rows of one process.

    lengths: images in each shard. batch: images over all processes. rows: which of them are ours. draw: a
    generator for a purpose and a number, the same in every process.
    Raises TrainError for a batch that the shards cannot share evenly.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch: int,
        rows: range,
        draw: Callable[[str, int], torch.Generator],
    ) -> None:
        if batch % len(lengths):
            raise TrainError(
                f"batch {batch} does not divide by the {len(lengths)} shards of the data: choose a multiple "
                "of them, or pack the data in another number of shards."
            )
        self.lengths, self.rows, self._draw = lengths, rows, draw
        self._starts = list(accumulate(lengths, initial=0))
        self._each = batch // len(lengths)
        self._orders: dict[int, tuple[int, Tensor]] = {}  # shard -> (epoch, how its images come in it)

    @property
    def shards(self) -> range:
        """The shards that this process reads."""
        return range(self.rows.start // self._each, (self.rows.stop - 1) // self._each + 1)

    @property
    def images(self) -> range:
        """Where the images of these shards lie in the whole pack."""
        return range(self._starts[self.shards.start], self._starts[self.shards.stop])

    @property
    def read_first(self) -> range:
        """Of these, those that no process before this one reads: all processes' make the whole pack, once."""
        first = -(-self.rows.start // self._each)  # the first shard that begins in our rows
        return range(self._starts[first], self.images.stop)

    def indices(self, play: int) -> Tensor:
        """This process's images of batch number `play`: int64 [rows], indices into the whole pack."""
        chosen = []
        for shard in self.shards:
            before = (
                play - shard
            ) * self._each  # what makes row r of the batch this shard's image before + r
            first = max(self.rows.start, shard * self._each)
            last = min(self.rows.stop, (shard + 1) * self._each)
            chosen += self._drawn(shard, before + first, before + last)
        return torch.cat(chosen)

    def _drawn(self, shard: int, first: int, last: int) -> list[Tensor]:
        """Images `first` to `last` of those that a shard gives one after the other, epoch upon epoch."""
        total, drawn = self.lengths[shard], []
        while first < last:
            epoch, offset = divmod(first, total)
            known, order = self._orders.get(shard, (-1, torch.empty(0)))
            if epoch != known:
                purpose = "epoch" if len(self.lengths) == 1 else f"epoch of shard {shard}"
                order = torch.randperm(total, generator=self._draw(purpose, epoch))
                self._orders[shard] = epoch, order
            drawn.append(self._starts[shard] + order[offset : offset + last - first])
            first += len(drawn[-1])
        return drawn
