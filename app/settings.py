"""The HTTP face's settings: environment variables with the prefix SAGAN_."""

import ipaddress
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from app import env_keys
from app.addresses import Network
from app.env_keys import words
from app.origins import read_origin, read_pattern
from app.prefix import read_prefix
from app.receivers import read_allowed
from jobs.settings import QueueSettings

# An environment variable holds "a,b", not JSON
Words = Annotated[tuple[str, ...], NoDecode]

Pause = Annotated[float, Field(ge=0, le=86_400)]  # seconds


def _is_webhook_secret(text: str) -> bool:
    try:
        return text.startswith("whsec_") and 24 <= len(b64decode(text[6:], validate=True)) <= 64
    except ValueError:
        return False


class Settings(QueueSettings):
    """QueueSettings, and the API's own."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)  # it may hold keys

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="comma-separated; empty: open to everybody. KEY:priority=5 asks for priority 5 at most",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="a file of such keys, one a line or with commas between, as Docker's secrets are; read "
        "again when it changes",
    )
    keys_file: Path | None = Field(
        default=None,
        description="a file of `sagan keys`, read again when it changes; None: they are in Redis",
    )
    require_keys: bool = False  # closed to everybody without a key, also where no key was ever made
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
    webhook_secret: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="whsec_ and 24 to 64 bytes in base64: signs webhooks; several, with commas, while one "
        "follows another: all sign. Empty: there are no webhooks",
    )
    webhook_allowed: Words = Field(
        default=(),
        description="comma-separated networks and names whose addresses need not be public, nor speak TLS",
    )
    webhook_timeout: float = Field(default=10, ge=0.5, le=60)  # seconds of one try, from name to status
    webhook_retries: Annotated[tuple[Pause, ...], NoDecode] = Field(
        default=(5, 30, 120, 600, 3600, 10_800, 21_600),
        max_length=20,
        description="comma-separated seconds before the second try of a webhook, the third, and so on",
    )
    max_webhooks: int = Field(
        default=10_000,
        ge=1,
        description="jobs whose webhooks wait to be delivered, half of them of one caller; then 429",
    )
    default_model: str | None = None  # for requests that name none; None: the one of the largest images

    @field_validator("allowed_hosts", "allowed_origins", "webhook_allowed", "webhook_retries", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return words(value)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        try:
            return [ipaddress.ip_network(word, strict=False) for word in words(value)]
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

    @field_validator("webhook_secret", mode="before")
    @classmethod
    def _read_secrets(cls, value: object) -> object:
        given, value = value, words(value)
        if isinstance(given, str) and given and not value:
            raise ValueError("there is no secret between its commas; leave it empty to have no webhooks")
        for secret in value if isinstance(value, Sequence) else ():
            text = secret.get_secret_value() if isinstance(secret, SecretStr) else str(secret)
            if not _is_webhook_secret(text):
                raise ValueError(
                    "a secret is whsec_ and 24 to 64 random bytes in base64, such as "
                    "`echo whsec_$(openssl rand -base64 32)` makes"
                )
        return value

    @field_validator("webhook_allowed")
    @classmethod
    def _read_receivers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(read_allowed(word)) for word in value)

    @field_validator("root_path")
    @classmethod
    def _read_root_path(cls, value: str) -> str:
        return read_prefix(value)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _read_keys(cls, value: object) -> object:
        return env_keys.read_keys(value)

    @field_validator("api_keys_file", "keys_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("api_keys_file")
    @classmethod
    def _has_keys(cls, value: Path | None) -> Path | None:
        if value is not None:
            env_keys.read_file(value)
        return value
