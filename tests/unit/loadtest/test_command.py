"""`sagan bench`: what it asks, tells and writes, and how it fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from cli import app
from odd_server import Answer, Server, at_once, http, serving
from serve.private_redis import free_port

QUICK = ("--seconds", "0.3", "--warm-up", "0")


@contextmanager
def beside(answer: Answer) -> Iterator[Server]:
    """A server in a thread of its own: the command has a loop of its own too."""
    ready, server, stop = threading.Event(), [], asyncio.Event()

    async def serve() -> None:
        async with serving(answer) as found:
            server.append(found)
            ready.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    ready.wait(5)
    yield server[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)
    loop.close()


def sagan(*words: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def refused(*words: object) -> str:
    """The one line with which it refuses."""
    done = sagan(*words)
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sagan: ")
    return str(done.stderr)


@pytest.mark.slow
def test_each_count_of_clients_is_a_row_and_everything_is_written(tmp_path: Path) -> None:
    with beside(at_once) as server:
        asked = ("--clients", "1,3", "--class", "tabby cat", "--count", 4, "--model", "pets", "--seed", 100)
        done = sagan(server.url, *asked, *QUICK, "--api-key", "secret", "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "1 client " in done.output
    assert "3 clients" in done.output

    told = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert [row["load"] for row in told["results"]] == ["1 client", "3 clients"]
    sent = [json.loads(body) for body in server.bodies]
    assert sum(row["counts"]["good"] for row in told["results"]) == len(sent) - 1  # one to try first
    for row in told["results"]:
        assert row["images_a_second"] == pytest.approx(4 * row["requests"] / 0.3, rel=0.1)
        assert len(row["latencies"]) == row["requests"]
        assert (
            row["latencies"][-1]
            == row["latency"]["max"]
            >= row["latency"]["p99"]
            >= row["latency"]["p50"]
            > 0
        )
    assert "secret" not in json.dumps(told)

    head = server.heads[-1]
    assert head.startswith("POST /generate/tabby%20cat HTTP/1.1\r\n")
    for line in ("Prefer: wait=60", "Accept: image/png", "X-API-Key: secret"):
        assert f"\r\n{line}\r\n" in head
    assert {body["seed"] for body in sent} >= {100, 101, 102}
    assert sent[-1] == {"seed": sent[-1]["seed"], "count": 4, "model": "pets"}

    picture = ElementTree.parse(tmp_path / "new" / "bench.svg").getroot()
    words = {node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"1 client", "3 clients", "latency, ms", "images/s"} <= words


def test_a_rate_is_an_open_loop(tmp_path: Path) -> None:
    with beside(at_once) as server:
        done = sagan(server.url, "--rate", 100, "--even", *QUICK, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert row["loop"] == "open"
    assert 25 <= row["requests"] <= 31
    assert row["latency_corrected"] == row["latency"]


def test_errors_under_load_are_told_by_kind(tmp_path: Path) -> None:
    answered = 0

    async def soon_full(body: bytes) -> bytes:
        nonlocal answered
        answered += 1
        return http() if answered <= 5 else http(429)

    with beside(soon_full) as server:
        done = sagan(server.url, "--clients", 2, *QUICK, "--out", tmp_path)
    assert done.exit_code == 0
    (row,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert row["counts"]["good"] == 4
    assert row["counts"]["HTTP 429"] == row["requests"] - 4
    assert f"2 clients: {row['requests'] - 4} × HTTP 429." in done.output


def test_what_the_service_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    async def problem(body: bytes) -> bytes:
        detail = {"detail": "This model has no class 'dgo'. Did you mean 'dog'?"}
        return http(422, json.dumps(detail).encode())

    with beside(problem) as server:
        said = refused(server.url, "--class", "dgo", "--out", tmp_path / "out")
    assert "Did you mean 'dog'?" in said
    assert not (tmp_path / "out").exists()
    assert len(server.bodies) == 1


async def _page(body: bytes) -> bytes:
    return http(body=b"<html>")


async def _late(body: bytes) -> bytes:
    return http(202, b"{}")


@pytest.mark.parametrize(("answer", "said"), [(_page, "no PNG"), (_late, "no image came within 60 s")])
def test_what_answers_without_an_image_is_no_service(answer: Answer, said: str) -> None:
    with beside(answer) as server:
        assert said in refused(server.url)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["localhost:8000"], "write it as http://host:port"),
        ([f"http://127.0.0.1:{free_port()}"], "There is no service at"),
        (["http://127.0.0.1:1", "--clients", "1,x"], "write a number from 1 to 10000"),
        (["http://127.0.0.1:1", "--clients", "0"], "write a number from 1 to 10000"),
        (["http://127.0.0.1:1", "--rate", "0"], "must be above 0"),
        (["http://127.0.0.1:1", "--rate", "nan"], "must be above 0"),
        (["http://127.0.0.1:1", "--api-key", "line\nbreak"], "visible ASCII"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words: list[str], said: str) -> None:
    assert said in refused(*words)
