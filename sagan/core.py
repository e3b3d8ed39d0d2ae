"""What both clients do: requests as data, answers read, retries. No input or output happens here.

A method is a generator of steps: it yields requests to send and seconds to sleep, and is sent the answers.
"""

from __future__ import annotations

import io
import json
import os
import re
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from sagan.errors import JobCancelled, JobFailed, NotNow, Refused, SaganError, Unreachable, WaitTimeout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Steps = Generator["httpx.Request | float", httpx.Response | None, T]
View = Literal["figure", "overlay", "heatmap"]

FIRST_POLL: Final = 0.05  # seconds; each wait is half as long again, up to the longest
LONGEST_POLL: Final = 1.0
TRIES: Final = 3  # of a request that got no answer
_LONGEST_NAME: Final = 80  # bytes that a class takes in a file's name
ENDED: Final = ("succeeded", "failed", "cancelled")


class Wish(TypedDict, total=False):
    """How images are to be made; all may be left out."""

    count: int  # 1 to 64
    seed: int | None  # None: drawn; the job tells it
    truncation: float  # above 0 to 1: lower is more typical, less varied
    model: str | None  # None: the service's default
    priority: int | None  # 0 to 9, 9 is most urgent
    retention: int | None  # seconds that its images are kept after its end; None: the service's own
    expires_in: float | None  # seconds after which it is cancelled unless it has ended; None: it waits
    webhook: str | None  # an https URL that is told of the job; None: nobody is
    webhook_events: Sequence[Literal["start", "progress", "end"]] | None  # of what; None: of the end
    start: int  # index of the first image
    class_weights: Mapping[str, float] | None  # a mixture of classes, in place of class_


class Look(TypedDict, total=False):
    """How attention is drawn; all may be left out."""

    view: View
    points: Sequence[tuple[float, float]] | None  # pixels of the image; None: five that differ
    layer: str | None  # None: the first
    colormap: str
    alpha: float  # 0 to 1
    size: int  # of a panel, pixels


@dataclass(frozen=True)
class Model:
    """A model that is served. Fields that a newer service adds are in `more`."""

    name: str
    hash: str
    precision: str
    resolution: int  # pixels
    classes: tuple[str, ...]
    layers: tuple[str, ...]  # that attend
    more: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def reading(cls, told: Mapping[str, Any]) -> Model:
        return cls(
            name=told["name"],
            hash=told["hash"],
            precision=told["precision"],
            resolution=told["resolution"],
            classes=tuple(one["name"] for one in told["classes"]),
            layers=tuple(one["name"] for one in told["attention"]),
            more=told,
        )


class JobState:
    """A job as it was when the service last told of it."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told  # as in docs/api.md

    @classmethod
    def reading(cls, told: Mapping[str, Any]) -> JobState:
        """Raises KeyError, TypeError, ValueError where that tells of no job."""
        job = cls(dict(told))
        _ = job.id, job.state, job.done, job.count, job.seed, job.spec["class_name"]
        return job

    @property
    def id(self) -> str:
        return str(self.told["id"])

    @property
    def state(self) -> str:
        """queued, running, succeeded, failed or cancelled."""
        return str(self.told["state"])

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def done(self) -> int:
        """Images made so far."""
        return int(self.told["done"])

    @property
    def spec(self) -> dict[str, Any]:
        """model, model_hash, precision, class_id, class_name, count, seed, truncation, priority and more."""
        return dict(self.told["spec"])

    @property
    def count(self) -> int:
        return int(self.told["spec"]["count"])

    @property
    def seed(self) -> int:
        return int(self.told["spec"]["seed"])

    def name_of(self, k: int, ending: str = "png") -> str:
        """File name that says class, seed and index."""
        spec = self.told["spec"]
        name = re.sub(r"[^\w.-]+", "_", str(spec["class_name"])).strip("._")
        # a name has 255 bytes in all, and a letter up to 4
        name = name.encode()[:_LONGEST_NAME].decode(errors="ignore") or "class"
        return f"{name}-{spec['seed']}-{spec.get('start', 0) + k:04}.{ending}"

    def __repr__(self) -> str:
        spec = self.told["spec"]
        made = f"{self.done} of {self.count}, {spec['class_name']}, seed {self.seed}"
        return f"<Job {self.id}: {self.state}, {made}>"


class Core:
    """Builds requests and reads answers for one service."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self._base = url.rstrip("/")
        if not _is_address(self._base):
            raise SaganError(f"{url!r} is no address such as http://127.0.0.1:8000.")
        if key and not re.fullmatch(r"[\x20-\x7e]+", key):
            raise SaganError("The key has other characters than ASCII's visible ones: see how it was read.")
        self._headers = {"User-Agent": "sagan-client"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._timeout = timeout

    def request(self, method: str, path: str, **more: Any) -> httpx.Request:
        """more: as of httpx.Request; parameters that are None are left out."""
        params = {
            name: value for name, value in (more.pop("params", None) or {}).items() if value is not None
        }
        headers = self._headers | more.pop("headers", {})
        extensions = {"timeout": httpx.Timeout(self._timeout).as_dict()}
        url = self._base + path
        return httpx.Request(method, url, params=params, headers=headers, extensions=extensions, **more)

    def events(self, job: JobState, last_id: str) -> httpx.Request:
        return self.request("GET", f"/jobs/{job.id}/events", headers={"Last-Event-ID": last_id})

    def ask(self, method: str, path: str, **more: Any) -> Steps[httpx.Response]:
        """The answer. Asks again, as Retry-After says, while there is time. Raises Refused, Unreachable."""
        deadline, tries = monotonic() + self._timeout, 0
        while True:
            try:
                response = yield self.request(method, path, **more)
            except httpx.RequestError as error:
                tries += 1
                # every POST has an Idempotency-Key: a second one finds the first one's job
                if tries == TRIES or monotonic() > deadline:
                    raise Unreachable(
                        f"No answer from {self._base}: {error or type(error).__name__}."
                    ) from error
                yield 0.2 * tries
                continue
            assert response is not None
            if response.is_success:
                return response
            refused = Refused.reading(response)
            wait = refused.retry_after
            if refused.status not in (429, 503) or wait is None or monotonic() + wait > deadline:
                raise refused
            yield max(wait, FIRST_POLL)  # Retry-After: 0 is no call to ask without a pause

    def read(self, method: str, path: str, of: Callable[[Any], T], **more: Any) -> Steps[T]:
        """What `of` makes of an answer in JSON. Raises as `ask`, and Unreachable for any other answer."""
        response = yield from self.ask(method, path, **more)
        try:
            return of(response.json())
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise self._of_another(response, path) from error

    def _of_another(self, response: httpx.Response, path: str) -> Unreachable:
        kind = response.headers.get("content-type", "something without a type")
        return Unreachable(
            f"{self._base}{path} answered {response.status_code} with {kind}, as no sagan service does. "
            "Is the address right?"
        )

    def order(self, path: str, body: Mapping[str, Any], key: str | None) -> Steps[JobState]:
        """A new job; that of an earlier request where the key is the same."""
        told = {name: value for name, value in body.items() if value is not None}
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return (yield from self.read("POST", path, JobState.reading, json=told, headers=headers))

    def generate(self, class_: str | int | None, wish: Wish, key: str | None) -> Steps[JobState]:
        if (class_ is None) == (wish.get("class_weights") is None):
            raise SaganError("Give either a class or class_weights.")
        return (yield from self.order("/generate", {"class_id": class_, **wish}, key))

    def job(self, job_id: str) -> Steps[JobState]:
        return (yield from self.read("GET", f"/jobs/{quote(job_id, safe='')}", JobState.reading))

    def cancel(self, job: JobState) -> Steps[JobState]:
        return (yield from self.read("DELETE", f"/jobs/{job.id}", JobState.reading))

    def purge(self, job: JobState) -> Steps[JobState]:
        return (yield from self.read("DELETE", f"/jobs/{job.id}", JobState.reading, params={"purge": "true"}))

    def jobs(self, limit: int) -> Steps[list[JobState]]:
        found: list[JobState] = []
        cursor: str | None = None
        while len(found) < limit:
            asked = {"limit": min(100, limit - len(found)), "cursor": cursor}
            page, cursor = yield from self.read(
                "GET",
                "/jobs",
                lambda told: ([*map(JobState.reading, told["jobs"])], told["next"]),
                params=asked,
            )
            found += page
            if cursor is None:
                break
        return found

    def models(self) -> Steps[list[Model]]:
        return (yield from self.read("GET", "/models", lambda told: [*map(Model.reading, told["models"])]))

    def classes(self, model: str | None) -> Steps[list[str]]:
        return (
            yield from self.read(
                "GET",
                "/classes",
                lambda told: [str(one["name"]) for one in told["classes"]],
                params={"model": model},
            )
        )

    def wait(self, job: JobState, timeout: float | None) -> Steps[None]:
        """Until the job has succeeded. Raises JobFailed, JobCancelled, WaitTimeout."""
        deadline = None if timeout is None else monotonic() + timeout
        pause = FIRST_POLL
        while not job.ended:
            left = pause if deadline is None else deadline - monotonic()
            if left <= 0:
                raise WaitTimeout(f"Job {job.id} is {job.state} after {timeout:g} s; it goes on.")
            yield min(pause, left)
            pause = min(1.5 * pause, LONGEST_POLL)
            job.told = (yield from self.job(job.id)).told
        check(job)

    def bytes_of(self, path: str, **params: object) -> Steps[bytes]:
        response = yield from self.ask("GET", path, params=params)
        if not response.headers.get("content-type", "").startswith(("image/", "video/")):
            raise self._of_another(response, path)  # a proxy's page, say: no picture to be saved
        return response.content

    def image(self, job: JobState, k: int, size: int | None, resample: str) -> Steps[bytes]:
        asked = {} if size is None else {"size": size, "resample": resample}
        return (yield from self.bytes_of(f"/jobs/{job.id}/images/{k}", **asked))

    def attention(self, job: JobState, k: int, look: Look) -> Steps[bytes]:
        points = look.get("points")
        asked: dict[str, object] = {**look, "image": k}
        asked["points"] = None if points is None else ";".join(f"{x},{y}" for x, y in points)
        return (yield from self.bytes_of(f"/attention/{job.id}", **asked))

    def map(self, job: JobState, k: int, layer: str | None) -> Steps[NDArray[np.float16]]:
        """[queries, keys], each row sums to 1. Raises SaganError without numpy."""
        try:
            import numpy
        except ImportError as error:
            raise SaganError("A map is an array: pip install numpy.") from error
        headers = {"Accept": "application/x-npy"}
        params = {"image": k, "layer": layer}
        path = f"/attention/{job.id}/map"
        answer = yield from self.ask("GET", path, params=params, headers=headers)
        try:
            found: NDArray[np.float16] = numpy.load(io.BytesIO(answer.content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise self._of_another(answer, path) from error
        return found

    def save(self, job: JobState, folder: Path, size: int | None) -> Steps[list[Path]]:
        """Waits, then writes all images."""
        yield from self.wait(job, None)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for k in range(job.count):
            path = folder / job.name_of(k)
            # beside, then renamed: no half a file under the name
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_bytes((yield from self.image(job, k, size, "lanczos")))
            beside.replace(path)
            paths.append(path)
        return paths

    def new_images(self, job: JobState, seen: set[int]) -> Steps[list[tuple[int, bytes]]]:
        """The images that are made and not yet seen: they may be finished in any order."""
        found = []
        for k in sorted(set(range(job.count)) - seen):
            if len(seen) >= job.done:
                break
            try:
                found.append((k, (yield from self.image(job, k, None, "lanczos"))))
                seen.add(k)
            except NotNow:
                continue
        return found


def _is_address(url: str) -> bool:
    if not re.fullmatch(r"(?i:https?)://[^\s/?#]+[^\s?#]*", url):
        return False
    try:
        parts = httpx.URL(url)
        # as the socket will: no empty label, none of more than 63 letters
        parts.raw_host.decode("ascii").encode("idna")
        host = parts.host  # which is decoded to be sent
    except (httpx.InvalidURL, ValueError):
        return False
    return bool(host)


def check(job: JobState) -> None:
    """Raises JobFailed, JobCancelled where the job has ended so."""
    if job.state == "failed":
        raise JobFailed(f"Job {job.id} failed: {job.told.get('error') or 'no reason was given'}.")
    if job.state == "cancelled":
        raise JobCancelled(f"Job {job.id} was cancelled after {job.done} of {job.count} images.")


class Events:
    """Server-sent events, line by line."""

    def __init__(self) -> None:
        self.last_id = "0"
        self._data: list[str] = []

    def read(self, line: str) -> dict[str, Any] | None:
        """The event that the line ends; None: it ends none."""
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif name == "id":
                self.last_id = value.removeprefix(" ")
            return None
        data, self._data = "\n".join(self._data), []
        return dict(json.loads(data)) if data else None
