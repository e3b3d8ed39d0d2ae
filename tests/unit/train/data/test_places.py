"""A pack never takes the place of a user's file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros
from typer.testing import CliRunner

from cli import app
from tests.unit.train.data.sources import class_folders, encoded, picture, zip_of
from train.data.pack import open_pack, pack
from train.errors import DataError


def photos(tmp_path: Path) -> Path:
    return zip_of(tmp_path / "mine.zip", {f"cat/{n}.png": encoded(picture((n, 0, 0))) for n in range(3)})


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        lambda source: source,
        lambda source: source.parent / "sub" / ".." / source.name,
        lambda source: _made(source.with_name("link.zip"), lambda link: link.symlink_to(source)),
        lambda source: _made(source.with_name("inode.zip"), lambda link: os.link(source, link)),
    ],
    ids=["path", "detour", "link", "inode"],
)
def test_the_source_is_never_written_over(tmp_path: Path, place: Callable[[Path], Path], force: bool) -> None:
    source = photos(tmp_path)
    (tmp_path / "sub").mkdir()
    before = source.read_bytes()
    out = place(source)
    with pytest.raises(DataError, match="is what is to be read"):
        pack(source, out, force=force)
    assert source.read_bytes() == out.read_bytes() == before


def _made(link: Path, make: Callable[[Path], None]) -> Path:
    make(link)
    return link


def test_a_file_that_is_no_pack_is_written_over_by_force_alone(tmp_path: Path) -> None:
    source = photos(tmp_path)
    checkpoint = tmp_path / "generator.safetensors"
    save_file({"weight": zeros(2)}, checkpoint)
    for name, content in (
        ("thesis.txt", b"words"),
        ("empty", b""),
        (checkpoint.name, checkpoint.read_bytes()),
    ):
        out = tmp_path / name
        out.write_bytes(content)
        with pytest.raises(DataError, match="--force"):
            pack(source, out)
        assert out.read_bytes() == content
        pack(source, out, force=True)
        assert len(open_pack(out)) == 3
    pack(class_folders(tmp_path / "src"), out)  # a pack is ours to make anew
    assert len(open_pack(out)) == 9


def test_a_shard_takes_no_file_of_the_user_either(tmp_path: Path) -> None:
    taken = tmp_path / "out-00001-of-00002.safetensors"
    taken.write_bytes(b"words")
    with pytest.raises(DataError, match="--force"):
        pack(photos(tmp_path), tmp_path / "out.safetensors", shards=2)
    assert taken.read_bytes() == b"words"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.zip", taken.name]


def test_a_picture_of_the_source_is_not_written_over_even_by_force(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    before = (source / "cat" / "0.png").read_bytes()
    with pytest.raises(DataError, match="a file of the source"):
        pack(source, source / "cat" / "0.png", force=True)
    assert (source / "cat" / "0.png").read_bytes() == before


def test_a_folder_and_a_pipe_are_no_places_for_a_pack(tmp_path: Path) -> None:
    source = photos(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("folder", "is a folder"), ("pipe", "no ordinary file")):
        with pytest.raises(DataError, match=says):
            pack(source, tmp_path / name, force=True)
    assert not list((tmp_path / "folder").iterdir())


def test_features_take_no_file_of_the_user_either(tmp_path: Path) -> None:
    source = photos(tmp_path)
    before = source.read_bytes()
    for out in (source, tmp_path / "out.safetensors"):
        if out != source:
            pack(source, out)
        done = CliRunner().invoke(app, ["train", "features", "--data", str(source), "--out", str(out)])
        assert done.exit_code == 2
        assert "is no feature extractor: choose another --out" in done.output
    assert source.read_bytes() == before
    assert len(open_pack(out)) == 3


def test_the_command_says_so_in_one_sentence(tmp_path: Path) -> None:
    source = photos(tmp_path)
    before = source.read_bytes()
    done = CliRunner().invoke(app, ["data", "pack", str(source), str(source)])
    assert done.exit_code == 2
    assert "give the pack another name" in done.output
    assert source.read_bytes() == before
