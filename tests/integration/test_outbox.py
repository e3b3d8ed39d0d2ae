"""The outbox of webhooks: which deliveries are due, who tries them, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from outbox import Outbox, outbox_at
from serve.private_redis import PrivateRedis


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = PrivateRedis(tmp_path_factory.mktemp("webhooks"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
async def outbox(redis_url: str) -> AsyncIterator[Outbox]:
    async with outbox_at(redis_url) as outbox:
        yield outbox


async def test_events_come_in_order_and_progress_is_the_newest(outbox: Outbox) -> None:
    job = await outbox.order()
    assert (await outbox.claim()).deliveries == []
    outbox.begin(job)
    [start] = (await outbox.claim()).deliveries
    assert (start.event, start.event_id, start.tries) == ("start", f"{job.id}-start", 0)
    assert (start.job.state, start.job.done, start.job.finished_at) == ("running", 0, None)
    assert start.job.started_at == start.at
    outbox.save(job, 0)
    outbox.save(job, 1)
    assert (await outbox.claim()).deliveries == []  # in order: the start is on its way
    await outbox.hooks.settle(start, "done")
    [progress] = (await outbox.claim()).deliveries
    assert (progress.event_id, progress.job.done) == (f"{job.id}-progress-2", 2)
    outbox.save(job, 2)
    await outbox.hooks.settle(progress, "again", 60)  # the end is new, and is tried at once
    [end] = (await outbox.claim()).deliveries
    assert (end.event_id, end.job.state, end.job.done) == (f"{job.id}-end", "succeeded", 3)
    assert end.job == await outbox.store.get(job.id, job.owner)
    await outbox.hooks.settle(end, "done")
    assert (await outbox.claim()).deliveries == []
    assert outbox.left == set()


async def test_a_job_without_a_webhook_leaves_nothing_and_one_tells_what_was_asked(outbox: Outbox) -> None:
    plain, ends = await outbox.order(None), await outbox.order(events=("end",))
    late = await outbox.order(events=("end",))
    outbox.begin(plain, ends)
    outbox.save(plain, 0, 1, 2)
    outbox.save(ends, 0)
    assert outbox.left == set()
    outbox.worker.fail(ends.id, "a reason")
    await outbox.store.cancel(late.id, late.owner)
    found = (await outbox.claim()).deliveries
    assert [(one.job.state, one.job.error) for one in found] == [("failed", "a reason"), ("cancelled", None)]
    assert found[1].job.started_at is None


async def test_a_lease_ends_and_another_delivers_the_same(outbox: Outbox) -> None:
    job = await outbox.order(events=("end",))
    await outbox.store.cancel(job.id, job.owner)
    [first] = (await outbox.claim(lease=0.05)).deliveries
    await anyio.sleep(0.06)
    [second] = (await outbox.claim()).deliveries
    assert second.event_id == first.event_id
    await outbox.hooks.settle(first, "again", 0)  # too late: the second one has it
    assert (await outbox.claim()).deliveries == []
    await outbox.hooks.settle(second, "again", 0.05)
    claimed = await outbox.claim()
    assert claimed.deliveries == []
    assert claimed.wait == pytest.approx(0.05, abs=0.05)
    await anyio.sleep(0.06)
    [third] = (await outbox.claim()).deliveries
    assert third.tries == 1
    await outbox.hooks.settle(third, "back")  # not tried: the process ends
    [fourth] = (await outbox.claim()).deliveries
    assert fourth.tries == 1
    await outbox.hooks.settle(fourth, "gone")
    assert outbox.left == set()
    assert (await outbox.log(job)).webhook is None


async def test_one_receiver_and_one_caller_hold_up_nobody(outbox: Outbox) -> None:
    for caller, name, number in (("a", "slow", 210), ("a", "quick", 5), ("b", "slow", 5)):
        await outbox.cancelled(number, f"https://{name}.test/x", caller)
    claimed = await outbox.hooks.claim(100, 60, 6, 4, [])
    urls = [(one.job.owner, one.url) for one in claimed.deliveries]
    assert urls.count(("a", "https://slow.test/x")) == 4  # as many as one receiver may have
    assert urls.count(("a", "https://quick.test/x")) == 2  # and with these the caller has all
    assert urls.count(("b", "https://slow.test/x")) == 4
    trying = [one.lane for one in claimed.deliveries]
    again = (await outbox.hooks.claim(100, 60, 6, 4, trying)).deliveries
    assert again == []
    assert await outbox.hooks.waiting("a") == (220, 215)
    assert len((await outbox.hooks.claim(3, 60, 100, 100, [])).deliveries) == 3


async def test_what_has_expired_is_forgotten(outbox: Outbox) -> None:
    jobs = [await outbox.order(events=("end",)) for _ in range(2)]
    for job in jobs:
        await outbox.store.cancel(job.id, job.owner)
    [one] = (await outbox.claim(most=1)).deliveries
    for job in jobs:
        assert outbox.redis.ttl(f"{outbox.settings.namespace}:hook:{job.id}") > 0
        outbox.redis.delete(f"{outbox.settings.namespace}:job:{job.id}")
    await outbox.hooks.settle(one, "again", 1)
    assert (await outbox.claim()).deliveries == []
    assert outbox.left == set()
