"""How attention flows between the regions of an image."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from app.points import Floats
from jobs.job import AttentionMap

REGIONS: Final = 4  # along a side, at most
TIMES: Final = 2.0  # times its even share that a flow carries, at least; below, it means little
LEAST: Final = 0.1  # of its region's attention, at least
MOST: Final = 12  # flows


@dataclass(frozen=True)
class Flows:
    """Attention by regions, row by row. A region's queries and keys are those whose cells begin in it."""

    grid: tuple[int, int]  # regions: lines, columns
    share: Floats  # [from, to]: of what the queries of a region attend to; each row sums to 1
    received: Floats  # [regions]: of what all queries attend to; sums to 1
    even: Floats  # [regions]: the same if every key were attended to alike


class Flow(NamedTuple):
    """What one region sends to another, or keeps."""

    source: int
    to: int
    share: float


def flows_of(attention: AttentionMap) -> Flows:
    """The flows between REGIONS × REGIONS regions; fewer where a grid has fewer cells."""
    lines, columns = (
        min(REGIONS, *sides) for sides in zip(attention.query_grid, attention.key_grid, strict=True)
    )
    queries, keys = (_regions(grid, (lines, columns)) for grid in (attention.query_grid, attention.key_grid))
    to = attention.map.astype(np.float32) @ keys  # [queries, regions]
    share = (queries.T @ to) / queries.sum(axis=0)[:, None]
    return Flows((lines, columns), share, to.mean(axis=0), keys.mean(axis=0))


def _regions(grid: tuple[int, int], regions: tuple[int, int]) -> Floats:
    """[cells, regions]: 1 where the cell lies in the region, else 0."""
    lines, columns = (np.arange(cells) * parts // cells for cells, parts in zip(grid, regions, strict=True))
    of = (lines[:, None] * regions[1] + columns[None]).reshape(-1)
    member: Floats = (of[:, None] == np.arange(regions[0] * regions[1])).astype(np.float32)
    return member


def strongest(flows: Flows) -> list[Flow]:
    """What is sent from one region to another and means something, strongest first: MOST at most."""
    found = [Flow(a, b, share) for a, b, share in _meaning(flows) if a != b]
    return sorted(found, key=lambda flow: -flow.share)[:MOST]


def rings_of(flows: Flows) -> list[Flow]:
    """The regions that keep most of their attention to themselves, strongest first."""
    found = [Flow(a, b, share) for a, b, share in _meaning(flows) if a == b and share >= flows.share[a].max()]
    return sorted(found, key=lambda flow: -flow.share)


def _meaning(flows: Flows) -> list[tuple[int, int, float]]:
    least = np.maximum(TIMES * flows.even, LEAST)
    return [(int(a), int(b), float(flows.share[a, b])) for a, b in np.argwhere(flows.share >= least)]
