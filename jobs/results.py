"""Where images and attention maps lie: in Redis, or in object stores (a folder, S3 and its like) by obstore.

With an object store Redis keeps a reference in the place of each file, `in:URL`: so every image says itself
where it is, whatever the setting was when it was made. A store's own names are `JOB/0.png` and
`JOB/0.16x16.map`: nothing in them comes from a user, and the job's id cannot be guessed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from jobs.errors import ResultGone, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger(__name__)

T = TypeVar("T")

REDIS: Final = "redis"
REFERENCE: Final = b"in:"  # before a store's URL; a PNG begins with 0x89, a packed map with 0x78
REMOTE: Final = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")  # schemes that obstore knows
ANSWERS_WITHIN: Final = 10.0  # seconds that a store may take to answer the API
AT_ONCE: Final = 32  # files that a process reads or writes at once
TOLD_EVERY: Final = 30.0  # seconds between two lines in the log while a store refuses
TRIES: Final = 10  # to delete a folder into which a worker writes
ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # the first that is set
_SAID: Final = re.compile(r"<Code>([^<]{1,100})</Code>\s*<Message>([^<]{1,300})</Message>")
_TYPES: Final = {".png": "image/png", ".map": "application/octet-stream"}


def image_name(job_id: str, index: int) -> str:
    """The name of an image in a store."""
    return f"{job_id}/{index}.png"


def map_name(job_id: str, image: int, layer: str) -> str:
    """The name of an attention map in a store."""
    return f"{job_id}/{image}.{layer}.map"


def read_stores(setting: str) -> tuple[str, ...]:
    """The URLs of `redis`, one URL or several with commas, the first of which takes new results.

    Raises ValueError.
    """
    words = [word.strip() for word in setting.split(",") if word.strip()]
    return tuple(dict.fromkeys(map(_checked, words))) or (REDIS,)


def check_opens(url: str) -> None:
    """Raises ValueError where obstore finds a URL of read_stores wrong, or its settings lacking."""
    if url == REDIS or url.startswith("file://"):  # a folder is made when it is opened
        return
    try:
        Objects.open(url)
    except StoreUnavailable as error:
        raise ValueError(str(error.__cause__).partition("\n")[0]) from None


def _checked(word: str) -> str:
    """Raises ValueError, which never quotes what may be a key."""
    if word == REDIS:
        return word
    try:
        parts = urlsplit(word)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("file", *REMOTE):
        raise ValueError("it must be redis, file:///FOLDER, s3://BUCKET/PREFIX, gs://... or az://...")
    if "@" in parts.netloc and parts.scheme not in ("abfs", "abfss"):
        raise ValueError(
            "keys do not belong into its URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your "
            "store has in their place"
        )
    if parts.query or parts.fragment or any(ord(letter) <= 32 for letter in word):
        raise ValueError("a URL of a store has neither ? nor # nor spaces, which are written %3F, %23, %20")
    if parts.scheme != "file":
        if not parts.netloc:
            raise ValueError(f"it names no bucket: {parts.scheme}://BUCKET/PREFIX")
        return parts.scheme + word.rstrip("/")[len(parts.scheme) :]  # urlsplit's is in small letters
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or path == "/" or "\0" in path or ".." in path.split("/"):
        raise ValueError("a folder is written with its whole path and three slashes: file:///srv/results")
    folder = Path(path)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} is no folder that this user may write to")
    return "file://" + parts.path.rstrip("/")


class Objects:
    """One object store. Its files are written whole or not at all."""

    def __init__(self, url: str, store: ObjectStore, folder: Path | None = None) -> None:
        """folder: of a store of local files."""
        self.url = url
        self._store: Any = store  # Any: its methods are typed for each kind of store alone
        self._folder = folder
        self._told_at = -inf
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._remote = url.startswith(tuple(f"{scheme}://" for scheme in REMOTE))

    @classmethod
    def open(cls, url: str) -> Objects:
        """The store at a URL of read_stores. It connects to nothing. Raises StoreUnavailable."""
        try:
            from obstore.store import LocalStore, from_url
        except ImportError as error:
            raise StoreUnavailable("A result store needs the package obstore") from error
        if not url.startswith("file://"):
            endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
            options: Any = {"timeout": "10s", "connect_timeout": "3s"}
            if endpoint.startswith("http://"):  # whoever writes that means it
                options["allow_http"] = True
            patience: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=ANSWERS_WITHIN / 2)}
            try:
                return cls(url, from_url(url, client_options=options, retry_config=patience))
            except Exception as error:  # of several kinds: whatever obstore finds wrong with it
                raise StoreUnavailable(f"{url} cannot be opened: {_reason(error)}") from error
        folder = Path(unquote(url.removeprefix("file://")))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_mode & 0o007:
                log.warning(
                    "%s is open to all users of this machine: chmod 700 keeps its images from them", folder
                )
        except OSError as error:
            raise StoreUnavailable(f"The folder {folder} cannot be used: {error.strerror}") from error
        return cls(url, LocalStore(folder), folder)

    @property
    def reference(self) -> bytes:
        """What Redis keeps in the place of a file."""
        return REFERENCE + self.url.encode()

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write files, side by side; those of the same name are replaced. Raises StoreUnavailable."""
        try:
            if len(files) == 1:
                self._put(files[0])
            else:
                list(self._threads.map(self._put, files))
        except Exception as error:
            raise self._outage(error) from error

    def _put(self, file: tuple[str, bytes]) -> None:
        name, content = file
        if self._folder is not None and not self._folder.is_dir():  # obstore would make it, for all to read
            raise FileNotFoundError(f"there is no folder {self._folder}")
        kept: dict[str, Any] = {}
        if self._remote:  # whoever follows a signed URL gets what the API would have answered
            kept["attributes"] = {
                "Content-Type": _TYPES[name[-4:]],
                "Cache-Control": "private, max-age=31536000, immutable",
            }
        self._store.put(name, content, use_multipart=False, **kept)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(AT_ONCE, "results")

    async def get(self, name: str) -> bytes:
        """A file. Raises ResultGone where somebody has deleted it, StoreUnavailable."""

        async def read() -> bytes:
            async with self._at_once:  # whoever waits here for too long hears that the store is away as well
                found = await self._store.get_async(name)
                content: bytes = (await found.bytes_async()).to_bytes()
            return content

        return await self._answer(read)

    async def remove(self, names: Sequence[str], whole: Collection[str] = ()) -> None:
        """As `delete`, awaited."""
        await self._answer(lambda: asyncio.to_thread(self.delete, names, whole))

    def delete(self, names: Sequence[str], whole: Collection[str] = ()) -> None:
        """Delete files, if they are there. Raises StoreUnavailable.

        whole: jobs all of whose files are among them: in a folder, what was never finished goes as well.
        """
        try:
            if self._folder is not None:
                self._unlink(self._folder, names, whole)
                return
            try:
                self._store.delete(list(names))
            except FileNotFoundError:  # stores without deletion in bulk end at the first that is not there
                for name in names:
                    with suppress(FileNotFoundError):
                        self._store.delete(name)
        except Exception as error:
            raise self._outage(error) from error

    def _unlink(self, folder: Path, names: Iterable[str], whole: Collection[str]) -> None:
        if not folder.is_dir():  # not mounted: nothing is deleted yet
            raise FileNotFoundError(f"there is no folder {folder}")
        for job_id in whole:
            _remove(folder / job_id)
        for path in (folder / name for name in names if name.partition("/")[0] not in whole):
            path.unlink(missing_ok=True)
            if path.parent != folder:
                with suppress(OSError):  # other files are in it
                    path.parent.rmdir()

    async def sign(self, method: str, name: str, seconds: float) -> str | None:
        """An address at which anybody may get the file for so long; None: this store has none."""
        if not self._remote:
            return None
        import obstore

        async def signed() -> str:
            lifetime = timedelta(seconds=seconds)
            address: str = await obstore.sign_async(self._store, method, name, lifetime)  # type: ignore[call-overload]
            return address

        return await self._answer(signed)

    async def _answer(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(ANSWERS_WITHIN):
                return await call()
        except StoreUnavailable:
            raise
        except FileNotFoundError as error:
            # the file, or all of them: a bucket that is not there, a folder that is not mounted
            if "NoSuchBucket" in str(error) or (self._folder is not None and not self._folder.is_dir()):
                raise self._outage(error) from error
            raise ResultGone from error
        except Exception as error:
            raise self._outage(error) from error

    def _outage(self, error: Exception) -> StoreUnavailable:
        if monotonic() - self._told_at > TOLD_EVERY:
            self._told_at = monotonic()
            what = _reason(error) or f"no answer within {ANSWERS_WITHIN:g} s"
            log.warning("the result store %s: %s", self.url, what)
        return StoreUnavailable()


def _remove(folder: Path) -> None:
    """A job's folder, with what a worker was writing when it was killed."""
    for left in reversed(range(TRIES)):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError as error:  # a worker writes into it just now
            if error.errno != errno.ENOTEMPTY or not left:
                raise


def _reason(error: Exception) -> str:
    """What the store said, or the first line of obstore's message, which goes on for a page."""
    said = _SAID.search(str(error))
    return f"{said[1]}: {said[2]}" if said else str(error).partition("\n")[0][:300]


class Stores:
    """The object stores of a setting. New results go to `first`; None: into Redis."""

    def __init__(self, stores: Sequence[Objects], *, redis_first: bool) -> None:
        self.first = None if redis_first else stores[0]
        self._by_url = {store.url: store for store in stores}

    @classmethod
    def open(cls, setting: str) -> Stores:
        """Raises StoreUnavailable."""
        urls = read_stores(setting)
        return cls([Objects.open(url) for url in urls if url != REDIS], redis_first=urls[0] == REDIS)

    def __bool__(self) -> bool:
        return bool(self._by_url)

    def get(self, url: str) -> Objects | None:
        return self._by_url.get(url)

    async def read(self, kept: bytes, name: str) -> bytes:
        """The file that Redis keeps, or a reference to. Raises ResultGone, StoreUnavailable."""
        return await self.of(kept).get(name) if is_reference(kept) else kept

    def of(self, reference: bytes) -> Objects:
        """The store of a reference in Redis. Raises StoreUnavailable."""
        url = reference.removeprefix(REFERENCE).decode()
        found = self._by_url.get(url)
        if found is None:
            log.error("a result is in %s, which is not in SAGAN_RESULT_STORE here", url)
            raise StoreUnavailable("This result is in a store that this server does not read")
        return found


def is_reference(value: bytes) -> bool:
    """Whether what Redis has is a reference, and not the file itself."""
    return value.startswith(REFERENCE)
