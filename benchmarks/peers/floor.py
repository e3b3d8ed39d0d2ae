"""The floor: one process that makes images and encodes PNGs in a loop, at several batch sizes.

    python -m benchmarks.peers.floor SECONDS [BATCH ...]

Prints a JSON object, batch size -> images a second.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.peers.network import Model

BATCHES = (1, 2, 4, 8, 16)


def main(seconds: float, batches: tuple[int, ...]) -> dict[int, float]:
    model = Model()
    found = {}
    for batch in batches:
        for n in range(3):
            model.pngs([(3, n)] * batch)
        made, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            model.pngs([(3, made + i) for i in range(batch)])
            made += batch
        found[batch] = made / (time.perf_counter() - start)
    return found


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), tuple(map(int, sys.argv[2:])) or BATCHES)))  # noqa: T201
