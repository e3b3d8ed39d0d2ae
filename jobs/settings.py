"""Settings that the API and its workers share: environment variables with the prefix SAGAN_."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from redis import ConnectionPool
from redis.exceptions import RedisError

from jobs.results import check_opens, read_stores

S = TypeVar("S", bound=BaseSettings)


# a word in any case
_Lower = BeforeValidator(lambda word: word.strip().lower() if isinstance(word, str) else word)
# Environment variable with the path of a Unix socket: `sagan serve` sets it for its own worker, which writes
# its series there to whoever connects, and for its API, which reads them. No setting: nobody else needs it.
METRICS_SOCKET: Final = "SAGAN_METRICS_SOCKET"

YEARS: Final = 10 * 365 * 86400  # seconds; Redis refuses to expire what is too far away


class QueueSettings(BaseSettings):
    """Settings that the API and its workers share. Each field is read from SAGAN_<NAME>."""

    model_config = SettingsConfigDict(
        env_prefix="SAGAN_",
        extra="ignore",
        hide_input_in_errors=True,
        validate_default=False,
        allow_inf_nan=False,  # no sum of seconds takes them
    )

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,  # a password may be in it
        description="Redis or Valkey: redis://, rediss:// or unix:///path/of/its/socket",
    )
    namespace: str = Field(
        default="sagan", min_length=1, description="prefix of every key in Redis, Celery's as well"
    )
    result_ttl: int = Field(
        default=3600, ge=1, le=YEARS, description="seconds the images of a finished job live; then 410"
    )
    max_retention: int | None = Field(
        default=None,
        ge=1,
        le=YEARS,
        description="seconds that a caller may have the images of a job kept; None: result_ttl",
    )
    result_store: str = Field(
        default="redis",
        description="where images and attention maps lie: redis, file:///FOLDER, s3://BUCKET/PREFIX; of "
        "several, with commas, the first takes what is new and the others are still read",
    )
    result_patience: float = Field(
        default=60.0,
        gt=0,
        description="seconds that a result store may refuse to take images before their jobs fail",
    )
    record_ttl: int = Field(
        default=86400, ge=1, le=YEARS, description="seconds an expired job still answers 410; then 404"
    )
    max_queued: int = Field(
        default=1000, ge=1, description="jobs that may wait at once; one more is refused with 429"
    )
    max_queued_images: int = Field(
        default=16_000, ge=1, description="images that waiting jobs may have together; then 429 as well"
    )
    caller_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="part of max_queued and max_queued_images that one caller may have",
    )
    model_patience: float = Field(
        default=60.0,
        gt=0,
        description="seconds without a living worker that has its model, after which a waiting job fails",
    )
    max_queued_maps: int = Field(
        default=100,
        ge=1,
        description="attention maps that may be waited for at once, half of them by one caller; then 429",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="worker deaths a job may be part of before it is failed"
    )
    heartbeat_period: float = Field(
        default=1.0, gt=0, description="seconds between two heartbeats of a worker"
    )
    worker_ttl: float = Field(
        default=6.0, gt=0, description="seconds of silence after which a worker counts as dead"
    )
    drain: float = Field(
        default=20.0,
        ge=0,
        description="seconds that a worker that is told to stop still makes waiting jobs of a model that no "
        "other worker has, where another one has it in a newer version",
    )
    visibility_timeout: int = Field(
        default=3600, ge=60, description="seconds after which Redis hands out an unacknowledged message again"
    )
    log_format: Annotated[Literal["auto", "console", "json"], _Lower] = Field(
        default="auto", description="of log lines; auto: for a reader at a terminal, JSON elsewhere"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], _Lower] = Field(
        default="info", description="log lines below it are left out"
    )

    @field_validator("redis_url")
    @classmethod
    def _only_redis(cls, url: str) -> str:
        """The message never quotes the URL: a password may stand anywhere in one that is wrong."""
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("it must start with redis://, rediss:// or unix://")
        try:
            ConnectionPool.from_url(url).make_connection()  # connects to nothing
        except (ValueError, TypeError, RedisError):
            raise ValueError(
                "it cannot be read; it has the form redis://USER:PASSWORD@HOST:PORT/NUMBER?OPTION=VALUE, "
                "where characters such as / # ? @ : of a password are written %2F %23 %3F %40 %3A, and the "
                "options are those of redis-py"
            ) from None
        return url

    @field_validator("result_store")
    @classmethod
    def _only_stores(cls, setting: str) -> str:
        urls = read_stores(setting)
        for url in urls:
            check_opens(url)
        return ",".join(urls)

    @property
    def longest_retention(self) -> int:
        """Seconds that images may live at most."""
        return self.max_retention or self.result_ttl

    @model_validator(mode="after")
    def _lives_between_its_heartbeats(self) -> Self:
        if self.worker_ttl < 2 * self.heartbeat_period:
            raise ValueError(
                f"SAGAN_WORKER_TTL ({self.worker_ttl:g} s) must be at least twice SAGAN_HEARTBEAT_PERIOD "
                f"({self.heartbeat_period:g} s), or a living worker counts as dead between two heartbeats"
            )
        return self


def read_settings(kind: type[S]) -> S:
    """The settings in the environment. Raises SystemExit, with a line for each that is wrong."""
    try:
        return kind()
    except ValidationError as error:
        lines = [_explain(kind, each) for each in error.errors(include_url=False, include_context=False)]
    except SettingsError as error:  # it names the field and not its value
        lines = [f"sagan: {error}"]
    raise SystemExit("\n".join(dict.fromkeys(lines)))


def _explain(kind: type[BaseSettings], error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return f"sagan: {message}"
    name = str(error["loc"][0])
    field = kind.model_fields.get(name)
    secret = field is None or not field.repr or "Secret" in repr(field.annotation)
    given = "" if secret else f" is {str(error['input'])[:60]!r}"
    return f"sagan: SAGAN_{name.upper()}{given}: {message}."
