"""The queue: one Celery app over Redis, and the settings that decide whether a job can be lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.jobs import BrokerUnavailable

if TYPE_CHECKING:
    from worker.jobs import Job

GENERATE: Final = "sagan.generate"  # task (job_id): make the images of a job
ATTENTION: Final = "sagan.attention"  # task (job_id, image, layer): make one attention map

GENERATE_QUEUE: Final = "generate"
ATTENTION_QUEUE: Final = "attention"

# Redis serves the list of the lowest number first. Its own default has four steps; ours are the API's ten.
PRIORITY_STEPS: Final = tuple(range(10))


class QueueSettings(BaseSettings):
    """What the API and a worker must agree on. Each field is read from SAGAN_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="SAGAN_", extra="ignore")

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="Redis or Valkey: redis:// or rediss://"
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
    max_attempts: int = Field(
        default=3, ge=1, description="worker deaths a job may be part of before it is failed"
    )
    heartbeat_period: float = Field(
        default=1.0, gt=0, description="seconds between two signs of life of a worker"
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
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError(f"redis_url is {url!r}; it must start with redis:// or rediss://")
        return url


def celery_prefix(settings: QueueSettings) -> str:
    """What stands before each of Celery's keys in Redis."""
    return f"{settings.namespace}:celery:"


def make_celery(settings: QueueSettings) -> Celery:
    """The Celery app, of the publisher and of the worker alike. It opens no connection by itself."""
    celery = Celery("sagan", broker=settings.redis_url, set_as_current=False)
    celery.conf.update(
        task_acks_late=True,  # a message is gone from Redis only when its job is done
        task_reject_on_worker_lost=True,  # a worker that vanishes has not done its job
        worker_prefetch_multiplier=1,  # take no more than there are threads: what is taken is being worked on
        task_ignore_result=True,  # the job record is the result (worker.jobs), and expires on its own terms
        accept_content=["json"],  # never unpickle what comes from a queue
        task_serializer="json",
        broker_connection_retry_on_startup=True,  # Redis may come up after the worker
        broker_connection_max_retries=None,  # None: try for ever; a worker outlives its Redis
        # In-hand jobs go on while Redis is away: their results are written when it is back.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Tasks that survive a reconnect are in the batcher already; take as many new ones as ever.
        worker_enable_prefetch_count_reduction=False,
        worker_soft_shutdown_timeout=5.0,  # seconds a second Ctrl-C still leaves to hand the jobs back
        worker_enable_remote_control=False,  # nobody sends commands: no fanout queue, no pidbox
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        task_create_missing_queues=False,
        task_default_queue=GENERATE_QUEUE,
        task_queues=[Queue(name) for name in (ATTENTION_QUEUE, GENERATE_QUEUE)],  # type: ignore[no-untyped-call]
        # A publisher gives up after about a second; the record stands, and the sweeper publishes it later.
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2},
        broker_transport_options={
            "global_keyprefix": celery_prefix(settings),
            # Well above the longest job: handed out again too early, a job would run twice. The sweeper is
            # what brings jobs of a dead worker back, in seconds; this is the net below it.
            "visibility_timeout": settings.visibility_timeout,
            "unacked_restore_interval": 1,  # look every second, and each time: the default takes up to 100 s
            "unacked_restore_throttle": 1,
            "priority_steps": list(PRIORITY_STEPS),
            # At one priority "attention" comes before "generate": a person is waiting for the picture.
            "queue_order_strategy": "sorted",
            "socket_connect_timeout": 3,  # seconds
            "socket_timeout": 10,  # seconds; without it a publish would hang on a half-open connection
            "socket_keepalive": True,
        },
    )
    return celery


def broker_priority(priority: int) -> int:
    """Redis' priority (0 is served first) of the API's (9 is most urgent)."""
    return 9 - priority


def publish_generate(celery: Celery, job: Job) -> None:
    """Put a job on the queue. Blocking: call it in a thread. A second message for one job does no harm.

    Raises BrokerUnavailable; the record of the job stands, and a worker's sweeper publishes it.
    """
    priority = broker_priority(job.spec.priority)
    _send(celery, GENERATE, [job.id], queue=GENERATE_QUEUE, priority=priority, task_id=job.id)


def publish_attention(celery: Celery, job_id: str, image: int, layer: str) -> None:
    """Ask for one attention map, ahead of every job that waits. Raises BrokerUnavailable."""
    _send(celery, ATTENTION, [job_id, image, layer], queue=ATTENTION_QUEUE, priority=0)


def _send(celery: Celery, task: str, args: list[Any], **options: Any) -> None:
    try:
        celery.send_task(task, args=args, ignore_result=True, **options)
    except OperationalError as error:
        raise BrokerUnavailable() from error
