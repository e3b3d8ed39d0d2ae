"""A run never takes the place of a user's file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from imaging.files import PART
from tests.unit.train.data.sources import class_folders
from train.data.pack import open_pack, pack
from train.errors import DataError
from train.run.folder import ABOUT, PACK, RECIPE, SKIPPED, check_free, check_recipe_free
from train.run.loop import GENERATOR, STATE


@pytest.fixture(autouse=True)
def passive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as `train` sets it; put back afterwards


@pytest.mark.parametrize("name", [PACK, ABOUT, SKIPPED, GENERATOR, "samples/real.png"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["", "dry"])
def test_a_new_run_takes_no_file_of_the_user(tmp_path: Path, name: str, more: tuple[str, ...]) -> None:
    source, out = class_folders(tmp_path / "src"), tmp_path / "out"
    pack(source, out / name)  # the user's own, though by its name alone it might be a run's
    before = (out / name).read_bytes()
    done = CliRunner().invoke(app, ["train", "tiny", "--data", str(source), "--out", str(out), *more])
    assert done.exit_code == 2
    assert f"{out / name} is there" in done.output
    assert (out / name).read_bytes() == before
    assert [path.relative_to(out).as_posix() for path in out.rglob("*.*")] == [name]


def test_a_resumed_run_takes_no_pack_beside_it(tmp_path: Path) -> None:
    source, out = class_folders(tmp_path / "src"), tmp_path / "out"
    pack(source, out / PACK)
    (out / STATE).touch()
    check_free(out, out / PACK)  # it was begun with that pack
    with pytest.raises(DataError, match="choose another --out"):
        check_free(out, source)


def test_another_recipe_than_a_run_s_is_kept(tmp_path: Path) -> None:
    (tmp_path / RECIPE).write_text("mine")
    with pytest.raises(DataError, match="in place of `auto`"):
        check_recipe_free(tmp_path, "chosen")
    check_recipe_free(tmp_path, "mine")
    (tmp_path / ABOUT).write_text(
        json.dumps({"source": "/a", "listing": "", "pictures": 9, "resolution": 32, "skipped": 0})
    )
    check_recipe_free(tmp_path, "chosen")
    check_free(tmp_path, tmp_path / "photos")


def test_what_a_killed_packing_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    source, out = class_folders(tmp_path / "src"), tmp_path / "out"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".out.0.{dead.pid}{PART}"
    kept = [
        tmp_path / f".other.0.{dead.pid}{PART}",
        tmp_path / f".out.0.{os.getppid()}{PART}",  # which is writing it
        tmp_path / f".out{PART}",
    ]
    for path in (left, *kept):
        path.touch()
    pack(source, out)
    assert len(open_pack(out)) == 9
    assert sorted(tmp_path.iterdir()) == sorted([source, out, *kept])
