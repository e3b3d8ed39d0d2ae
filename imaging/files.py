"""A file is written beside its place and renamed: whoever reads it finds it whole, or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

PART = ".part"  # ends the name of a file that is not whole yet: .{name}.{number}.{process}.part
_NAME_BYTES = 150  # of a name that are kept in it: it must not be longer than file systems allow


@contextmanager
def written_whole(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Files beside `paths`, all in one folder; they get these names, in this order, when all are whole.

    After a failure before that none has its name, and nothing is left behind. An OSError names the path that
    was asked for.
    """
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from error
    beside = {
        folder / f".{_cut(path.name)}.{number}.{os.getpid()}{PART}": path for number, path in enumerate(paths)
    }
    asked = {str(part): str(path) for part, path in beside.items()}
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(part.open("wb")) for part in beside]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for part, path in beside.items():
            part.replace(path)
    except OSError as error:
        if error.errno is None or (error.filename is not None and error.filename not in asked):
            raise  # not of these files
        name = asked.get(error.filename, str(paths[-1]))
        raise type(error)(error.errno, error.strerror, name) from error
    finally:
        for part in beside:
            part.unlink(missing_ok=True)


def _cut(name: str) -> str:
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")


def write_whole(path: Path, content: bytes) -> None:
    """Write one file, whole or not at all."""
    with written_whole([path]) as (file,):
        file.write(content)


def forget_parts(folder: Path, names: Sequence[str] | None = None) -> None:
    """Remove files that a killed process left half-written in `folder` and in the folders in it.

    Of these names alone, in `folder` alone; None: of any. What a process that lives is writing stays.
    """
    cut = None if names is None else {_cut(name) for name in names}
    for part in [*folder.glob(f".*{PART}"), *(folder.glob(f"*/.*{PART}") if cut is None else ())]:
        ours = re.fullmatch(rf"\.(.+)\.\d+\.(\d+){re.escape(PART)}", part.name, re.DOTALL)
        if ours and (cut is None or ours[1] in cut) and not _writes(int(ours[2])):
            part.unlink(missing_ok=True)


def _writes(process: int) -> bool:
    """Whether another process of this number lives."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
