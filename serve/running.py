"""The Redis of a service that runs here, for commands beside it."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.settings import QueueSettings, read_settings
from serve.private_redis import url_in


def queue_settings() -> QueueSettings:
    """Those of SAGAN_REDIS_URL; without it, of the private Redis of a `sagan serve` in this state folder.

    Raises SystemExit where a setting is wrong.
    """
    settings = read_settings(QueueSettings)
    if os.environ.get("SAGAN_REDIS_URL"):
        return settings
    found = url_in(state_folder() / "redis")
    return settings.model_copy(update={"redis_url": found}) if found else settings


def state_folder() -> Path:
    return Path(os.environ.get("SAGAN_STATE_DIR") or ".sagan")
