"""Lines of the log: whole, one an event, harmless to look at, and no trouble to whoever writes them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from jobs import logs
from jobs.logs import StandardError
from jobs.settings import QueueSettings, read_settings

NASTY = [
    "a\nlevel=critical",
    "a\r\nb",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b31m",  # ESC [ as one character
    "a\u2028b\u2029c\x85d",
    "\x00\x7f\t",
    "\u202etxt.exe",
    "\ud800 half",
    "x" * 50_000,
    "%s %d {} %(name)s",
]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):  # the test has
            os.close(end)


def logger_to(number: int, format: str = "json") -> logging.Logger:
    """A logger that writes to an open file."""
    found = logging.Logger("here")
    found.addHandler(StandardError(format, "api", number))
    return found


def read(number: int) -> str:
    os.set_blocking(number, False)
    found = b""
    while True:
        try:
            piece = os.read(number, 2**20)
        except BlockingIOError:
            return found.decode()
        if not piece:
            return found.decode()
        found += piece


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize("format", ["json", "console"])
def test_an_event_is_one_line_that_steers_no_terminal(pipe: tuple[int, int], format: str, nasty: str) -> None:
    log = logger_to(pipe[1], format)
    log.info(nasty, extra={"path": nasty, "many": [nasty], "more": {nasty: nasty}, "odd": ValueError(nasty)})
    said = read(pipe[0])
    assert said.endswith("\n")
    assert said[:-1].isprintable()  # no line break, control character, or half of a pair
    assert len(said) < 6 * (logs.LONGEST + 20) + 500
    if format == "json":
        line = json.loads(said)
        assert (line["level"], line["logger"], line["process"]) == ("info", "here", "api")
        assert line["path"] == line["many"][0]


def test_an_error_s_message_begins_no_line_that_looks_like_ours(pipe: tuple[int, int]) -> None:
    fake = '{"level": "critical"}'
    for format in ("json", "console"):
        try:
            raise ValueError(f"no\n{fake}\n\x1b[31m")
        except ValueError:
            logger_to(pipe[1], format).exception("broke")
        said = read(pipe[0])
        assert "\x1b" not in said
        assert fake not in said.splitlines()
        if format == "json":
            assert json.loads(said)["exception"].endswith(f"ValueError: no\n{fake}\n\\x1b[31m")


def test_fields_have_plain_values(pipe: tuple[int, int]) -> None:
    fields: dict[str, Any] = {
        "seconds": 0.12345678,
        "none": None,
        "empty": "",
        "nan": float("nan"),
        "yes": True,
    }
    logger_to(pipe[1]).info("of %d", 3, extra=fields | {"level": "fake", "event": "fake"})
    line = json.loads(read(pipe[0]))
    assert line["event"] == "of 3"
    assert line["level"] == "info"
    assert (line["seconds"], line["nan"], line["yes"]) == (0.123457, None, True)
    assert line.keys().isdisjoint({"none", "empty"})
    assert line["timestamp"].endswith("Z")


def test_a_line_that_cannot_be_made_is_told_all_the_same(pipe: tuple[int, int]) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    log = logger_to(pipe[1])
    log.info("%d images", "some")
    log.info("odd", extra={"value": Odd()})
    events = [json.loads(line)["event"] for line in read(pipe[0]).splitlines()]
    assert events == ["a line that cannot be made"] * 2


def test_nobody_waits_for_a_reader_that_has_stopped(pipe: tuple[int, int]) -> None:
    log = logger_to(pipe[1])
    for number in range(5000):  # a pipe holds some 65 kB
        log.info("line %d", number, extra={"more": "x" * 400})
    first = [json.loads(line) for line in read(pipe[0]).splitlines() if line.endswith("}")]
    assert 50 < len(first) < 5000
    log.info("after")
    *_, told, after = [json.loads(line) for line in read(pipe[0]).splitlines() if line.startswith('{"time')]
    assert told["event"] == "lines before this one were lost"
    assert told["count"] == 5000 - len(first)
    assert after["event"] == "after"


def test_a_long_line_that_is_taken_in_part_is_ended_before_the_next(pipe: tuple[int, int]) -> None:
    log = logger_to(pipe[1])
    for number in range(12):
        log.info("line %d", number, extra={f"field{each}": "x" * 990 for each in range(9)})
    begun = read(pipe[0])
    log.info("after")
    lines = [json.loads(line) for line in (begun + read(pipe[0])).splitlines()]
    assert lines[-1]["event"] == "after"
    assert len(lines) < 14


@pytest.mark.parametrize("trouble", ["reader gone", "disk full", "closed"])
def test_nothing_breaks_where_nothing_can_be_written(pipe: tuple[int, int], trouble: str) -> None:
    number = pipe[1]
    if trouble == "disk full":
        number = os.open("/dev/full", os.O_WRONLY)
    elif trouble == "closed":
        os.close(number)
    log = logger_to(number)
    if trouble == "reader gone":
        os.close(pipe[0])
    for _ in range(3):
        log.error("into the void")
    if trouble == "disk full":
        os.close(number)
    assert log.handlers[0]._lost == (0 if trouble == "closed" else 3)  # type: ignore[attr-defined]


async def test_a_request_s_fields_are_on_its_lines_and_on_no_later_ones(pipe: tuple[int, int]) -> None:
    log = logger_to(pipe[1])
    ended = asyncio.Event()

    async def lives_on() -> None:
        log.info("meanwhile")
        await ended.wait()
        log.info("later")

    with logs.around({"request_id": "r1"}):
        task = asyncio.create_task(lives_on())
        await asyncio.sleep(0)
        logs.note({"job_id": "j1"})
        log.info("noted", extra={"job_id": "j2"})
    ended.set()
    await task
    logs.note({"job_id": "of nobody"})
    found = [json.loads(line) for line in read(pipe[0]).splitlines()]
    assert [(line["event"], line.get("request_id"), line.get("job_id")) for line in found] == [
        ("meanwhile", "r1", None),
        ("noted", "r1", "j2"),
        ("later", None, None),
    ]


def test_the_format_follows_the_terminal_unless_it_is_set(pipe: tuple[int, int]) -> None:
    ours, theirs = os.openpty()
    for format, where, is_json in (
        ("auto", pipe[1], True),
        ("auto", theirs, False),
        ("json", theirs, True),
        ("console", pipe[1], False),
    ):
        logger_to(where, format).info("hello")
        assert read(ours if where == theirs else pipe[0]).startswith("{") is is_json
    os.close(ours)
    os.close(theirs)


def test_a_level_holds_for_every_logger_and_for_processes_that_are_started() -> None:
    found = pickle.loads(pickle.dumps(logs.config(QueueSettings(log_level="warning"), "api")))
    assert found["root"]["level"] == "WARNING"
    # a library's logger may have a lower level of its own
    assert found["handlers"]["stderr"]["level"] == "WARNING"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAGAN_LOG_FORMAT", "xml"),
        ("SAGAN_LOG_FORMAT", ""),
        ("SAGAN_LOG_LEVEL", "loud"),
        ("SAGAN_LOG_LEVEL", "20"),
    ],
)
def test_a_wrong_setting_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=rf"^sagan: {name} is '{value}': Input should be '"):
        read_settings(QueueSettings)


def test_a_setting_may_be_written_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("SAGAN_LOG_FORMAT", "JSON")
    assert (read_settings(QueueSettings).log_level, QueueSettings().log_format) == ("warning", "json")
