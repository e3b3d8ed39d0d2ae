"""Classes in a table beside the pictures, in the forms that people and programs write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.train.data.sources import IMAGE, counts, folder, notes, write
from train.errors import DataError


@pytest.mark.parametrize(
    "content",
    [
        b"sep=;\nfile;label\na.png;big, cat\nb.png;dog\n",
        b'file,label\ra.png,"big, cat"\rb.png,dog\r',  # line ends of old Macs
        "file\tlabel\r\na.png\tbig, cat\r\nb.png\tdog\r\n".encode("utf-16"),  # Excel's "Unicode text"
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path: Path, content: bytes) -> None:
    for name in ("a", "b"):
        write(tmp_path / "src" / f"{name}.png", IMAGE)
    write(tmp_path / "src" / "labels.csv", content)
    assert counts(tmp_path / "src") == {"big, cat": 1, "dog": 1}


def test_lines_of_json_say_the_classes_as_well(tmp_path: Path) -> None:
    source = folder(tmp_path / "src", loose=3)
    rows = [{"file_name": f"loose{n}.png", "label": n % 2} for n in range(3)]
    write(source / "metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert counts(source) == {"0": 2, "1": 1}
    write(source / "metadata.jsonl", b'{"file_name": "loose0.png", "text": "a cat"}\n')
    assert counts(source) == {"src": 3}
    assert "a table without labels (metadata.jsonl)" in notes(source)
    write(source / "metadata.jsonl", b"not json")
    with pytest.raises(DataError, match=r"metadata.jsonl is not JSON lines .*--classes"):
        counts(source)


def test_a_table_of_another_split_labels_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path / "src", test=2)
    write(source / "labels.csv", b"file,label\ntrain/test0.png,cat\ntrain/test1.png,dog\n")
    with pytest.raises(DataError, match="names none of the 2 pictures"):
        counts(source)
    write(source / "labels.csv", b"file,label\n/elsewhere/src/test/test0.png,cat\ntest1.png,dog\n")
    assert counts(source) == {"cat": 1, "dog": 1}


def test_two_tables_that_differ_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "src", loose=2)
    write(source / "labels.csv", b"file,label\nloose0.png,0\nloose1.png,1\n")
    for second, wrong in ((0, True), (1, False)):
        table = {"labels": [["loose0.png", 0], ["loose1.png", second]]}
        write(source / "dataset.json", json.dumps(table).encode())
        if wrong:
            with pytest.raises(DataError, match=r"dataset.json and labels.csv say different .*--classes"):
                counts(source)
    assert counts(source) == {"0": 1, "1": 1}


def test_a_table_under_another_name_is_not_passed_over(tmp_path: Path) -> None:
    source = folder(tmp_path / "src", loose=2)
    write(source / "train.csv", b"id,breed\nloose0,pug\nloose1,chow\n")
    with pytest.raises(DataError, match=r"train.csv may say their classes.*labels.csv.*--classes one"):
        counts(source)
    assert counts(source, "one") == {"src": 2}
    assert "a table that is not read" in notes(source, "one")
    write(source / "train.csv", b"when,what\n1,2\n")
    assert counts(source) == {"src": 2}
