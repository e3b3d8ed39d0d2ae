"""What the commands say never ends what they do: the two streams of a process, whatever they lead to.

A reader that has gone, a full disk and letters that the terminal does not have cost words, not a run.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LOST = 2  # exit code of a command that did what it should and could not say all of it


class _Stream(io.FileIO):
    """One of the two; after the first write that fails nothing more is written."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.trouble: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        whole = memoryview(data).nbytes
        if self.trouble is not None:
            return whole
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self], [])
            return written
        except OSError as trouble:
            self.trouble = trouble
            if self.fileno() == 1:
                print(f"sagan: {_told(trouble)}", file=sys.stderr, flush=True)  # noqa: T201
            return whole


def _told(trouble: OSError) -> str:
    if trouble.errno == errno.EPIPE:
        return "Nobody reads the output any more: the command goes on in silence."
    return f"Standard output cannot be written to ({trouble.strerror}): the command goes on without it."


@contextmanager
def forgiving() -> Iterator[None]:
    """Standard output and error that raise nothing. Ends in SystemExit(LOST) where words were lost.

    A reader that goes has heard enough: that is no loss.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file opened would have its number, and get what is printed
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    output = _Stream(1)
    sys.stdout, sys.stderr = _text(output, before[0]), _text(_Stream(2), before[1])
    code: object = 0
    try:
        yield
    except BaseException as end:
        code = end.code if isinstance(end, SystemExit) else end
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
        if output.trouble is not None and output.trouble.errno != errno.EPIPE and not code:
            raise SystemExit(LOST)


def _text(stream: _Stream, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding,
        errors="replace",
        line_buffering=stream.isatty() or stream.fileno() == 2,
    )
