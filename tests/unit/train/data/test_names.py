"""Classes are called and counted as a person would."""

from __future__ import annotations

import struct
import unicodedata
import zipfile
from pathlib import Path

import pytest

from jobs.classes import class_number
from model.checkpoint import load_generator
from tests.unit.train.data.sources import encoded, picture, write, zip_of
from train.data.pack import pack
from train.data.sources import open_source
from train.data.sources.names import class_order, cleaned, same_classes
from train.errors import DataError

IMAGE = encoded(picture())
CHECKPOINTS = Path(__file__).parents[4] / "checkpoints"


def folders(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name / "0.png", IMAGE)
    return root


def test_numbers_in_names_are_ordered_by_value(tmp_path: Path) -> None:
    names = tuple(str(number) for number in range(12))
    report = pack(folders(tmp_path / "src", *names), tmp_path / "out")
    assert report.class_names == names
    assert [class_number(name, report.class_names) for name in names] == list(range(12))
    assert class_order(["b10", "b9", "B1", "a", "10", "9x", "009"]) == (
        "009",
        "9x",
        "10",
        "B1",
        "a",
        "b9",
        "b10",
    )
    assert class_order(["1" * 5000, "2"])[0] == "2"


def test_the_classes_of_what_ships_keep_their_numbers() -> None:
    found = list(CHECKPOINTS.glob("*.safetensors"))
    assert found
    for path in found:
        names = load_generator(path).class_names
        assert sorted(names) == list(class_order(names))


def test_a_class_that_is_called_by_another_ones_number_is_told(tmp_path: Path) -> None:
    report = pack(folders(tmp_path / "src", "1", "2", "3"), tmp_path / "out")
    assert any('"1" is number 0, "2" is number 1' in note for note in report.notes)
    assert class_number("1", report.class_names) == 0  # the exact name before the number
    report = pack(folders(tmp_path / "plain", "0", "1", "cat", "2023"), tmp_path / "out")
    assert not any("called by the numbers" in note for note in report.notes)


def test_names_are_composed_and_trimmed_on_the_way_in(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    report = pack(folders(tmp_path / "src", decomposed, "cat ", "\u00a0dog"), tmp_path / "out")
    assert report.class_names == ("café", "cat", "dog")
    for asked in (decomposed, "café", " CAFÉ "):
        assert class_number(asked, report.class_names) == 0


@pytest.mark.parametrize(
    "name",
    ["a\tb", "a\nb", "a\x7f", "a\x1b[31m", "\u202egpj", "a\u200bb", " ", "\ufeffa", "a\u00adb", "\u3164"],
)
def test_names_with_what_cannot_be_seen_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="rename it"):
        pack(folders(tmp_path / "src", "cat", name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_names_that_look_alike_are_refused(tmp_path: Path) -> None:
    for pair in (
        ("cat", "cat "),
        ("café", unicodedata.normalize("NFD", "café")),
        ("Cat", "cat"),
        ("a b", "a\u00a0 b"),
    ):
        with pytest.raises(DataError, match="same name"):
            class_order(pair)


def test_letters_that_join_by_what_is_unseen_are_names_all_the_same() -> None:
    assert cleaned("می‌خواهم") == "می‌خواهم"  # a zero-width non-joiner, as Persian writes it


def test_old_checkpoints_names_are_the_same_classes() -> None:
    assert same_classes(["cafe\u0301", "cat "], ["café", "cat"])
    assert not same_classes(["cat", "café"], ["café", "cat"])


def unmarked(path: Path, members: dict[bytes, bytes]) -> Path:
    """A zip whose names are these bytes, with nothing said of their encoding."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, content in enumerate(members.values()):
            archive.writestr(f"{number:05d}".ljust(len(list(members)[number]), "x"), content)
    raw = bytearray(path.read_bytes())
    for number, name in enumerate(members):
        stand_in = f"{number:05d}".ljust(len(name), "x").encode()
        assert len(stand_in) == len(name)
        raw = raw.replace(stand_in, name)
    path.write_bytes(raw)
    assert struct.unpack("<H", raw[6:8])[0] & 0x800 == 0
    return path


@pytest.mark.parametrize(
    ("names", "encoding", "told"),
    [
        (["猫", "いぬ"], "cp932", "Shift-JIS"),
        (["柴犬", "ネコ2"], "cp932", "Shift-JIS"),
        (["Äpfel", "étang"], "cp437", "CP437"),
        (["Äpfel", "猫"], "utf-8", None),
    ],
)
def test_names_in_a_zip_that_do_not_say_their_encoding(
    tmp_path: Path, names: list[str], encoding: str, told: str | None
) -> None:
    source = unmarked(tmp_path / "a.zip", {f"{n}/0.png".encode(encoding): IMAGE for n in names})
    with open_source(source) as found:
        assert set(found.class_names) == set(names)
        assert bool(told) == any("do not say how they are encoded" in note for note in found.notes)
        assert told is None or any(told in note for note in found.notes)


# --- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["./cat/0.png", "/cat/0.png", "cat//0.png", "cat\\0.png", "C:\\cat\\0.png", ".\\cat/./0.png"]
)
def test_a_path_in_a_zip_is_one_however_it_is_written(tmp_path: Path, path: str) -> None:
    source = zip_of(tmp_path / "a.zip", {path: IMAGE, "dog/0.png": encoded(picture((1, 2, 3)))})
    report = pack(source, tmp_path / "out")
    assert (report.class_names, report.class_counts) == (("cat", "dog"), (1, 1))
    assert report.skipped_count == 0


def test_a_path_that_leads_out_of_a_zip_is_left_out_and_told(tmp_path: Path) -> None:
    source = zip_of(tmp_path / "a.zip", {"../x/0.png": IMAGE, "cat/../dog/0.png": IMAGE, "cat/0.png": IMAGE})
    report = pack(source, tmp_path / "out")
    assert report.class_names == ("cat",)
    assert "left out 2: a path that leads out of the archive (../x/0.png, cat/../dog/0.png)" in report.notes


def test_a_name_twice_in_a_zip_is_told_and_the_later_is_used(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/0.png", IMAGE)
        archive.writestr("./cat/0.png", encoded(picture((9, 9, 9))))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("cat/0.png", encoded(picture((1, 2, 3))))
    with open_source(tmp_path / "a.zip") as found:
        assert len(found.entries) == 1
        assert found.read(found.entries[0]).getpixel((0, 0)) == (1, 2, 3)
        assert any(note.startswith("left out 2: in the archive twice") for note in found.notes)
