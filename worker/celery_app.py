"""The Celery app of a worker, with the settings that decide whether a job can be lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from celery import Celery
from kombu.entity import Queue
from kombu.transport import TRANSPORT_ALIASES

from jobs.settings import QueueSettings
from jobs.wire import OLD_GENERATE_QUEUE, PRIORITY_STEPS, celery_prefix
from worker.transport import Wiring, wire

TRANSPORT: Final = "sagan"
TRANSPORT_ALIASES[TRANSPORT] = "worker.transport:Transport"


def make_celery(settings: QueueSettings, queues: Iterable[str], tools: bool = False) -> Celery:
    """A Celery app over Redis. It opens no connection by itself.

    tools: Celery's own (inspect, control, events, Flower) reach its workers.
    """
    celery = Celery("sagan", broker=f"{TRANSPORT}://redis", set_as_current=False)
    celery.conf.update(
        task_acks_late=True,  # a message is gone from Redis only when its job is done
        task_reject_on_worker_lost=True,  # a worker that vanishes has not done its job
        worker_prefetch_multiplier=1,  # take no more messages than there are threads
        task_ignore_result=True,  # the job record is the result (jobs.job)
        accept_content=["json"],  # never unpickle what comes from a queue
        task_serializer="json",
        broker_connection_retry_on_startup=True,  # Redis may come up after the worker
        broker_channel_error_retry=True,  # an error that Redis answers ends no worker either
        broker_connection_max_retries=None,  # None: try for ever, since a worker outlives its Redis
        # jobs in hand go on while Redis is away: their results are written when it is back
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # a reconnect changes nothing: jobs in hand are in the scheduler, which bounds their number
        worker_enable_prefetch_count_reduction=False,
        worker_soft_shutdown_timeout=5.0,  # seconds to hand jobs back after a second Ctrl-C
        worker_enable_remote_control=tools,  # False: no commands are sent, and there is no fanout queue
        worker_send_task_events=tools,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        task_create_missing_queues=False,
        task_default_queue=OLD_GENERATE_QUEUE,
        task_queues=[Queue(name) for name in queues],  # type: ignore[no-untyped-call]
        broker_transport_options={
            **wire(Wiring(settings.redis_url)),
            "global_keyprefix": celery_prefix(settings.namespace),
            # Seconds, well above the longest job: a message handed out again too early makes its job twice.
            # The sweeper brings jobs of a dead worker back within seconds; this is the net below it.
            "visibility_timeout": settings.visibility_timeout,
            # seconds between two looks at that net, each of them taken: by default kombu takes one in ten
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "priority_steps": list(PRIORITY_STEPS),
            "socket_connect_timeout": 3,  # seconds
            "socket_timeout": 10,  # seconds; without it an ack would hang on a half-open connection
            "socket_keepalive": True,
        },
    )
    return celery
