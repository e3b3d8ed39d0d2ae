"""Celery's own tools reach a worker where a setting lets them."""

from __future__ import annotations

from threading import Thread
from typing import Any

import anyio

from tests.integration.conftest import Service
from worker.celery_app import make_celery


async def test_inspect_and_events_tell_of_a_job(service: Service) -> None:
    service.start_worker(SAGAN_CELERY_TOOLS="true")
    await service.ready()
    celery = make_celery(service.settings, [], tools=True)
    events: list[dict[str, Any]] = []

    connection = celery.connection_for_read()
    receiver = celery.events.Receiver(connection, handlers={"*": events.append})
    capturing = Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
    capturing.start()

    async def hears() -> bool:
        return any(event["type"] == "worker-heartbeat" for event in events)

    await service.until(hears)
    [job] = await service.finished([await service.generate(count=2)])
    assert job.state == "succeeded"

    async def all_told() -> bool:
        return "task-succeeded" in {event["type"] for event in events}

    await service.until(all_told)
    told = [event["type"] for event in events if event.get("uuid") == job.id]
    assert told == ["task-received", "task-started", "task-succeeded"]

    inspect = celery.control.inspect(timeout=5)
    found = await anyio.to_thread.run_sync(lambda: (inspect.ping(), inspect.stats(), inspect.active_queues()))
    ping, stats, queues = found
    [(worker, pong)] = ping.items()
    assert pong == {"ok": "pong"}
    assert stats[worker]["total"] == {"sagan.generate": 1}
    assert job.spec.version in str(queues[worker])
    password = service.redis.url.split("@")[0].split(":")[-1]
    assert password not in str(found)
    receiver.should_stop = True
    await anyio.to_thread.run_sync(capturing.join, 10)
    assert not capturing.is_alive()
    connection.release()
    celery.close()
