"""The API's reading of images and maps: Redis says where each lies, and has it or a store does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from jobs.connections import Turns
from jobs.errors import AttentionFailed, ExpiredJob, PurgedJob, StoreUnavailable
from jobs.job import FAILED, AttentionMap, Job
from jobs.keys import Keys
from jobs.pubsub import Waiting
from jobs.results import Stores, image_name, is_reference, map_name
from jobs.scripts import Purged

T = TypeVar("T")


class Kept:
    """Calls to Redis wait for their turn; those to a store do not hold it."""

    def __init__(self, redis: Any, keys: Keys, turns: Turns, stores: Stores, waiting: Waiting) -> None:
        self._redis = redis
        self._keys = keys
        self._turns = turns
        self._stores = stores
        self._waiting = waiting

    async def image(self, job: Job, index: int) -> bytes | None:
        """PNG of one image; None before it is made. Raises ExpiredJob, ResultGone, StoreUnavailable."""
        found = await self._image(job, index)
        return None if found is None else await self._read(found, image_name(job.id, index))

    async def images(self, job: Job) -> list[bytes | None]:
        """PNG of every image; None where it is not made yet. Raises as `image`."""
        found = await self._ask(lambda: self._redis.hgetall(self._keys.images(job.id)))
        if not found:
            await self._still_there(job)
        kept = [found.get(str(index).encode()) for index in range(job.spec.count)]
        if not any(one is not None and is_reference(one) for one in kept):
            return kept
        made = {index: one for index, one in enumerate(kept) if one is not None}
        with self._waiting():
            files = await asyncio.gather(
                *(self._stores.read(one, image_name(job.id, index)) for index, one in made.items())
            )
        read = dict(zip(made, files, strict=True))
        return [read.get(index) for index in range(job.spec.count)]

    async def address(self, job: Job, index: int, method: str, seconds: float) -> str | None:
        """Where the store hands an image to anybody, for so long; None: it has no such address, or no image.

        Raises ExpiredJob, StoreUnavailable.
        """
        found = await self._image(job, index)
        if found is None or not is_reference(found):
            return None
        return await self._stores.of(found).sign(method, image_name(job.id, index), seconds)

    async def map(self, job: Job, image: int, layer: str) -> AttentionMap | None:
        """The map; None before it is made.

        Raises AttentionFailed, with the worker's reason, and ResultGone, StoreUnavailable.
        """
        found = await self._ask(lambda: self._redis.get(self._keys.attention(job.id, image, layer)))
        if found is None:
            return None
        if found.startswith(FAILED):
            raise AttentionFailed(found.removeprefix(FAILED).decode())
        packed = await self._read(found, map_name(job.id, image, layer))
        return await asyncio.to_thread(AttentionMap.from_bytes, packed)  # milliseconds

    async def delete(self, job: Job, left: Purged) -> bool:
        """Delete what stores have of a purged job. False: one does not answer."""
        names = [image_name(job.id, index) for index in range(job.spec.count)]
        names += [map_name(job.id, *place) for place in left.maps]
        try:
            for url in left.stores:
                await self._stores.of(url.encode()).remove(names, {job.id})
        except StoreUnavailable:
            return False
        return True

    async def _image(self, job: Job, index: int) -> bytes | None:
        """An image, or the reference to it; None before it is made."""
        found: bytes | None = await self._ask(lambda: self._redis.hget(self._keys.images(job.id), str(index)))
        if found is None:
            await self._still_there(job)
        return found

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await self._turns.take(call)

    async def _read(self, kept: bytes, name: str) -> bytes:
        if not is_reference(kept):
            return kept
        with self._waiting():
            return await self._stores.of(kept).get(name)

    async def _still_there(self, job: Job) -> None:
        """Raises ExpiredJob, PurgedJob."""
        # of a job that was cancelled or failed, images that were never made are no expired ones
        ended = job.expires_at is not None and job.done > 0
        if not ended:
            return
        if job.state == "succeeded" or not await self._ask(
            lambda: self._redis.exists(self._keys.images(job.id))
        ):
            purged = await self._ask(lambda: self._redis.hexists(self._keys.job(job.id), "purged"))
            raise PurgedJob(job.id) if purged else ExpiredJob(job.id)
