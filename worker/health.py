"""Is the worker of this host well? `python -m worker.health` answers by its exit code, for a health check.

It runs every few seconds, so it avoids the imports that take a second (torch, Celery, pydantic) and reads its
two settings by itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from jobs.keys import Keys


def silence(environment: Mapping[str, str], host: str) -> str | None:
    """Why no worker of this host makes images; None: one does."""
    url = environment.get("SAGAN_REDIS_URL", "redis://127.0.0.1:6379/0")
    keys = Keys(environment.get("SAGAN_NAMESPACE", "sagan"))
    # Any: redis-py's types allow for text and bytes everywhere; this client answers bytes.
    try:
        redis: Any = Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3, retry=None)
        redis.connection_pool.make_connection()  # connects to nothing: it reads the options
    except (ValueError, TypeError, RedisError):  # whose message may quote a password
        return "SAGAN_REDIS_URL cannot be read"
    try:
        with redis:
            workers = [name.decode() for name in redis.zrange(keys.workers, 0, -1)]
            mine = [name for name in workers if name.rsplit(":", 2)[0] == host]
            # the heartbeat itself: the list of workers forgets the dead more slowly
            beats = redis.mget([keys.worker(name) for name in mine]) if mine else []
    except RedisError as error:
        return f"Redis does not answer: {error}"
    troubles = [_trouble(beat) for beat in beats if beat is not None]
    if not troubles:
        return f"no worker on {host} has sent a heartbeat lately"
    return None if None in troubles else troubles[0]


def _trouble(beat: bytes) -> str | None:
    """Why the worker of a heartbeat makes nothing; None: it does."""
    try:
        told = json.loads(beat)
        if not told.get("consuming", True):
            return f"worker {told.get('id')} takes no jobs: it has lost its connection to the queue"
        return f"worker {told.get('id')}: {told['stuck']}" if told.get("stuck") else None
    except (ValueError, AttributeError, RecursionError):
        return "the heartbeat cannot be read"


if __name__ == "__main__":
    sys.exit(silence(os.environ, socket.gethostname()))
