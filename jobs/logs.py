"""Logs: one line an event, as JSON or for a reader at a terminal, from every logger of the process.

Whoever logs uses the standard library's `logging`, with fields in `extra`; structlog formats. So the lines of
uvicorn, Celery and every other library go the same way. docs/observability.md says what each line has.
"""

from __future__ import annotations

import logging
import logging.config
import os
import re
import socket
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Final

from pydantic_core import to_json
from structlog.dev import ConsoleRenderer, plain_traceback

from jobs.settings import QueueSettings

TOLD_EVERY: Final = 60.0  # seconds between two lines of a kind, of libraries that would tell without end
LONGEST: Final = 1000  # characters of a field
LONGEST_TRACEBACK: Final = 16_000
_FIRST: Final = len(logging.makeLogRecord({}).__dict__)  # of a record: how many are no fields of its line
# nor are these, where they stand among the others, or they have their own
_USUAL: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    *("message", "asctime", "color_message", "taskName"),
    *("timestamp", "level", "event", "logger", "exception", "process", "pid"),
}
# What ends a line or steers a terminal, whoever's request or file's name brought it: control characters, DEL
# and C1 (one of them is ESC [), separators of lines, what turns the writing around, halves of pairs
_CONTROL: Final = "\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE: Final = re.compile(f"[\x00-\x0a{_CONTROL}]")
_UNSAFE_IN_LINES: Final = re.compile(f"[\x00-\x09{_CONTROL}]")

AUDIT: Final = logging.getLogger("sagan.audit")  # who changed what: the event's name, and fields

# A request's fields. They are emptied at its end: a task that it began and that lives on is no part of it
_around: ContextVar[dict[str, Any] | None] = ContextVar("around", default=None)


@contextmanager
def around(fields: dict[str, Any]) -> Iterator[None]:
    """Every line that this task, and those that it starts, write meanwhile has these fields."""
    before = _around.set(fields)
    try:
        yield
    finally:
        fields.clear()
        _around.reset(before)


def note(fields: Mapping[str, Any]) -> None:
    """Add fields to every further line of this request, the one that it ends with among them."""
    here = _around.get()
    if here is not None:
        here.update(fields)


def configure(settings: QueueSettings, process: str) -> None:
    """What this process logs goes to standard error from now on. process: "api", "worker" or "serve"."""
    logging.config.dictConfig(config(settings, process))
    logging.captureWarnings(True)
    # no line has them, and looking for them takes longer than to write the line (logging's documentation)
    logging._srcfile = None
    for name in ("logThreads", "logMultiprocessing", "logProcesses", "logAsyncioTasks"):
        setattr(logging, name, False)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda of: _log_uncaught(of.exc_type, of.exc_value, of.exc_traceback)


def config(settings: QueueSettings, process: str) -> dict[str, Any]:
    """The same for logging.config: uvicorn hands it on to the processes that it starts."""
    level = settings.log_level.upper()
    handler = {"()": StandardError, "format": settings.log_format, "process": process, "level": level}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": handler},
        "root": {"handlers": ["stderr"], "level": level},
    }


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logging.getLogger(__name__).critical("not caught: %r", error, exc_info=(kind, error, trace))


class StandardError(logging.Handler):
    """Writes lines to standard error, and neither waits for it nor ends because of it.

    A line that it does not take (a full disk, a reader that has stopped or gone) is lost; how many were is
    told once it takes lines again.
    """

    def __init__(self, format: str, process: str, number: int = 2) -> None:
        """format: "console", "json", or "auto": "console" on a terminal. number: of the file."""
        super().__init__()
        self.addFilter(_Seldom("opentelemetry"))  # where the collector is away, each batch of spans says so
        self._write = _writer(number)
        on_console = format == "console" or (format == "auto" and _is_terminal(number))
        self.formatter = _Console(colours=_is_terminal(number)) if on_console else _Json(process)
        self._rest = b""  # of a line that was taken in part
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(record)
        except OSError:
            self._lost += 1
        except Exception as error:  # noqa: BLE001  # a line that cannot be made is told in its plainest form
            plain = {"name": record.name, "levelname": record.levelname, "msg": "a line that cannot be made"}
            with suppress(Exception):
                self._send(logging.makeLogRecord(plain | {"line": repr(record.msg), "error": repr(error)}))

    def _send(self, record: logging.LogRecord) -> None:
        """Raises OSError where the line is lost."""
        line = self.format(record)
        if self._lost:
            told = {"name": __name__, "levelname": "WARNING", "msg": "lines before this one were lost"}
            self._put(self.format(logging.makeLogRecord(told | {"count": self._lost})))
            self._lost = 0
        self._put(line)

    def _put(self, line: str) -> None:
        self._put_rest()  # another line must not become part of it
        data = line.encode(errors="backslashreplace") + b"\n"
        self._rest = data[self._write(data) :]
        if self._rest:
            with suppress(OSError):  # it goes out before the next one
                self._put_rest()

    def _put_rest(self) -> None:
        while self._rest:
            self._rest = self._rest[self._write(self._rest) :]


class _Seldom(logging.Filter):
    """Lets a line of each kind through once a minute, of one library's loggers."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._told: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self.name):
            return True
        kind = record.name, str(record.msg)
        if monotonic() - self._told.get(kind, -inf) < TOLD_EVERY:
            return False
        self._told[kind] = monotonic()
        return True


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


def _writer(number: int) -> Callable[[bytes], int]:
    """Writes to an open file without ever waiting, and returns how many bytes it took; raises OSError."""
    try:
        mode = os.fstat(number).st_mode
    except OSError:  # closed
        return len
    if stat.S_ISSOCK(mode):  # systemd's journal
        journal = socket.socket(fileno=os.dup(number))
        return lambda data: journal.send(data, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # opened anew: a flag of the open file would hold for all who share it, the shell among them
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):
            number = os.open(f"/proc/self/fd/{number}", flags)
    return lambda data: os.write(number, data)


class _Json(logging.Formatter):
    """A line is a JSON object. Made here: structlog's ProcessorFormatter takes three times as long."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = {"process": process, "pid": os.getpid()}

    def format(self, record: logging.LogRecord) -> str:
        return to_json(_fields(record) | self._process, inf_nan_mode="null").decode()


class _Console(logging.Formatter):
    """A line as structlog shows it to a reader at a terminal."""

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._render = ConsoleRenderer(
            colors=colours and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
            sort_keys=False,
            repr_native_str=True,  # in quotes: no value looks like another field
            exception_formatter=plain_traceback,
        )

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        if "exception" in fields:  # indented: no line of an error's message looks like one of ours
            fields["exception"] = "    " + fields["exception"].replace("\n", "\n    ")
        return self._render(None, record.levelname.lower(), fields)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """A record as the fields of its line, under structlog's names; they are safe to show."""
    line = {
        "timestamp": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "event": _safe(record.getMessage()),
        "logger": record.name,
    }
    given = list(record.__dict__.items())[_FIRST:]  # what `extra` had stands last
    if around_it := _around.get():
        given = [*around_it.items(), *given]
    for name, value in given:
        if value is None or value == "" or name in _USUAL:
            continue
        plain = type(value) is str and len(value) <= LONGEST and value.isprintable()
        line[name] = value if plain else _safe(value)
    if record.exc_info:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip()[-LONGEST_TRACEBACK:]
        line["exception"] = _UNSAFE_IN_LINES.sub(_escaped, text)
    return line


@lru_cache(maxsize=2)
def _second(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _safe(value: Any) -> Any:
    """A field's value that neither ends a line nor steers a terminal."""
    if isinstance(value, str):
        if len(value) > LONGEST:
            value = f"{value[:LONGEST]}…"
        return value if value.isprintable() else _UNSAFE.sub(_escaped, value)
    if isinstance(value, float):
        return round(value, 6)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(each) for each in value]
    if isinstance(value, dict):
        return {_safe(str(name)): _safe(each) for name, each in value.items()}
    return _safe(str(value))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
