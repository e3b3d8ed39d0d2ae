"""LitServe with dynamic batching.

python -m benchmarks.peers.lit_serve PORT BATCH WAIT
"""

import sys

import litserve
import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from benchmarks.peers.network import Model, png

CLASS = 3  # LitServe hands on the body and not the path, so there is an API a class


class Generate(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: Request) -> tuple[int, int]:
        return CLASS, int(request["seed"])  # the body, already read

    def batch(self, inputs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return inputs

    def predict(self, x: list[tuple[int, int]]) -> NDArray[np.uint8]:
        return self.model.pixels(x)

    def unbatch(self, output: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        return list(output)

    def encode_response(self, output: NDArray[np.uint8]) -> Response:
        return Response(png(output), media_type="image/png")


if __name__ == "__main__":
    port, batch, wait = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    api = Generate(max_batch_size=batch, batch_timeout=wait, api_path=f"/generate/{CLASS}")
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
