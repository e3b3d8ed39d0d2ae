"""Plain FastAPI: one image at a time, the model in a thread of its own.

python -m benchmarks.peers.plain_fastapi PORT
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.network import Alone

app = FastAPI()
model = Alone()


class Asked(BaseModel):
    seed: int


@app.post("/generate/{class_id}")
async def generate(class_id: int, asked: Asked) -> Response:
    (picture,) = await model.pngs([(class_id, asked.seed)])
    return Response(picture, media_type="image/png")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
