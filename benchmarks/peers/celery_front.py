"""The front of the Celery peers: FastAPI that publishes a task and waits for its image on one channel.

REDIS_URL=... python -m benchmarks.peers.celery_front PORT
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
import uvicorn
from celery import Celery
from fastapi import FastAPI, Response
from pydantic import BaseModel

CHANNEL = "images"  # messages: 16 bytes of the request's id, then its PNG
URL = os.environ["REDIS_URL"]
celery = Celery("front", broker=URL)
waiting: dict[bytes, asyncio.Future[bytes]] = {}


class Asked(BaseModel):
    seed: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with redis.asyncio.from_url(URL) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)

        async def listen() -> None:
            async for message in pubsub.listen():
                if message["type"] == "message":
                    waiting.pop(message["data"][:16]).set_result(message["data"][16:])

        task = asyncio.create_task(listen())
        yield
        task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/generate/{class_id}")
async def generate(class_id: int, asked: Asked) -> Response:
    request = uuid.uuid4()
    waiting[request.bytes] = answer = asyncio.get_running_loop().create_future()
    # in the loop: a thread for each would cost more than the half millisecond that this takes
    celery.send_task("generate", args=[class_id, asked.seed, request.hex], ignore_result=True)
    return Response(await answer, media_type="image/png")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
