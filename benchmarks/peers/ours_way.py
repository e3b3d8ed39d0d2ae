"""Our service with its engine switched to the plain network: what the way there and back costs.

python -m benchmarks.peers.ours_way PORT
"""

from __future__ import annotations

import sys

from serve.supervisor import run

if __name__ == "__main__":
    worker = [sys.executable, "-m", "benchmarks.peers.plain_worker"]
    sys.exit(run(port=int(sys.argv[1]), worker_command=worker))
