"""Webhooks: the outbox in Redis, what is sent from it, and that neither a killed API nor Redis loses any."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from standardwebhooks import WebhookVerificationError

from app.sender import Sender
from app.webhooks import WebhookOut
from jobs.job import Job
from outbox import ALL, Outbox, outbox_at, outbox_of
from receiving import SECRETS, answers, certify, receiving
from serve.private_redis import PrivateRedis, free_port
from served import Api, beat

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on PATH")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("receiver"))


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


@asynccontextmanager
async def sending(outbox: Outbox, certificate: Path) -> AsyncIterator[CollectorRegistry]:
    """A sender whose names are all 127.0.0.1, but for one that breaks the resolver."""

    async def resolve(name: str, port: int) -> list[str]:
        if name == "broken.test":
            raise RuntimeError("a mistake of ours")
        return ["127.0.0.1"]

    registry = CollectorRegistry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
        sender = Sender(outbox.settings, outbox.hooks, registry, resolve)
    sender.start()
    yield registry
    await sender.stop()


async def until(outbox: Outbox, job: Job, attempts: int) -> WebhookOut:
    with anyio.fail_after(20):
        while len((log := await outbox.log(job)).attempts) < attempts or log.waiting:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    return log


async def test_a_receiver_verifies_what_it_is_told(outbox: Outbox, certificate: Path) -> None:
    async with receiving(certificate) as receiver, sending(outbox, certificate) as registry:
        job = await outbox.order(f"https://hooks.test:{receiver.port}/a?token=secret")
        outbox.begin(job)
        await receiver.until(1)
        outbox.save(job, 0)
        await receiver.until(2)
        outbox.save(job, 1, 2)
        log = await until(outbox, job, 3)
    events = [[told.verified(secret) for secret in SECRETS] for told in receiver.told]
    assert all(one == other for one, other in events)  # either secret: the old one may go
    assert [one["type"] for one, _ in events] == ["job.started", "job.progress", "job.succeeded"]
    assert [one["data"]["done"] for one, _ in events] == [0, 1, 3]
    end = events[-1][0]
    assert end["data"]["id"] == job.id
    assert end["data"]["links"]["self"] == f"/jobs/{job.id}"
    assert end["timestamp"] == end["data"]["finished_at"]
    told = receiver.told[-1]
    assert told.path == "/a?token=secret"
    assert told.headers["webhook-id"] == f"{job.id}-end"
    with pytest.raises(WebhookVerificationError):
        told.verified("whsec_" + 43 * "C" + "=")
    assert [(one.event, one.status, one.outcome) for one in log.attempts] == [
        (event, 204, "delivered") for event in ALL
    ]
    assert log.webhook == f"https://hooks.test:{receiver.port}/a"
    assert (log.waiting, log.next_try) == ([], None)
    assert registry.get_sample_value("sagan_webhook_attempts_total", {"outcome": "delivered"}) == 3
    assert registry.get_sample_value("sagan_webhook_attempts_total", {"outcome": "given_up"}) == 0


async def test_what_fails_is_tried_again_until_it_is_given_up(redis_url: str, certificate: Path) -> None:
    async with (
        outbox_at(redis_url, webhook_retries="0.01,0.02") as outbox,
        receiving(certificate) as receiver,
        sending(outbox, certificate) as registry,
    ):
        url = f"https://hooks.test:{receiver.port}/a"
        receiver.then = [answers(500), answers(302, location="https://other.test/"), answers(200)]
        job = await outbox.order(url, ("end",))
        await outbox.store.cancel(job.id, job.owner)
        log = await until(outbox, job, 3)
        assert [(one.status, one.outcome) for one in log.attempts] == [
            (500, "failed"),
            (302, "failed"),
            (200, "delivered"),
        ]
        assert log.attempts[1].reason == "it answered 302, and redirects are not followed"
        assert {told.headers["webhook-id"] for told in receiver.told} == {f"{job.id}-end"}
        assert {json.dumps(told.verified(), sort_keys=True) for told in receiver.told} == {
            json.dumps(receiver.told[0].verified(), sort_keys=True)
        }

        receiver.then = 3 * [answers(400)]
        job = await outbox.order(url, ("start", "end"))
        outbox.begin(job)
        log = await until(outbox, job, 3)
        assert [one.outcome for one in log.attempts] == ["failed", "failed", "given up"]
        outbox.save(job, 0, 1, 2)  # the next event has tries of its own
        assert (await until(outbox, job, 4)).attempts[-1].outcome == "delivered"

        receiver.then = [answers(410)]
        job = await outbox.order(url, ("start", "end"))
        outbox.begin(job)
        assert [one.outcome for one in (await until(outbox, job, 1)).attempts] == ["gone"]
        outbox.save(job, 0, 1, 2)

        job = await outbox.order("https://broken.test/", ("end",))
        await outbox.store.cancel(job.id, job.owner)
        assert [one.outcome for one in (await until(outbox, job, 3)).attempts] == [
            "failed",
            "failed",
            "given up",
        ]

        receiver.then = [answers(503, retry_after="1")]
        job = await outbox.order(url, ("end",))
        await outbox.store.cancel(job.id, job.owner)
        log = await until(outbox, job, 2)
        first, second = log.attempts
        assert (second.at - first.at).total_seconds() >= 1
        assert outbox.left == set()
        assert registry.get_sample_value("sagan_webhook_attempts_total", {"outcome": "gone"}) == 1
    assert len(receiver.told) == 3 + 4 + 1 + 2


async def test_a_slow_receiver_holds_up_no_other(redis_url: str, certificate: Path) -> None:
    async def never(_: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with (
        outbox_at(redis_url, webhook_timeout=20, webhook_retries="60") as outbox,
        receiving(certificate) as slow,
        receiving(certificate) as quick,
        sending(outbox, certificate),
    ):
        slow.then = [never for _ in range(12)]
        for receiver, number in ((slow, 12), (quick, 5)):
            await outbox.cancelled(number, f"https://hooks.test:{receiver.port}/a")
        await quick.until(5)
        assert len(slow.told) == 4
        trying = await outbox.hooks.waiting("somebody")
        assert trying[0] >= 12
    # what it had in hand when it was stopped went back, and is due at once
    async with receiving(certificate, port=slow.port) as again, outbox_of(outbox) as later:
        async with sending(later, certificate):
            await again.until(12)
        assert len({told.headers["webhook-id"] for told in again.told}) == 12


# names of the internet, as the resolver of this machine might answer them
RESOLVER = """
import socket
found = socket.getaddrinfo
def getaddrinfo(name, *more, **named):
    return found("127.0.0.2" if str(name).rstrip(".") == "hooks.test" else name, *more, **named)
socket.getaddrinfo = getaddrinfo
"""


class Asking:
    """`sagan api` with webhooks, and a worker whose work is done by hand."""

    def __init__(self, folder: Path, url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
        self._folder, self._url = folder, url
        beat(url, "sagan")
        self.said = ""
        self.api = self.start()

    def start(self) -> Api:
        self.api = Api(
            self._folder,
            self._url,
            before=RESOLVER,
            webhook_secret=",".join(SECRETS),
            webhook_allowed="127.0.0.2",
            webhook_retries=",".join(20 * ["0.5"]),
            webhook_timeout=1,
            max_webhooks=4,
        )
        return self.api

    def ask(self, path: str, **body: object) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.api.url + path, data)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture
async def killed(redis: PrivateRedis) -> AsyncIterator[Outbox]:
    """The outbox of an API that a test kills."""
    outbox = Outbox(redis.url, "sagan")
    yield outbox
    await outbox.close()


@pytest.fixture
def asking(
    tmp_path: Path, redis: PrivateRedis, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Asking]:
    asking = Asking(tmp_path, redis.url, certificate, monkeypatch)
    yield asking
    asking.api.close()


async def test_a_webhook_is_delivered_though_the_api_is_killed_and_redis_restarts(
    redis: PrivateRedis, asking: Asking, killed: Outbox, certificate: Path
) -> None:
    port, outbox = free_port(), killed
    url = f"https://HOOKS.test.:{port}/a?token=secret"
    status, ordered = asking.ask("/generate/cat", count=3, webhook=url, webhook_events=["end", "start"])
    assert status == 202
    job = await outbox.store.get(ordered["id"], "everybody")
    outbox.begin(job)

    async def failed(times: int) -> WebhookOut:
        with anyio.fail_after(20):
            while len((log := await outbox.log(job)).attempts) < times:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        return log

    log = await failed(1)
    assert log.attempts[0].outcome == "failed"
    assert "refused" in str(log.attempts[0].reason) or "connection" in str(log.attempts[0].reason)
    outbox.save(job, 0, 1, 2)
    assert (await outbox.log(job)).waiting == ["start", "end"]

    asking.api.process.kill()
    assert "secret" not in asking.api.output
    assert job.id in asking.api.output
    redis.kill()
    redis.start()
    async with receiving(certificate, "127.0.0.2", port) as receiver:
        api = asking.start()
        await receiver.until(2)
        assert [told.verified()["type"] for told in receiver.told] == ["job.started", "job.succeeded"]
        assert receiver.told[0].headers["webhook-id"] == log.attempts[0].id
        assert receiver.told[0].headers["host"] == f"hooks.test:{port}"
        with anyio.fail_after(20):
            while (told := asking.ask(f"/jobs/{job.id}/webhooks")[1])["waiting"]:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert [attempt["outcome"] for attempt in told["attempts"]][-2:] == ["delivered", "delivered"]
        assert told["webhook"] == f"https://hooks.test:{port}/a"
        assert api.counted('sagan_webhook_attempts_total{outcome="delivered"}') == 2
        refusals(asking)
        await shares(asking, outbox)
    assert "secret" not in api.output


def refusals(asking: Asking) -> None:
    """What cannot be asked for is told in a sentence."""
    for body, said in (
        ({"webhook": "https://0x7f.1/"}, "body.webhook: A webhook cannot go there: write an address as four"),
        (
            {"webhook": "https://[::1]/"},
            "body.webhook: A webhook cannot go there: it does not resolve to public",
        ),
        ({"webhook": "ftp://a.example/"}, "write https:// before the name"),
        ({"webhook": "https://a.example/" + 3000 * "a"}, "body.webhook: String should have at most 2048"),
        ({"webhook": 7}, "body.webhook"),
        ({"webhook_events": ["end"]}, "webhook_events goes with webhook"),
        ({"webhook": "https://a.example/", "webhook_events": []}, "body.webhook_events"),
        ({"webhook": "https://a.example/", "webhook_events": ["done"]}, "'start', 'progress' or 'end'"),
        ({"webhook": "https://a.example/", "webhook_event": ["end"]}, "Did you mean 'webhook_events'?"),
    ):
        for path, more in (("/generate/cat", {}), ("/morph", {"ends": [{"class_id": "cat"}] * 2})):
            status, problem = asking.ask(path, **body, **more)
            assert (status, problem["status"]) == (422, 422)
            assert said in problem["detail"]
    assert asking.ask("/jobs/nobody-knows-it/webhooks")[0] == 404
    assert asking.ask("/jobs/a.b/webhooks")[0] == 404
    assert asking.ask("/v1/images/generations", prompt="cat", webhook="https://a.example/")[0] == 400


async def shares(asking: Asking, outbox: Outbox) -> None:
    """A caller may have half of what may wait, 2 of 4; one key is one webhook."""
    for _ in range(2):
        status, told = asking.ask("/generate/cat", webhook="https://hooks.test:1024/", webhook_events=["end"])
        assert status == 202
        await outbox.store.cancel(told["id"], "everybody")
    status, problem = asking.ask("/generate/cat", webhook="https://hooks.test:1024/")
    assert status == 429
    assert "2 webhooks of your jobs wait to be delivered" in problem["detail"]
    assert asking.ask("/generate/cat", count=1)[0] == 202
