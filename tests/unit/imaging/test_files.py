"""Files that appear whole or not at all."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from imaging.files import PART, forget_parts, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_get_their_names_together_when_all_are_whole(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "b", tmp_path / "new" / "a"]
    with written_whole(paths) as (first, second):
        first.write(b"1")
        second.write(b"2")
        assert not any(path.exists() for path in paths)
        assert all(name.endswith(PART) for name in names(tmp_path / "new"))
    assert [path.read_bytes() for path in paths] == [b"1", b"2"]
    assert names(tmp_path / "new") == ["a", "b"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(paths[0].stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failure_leaves_the_old_files_and_no_halves(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"old")
    with pytest.raises(TypeError), written_whole(paths) as (first, _):
        first.write("new")  # type: ignore[call-overload]
    assert names(tmp_path) == ["a"]
    assert paths[0].read_bytes() == b"old"


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, written_whole([tmp_path / "a"]):
        (tmp_path / "missing").read_bytes()
    assert told.value.filename == str(tmp_path / "missing")
    assert names(tmp_path) == []


def test_halves_are_forgotten_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    half = f".1.{dead.pid}{PART}"
    kept = [
        tmp_path / "a.part",
        tmp_path / ".b",
        tmp_path / f".download{PART}",  # a browser's
        tmp_path / "in" / "c",
        tmp_path / "in" / "deeper" / f".c{half}",
    ]
    for path in (*kept, tmp_path / f".a{half}", tmp_path / "in" / f".c{half}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    forget_parts(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
