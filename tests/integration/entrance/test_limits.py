"""Slow, large and many: what one client does must not shut others out."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.work import STANDS
from serve.private_redis import PrivateRedis
from served import Api, beat

if TYPE_CHECKING:
    from tests.integration.entrance.conftest import Start

HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
BODY = b"POST /generate/cat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
CHUNKED = b"POST /generate/cat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"
WAIT = b"POST /generate/cat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nPrefer: wait=50\r\n\r\n"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Api]:
    """One with short times, for all tests that need no other."""
    api = Api(
        tmp_path_factory.mktemp("limits"),
        redis_url,
        head_timeout=1,
        body_timeout=1,
        idle_timeout=1,
        max_streams_per_caller=3,
        max_body=2048,
    )
    yield api
    api.close()


def connect(api: Api, sends: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", api.port), 20, source_address=(source, 0))
    sock.sendall(sends)
    return sock


def heard(sock: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(65536):
            said += more
    return said


def problem(said: bytes) -> tuple[int, str]:
    """Status and slug of the answer."""
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["type"].rpartition(":")[2]


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("sends", [HEAD, BODY + b"{"], ids=["head", "body"])
def test_slow_clients_by_the_thousand_shut_nobody_out(start: Start, sends: bytes) -> None:
    api = start(files=1024, head_timeout=60, body_timeout=60)
    slow = []
    for _ in range(1200):
        with contextlib.suppress(OSError):
            slow.append(connect(api, sends))
    for _ in range(5):
        began = time.monotonic()
        assert api.get("/health/live")[0] == 200
        assert time.monotonic() - began < 5
    assert api.counted('sagan_connections_ended_total{reason="evicted"}') > 0
    for sock in slow:
        sock.close()


@pytest.mark.parametrize(
    "sends", [b"", b"G", HEAD, HEAD + b"X-Slow: "], ids=["nothing", "G", "line", "header"]
)
def test_a_head_that_does_not_come_in_time_ends_the_connection(api: Api, sends: bytes) -> None:
    with connect(api, sends) as sock:
        assert problem(heard(sock)) == (408, "too-slow")


def test_a_head_that_trickles_has_no_more_time(api: Api) -> None:
    with connect(api) as sock:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 20:
                sock.sendall(b"X")
                time.sleep(0.1)
        assert time.monotonic() - began < 15


def test_a_body_that_does_not_come_in_time_ends_the_connection(api: Api) -> None:
    with connect(api, BODY + b"{") as sock:
        assert problem(heard(sock)) == (408, "too-slow")


def test_an_idle_connection_is_closed(api: Api) -> None:
    with connect(api, HEAD + b"\r\n") as sock:
        assert heard(sock).startswith(b"HTTP/1.1 200")
    # what ends an answered request's body later, too
    late = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with connect(api, late) as sock:
        assert heard(sock).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sends",
    [
        HEAD + b"X-Long: " + b"x" * 20_000,
        HEAD + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n",
        HEAD + b"a:b\r\n" * 200,
        HEAD + b"x" * 20_000,
        b"GET /" + b"x" * 20_000,
        CHUNKED + b"0\r\nX-Trailer: " + b"x" * 40_000,
        CHUNKED + b"0\r\n" + b"a:b\r\n" * 200,
        b"\r\n" * 10_000,
    ],
    ids=["unfinished", "finished", "many", "name", "line", "trailer", "trailers", "blank"],
)
def test_a_head_that_is_too_large_is_refused(api: Api, sends: bytes) -> None:
    with connect(api, sends) as sock:
        assert problem(heard(sock)) == (431, "headers-too-large")
    assert "Traceback" not in api.output


def test_heads_take_no_memory_worth_speaking_of(api: Api) -> None:
    before = api.memory
    for _ in range(20):
        with connect(api) as sock, contextlib.suppress(OSError):
            for _ in range(100):
                sock.sendall(b"X" * 65536)
    assert api.memory - before < 30_000_000


def test_requests_ahead_of_their_answers_are_bounded(api: Api) -> None:
    before = api.memory
    with connect(api, WAIT) as sock, contextlib.suppress(OSError):
        for _ in range(50):
            sock.sendall((HEAD + b"\r\n") * 1000)
    assert api.memory - before < 30_000_000
    assert api.get("/health/live")[0] == 200


def test_bytes_that_are_no_http_are_told_so(api: Api) -> None:
    with connect(api, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") as sock:
        assert problem(heard(sock)) == (400, "bad-request")


def test_a_request_without_a_host_is_told_so(api: Api) -> None:
    for host in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
        with connect(api, b"GET / HTTP/1.1\r\nConnection: close\r\n" + host + b"\r\n") as sock:
            assert problem(heard(sock)) == (400, "bad-host")


def test_a_client_that_is_still_sending_hears_that_it_is_too_much(api: Api) -> None:
    for chunked in (False, True):
        client = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
        body = iter([b"x" * 65536] * 80) if chunked else b"x" * 5_000_000
        client.request("POST", "/generate/cat", body, encode_chunked=chunked)
        reply = client.getresponse()
        assert reply.status == 413
        assert "2048 bytes" in json.loads(reply.read())["detail"]


def test_a_client_that_never_stops_sending_is_left(api: Api) -> None:
    sent = 0
    with connect(api, CHUNKED) as sock, contextlib.suppress(OSError):
        while sent < 200_000_000:
            sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536
    assert sent < 100_000_000


def test_event_streams_are_counted_by_caller(api: Api) -> None:
    events = str(api.job()["links"]["events"])  # type: ignore[index]
    open_streams = [connect(api, STREAM.format(events).encode()) for _ in range(3)]
    for sock in open_streams:
        assert sock.recv(64).startswith(b"HTTP/1.1 200")
    status, said = api.get(events)
    assert (status, json.loads(said)["type"]) == (429, "urn:sagan:problem:too-many-requests")
    open_streams.pop().close()

    def one_more() -> bool:
        with connect(api, STREAM.format(events).encode()) as sock:
            return sock.recv(64).startswith(b"HTTP/1.1 200")

    until(one_more)
    for sock in open_streams:
        sock.close()


def test_streams_have_a_limit_in_all(start: Start) -> None:
    api = start(max_streams=2, api_keys="")
    events = str(api.job()["links"]["events"])  # type: ignore[index]
    with (
        connect(api, STREAM.format(events).encode()) as one,
        connect(api, STREAM.format(events).encode()) as two,
    ):
        assert one.recv(64)
        assert two.recv(64)
        assert api.get(events)[0] == 503


def test_overload_is_told_and_the_next_one_is_served(start: Start) -> None:
    api = start(max_connections=8, max_connections_per_address=6)
    first: list[socket.socket] = []
    others: list[socket.socket] = []

    def fills(sockets: list[socket.socket], by: str, source: str, told: tuple[int, str]) -> bool:
        sockets.append(connect(api, WAIT, by))  # again: one that is not read yet gives way to the next
        time.sleep(0.2)
        return api_is_full(api, source, told)

    until(lambda: fills(first, "127.0.0.1", "127.0.0.1", (429, "too-many-requests")))
    until(lambda: fills(others, "127.0.0.2", "127.0.0.3", (503, "too-many-connections")))
    for sock in first:
        sock.close()
    until(lambda: api.get("/health/live")[0] == 200)
    assert api.get("/health/live")[0] == 200
    for sock in others:
        sock.close()


def api_is_full(api: Api, source: str, told: tuple[int, str]) -> bool:
    with connect(api, HEAD + b"Connection: close\r\n\r\n", source) as sock:
        said = heard(sock)
    if said.startswith(b"HTTP/1.1 200"):
        return False
    assert problem(said) == told
    return True


def test_a_proxy_that_is_trusted_may_have_all_connections(start: Start) -> None:
    api = start(max_connections=8, max_connections_per_address=2, trusted_proxies="127.0.0.1")
    waiting = [connect(api, WAIT) for _ in range(7)]
    assert api.get("/health/live")[0] == 200
    for sock in waiting:
        sock.close()


@pytest.mark.parametrize(
    ("constant", "settings"),
    [("SLOWEST = 10**9", {"send_timeout": 0.5}), ("MAX_UNSENT = 10**4", {"send_timeout": 600})],
    ids=["slow", "much"],
)
def test_an_answer_that_nobody_takes_is_given_up(
    start: Start, constant: str, settings: dict[str, float]
) -> None:
    api = start(before=f"import app.entrance\napp.entrance.{constant}", **settings)
    asks = b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", api.port))
        sock.sendall(asks * 10)
        until(lambda: api.counted('sagan_connections_ended_total{reason="slow"}') == 1)
        assert api.get("/health/live")[0] == 200  # the others are served


def test_head_of_an_event_stream_ends_at_once(api: Api) -> None:
    events = str(api.job()["links"]["events"])  # type: ignore[index]
    client = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
    for _ in range(5):  # more than the streams of a caller: none is left open
        client.request("HEAD", events)
        reply = client.getresponse()
        assert (reply.status, reply.read()) == (200, b"")
        assert reply.headers["content-type"].startswith("text/event-stream")
    client.close()


def test_a_client_that_asks_first_need_not_send_what_is_too_much(api: Api) -> None:
    asks = b"POST /generate/cat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n"
    with connect(api, asks + b"Expect: 100-continue\r\n\r\n") as sock:
        assert problem(heard(sock))[0] == 413  # no 100 before


def test_clients_that_take_no_answer_give_way(start: Start) -> None:
    api = start(max_connections=20, max_connections_per_address=20)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", api.port))
            asks = b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
            sock.sendall(asks * 10)
        until(lambda: api.get("/health/live")[0] == 200)
        assert api.counted('sagan_connections_ended_total{reason="evicted"}') >= 1


def test_a_crowd_that_stands_is_refused_and_the_next_ones_are_answered_once_it_is_gone(
    tmp_path: Path, start: Start
) -> None:
    server = PrivateRedis(tmp_path / "redis")
    server.start()
    beat(server.url, "sagan")
    api = start(redis_url=server.url)
    job = api.job()["id"]
    os.kill(server.pid, signal.SIGSTOP)
    asked = f"GET /jobs/{job} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    crowd: list[socket.socket] = []

    def stands() -> bool:
        crowd.extend(connect(api, asked) for _ in range(40))  # each is answered after 5 s
        time.sleep(1.5 * STANDS)
        return "overloaded" in api.get(f"/jobs/{job}")[1]

    until(stands, 60)
    assert api.get("/health/live")[0] == 200
    assert api.counted("sagan_http_requests_shed_total") >= 1
    os.kill(server.pid, signal.SIGCONT)
    until(lambda: api.get(f"/jobs/{job}")[0] == 200)
    for sock in crowd:
        sock.close()
    server.stop()
