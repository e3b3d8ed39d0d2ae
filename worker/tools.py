"""The app for Celery's own tools: `celery -A worker.tools inspect active`, `celery -A worker.tools flower`.

It finds workers with SAGAN_CELERY_TOOLS=true on the Redis of SAGAN_REDIS_URL.
"""

from __future__ import annotations

from jobs.settings import QueueSettings, read_settings
from worker.celery_app import make_celery

app = make_celery(read_settings(QueueSettings), [], tools=True)
