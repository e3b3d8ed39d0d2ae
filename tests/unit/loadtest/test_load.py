"""Load: what is sent when, what is counted, and that a stall hides nothing."""

from __future__ import annotations

import asyncio
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from loadtest.client import Address, BenchError, Client
from loadtest.load import (
    GOOD,
    LATE,
    TIMEOUT,
    UNSENT,
    Clients,
    Rate,
    Result,
    Send,
    Target,
    measure,
    percentile,
)
from loadtest.picture import draw
from odd_server import PNG, Server, at_once, http, serving
from serve.private_redis import free_port


def target(server: Server, timeout: float = 5.0) -> Target:
    return Target(
        address=server.address,
        path="/generate/1",
        body=lambda n: b"%d" % n,
        good=lambda body: body == PNG,
        timeout=timeout,
    )


class Stalling:
    """A server that answers in some ms, but once, after so many answers, not at all for a while."""

    def __init__(self, after: int, seconds: float) -> None:
        self._left, self._seconds = after, seconds
        self._open = asyncio.Event()
        self._open.set()

    async def __call__(self, body: bytes) -> bytes:
        self._left -= 1
        if self._left == 0:
            self._open.clear()
            asyncio.get_running_loop().call_later(self._seconds, self._open.set)
        await self._open.wait()
        await asyncio.sleep(0.002)
        return http()


async def test_clients_ask_again_when_they_are_answered_over_kept_connections() -> None:
    async with serving(at_once) as server:
        result = await measure(target(server), Clients(3), seconds=0.3)
    assert result.counts == {GOOD: len(server.bodies)}
    assert len(server.bodies) > server.connections == 3
    assert sorted(map(int, server.bodies)) == list(range(len(server.bodies)))
    assert len(result.latencies) == len(server.bodies)
    assert len(server.bodies) - 3 <= round(result.throughput * 0.3) <= len(server.bodies)  # the last are late
    assert 0 < result.cpu_per_request < 0.1


async def test_arrivals_do_not_wait_for_answers() -> None:
    all_there = asyncio.Event()

    async def together(body: bytes) -> bytes:
        if body == b"9":
            all_there.set()
        await all_there.wait()
        return http()

    async with serving(together) as server:
        result = await measure(target(server), Rate(100, even=True), seconds=0.3)
    assert result.counts == {GOOD: len(server.bodies)}
    assert server.connections >= 10  # each came while those before it were still in flight
    assert np.allclose(np.diff(np.sort(result.due)), 0.01)


async def test_a_stall_is_in_the_percentiles_of_an_open_loop() -> None:
    async with serving(Stalling(after=20, seconds=0.5)) as server:
        result = await measure(target(server), Rate(100, even=True), seconds=1.0)
    # half of the arrivals fall into the stall and wait for 0 to 0.5 s, evenly
    assert result.counts == {GOOD: len(result.latencies)}
    assert np.count_nonzero(result.latencies > 0.1) > 30
    assert percentile(result.latencies, 0.9) > 0.3


async def test_a_closed_loop_hides_a_stall_and_the_correction_shows_it() -> None:
    async with serving(Stalling(after=20, seconds=0.5)) as server:
        result = await measure(target(server), Clients(1), seconds=1.0)
    assert np.count_nonzero(result.latencies >= 0.5) == 1
    assert percentile(result.latencies, 0.9) < 0.5
    assert percentile(result.corrected, 0.9) > 0.2
    assert result.corrected[-1] == result.latencies[-1]


async def test_a_late_generator_is_not_taken_for_a_fast_server() -> None:
    class Late:
        """It sends 0.2 s after the request was due, as a generator short of a processor would."""

        async def run(self, send: Send, stop: float) -> list[float]:
            due = time.perf_counter()
            await asyncio.sleep(0.2)
            await send(due)
            return []

    async with serving(at_once) as server:
        result = await measure(target(server), Late(), seconds=0.3)
    assert result.latencies[0] >= 0.2
    assert (result.sent - result.due)[0] >= 0.2


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (http(429), "HTTP 429"),
        (http(202), LATE),
        (http(body=b"{}"), "not what was asked for"),
        (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nshort",
            "it closed the connection",
        ),
        (None, "it closed the connection"),
        (b"220 mail.example ready\r\n", "its answer is not HTTP/1.1"),
        (b"", TIMEOUT),
    ],
)
async def test_an_answer_without_an_image_is_counted_by_its_kind(said: bytes | None, kind: str) -> None:
    async def answer(body: bytes) -> bytes | None:
        return said

    async with serving(answer) as server:
        result = await measure(target(server, timeout=0.3), Rate(50, even=True), seconds=0.1)
    assert len(result.due) > 0
    assert all(str(found).startswith(kind) for found in result.kinds)
    assert result.errors == result.counts.total() == len(result.due)
    assert result.throughput == 0
    # what took its time has a latency, what was refused at once has none to flatter the others with
    assert len(result.latencies) == (len(result.due) if kind in (TIMEOUT, LATE) else 0)


async def test_nobody_there_is_an_error_and_not_the_end() -> None:
    nowhere = Target(Address("127.0.0.1", free_port(), secure=False, path=""), "/")
    result = await measure(nowhere, Clients(2), seconds=0.1)
    assert list(result.counts) == ["no connection (Connection refused)"]
    assert np.isnan(percentile(result.latencies, 0.5))


async def test_what_is_beyond_the_cap_is_told_and_not_dropped() -> None:
    in_flight = [0]

    async def slowly(body: bytes) -> bytes:
        in_flight.append(in_flight[-1] + 1)
        await asyncio.sleep(0.1)
        in_flight.append(in_flight[-1] - 1)
        return http()

    async with serving(slowly) as server:
        result = await measure(target(server), Rate(200, even=True, in_flight=5), seconds=0.3)
    assert max(in_flight) == 5
    assert result.counts[GOOD] == len(server.bodies)
    assert result.counts[UNSENT] == result.errors == result.unsent > 0


async def test_the_warm_up_is_load_and_no_figure() -> None:
    async with serving(at_once) as server:
        result = await measure(target(server), Rate(100, even=True), seconds=0.2, warm_up=0.3)
    assert len(server.bodies) == len(result.due)
    measured = np.count_nonzero(result.due >= 0)
    assert 0 < result.counts.total() == len(result.latencies) == measured < len(result.due)


async def test_a_connection_that_the_server_closed_while_it_was_kept_is_no_error() -> None:
    async def answer(body: bytes) -> bytes:
        return http()

    async with serving(answer) as server:
        client = Client(server.address)
        for n in range(3):
            status, body = await client.ask(client.request("POST", "/", {}, b"%d" % n), 5)
            assert (status, body) == (200, PNG)
            server.hang_up()
        client.close()
    assert server.bodies == [b"0", b"1", b"2"]
    assert server.connections == 3


async def test_an_answer_may_come_in_chunks_and_after_a_continue() -> None:
    async def answer(body: bytes) -> bytes:
        head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    async with serving(answer) as server:
        client = Client(server.address)
        for _ in range(2):
            assert await client.ask(client.request("GET", "/a", {}), 5) == (200, b"abcde")
        client.close()
    assert server.connections == 1
    assert server.heads[0].startswith("GET /a HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_random_arrivals_come_from_the_seed_and_keep_the_rate() -> None:
    def arrivals(seed: int) -> list[float]:
        return list(Rate(1000, seed=seed)._arrivals(0.0, 10.0))

    assert arrivals(1) == arrivals(1) != arrivals(2)
    gaps = np.diff(arrivals(1))
    assert np.mean(gaps) == pytest.approx(1e-3, rel=0.05)
    assert np.std(gaps) == pytest.approx(1e-3, rel=0.05)  # as an exponential has it


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 10, 100, 1000, 1001])
def test_percentiles_are_latencies_that_were_seen(share: float, count: int) -> None:
    seen = np.sort(np.random.default_rng(count).exponential(size=count))
    told = percentile(seen, share)
    assert told in seen
    assert np.count_nonzero(seen <= told) >= share * count - 1e-9
    assert np.count_nonzero(seen < told) < share * count


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", Address("127.0.0.1", 8000, False, "")),
        ("https://sagan.example/service/", Address("sagan.example", 443, True, "/service")),
        ("http://[::1]:8000/", Address("::1", 8000, False, "")),
    ],
)
def test_addresses_are_read(url: str, address: Address) -> None:
    assert Address.of(url) == address


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x", "http://", "http://x:99999", "http://x?y=1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BenchError):
        Address.of(url)


@pytest.mark.slow
def test_a_picture_has_a_curve_a_load_and_the_same_bytes_each_time() -> None:
    rest = np.random.default_rng(0).exponential(0.01, 99)
    due = np.linspace(0, 1, 100, endpoint=False)
    ended = due + np.append(rest, 0.0)  # within the clock's resolution: no logarithm
    kinds = np.full(100, GOOD)
    results = [Result(load, 1.0, 1, due, due, ended, kinds, 0, 0.1) for load in (Clients(1), Rate(100))]
    drawn = draw("5$ & $6", results)
    assert drawn == draw("5$ & $6", results)
    words = {node.text for node in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {"5$ & $6", "1 client", "100 requests/s", "0", "90", "99"} <= words
    nothing = np.array([])
    empty = Result(Clients(1), 1.0, 1, nothing, nothing, nothing, np.array([], dtype=np.str_), 0, 0.1)
    assert ElementTree.fromstring(draw("none answered", [empty])) is not None
