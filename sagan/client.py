"""A typed client of the service, synchronous and asynchronous. It needs httpx alone.

    from sagan.client import Client

    with Client("http://127.0.0.1:8000") as sagan:
        job = sagan.generate("cat", count=4, seed=42)
        for k, png in job.stream():           # as they are made
            print(k, len(png))
        print(job.save("cats"))               # cats/cat-42-0000.png ...
        Path("figure.png").write_bytes(job.attention(0))

With AsyncClient the same methods are awaited, and `stream` and `events` are read by `async for`. What goes
wrong is a SaganError (sagan.errors). A refusal with Retry-After (429, 503) is tried again within `timeout`.
An order that gets no answer is sent again: its Idempotency-Key makes it one job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import httpx

from sagan.core import Core, Events, JobState, Look, Model, Steps, Wish, check
from sagan.errors import (
    Expired,
    JobCancelled,
    JobFailed,
    KeyRefused,
    NotNow,
    NotThere,
    NotValid,
    Refused,
    SaganError,
    TooMuch,
    Unavailable,
    Unreachable,
    WaitTimeout,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "Expired",
    "Job",
    "JobCancelled",
    "JobFailed",
    "KeyRefused",
    "Model",
    "NotNow",
    "NotThere",
    "NotValid",
    "Refused",
    "SaganError",
    "TooMuch",
    "Unavailable",
    "Unreachable",
    "WaitTimeout",
]

T = TypeVar("T")
_AGAIN = 0.5  # seconds before a broken stream of events is opened again


class Job(JobState):
    """A job of a Client. `state`, `done` and `told` are as of the last call."""

    def __init__(self, client: Client, told: dict[str, Any]) -> None:
        super().__init__(told)
        self._client, self._core, self._run = client, client.core, client.run

    def refresh(self) -> Job:
        """Itself, as it is now."""
        self.told = self._run(self._core.job(self.id)).told
        return self

    def wait(self, timeout: float | None = None) -> Job:
        """Itself, once it has succeeded. Raises JobFailed, JobCancelled, WaitTimeout; timeout: seconds."""
        self._run(self._core.wait(self, timeout))
        return self

    def cancel(self) -> Job:
        """Images that no forward has begun are never made."""
        self.told = self._run(self._core.cancel(self)).told
        return self

    def purge(self) -> Job:
        """Cancel it, and take its images and attention maps away: it raises Expired from then on."""
        self.told = self._run(self._core.purge(self)).told
        return self

    def events(self) -> Iterator[dict[str, Any]]:
        """Every change, {"state": ..., "done": images}, until the job has ended; a broken stream goes on."""
        read = Events()
        while True:
            request = self._core.events(self, read.last_id)
            try:
                with self._client.open(request) as response:
                    if response.status_code == 204:
                        return
                    if response.is_error:
                        response.read()
                        raise Refused.reading(response)
                    for line in response.iter_lines():
                        if (news := read.read(line)) is not None:
                            self.told |= news
                            yield news
                if self.ended:
                    return
            except httpx.RequestError:
                self.refresh()  # raises Unreachable where the service is gone
            time.sleep(_AGAIN)

    def stream(self) -> Iterator[tuple[int, bytes]]:
        """(k, PNG) of each image as it is made, in any order. Raises JobFailed, JobCancelled."""
        seen: set[int] = set()
        for _ in self.events():
            yield from self._run(self._core.new_images(self, seen))
        self.refresh()
        yield from self._run(self._core.new_images(self, seen))
        check(self)

    def image(self, k: int = 0, size: int | None = None, *, resample: str = "lanczos") -> bytes:
        """PNG of image k, which must be made; size: of its side, pixels."""
        return self._run(self._core.image(self, k, size, resample))

    def grid(self, size: int | None = None) -> bytes:
        """PNG of all images side by side; size: of each, pixels."""
        return self._run(self._core.bytes_of(f"/jobs/{self.id}/grid", size=size))

    def film(self, format: str = "webp", **more: object) -> bytes:
        """The images one after the other: webp, apng, gif, mp4 or strip. more: parameters of /film."""
        return self._run(self._core.bytes_of(f"/jobs/{self.id}/film", format=format, **more))

    def attention(self, k: int = 0, **look: Unpack[Look]) -> bytes:
        """PNG of what image k attends to."""
        return self._run(self._core.attention(self, k, look))

    def map(self, k: int = 0, layer: str | None = None) -> NDArray[np.float16]:
        """The attention map of image k: [queries, keys], each row sums to 1. Needs numpy."""
        return self._run(self._core.map(self, k, layer))

    def save(self, folder: str | Path, size: int | None = None) -> list[Path]:
        """Wait, then write every image into the folder, named by class, seed and index."""
        return self._run(self._core.save(self, Path(folder), size))


class Client:
    """The service at `url`; key: where it asks for one; timeout: seconds of each call, with its retries.

    http: None: one of its own, with httpx's defaults.
    """

    def __init__(
        self, url: str, key: str | None = None, *, timeout: float = 60.0, http: httpx.Client | None = None
    ) -> None:
        self.core = Core(url, key, timeout)
        self._http = http or httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def run(self, steps: Steps[T]) -> T:
        """The result of the steps, once what they ask for is sent."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, float):
                    time.sleep(step)
                    step = steps.send(None)
                    continue
                try:
                    reply = self._http.send(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    @contextmanager
    def open(self, request: httpx.Request) -> Iterator[httpx.Response]:
        """An answer that is read as it comes."""
        response = self._http.send(request, stream=True)
        try:
            yield response
        finally:
            response.close()

    def generate(
        self, class_: str | int | None = None, *, key: str | None = None, **wish: Unpack[Wish]
    ) -> Job:
        """A new job: images of a class, by name or number. key: an Idempotency-Key of your own."""
        return Job(self, self.run(self.core.generate(class_, wish, key)).told)

    def morph(
        self,
        ends: Sequence[Mapping[str, Any]],
        frames: int | None = None,
        *,
        key: str | None = None,
        **more: Any,
    ) -> Job:
        """A new job whose images lead from end to end, each as {"class_id": "cat"}; more: of POST /morph."""
        body = {"ends": [dict(end) for end in ends], "frames": frames, **more}
        return Job(self, self.run(self.core.order("/morph", body, key)).told)

    def job(self, job_id: str) -> Job:
        """A job by its id. Raises NotThere, Expired."""
        return Job(self, self.run(self.core.job(job_id)).told)

    def jobs(self, limit: int = 20) -> list[Job]:
        """Your recent jobs, newest first."""
        return [Job(self, found.told) for found in self.run(self.core.jobs(limit))]

    def models(self) -> list[Model]:
        """The models that are served, the default first."""
        return self.run(self.core.models())

    def classes(self, model: str | None = None) -> list[str]:
        """Names of a model's classes, by number."""
        return self.run(self.core.classes(model))


class AsyncJob(JobState):
    """A job of an AsyncClient: as Job, with what asks the service awaited."""

    def __init__(self, client: AsyncClient, told: dict[str, Any]) -> None:
        super().__init__(told)
        self._client, self._core, self._run = client, client.core, client.run

    async def refresh(self) -> AsyncJob:
        self.told = (await self._run(self._core.job(self.id))).told
        return self

    async def wait(self, timeout: float | None = None) -> AsyncJob:  # noqa: ASYNC109
        await self._run(self._core.wait(self, timeout))
        return self

    async def cancel(self) -> AsyncJob:
        self.told = (await self._run(self._core.cancel(self))).told
        return self

    async def purge(self) -> AsyncJob:
        self.told = (await self._run(self._core.purge(self))).told
        return self

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        read = Events()
        while True:
            request = self._core.events(self, read.last_id)
            try:
                async with self._client.open(request) as response:
                    if response.status_code == 204:
                        return
                    if response.is_error:
                        await response.aread()
                        raise Refused.reading(response)
                    async for line in response.aiter_lines():
                        if (news := read.read(line)) is not None:
                            self.told |= news
                            yield news
                if self.ended:
                    return
            except httpx.RequestError:
                await self.refresh()
            await asyncio.sleep(_AGAIN)

    async def stream(self) -> AsyncIterator[tuple[int, bytes]]:
        seen: set[int] = set()
        async for _ in self.events():
            for image in await self._run(self._core.new_images(self, seen)):
                yield image
        await self.refresh()
        for image in await self._run(self._core.new_images(self, seen)):
            yield image
        check(self)

    async def image(self, k: int = 0, size: int | None = None, *, resample: str = "lanczos") -> bytes:
        return await self._run(self._core.image(self, k, size, resample))

    async def grid(self, size: int | None = None) -> bytes:
        return await self._run(self._core.bytes_of(f"/jobs/{self.id}/grid", size=size))

    async def film(self, format: str = "webp", **more: object) -> bytes:
        return await self._run(self._core.bytes_of(f"/jobs/{self.id}/film", format=format, **more))

    async def attention(self, k: int = 0, **look: Unpack[Look]) -> bytes:
        return await self._run(self._core.attention(self, k, look))

    async def map(self, k: int = 0, layer: str | None = None) -> NDArray[np.float16]:
        return await self._run(self._core.map(self, k, layer))

    async def save(self, folder: str | Path, size: int | None = None) -> list[Path]:
        return await self._run(self._core.save(self, Path(folder), size))


class AsyncClient:
    """As Client, awaited."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 60.0,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.core = Core(url, key, timeout)
        self._http = http or httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    step = steps.send(None)
                    continue
                try:
                    reply = await self._http.send(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    @asynccontextmanager
    async def open(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        response = await self._http.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def generate(
        self, class_: str | int | None = None, *, key: str | None = None, **wish: Unpack[Wish]
    ) -> AsyncJob:
        return AsyncJob(self, (await self.run(self.core.generate(class_, wish, key))).told)

    async def morph(
        self,
        ends: Sequence[Mapping[str, Any]],
        frames: int | None = None,
        *,
        key: str | None = None,
        **more: Any,
    ) -> AsyncJob:
        body = {"ends": [dict(end) for end in ends], "frames": frames, **more}
        return AsyncJob(self, (await self.run(self.core.order("/morph", body, key))).told)

    async def job(self, job_id: str) -> AsyncJob:
        return AsyncJob(self, (await self.run(self.core.job(job_id))).told)

    async def jobs(self, limit: int = 20) -> list[AsyncJob]:
        return [AsyncJob(self, found.told) for found in await self.run(self.core.jobs(limit))]

    async def models(self) -> list[Model]:
        return await self.run(self.core.models())

    async def classes(self, model: str | None = None) -> list[str]:
        return await self.run(self.core.classes(model))
