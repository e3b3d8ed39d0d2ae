"""Our service with the plain network as its engine: the cost of the way there and back.

python -m benchmarks.peers.ours_way PORT
"""

from __future__ import annotations

import sys

from serve.supervisor import run

if __name__ == "__main__":
    worker = [sys.executable, "-m", "benchmarks.peers.plain_worker"]
    sys.exit(run(port=int(sys.argv[1]), worker_command=worker))
