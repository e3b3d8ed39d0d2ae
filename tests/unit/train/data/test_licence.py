"""The licence that a folder or a zip of pictures states."""

from __future__ import annotations

import codecs
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.train.data.sources import IMAGE, write, zip_of
from train.data.licence import LONGEST, stated_licence
from train.data.pack import open_pack, pack
from train.data.sources import Reading


@pytest.mark.parametrize("name", ["LICENSE", "licence.txt", "COPYING", "License.md"])
def test_the_first_paragraph_of_a_licence_file_is_the_licence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n# CC BY 4.0\nby the Example Zoo\n\nmore that nobody reads")
    assert stated_licence(tmp_path) == f"# CC BY 4.0 by the Example Zoo ({name})"


def test_no_other_file_is_one_and_a_long_one_is_cut(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("licence: none")
    (tmp_path / "licences.csv").write_text("a,b")
    (tmp_path / "COPYING").touch()
    assert stated_licence(tmp_path) is None
    (tmp_path / "LICENSE").write_text("x" * 5000)
    (tmp_path / "COPYING").unlink()
    found = stated_licence(tmp_path)
    assert found is not None
    assert len(found) == LONGEST + len(" (LICENSE)")
    assert stated_licence(tmp_path / "nowhere") is None


def test_it_is_packed_with_the_pictures_of_a_folder_and_of_a_zip(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(root / name / "0.png")
    (root / "LICENSE.txt").write_text("CC0")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in root.rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path))
    for source in (root, tmp_path / "pets.zip"):
        pack(source, tmp_path / "pack.safetensors")
        assert open_pack(tmp_path / "pack.safetensors").metadata["licence"] == "CC0 (LICENSE.txt)"
    pack(root, tmp_path / "pack.safetensors", reading=Reading(licence="mine"))
    assert open_pack(tmp_path / "pack.safetensors").metadata["licence"] == "mine"


def test_a_damaged_licence_in_a_zip_is_none(tmp_path: Path) -> None:
    damaged = tmp_path / "pets.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("LICENSE", "CC0 " * 500)
    content = bytearray(damaged.read_bytes())
    content[37:45] = b"\xff" * 8  # the first bytes of the compressed text, behind 30 of head and 7 of name
    damaged.write_bytes(content)
    assert stated_licence(damaged) is None


@pytest.mark.parametrize("given", ["", "pets", "pets/train", "pets/train/cat", "./pets//train"])
def test_a_zip_states_it_for_each_folder_in_it(tmp_path: Path, given: str) -> None:
    members = {"./pets/LICENSE": b"CC0", "pets/train/cat/0.png": IMAGE, "pets\\train\\dog\\0.png": IMAGE}
    archive = zip_of(tmp_path / "a.zip", {**members, "__MACOSX/._x": b"", "README": b""})
    assert stated_licence(archive / given) == "CC0 (LICENSE)"


def test_that_of_one_class_is_not_that_of_all(tmp_path: Path) -> None:
    files = {"pets/cat/0.png": IMAGE, "pets/cat/LICENSE": b"the cats' alone", "pets/dog/0.png": IMAGE}
    for name, content in files.items():
        write(tmp_path / "src" / name, content)
    archive = zip_of(tmp_path / "a.zip", files)
    assert stated_licence(tmp_path / "src") is None
    assert stated_licence(archive) is None
    assert stated_licence(archive / "pets" / "cat") == "the cats' alone (LICENSE)"
    write(tmp_path / "src" / "pets" / "COPYING", b"CC0")
    assert stated_licence(tmp_path / "src") == "CC0 (COPYING)"


@pytest.mark.parametrize(
    "content",
    [
        "CC BY 4.0, Zoë".encode(),
        codecs.BOM_UTF8 + "CC BY 4.0, Zoë".encode(),
        "CC BY 4.0, Zoë".encode("utf-16"),
        "CC BY 4.0, Zoë".encode("cp1252"),
        "# Licence\r\n \r\nCC BY 4.0, Zoë\r\n\r\nmore".encode(),
    ],
)
def test_it_is_read_as_editors_write_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "LICENSE.txt").write_bytes(content)
    assert stated_licence(tmp_path) == "CC BY 4.0, Zoë (LICENSE.txt)"
