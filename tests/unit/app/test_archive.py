"""A ZIP that is sent as it is written."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from app.archive import zipped
from app.recipes import stem
from jobs.job import JobSpec

FILES = [(f"cat-seed7-{index:04}.png", bytes([index]) * (1000 + index)) for index in range(40)]
MADE_AT = datetime(2026, 11, 30, 1, 2, 4, tzinfo=UTC)


def test_an_archive_has_every_file_and_is_the_same_again() -> None:
    data = b"".join(zipped(FILES, MADE_AT))
    assert data == b"".join(zipped(FILES, MADE_AT))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert [(info.filename, archive.read(info)) for info in archive.infolist()] == FILES
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (2026, 11, 30, 1, 2, 4)


def test_a_reader_that_sees_only_the_beginning_knows_each_size_beforehand() -> None:
    data = b"".join(zipped(FILES, MADE_AT))
    at = 0
    for name, content in FILES:
        assert data[at : at + 4] == b"PK\x03\x04"
        flags = int.from_bytes(data[at + 6 : at + 8], "little")
        assert not flags & 0x08  # else a stored file's size would follow it, which no such reader finds
        assert int.from_bytes(data[at + 18 : at + 22], "little") == len(content)
        at += 30 + len(name)
        assert data[at : at + len(content)] == content
        at += len(content)


def test_a_file_is_sent_before_the_next_is_read() -> None:
    read = 0

    def files() -> Iterator[tuple[str, bytes]]:
        nonlocal read
        for file in FILES:
            read += 1
            yield file

    pieces = zipped(files(), MADE_AT)
    for sent, piece in enumerate(pieces, 1):
        assert read == min(sent, len(FILES))
        assert len(piece) < 5000


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("golden retriever", "golden_retriever-seed42"),
        ("../etc/passwd", "etc_passwd-seed42"),
        ('a:b*c?"<>|\\\n', "a_b_c-seed42"),
        ("Grünfink", "Gr_nfink-seed42"),
        ("犬", "class3-seed42"),
        ("CON", "CON-seed42"),
        ("x" * 1000, "x" * 80 + "-seed42"),
    ],
)
def test_a_file_of_a_class_of_any_name_has_a_name_that_every_system_takes(name: str, found: str) -> None:
    assert stem(JobSpec("m", "0" * 64, "float32", 3, name, 4, 42, 1.0)) == found
