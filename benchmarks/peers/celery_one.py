"""Celery, a task an image: the worker that answers on the channel of celery_front.

REDIS_URL=... python -m benchmarks.peers.celery_one
"""

from __future__ import annotations

import os

import redis
from celery import Celery

from benchmarks.peers.network import model, png

celery = Celery("one", broker=os.environ["REDIS_URL"])
celery.conf.update(task_ignore_result=True, worker_prefetch_multiplier=4)
answers = redis.Redis.from_url(os.environ["REDIS_URL"])


@celery.task(name="generate")
def generate(class_id: int, seed: int, request: str) -> None:
    (pixels,) = model().pixels([(class_id, seed)])
    answers.publish("images", bytes.fromhex(request) + png(pixels))


if __name__ == "__main__":
    model()
    # solo: the network runs in the thread that loaded it, and no other process is paid for
    celery.worker_main(["worker", "-P", "solo", "--without-gossip", "--without-mingle", "--loglevel=WARNING"])
