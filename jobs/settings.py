"""Settings that the API and its workers share: environment variables with the prefix SAGAN_."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class QueueSettings(BaseSettings):
    """Settings that the API and its workers share. Each field is read from SAGAN_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="SAGAN_", extra="ignore")

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="Redis or Valkey: redis://, rediss:// or unix:///path/of/its/socket",
    )
    namespace: str = Field(
        default="sagan", min_length=1, description="prefix of every key in Redis, Celery's as well"
    )
    result_ttl: int = Field(
        default=3600, ge=1, description="seconds the images of a finished job live; then 410"
    )
    record_ttl: int = Field(
        default=86400, ge=1, description="seconds an expired job still answers 410; then 404"
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

    @field_validator("redis_url")
    @classmethod
    def _only_redis(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(f"redis_url is {url!r}; it must start with redis://, rediss:// or unix://")
        return url
