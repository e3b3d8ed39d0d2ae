"""Is the worker of this host alive? `python -m worker.health` answers by its exit code, for a health check.

It runs every few seconds, so it avoids the imports that take a second (torch, Celery, pydantic) and reads its
two settings by itself.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from jobs.keys import Keys


def silence(environment: Mapping[str, str], host: str) -> str | None:
    """Why no worker of this host counts as alive; None: one does, with its models loaded."""
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
            alive = bool(mine) and bool(redis.exists(*map(keys.worker, mine)))
    except RedisError as error:
        return f"Redis does not answer: {error}"
    return None if alive else f"no worker on {host} has sent a heartbeat lately"


if __name__ == "__main__":
    sys.exit(silence(os.environ, socket.gethostname()))
