"""The HTTP face's settings: environment variables with the prefix SAGAN_."""

from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from jobs.settings import QueueSettings

# An environment variable holds "a,b", not JSON
Words = Annotated[tuple[str, ...], NoDecode]


class Settings(QueueSettings):
    """QueueSettings, and the API's own."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()  # comma-separated; empty: open to everybody
    allowed_origins: Words = ()  # comma-separated, such as https://a.example: whose pages may ask
    rate_limit: int | None = Field(default=None, ge=1)  # POSTs a caller may make a minute; None: no limit
    max_body: int = Field(default=64 * 1024, ge=1024)  # bytes of a request's body
    max_wait: int = Field(default=60, ge=0, le=600)  # seconds; Prefer: wait holds a request no longer
    attention_timeout: float = Field(default=30, gt=0)  # seconds to wait for a worker to make a map, then 503
    max_side: int = Field(default=2048, ge=256)  # pixels of an enlarged image's side
    default_model: str | None = None  # for requests that name none; None: the one of the largest images

    @field_validator("api_keys", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
        )
