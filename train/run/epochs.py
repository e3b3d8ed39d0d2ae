"""Which images make a batch: epochs without replacement, in an order that every process knows.

The batch over all processes has batch/shards images of each shard, shard after shard. Each shard has epochs
of its own. A process takes its rows of the batch and reads only the shards that they come from. The images of
a step so depend on the seed, the step and the number of shards (a pack in one file is one shard), never on
the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from train.errors import TrainError


class Epochs:
    """The batches of one process.

    lengths: images in each shard. batch: images over all processes. rows: this process's rows of
    the batch. draw: a generator for a purpose and a number, the same in every process.
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
        self._orders: dict[int, tuple[int, Tensor]] = {}  # shard -> (epoch, order of its images)

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
        """The part of `images` that no earlier process reads: over all processes every image once."""
        first = -(-self.rows.start // self._each)  # the first shard that begins in our rows
        return range(self._starts[first], self.images.stop)

    def indices(self, number: int) -> Tensor:
        """This process's images of batch `number`: int64 [rows], indices into the whole pack."""
        chosen = []
        for shard in self.shards:
            before = (number - shard) * self._each  # row r of the batch is the shard's image before + r
            first = max(self.rows.start, shard * self._each)
            last = min(self.rows.stop, (shard + 1) * self._each)
            chosen += self._drawn(shard, before + first, before + last)
        return torch.cat(chosen)

    def _drawn(self, shard: int, first: int, last: int) -> list[Tensor]:
        """A shard's images `first` to `last`, counted through all of its epochs."""
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
