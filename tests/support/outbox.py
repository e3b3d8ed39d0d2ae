"""The outbox of webhooks over a real Redis, without a worker: jobs are begun and made by hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis import Redis

from app.settings import Settings
from app.webhooks import WebhookOut
from jobs.client import JobClient
from jobs.hooks import Claimed, Hooks
from jobs.job import HookEvent, Job, JobSpec, Terms, Webhook
from jobs.worker_store import WorkerStore
from receiving import SECRETS

SPEC = JobSpec("tiny", "0" * 64, "float32", 0, "cat", count=3, seed=7, truncation=1.0)
ALL: tuple[HookEvent, ...] = ("start", "progress", "end")
_namespaces = itertools.count()


class Outbox:
    """A service with webhooks."""

    def __init__(self, url: str, namespace: str, **settings: object) -> None:
        common = {"webhook_secret": ",".join(SECRETS), "webhook_allowed": "127.0.0.0/8", "worker_ttl": 600}
        given: dict[str, Any] = {**common, **settings}
        self.settings = Settings(redis_url=url, namespace=namespace, **given)
        self.store = JobClient.open(self.settings)
        self.worker = WorkerStore(self.settings, "by hand", lambda: False)
        self.hooks = Hooks(self.settings)
        self.redis = Redis.from_url(url)
        self._made = itertools.count()

    async def order(
        self,
        url: str | None = "https://hooks.test/a?token=secret",
        events: Sequence[HookEvent] = ALL,
        caller: str = "somebody",
        count: int = 3,
    ) -> Job:
        receiver = (url or "").partition("?")[0].rpartition("/")[0]
        webhook = None if url is None else Webhook(url, receiver, tuple(events))
        spec = JobSpec(**{**vars(SPEC), "count": count})
        job, _ = await self.store.create(spec, caller, terms=Terms(webhook=webhook))
        return job

    async def cancelled(self, number: int, url: str, caller: str = "somebody") -> None:
        """So many jobs that tell of their end."""
        jobs = await asyncio.gather(*(self.order(url, ("end",), caller) for _ in range(number)))
        await asyncio.gather(*(self.store.cancel(job.id, caller) for job in jobs))

    def begin(self, *jobs: Job) -> None:
        ids = [job.id for job in jobs]
        assert self.worker.begin(ids, len(ids), [])() == set(ids)

    def save(self, job: Job, *images: int) -> None:
        self.worker.save([(job.id, image, b"PNG") for image in images])

    async def claim(self, most: int = 100, lease: float = 60, of_receiver: int = 100) -> Claimed:
        return await self.hooks.claim(most, lease, 100, of_receiver, [])

    async def log(self, job: Job) -> WebhookOut:
        return WebhookOut.of(await self.hooks.log(job.id))

    @property
    def left(self) -> set[str]:
        """The keys of the outbox, without the logs."""
        keys = self.redis.keys(f"{self.settings.namespace}:hook*")
        found = {key.decode().split(":", 1)[1] for key in keys if isinstance(key, bytes)}
        return {key for key in found if not key.startswith(("hook-log:", "hooks:bell"))}

    async def close(self) -> None:
        await self.store.close()
        await self.hooks.close()
        self.worker.close()
        self.redis.close()


@asynccontextmanager
async def outbox_at(url: str, **settings: object) -> AsyncIterator[Outbox]:
    outbox = Outbox(url, f"hooks{next(_namespaces)}", **settings)
    yield outbox
    await outbox.close()


@asynccontextmanager
async def outbox_of(other: Outbox) -> AsyncIterator[Outbox]:
    """Another process of the same service."""
    outbox = Outbox(other.settings.redis_url, other.settings.namespace)
    yield outbox
    await outbox.close()
