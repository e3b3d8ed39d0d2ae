"""The queue: one Celery app over Redis, and the settings that decide whether a job can be lost."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

from celery import Celery
from kombu.entity import Queue
from kombu.transport import TRANSPORT_ALIASES

from jobs.settings import QueueSettings
from jobs.wire import ATTENTION_QUEUE, GENERATE_QUEUE, PRIORITY_STEPS, celery_prefix

TRANSPORT: Final = "sagan"
TRANSPORT_ALIASES[TRANSPORT] = "worker.transport:Transport"


def make_celery(settings: QueueSettings) -> Celery:
    """The Celery app of a worker. It opens no connection by itself."""
    celery = Celery("sagan", broker=_broker(settings.redis_url), set_as_current=False)
    celery.conf.update(
        broker_transport=TRANSPORT,
        task_acks_late=True,  # a message is gone from Redis only when its job is done
        task_reject_on_worker_lost=True,  # a worker that vanishes has not done its job
        worker_prefetch_multiplier=1,  # take no more than there are threads: what is taken is being worked on
        task_ignore_result=True,  # the job record is the result (jobs.job), and expires on its own terms
        accept_content=["json"],  # never unpickle what comes from a queue
        task_serializer="json",
        broker_connection_retry_on_startup=True,  # Redis may come up after the worker
        broker_connection_max_retries=None,  # None: try for ever; a worker outlives its Redis
        # In-hand jobs go on while Redis is away: their results are written when it is back.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Tasks that survive a reconnect are in the scheduler already; take as many new ones as ever.
        worker_enable_prefetch_count_reduction=False,
        worker_soft_shutdown_timeout=5.0,  # seconds a second Ctrl-C still leaves to hand the jobs back
        worker_enable_remote_control=False,  # nobody sends commands: no fanout queue, no pidbox
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        task_create_missing_queues=False,
        task_default_queue=GENERATE_QUEUE,
        task_queues=[Queue(name) for name in (ATTENTION_QUEUE, GENERATE_QUEUE)],  # type: ignore[no-untyped-call]
        broker_transport_options={
            "global_keyprefix": celery_prefix(settings.namespace),
            # Well above the longest job: handed out again too early, a job would run twice. The sweeper is
            # what brings jobs of a dead worker back, in seconds; this is the net below it.
            "visibility_timeout": settings.visibility_timeout,
            # Look every ten seconds, and each time: the default takes up to 100 s. It is the net below the
            # sweeper, and each look costs three calls.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "priority_steps": list(PRIORITY_STEPS),
            # At one priority "attention" comes before "generate": a person is waiting for the picture.
            "queue_order_strategy": "sorted",
            "socket_connect_timeout": 3,  # seconds
            "socket_timeout": 10,  # seconds; without it an ack would hang on a half-open connection
            "socket_keepalive": True,
        },
    )
    return celery


def _broker(url: str) -> str:
    """A URL of redis-py as kombu has it."""
    address, _, options = url.partition("?")
    if not address.startswith("unix://"):
        return url
    database = parse_qs(options).get("db", ["0"])[0]
    return f"{TRANSPORT}+{address.replace('unix', 'socket', 1)}?virtual_host={database}"
