"""The client when the service refuses, is slow or breaks off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sagan.client import (
    AsyncClient,
    Client,
    Expired,
    Job,
    JobCancelled,
    JobFailed,
    KeyRefused,
    NotThere,
    NotValid,
    Refused,
    SaganError,
    TooMuch,
    Unavailable,
    Unreachable,
    WaitTimeout,
)
from sagan.core import Events

Answer = httpx.Response | Exception


def told(state: str = "queued", done: int = 0, **changes: Any) -> dict[str, Any]:
    """A job as the service tells of it."""
    spec = {"class_name": "cat", "count": 2, "seed": 7, "start": 0, **changes}
    return {"id": "abcdefgh", "state": state, "done": done, "error": None, "spec": spec}


def job(state: str = "queued", done: int = 0) -> httpx.Response:
    return httpx.Response(200, json=told(state, done))


def picture(content: bytes) -> httpx.Response:
    return httpx.Response(200, content=content, headers={"Content-Type": "image/png"})


def problem(status: int, *, wait: int | None = None) -> httpx.Response:
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return httpx.Response(status, headers=headers, json={"type": "urn:sagan:problem:x", "detail": "Do that."})


class Service:
    """Gives its answers one after the other, and keeps what it was asked."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], httpx.Response]) -> None:
        self._answers = iter(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def client(self, **changes: Any) -> Client:
        http = httpx.Client(transport=httpx.MockTransport(self))
        return Client("http://sagan.test/", **{"timeout": 5, "http": http, **changes})


def test_an_order_that_got_no_answer_is_sent_again_with_its_key() -> None:
    service = Service(httpx.ReadTimeout("slow"), job())
    service.client().generate("cat", count=2, seed=None)
    first, second = service.asked
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert json.loads(second.content) == {"class_id": "cat", "count": 2}


def test_two_orders_have_two_keys_and_a_key_of_ones_own_is_sent() -> None:
    service = Service(job(), job(), job())
    client = service.client()
    client.generate("cat")
    client.generate(3)
    client.generate(class_weights={"cat": 1, "dog": 2}, key="mine")
    keys = [request.headers["idempotency-key"] for request in service.asked]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_who_is_to_be_told_is_passed_on() -> None:
    service = Service(job(), job())
    client = service.client()
    told: dict[str, Any] = {"webhook": "https://example.com/hook", "webhook_events": ["start", "end"]}
    client.generate("cat", webhook="https://example.com/hook", webhook_events=["start", "end"])
    client.morph([{"class_id": "cat"}, {"class_id": "dog"}], **told)
    assert [json.loads(request.content).items() >= told.items() for request in service.asked] == [True, True]


def test_retention_is_asked_for_and_a_purge_is_one_more_word_of_delete() -> None:
    service = Service(job(), job())
    service.client().generate("cat", retention=600).purge()
    order, purge = service.asked
    assert json.loads(order.content) == {"class_id": "cat", "retention": 600}
    assert (purge.method, purge.url.query) == ("DELETE", b"purge=true")


def test_a_refusal_with_retry_after_is_tried_again_while_there_is_time() -> None:
    service = Service(problem(429, wait=0), problem(503, wait=0), job(), problem(503, wait=60))
    assert service.client().generate("cat").state == "queued"
    with pytest.raises(Unavailable) as refused:
        service.client().models()
    assert refused.value.retry_after == 60
    assert len(service.asked) == 4


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, KeyRefused),
        (403, KeyRefused),
        (404, NotThere),
        (410, Expired),
        (422, NotValid),
        (429, TooMuch),
        (503, Unavailable),
        (500, Refused),
    ],
)
def test_a_refusal_says_what_to_do(status: int, kind: type[Refused]) -> None:
    with pytest.raises(SaganError, match=f"{status}: Do that.") as refused:
        Service(problem(status)).client().models()
    assert type(refused.value) is kind
    assert isinstance(refused.value, Refused)
    assert (refused.value.status, refused.value.type) == (status, "urn:sagan:problem:x")


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"null", b'"x"', b"\xff"])
def test_a_refusal_of_somebody_else_is_read_as_well(body: bytes) -> None:
    with pytest.raises(Refused, match="502: Bad Gateway"):
        Service(httpx.Response(502, content=body)).client().models()


def test_nobody_answers() -> None:
    service = Service(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(Unreachable, match=r"No answer from http://sagan\.test: refused"):
        service.client().models()
    assert len(service.asked) == 3


@pytest.mark.parametrize(
    "url",
    [
        *("sagan.test", "ftp://sagan.test", "http://", "http://a b", "", "http://[::1", "http://a:port"),
        *("http://\0", "http://a..b", f"http://{'a' * 64}", "http://xn--", "http://a\u200bb", "http://:80"),
    ],
)
def test_no_address(url: str) -> None:
    with pytest.raises(SaganError, match="no address such as"):
        Client(url)


@pytest.mark.parametrize("url", ["HTTP://sagan.test", "http://[::1]:8000", "http://bücher.test/sagan/"])
def test_an_address(url: str) -> None:
    http = httpx.Client(transport=httpx.MockTransport(Service(job())))
    assert Client(url, http=http).job("abcdefgh").state == "queued"


@pytest.mark.parametrize("key", ["clé", "a\nb"])
def test_a_key_that_no_request_can_carry(key: str) -> None:
    with pytest.raises(SaganError, match="ASCII"):
        Client("http://sagan.test", key)


OF_ANOTHER = [b"<html>", b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"jobs": 1, "models": 1}']


@pytest.mark.parametrize("body", OF_ANOTHER, ids=lambda body: repr(body[:9]))
@pytest.mark.parametrize(
    "ask",
    [
        *(Client.models, Client.classes, Client.jobs),
        *(lambda client: client.job("x"), lambda client: client.generate("cat")),
        *(lambda client: Job(client, told()).grid(), lambda client: Job(client, told()).map()),
        lambda client: Job(client, told()).cancel(),
    ],
)
def test_an_answer_of_somebody_else_is_no_answer(ask: Callable[[Client], object], body: bytes) -> None:
    answer = httpx.Response(200, content=body, headers={"Content-Type": "text/html"})
    with pytest.raises(Unreachable, match="text/html, as no sagan service does"):
        ask(Service(answer).client())


def test_an_answer_that_cannot_be_unpacked() -> None:
    def packed(request: httpx.Request) -> httpx.Response:
        raise httpx.DecodingError("no gzip", request=request)

    with pytest.raises(Unreachable, match="no gzip"):
        Service(*[packed] * 3).client().models()


def test_retry_after_0_is_no_busy_loop() -> None:
    service = Service(*[problem(503, wait=0)] * 100)
    with pytest.raises(Unavailable):
        service.client(timeout=0.2).models()
    assert len(service.asked) <= 6


def test_a_class_or_a_mixture() -> None:
    with pytest.raises(SaganError, match="either"):
        Service().client().generate()
    with pytest.raises(SaganError, match="either"):
        Service().client().generate("cat", class_weights={"dog": 1})


def test_the_key_is_sent() -> None:
    service = Service(job())
    service.client(key="secret").job("abcdefgh")
    assert service.asked[0].headers["authorization"] == "Bearer secret"


def test_waiting_ends_with_the_job() -> None:
    client = Service(job(), job("running"), job("succeeded", 2)).client()
    assert client.generate("cat").wait(10).done == 2
    with pytest.raises(JobFailed, match="abcdefgh failed"):
        Service(job(), job("failed")).client().generate("cat").wait()
    with pytest.raises(JobCancelled, match="1 of 2"):
        Service(job(), job("cancelled", 1)).client().generate("cat").wait()
    with pytest.raises(WaitTimeout, match=r"queued after 0\.1 s"):
        Service(*[job()] * 10).client().generate("cat").wait(0.1)


def events(*lines: str) -> httpx.Response:
    return httpx.Response(200, text="".join(f"{line}\n" for line in lines))


def broken(*lines: str) -> httpx.Response:
    def parts() -> Iterator[bytes]:
        yield "".join(f"{line}\n" for line in lines).encode()
        raise httpx.ReadError("broken")

    return httpx.Response(200, content=parts())


RUNNING = ("retry: 2000", "id: 1-0", "event: progress", 'data: {"state": "running", "done": 1}', "")
END = (": still here", "", "id: 2-0", "event: end", 'data: {"state": "succeeded", "done": 2}', "")


def test_a_broken_stream_of_events_goes_on_where_it_broke() -> None:
    service = Service(job(), broken(*RUNNING), job("running", 1), events(*END))
    states = [news["state"] for news in service.client().generate("cat").events()]
    assert states == ["running", "succeeded"]
    assert [request.headers.get("last-event-id") for request in service.asked[1::2]] == ["0", "1-0"]


def test_images_are_told_once_whatever_their_order() -> None:
    service = Service(
        *(job(), events(*RUNNING, *END)),
        *(problem(409, wait=1), picture(b"second")),
        *(picture(b"first"), job("succeeded", 2)),
    )
    assert list(service.client().generate("cat").stream()) == [(1, b"second"), (0, b"first")]


def test_a_stream_of_a_failed_job_ends_in_its_error() -> None:
    failed = ('data: {"state": "failed", "done": 0}', "")
    with pytest.raises(JobFailed):
        list(Service(job(), events(*failed), job("failed")).client().generate("cat").stream())


def test_more_events_than_may_be_open() -> None:
    with pytest.raises(TooMuch):
        list(Service(job(), problem(429, wait=1)).client().generate("cat").events())


def test_events_of_several_lines() -> None:
    read = Events()
    assert [read.read(line) for line in ('data: {"a":', "data: 1}", "id: 5", "", "")] == [
        *[None] * 3,
        {"a": 1},
        None,
    ]
    assert read.last_id == "5"


def test_saved_names_are_names(tmp_path: Path) -> None:
    done = told("succeeded", 2, class_name="../great white shark, ü/", start=37)
    service = Service(httpx.Response(200, json=done), *[picture(b"png")] * 2)
    paths = service.client().generate("cat").save(tmp_path / "new")
    assert [path.name for path in paths] == [f"great_white_shark_ü-7-00{k}.png" for k in (37, 38)]
    assert sorted((tmp_path / "new").iterdir()) == paths


@pytest.mark.parametrize("name", ["犬" * 300, "\U0001f408" * 100, "a" * 1000, "犬" * 26 + "xx", "/", ".."])
def test_a_saved_name_of_any_class_fits_a_file_system(name: str, tmp_path: Path) -> None:
    done = told("succeeded", 1, class_name=name, count=1, seed=2**63 - 1)
    [path] = Service(httpx.Response(200, json=done), picture(b"png")).client().generate("cat").save(tmp_path)
    assert path.read_bytes() == b"png"


def test_points_and_defaults_of_attention() -> None:
    service = Service(job("succeeded", 2), picture(b"png"))
    service.client().job("abcdefgh").attention(1, points=[(1, 2), (3.5, 4)], view="overlay", layer=None)
    assert dict(service.asked[1].url.params) == {"image": "1", "points": "1,2;3.5,4", "view": "overlay"}


async def test_the_same_awaited() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield "\n".join([*RUNNING, ""]).encode()
        raise httpx.ReadError("broken")

    service = Service(
        *(problem(503, wait=0), httpx.ReadError("x"), job(), httpx.Response(200, content=parts())),
        *(job("running", 1), events(*END), picture(b"png"), problem(404)),
    )
    http = httpx.AsyncClient(transport=httpx.MockTransport(service))
    async with AsyncClient("http://sagan.test", timeout=5, http=http) as client:
        found = await client.generate("cat")
        assert [news["done"] async for news in found.events()] == [1, 2]
        await found.wait(5)
        assert await found.image(1) == b"png"
        with pytest.raises(NotThere):
            await found.grid()
    assert service.asked[5].headers["last-event-id"] == "1-0"
