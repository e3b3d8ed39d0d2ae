"""Celery with celery-batches: the worker that answers on the channel of celery_front.

REDIS_URL=... python -m benchmarks.peers.celery_batched BATCH WAIT
"""

from __future__ import annotations

import os
import sys

import redis
from celery import Celery
from celery_batches import Batches, SimpleRequest

from benchmarks.peers.network import model

BATCH, WAIT = int(sys.argv[1]), float(sys.argv[2])
celery = Celery("batched", broker=os.environ["REDIS_URL"])
# celery-batches gathers from the prefetched messages, so that limit must cover all requests in flight
celery.conf.update(task_ignore_result=True, worker_prefetch_multiplier=64)
answers = redis.Redis.from_url(os.environ["REDIS_URL"])


@celery.task(name="generate", base=Batches, flush_every=BATCH, flush_interval=WAIT)
def generate(requests: list[SimpleRequest]) -> None:
    pictures = model().pngs([(request.args[0], request.args[1]) for request in requests])
    with answers.pipeline(transaction=False) as pipeline:
        for request, picture in zip(requests, pictures, strict=True):
            pipeline.publish("images", bytes.fromhex(request.args[2]) + picture)
        pipeline.execute()


if __name__ == "__main__":
    model()
    celery.worker_main(["worker", "-P", "solo", "--without-gossip", "--without-mingle", "--loglevel=WARNING"])
