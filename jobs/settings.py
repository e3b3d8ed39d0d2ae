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
    visibility_timeout: int = Field(
        default=3600, ge=60, description="seconds after which Redis hands out an unacknowledged message again"
    )

    @field_validator("redis_url")
    @classmethod
    def _only_redis(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(f"redis_url is {url!r}; it must start with redis://, rediss:// or unix://")
        return url
