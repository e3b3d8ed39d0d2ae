"""The HTTP face's settings: environment variables with the prefix SAGAN_."""

import ipaddress
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from app import security
from app.addresses import Network
from app.origins import read_origin, read_pattern
from app.prefix import read_prefix
from jobs.settings import QueueSettings

# An environment variable holds "a,b", not JSON
Words = Annotated[tuple[str, ...], NoDecode]

_OPTION = re.compile(r"(?P<key>.*):(?P<name>\w+)=(?P<value>[^:=]*)", re.DOTALL)


class ApiKey(SecretStr):
    """A key, and the highest priority that it may ask for; None: that of the service."""

    max_priority: int | None = None

    @classmethod
    def read(cls, text: str) -> "ApiKey":
        """`KEY` or `KEY:priority=5`. Raises ValueError, which does not quote the key."""
        option = _OPTION.fullmatch(text)
        if option is None:
            return cls(text)
        name, value = option["name"], option["value"]
        odd = not option["key"] or _OPTION.fullmatch(option["key"])
        if odd or name != "priority" or not re.fullmatch(r"[0-9]", value):
            raise ValueError(
                f"{name}={value} after a key: the only option is KEY:priority=5, with 0 to 9 "
                "(a key itself must not end in :WORD=...)"
            )
        key = cls(option["key"])
        key.max_priority = int(value)
        return key


def _words(value: Any) -> Any:
    """The words between commas; anything but text stays as it is."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class Settings(QueueSettings):
    """QueueSettings, and the API's own."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)  # it may hold keys

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="comma-separated; empty: open to everybody. KEY:priority=5 asks for priority 5 at most",
    )
    max_priority: int = Field(
        default=9, ge=0, le=9, description="of the jobs of callers whose key has none of its own"
    )
    wrong_keys: int = Field(default=20, ge=1)  # a minute and address, then 429; a valid key is always taken
    allowed_hosts: Words = ()  # comma-separated names, *.example.com, *; empty: this machine's, any with keys
    allowed_origins: Words = ()  # comma-separated, such as https://a.example: whose pages may ask; *: all
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = ()  # whose X-Forwarded-* are believed
    root_path: str = ""  # the path prefix under which a proxy serves this, such as /sagan
    rate_limit: int | None = Field(
        default=None,
        ge=1,
        description="units a caller may spend a minute: a job, an attention map or a drawing is one, and "
        "a drawing one more for every 4 million pixels; None: no limit",
    )
    max_body: int = Field(default=64 * 1024, ge=1024)  # bytes of a request's body
    max_head: int = Field(default=16 * 1024, ge=1024)  # bytes of a request's line and headers
    head_timeout: float = Field(default=10, gt=0)  # seconds for the line and headers of a request
    body_timeout: float = Field(default=30, gt=0)  # seconds for a request's body
    idle_timeout: float = Field(default=15, gt=0)  # seconds that a connection is kept between requests
    send_timeout: float = Field(default=30, gt=0)  # seconds to take an answer, and one more each 8 kB
    max_connections: int = Field(default=8192, ge=1)  # of one process; fewer where it may open fewer files
    max_connections_per_address: int | None = Field(default=None, ge=1)  # None: half of all
    max_streams: int = Field(default=1000, ge=1)  # open event streams of one process
    max_streams_per_caller: int = Field(default=100, ge=1)  # a caller: a key, or without keys an address
    max_wait: int = Field(default=60, ge=0, le=600)  # seconds; Prefer: wait holds a request no longer
    result_url_ttl: int = Field(
        default=300,
        ge=0,
        le=7 * 86400,
        description="seconds that a store's own address of an image is good (?redirect=true); 0: none",
    )
    attention_timeout: float = Field(default=30, gt=0)  # seconds to wait for a worker to make a map, then 503
    max_side: int = Field(default=2048, ge=256)  # pixels of an enlarged image's side
    drawing_memory: int | None = Field(
        default=None,
        ge=2**24,
        description="bytes that all drawings may use together; None: a quarter of the container's, or 2^30",
    )
    max_drawings: int = Field(
        default=64,
        ge=1,
        description="drawings at once, those that wait included, half of them of one caller; one more is 503",
    )
    default_model: str | None = None  # for requests that name none; None: the one of the largest images

    @field_validator("allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _words(value)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        try:
            return [ipaddress.ip_network(word, strict=False) for word in _words(value)]
        except ValueError as error:
            raise ValueError(f"{error}. Write addresses or networks: 127.0.0.1, 10.0.0.0/8") from error

    @field_validator("allowed_hosts")
    @classmethod
    def _read_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(read_pattern, value))

    @field_validator("allowed_origins")
    @classmethod
    def _read_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word if word == "*" else read_origin(word) for word in value)

    @field_validator("root_path")
    @classmethod
    def _read_root_path(cls, value: str) -> str:
        return read_prefix(value)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_keys(cls, value: object) -> object:
        given, value = value, _words(value)
        if not isinstance(value, Sequence):
            return value
        if given and not value:  # "$ONE,$TWO" with neither set must not open the service
            raise ValueError("there is no key between its commas; leave it empty to be open to everybody")
        keys = [ApiKey.read(entry) if isinstance(entry, str) else entry for entry in value]
        ceilings: dict[str, int | None] = {}
        for key in keys:
            ceiling = getattr(key, "max_priority", None)
            if ceilings.setdefault(key.get_secret_value(), ceiling) != ceiling:
                raise ValueError("one key stands there twice, with different priorities")
        return keys

    @cached_property
    def _ceilings(self) -> dict[str, int]:
        """Owner of jobs -> the highest priority of their key, where it has one."""
        return {
            security.owner_named(key.get_secret_value()): key.max_priority
            for key in self.api_keys
            if isinstance(key, ApiKey) and key.max_priority is not None
        }

    def ceiling_of(self, caller: str) -> int:
        """The highest priority that `caller`, an owner, may ask for."""
        return self._ceilings.get(caller, self.max_priority)
