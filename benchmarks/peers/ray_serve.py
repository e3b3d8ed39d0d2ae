"""Ray Serve with @serve.batch.

python -m benchmarks.peers.ray_serve PORT BATCH WAIT
"""

from __future__ import annotations

import signal
import sys

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

PORT, BATCH, WAIT = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


class Generate:
    def __init__(self) -> None:
        from benchmarks.peers.network import Model

        self.model = Model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)
    async def make(self, asked: list[tuple[int, int]]) -> list[bytes]:
        # in the replica's loop, as Ray's documents have it: in a thread of its own it is slower,
        # as requests then leave in small batches, one behind the other
        return self.model.pngs(asked)

    async def __call__(self, request: Request) -> Response:
        class_id = int(request.url.path.rsplit("/", 1)[1])
        picture = await self.make((class_id, (await request.json())["seed"]))
        return Response(picture, media_type="image/png")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})
    deployment = serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 2})
    serve.run(deployment(Generate).bind(), route_prefix="/generate")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
