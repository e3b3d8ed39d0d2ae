"""BentoML with adaptive batching: a service that holds the model, and one before it that speaks HTTP.

bentoml serve benchmarks.peers.bento:Front --port PORT
"""

from __future__ import annotations

import os

import bentoml
import numpy as np
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.network import Alone, png

app = FastAPI()


class Asked(BaseModel):
    seed: int


@bentoml.service(workers=1)
class Generator:
    def __init__(self) -> None:
        self.model = Alone()

    @bentoml.api(
        batchable=True, max_batch_size=int(os.environ.get("PEER_BATCH", "16")), max_latency_ms=10_000
    )
    async def make(self, asked: np.ndarray) -> np.ndarray:  # BentoML reads the annotation
        return await self.model.pixels([(int(class_id), int(seed)) for class_id, seed in asked])


@bentoml.service(workers=1)
@bentoml.asgi_app(app)
class Front:
    generator = bentoml.depends(Generator)

    @app.post("/generate/{class_id}")
    async def generate(self, class_id: int, asked: Asked) -> Response:
        pixels = await self.generator.to_async.make(np.array([[class_id, asked.seed]]))
        return Response(png(pixels[0]), media_type="image/png")
