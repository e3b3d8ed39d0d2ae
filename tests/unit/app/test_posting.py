"""One try to deliver a webhook, over real sockets: where the connection goes, and that all is bounded."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.posting import Answer, Names, Poster
from app.receivers import NOT_PUBLIC, Receivers
from receiving import Behaviour, answers, certify, receiving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on PATH")

ALLOWED = Receivers(["127.0.0.0/8"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("receiver"))


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "certificate.pem"))


class Resolver:
    """Answers with the next of its answers, and with the last for ever."""

    def __init__(self, *found: Sequence[str]) -> None:
        self.found = list(found)
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> Sequence[str]:
        self.asked.append(name)
        return self.found.pop(0) if len(self.found) > 1 else self.found[0]


async def test_the_connection_goes_to_the_address_that_was_looked_at(
    certificate: Path, tls: ssl.SSLContext
) -> None:
    """Rebinding: whatever the name means a moment later, it is not asked for again."""
    resolver = Resolver(["127.0.0.2"], ["127.0.0.3"])
    poster = Poster(ALLOWED, 5, tls, resolver)
    async with (
        receiving(certificate, "127.0.0.2") as there,
        receiving(certificate, "127.0.0.3", there.port) as elsewhere,
    ):
        url = f"https://hooks.test.:{there.port}/a//b?c=%20d"
        answer = await poster.post(url, {"X-Our": "own"}, b"body")
        assert answer == Answer(204)
        [told] = there.told
        assert not elsewhere.connections
    assert resolver.asked == ["hooks.test"]
    assert (told.path, told.body, told.name) == ("/a//b?c=%20d", b"body", "hooks.test")
    assert told.headers["host"] == f"hooks.test:{there.port}"
    assert told.headers["x-our"] == "own"
    assert not {"cookie", "authorization", "accept-encoding"} & told.headers.keys()


async def test_a_name_that_means_another_machine_inside_is_not_asked(
    certificate: Path, tls: ssl.SSLContext
) -> None:
    async with receiving(certificate) as receiver:
        url = f"https://hooks.test:{receiver.port}/"
        for found in (
            ["127.0.0.1"],
            ["93.184.216.34", "127.0.0.1"],
            ["::ffff:127.0.0.1"],
            ["127.0.0.1%lo"],
            [],
        ):
            answer = await Poster(Receivers(), 5, tls, Resolver(found)).post(url, {}, b"")
            assert answer == Answer(None, NOT_PUBLIC)
        # a rule that was changed after the job was ordered holds too
        answer = await Poster(Receivers(), 5, tls, Resolver(["127.0.0.1"])).post(
            "http://hooks.test/", {}, b""
        )
        assert answer.status is None
        assert receiver.connections == 0


async def test_the_certificate_must_be_the_name_s(certificate: Path, tls: ssl.SSLContext) -> None:
    poster = Poster(ALLOWED, 5, tls, Resolver(["127.0.0.1"]))
    async with receiving(certificate) as receiver:
        answer = await poster.post(f"https://third.test:{receiver.port}/", {}, b"")
        assert answer.status is None
        assert "Hostname mismatch" in answer.reason
        strangers = Poster(ALLOWED, 5, ssl.create_default_context(), Resolver(["127.0.0.1"]))
        answer = await strangers.post(f"https://hooks.test:{receiver.port}/", {}, b"")
        assert "certificate verify failed" in answer.reason
        # an open connection to one name is none to another at the same address
        assert (await poster.post(f"https://hooks.test:{receiver.port}/", {}, b"")).delivered
        assert (await poster.post(f"https://other.test:{receiver.port}/", {}, b"")).delivered
        assert [told.name for told in receiver.told] == ["hooks.test", "other.test"]
        assert receiver.connections >= 2


async def test_the_next_address_is_tried_where_one_takes_no_connection(
    certificate: Path, tls: ssl.SSLContext
) -> None:
    async with receiving(certificate, "127.0.0.3") as receiver:
        poster = Poster(ALLOWED, 5, tls, Resolver(["127.0.0.1", "127.0.0.2", "127.0.0.3"]))
        assert (await poster.post(f"https://hooks.test:{receiver.port}/", {}, b"")).delivered
        poster = Poster(ALLOWED, 5, tls, Resolver(["127.0.0.1", "127.0.0.2"]))
        answer = await poster.post(f"https://hooks.test:{receiver.port}/", {}, b"")
        assert answer.reason.startswith("no answer: ")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (answers(200), Answer(200)),
        (answers(299), Answer(299)),
        (
            answers(302, location="https://other.test/"),
            Answer(302, "it answered 302, and redirects are not followed"),
        ),
        (answers(308, location="/"), Answer(308, "it answered 308, and redirects are not followed")),
        (answers(304), Answer(304, "it answered 304, and redirects are not followed")),
        (answers(400), Answer(400, "it answered 400")),
        (answers(503, retry_after="7"), Answer(503, "it answered 503", 7.0)),
        (answers(429, retry_after="Thu, 01 Jan 1970 00:00:00 GMT"), Answer(429, "it answered 429", 0.0)),
        (answers(503, retry_after="9" * 30), Answer(503, "it answered 503", 999999999.0)),
        (answers(503, retry_after="soon"), Answer(503, "it answered 503")),
        (answers(503, retry_after="-1"), Answer(503, "it answered 503")),
    ],
)
async def test_what_an_answer_means(
    how: Behaviour, expected: Answer, certificate: Path, tls: ssl.SSLContext
) -> None:
    poster = Poster(ALLOWED, 5, tls, Resolver(["127.0.0.1"]))
    async with receiving(certificate) as receiver:
        receiver.then = [how]
        assert await poster.post(f"https://hooks.test:{receiver.port}/", {}, b"{}") == expected
        assert len(receiver.told) == 1


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def drips(writer: asyncio.StreamWriter) -> None:
    """A head that never ends, a byte at a time: no pause is long."""
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def goes_on(writer: asyncio.StreamWriter) -> None:
    """Informational answers for ever."""
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def floods(writer: asyncio.StreamWriter) -> None:
    """A head without an end, as fast as it can."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: " + b"x" * 60_000 + b"\r\n")
        await writer.drain()


async def endless(writer: asyncio.StreamWriter) -> None:
    """A status, and a body without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        writer.write(b"x" * 60_000)
        await writer.drain()


async def nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
    await writer.drain()


async def leaves(writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (silent, "no answer within 0.5 s"),
        (drips, "no answer within 0.5 s"),
        (goes_on, "no answer within 0.5 s"),
        (floods, "no answer: "),
        (nonsense, "no answer: "),
        (leaves, "no answer: "),
    ],
)
async def test_a_receiver_that_gives_no_answer_is_left(
    how: Behaviour, reason: str, certificate: Path, tls: ssl.SSLContext
) -> None:
    poster = Poster(ALLOWED, 0.5, tls, Resolver(["127.0.0.1"]))
    async with receiving(certificate) as receiver:
        receiver.then = [how]
        answer = await poster.post(f"https://hooks.test:{receiver.port}/", {}, b"{}")
        assert answer.status is None
        assert answer.reason.startswith(reason)
        assert len(answer.reason) <= 200


async def test_the_body_of_an_answer_is_not_read(certificate: Path, tls: ssl.SSLContext) -> None:
    poster = Poster(ALLOWED, 5, tls, Resolver(["127.0.0.1"]))
    async with receiving(certificate) as receiver:
        receiver.then = [endless]
        assert await poster.post(f"https://hooks.test:{receiver.port}/", {}, b"{}") == Answer(200)


async def test_a_receiver_inside_may_speak_no_tls() -> None:
    poster = Poster(ALLOWED, 5, ssl.create_default_context(), Resolver(["127.0.0.1"]))
    async with receiving(None) as receiver:
        assert (await poster.post(f"http://hooks.test:{receiver.port}/", {}, b"{}")).delivered
        assert (await poster.post(f"http://127.0.0.1:{receiver.port}/", {}, b"{}")).delivered
        assert [told.headers["host"].split(":")[0] for told in receiver.told] == ["hooks.test", "127.0.0.1"]


async def test_names_are_resolved_as_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(at_once=1)
    assert "127.0.0.1" in await names.resolve("localhost", 443)
    assert await names.resolve("no such name.invalid", 443) == []
    assert await names.resolve("a" * 70 + ".example", 443) == []
    assert await names.resolve("127.0.0.1", 443) == ["127.0.0.1"]

    def hangs(*_: object, **__: object) -> list[object]:
        asyncio.run(asyncio.sleep(0.2))
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    async with asyncio.timeout(5):
        waiting = asyncio.create_task(names.resolve("a.example", 443))
        await asyncio.sleep(0.01)
        with pytest.raises(OSError, match="too many names"):
            await names.resolve("b.example", 443)
        assert await waiting == []
    assert await names.resolve("c.example", 443) == []


async def test_a_receiver_may_have_an_address_of_ipv6(certificate: Path, tls: ssl.SSLContext) -> None:
    try:
        server = receiving(certificate, "::1")
        receiver = await server.__aenter__()
    except OSError:
        pytest.skip("there is no IPv6 here")
    poster = Poster(Receivers(["::1"]), 5, tls, Resolver(["::1"]))
    assert (await poster.post(f"https://hooks.test:{receiver.port}/", {}, b"{}")).delivered
    await server.__aexit__(None, None, None)
    async with receiving(None, "::1") as plain:
        assert (await poster.post(f"http://[::1]:{plain.port}/", {}, b"{}")).delivered
        assert plain.told[0].headers["host"] == f"[::1]:{plain.port}"
