"""An attention map read at a point: where it attends, and which points are worth a look.

Coordinates are pixels of the image, x to the right and y down. Pixel x covers [x, x + 1), so its centre
lies at (x + 0.5) / W of the side. Cell i of a grid of n has its centre at (i + 0.5) / n.
"""

import math

import numpy as np
import numpy.typing as npt

from jobs.job import AttentionMap

Point = tuple[int, int]  # x, y of a pixel of the image
DEFAULT_POINTS = 5

Floats = npt.NDArray[np.float32]


def row_of(attention: AttentionMap, point: Point, resolution: int) -> Floats:
    """Where the query cell under `point` attends: [key rows, key columns], sums to 1.

    resolution: the image's side, pixels. The point lies inside it.
    """
    height, width = attention.query_grid
    x, y = point
    column = int((x + 0.5) / resolution * width)
    line = int((y + 0.5) / resolution * height)
    row: Floats = attention.map[line * width + column].astype(np.float32)
    return row.reshape(attention.key_grid)


def mean_row(attention: AttentionMap) -> Floats:
    """Where all queries attend on average: [key rows, key columns], sums to 1."""
    # over the queries, which are the rows: each row sums to 1, so their mean along axis 1 would be even
    row: Floats = attention.map.mean(axis=0, dtype=np.float32)
    return row.reshape(attention.key_grid)


def target_of(row: Floats, resolution: int) -> tuple[float, float]:
    """Centre of the cell that `row` [h, w] attends to most: x, y in pixels from the top left corner."""
    height, width = row.shape
    line, column = divmod(int(row.argmax()), width)
    return (column + 0.5) / width * resolution, (line + 0.5) / height * resolution


def default_points(attention: AttentionMap, resolution: int, count: int = DEFAULT_POINTS) -> list[Point]:
    """Query points that lie apart, attend differently and attend sharply; the same at each call.

    Greedy. The first is the query with the most peaked row. Each next one is far from its nearest chosen
    neighbour, both in position and in the Hellinger distance of the rows. The outer eighth of the image is
    left out: its queries see padding rather than content.
    """
    height, width = attention.query_grid
    rows = attention.map.astype(np.float32)
    lines, columns = np.divmod(np.arange(height * width), width)
    place = np.stack([(columns + 0.5) / width, (lines + 0.5) / height], axis=1)  # [queries, 2], fractions
    from_centre = np.abs(place - 0.5).max(axis=1)
    centred = 1 - from_centre  # settles ties: an even map starts in the middle
    outer = from_centre >= 0.375
    if (~outer).sum() < count:
        outer[:] = False
    peaked = _peakedness(rows)
    root = np.sqrt(rows)

    chosen: list[int] = []
    apart = np.full(len(rows), np.inf)  # to the nearest chosen point, in sides of the image
    unlike = np.full(len(rows), np.inf)  # Hellinger distance to the most similar chosen row, 0..1
    while len(chosen) < min(count, len(rows)):
        if chosen:
            # past a third of the side, farther is no better: else all would flee to the corners
            score = np.minimum(apart, 0.33) * 2 + unlike + 0.5 * peaked + 0.2 * centred
            score[apart < 0.15] -= 2  # never two on top of each other while there is room
        else:
            score = peaked + 0.2 * centred
        score[outer] = -np.inf
        score[chosen] = -np.inf
        best = int(score.argmax())
        chosen.append(best)
        apart = np.minimum(apart, np.linalg.norm(place - place[best], axis=1))
        unlike = np.minimum(unlike, np.sqrt(np.maximum(0, 1 - root @ root[best])))
    return [(int(place[i, 0] * resolution), int(place[i, 1] * resolution)) for i in chosen]


def _peakedness(rows: Floats) -> Floats:
    """[queries]: near 0 for a row that is even over all keys, 1 for the most peaked row."""
    entropy = -(rows * np.log(np.maximum(rows, 1e-12))).sum(axis=1)
    peaked: Floats = 1 - entropy / max(math.log(rows.shape[1]), 1e-6)
    return peaked / max(float(peaked.max()), 1e-6)
