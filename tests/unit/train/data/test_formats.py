"""What Pillow opens is tried, by what is in a file; what is not taken is counted and told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, features

from tests.unit.train.data.sources import class_folders, encoded, picture, write, zip_of
from train.data.pack import open_pack, pack
from train.data.sources import open_source
from train.errors import DataError, NoImages

IMAGE = encoded(picture())
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        ("jfif", "JPEG"),
        ("jpe", "JPEG"),
        ("tga", "TGA"),
        ("pcx", "PCX"),
        ("ico", "ICO"),
        ("pbm", "PPM"),
        ("pnm", "PPM"),
        ("ppm", "PPM"),
        ("dib", "DIB"),
        ("apng", "PNG"),
        ("jp2", "JPEG2000"),
        ("j2k", "JPEG2000"),
        ("sgi", "SGI"),
        ("qoi", "QOI"),
        ("dds", "DDS"),
        ("xbm", "XBM"),
        ("TIF", "TIFF"),
        ("WebP", "WEBP"),
        ("avif", "AVIF"),
        ("gif", "GIF"),
        ("png", "JPEG"),  # called so by mistake
        ("jpg", "WEBP"),
        ("jpg_large", "JPEG"),
        ("jpg?width=200", "PNG"),
        ("", "PNG"),  # no suffix at all
    ],
)
def test_a_class_of_any_format_is_kept(tmp_path: Path, suffix: str, form: str) -> None:
    Image.init()
    if form not in Image.SAVE or (form == "JPEG2000" and not features.check("jpg_2000")):
        pytest.skip("this Pillow does not write it")
    image = Image.new("1", (32, 32), 1) if suffix in ("pbm", "xbm") else picture((200, 30, 60))
    source = class_folders(tmp_path / "src")
    for number in range(3):
        write(source / "other" / f"{number}{'.' if suffix else ''}{suffix}", encoded(image, form))
    report = pack(source, tmp_path / "out")
    assert report.class_names == ("ant", "boat", "cat", "other")
    assert report.class_counts == (3, 3, 3, 3)
    red = open_pack(tmp_path / "out").images[-1, 0, 5, 5]
    assert red > 190 or suffix == "xbm"


def test_what_is_not_taken_is_counted_by_reason(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    for name, content in {
        "cat/a.txt": b"text",
        "cat/b.csv": b"1,2",
        "dog/c.heic": HEIC,
        "dog/d.HEIC": HEIC,
        "dog/e.nef": IMAGE,
        "dog/f.mp4": b"\0\0\0\x18ftypisom",
        "dog/g.svg": b"<svg/>",
        "cat/h.jpg": b"<!DOCTYPE html><html>",
        "cat/i.jpg": HEIC,
        "cat/j.png": b"version https://git-lfs.github.com/spec/v1",
        "cat/k.jpg": b"",
        "cat/l.png": b"text",
        "boat/m.tar.gz": b"",
        "boat/n.zip": b"PK\3\4",
    }.items():
        write(source / name, content)
    report = pack(source, tmp_path / "out")
    assert report.images == 9
    told = "\n".join(report.notes)
    assert "left out 1: not a picture (cat/a.txt)" in told
    assert "left out 2: an archive that is not read: unpack it (boat/m.tar.gz, boat/n.zip)" in told
    assert "left out 1: a table that is not read" in told
    assert "left out 2: HEIC, for which Pillow needs a package: pip install pillow-heif" in told
    assert "left out 1: a camera's raw file" in told
    assert "left out 1: a video" in told
    assert "left out 1: a drawing" in told
    assert "classes without a usable image were left out: dog" in told
    reasons = dict(report.skipped)
    assert "web page" in reasons["cat/h.jpg"]
    assert "pillow-heif" in reasons["cat/i.jpg"]
    assert "git lfs pull" in reasons["cat/j.png"]
    assert reasons["cat/k.jpg"] == "an empty file"
    assert reasons["cat/l.png"] == "not an image of a known format"


@pytest.mark.parametrize("name", ["a.heic", "a.mp4", "a.json", "a"])
def test_a_plain_picture_is_taken_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    write(tmp_path / "src" / "cat" / name, encoded(picture(), "JPEG"))
    assert pack(tmp_path / "src", tmp_path / "out").images == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cat.png", IMAGE, "one picture alone: give its folder"),
        ("cat.tar.gz", b"\x1f\x8b", "an archive that is not read: unpack it"),
        ("cat.parquet", b"PAR1", "a table that is not read"),
        ("cat.zip", b"PK\3\4" + bytes(100), "not a whole zip file"),
    ],
)
def test_a_file_that_is_no_source_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=says):
        pack(tmp_path / name, tmp_path / "out")


def test_a_folder_of_heic_names_the_package_that_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "src" / "cat" / "a.heic", HEIC)
    for source in (tmp_path / "src", zip_of(tmp_path / "a.zip", {"cat/a.heic": HEIC})):
        with pytest.raises(NoImages, match="pip install pillow-heif"):
            pack(source, tmp_path / "out")


def test_classes_that_end_empty_are_named_in_a_zip_too(tmp_path: Path) -> None:
    members = {"cat/0.png": IMAGE, "dog/notes.txt": b"x", "eel/": b"", "fox\\": b"", "gnu/0.png": b"bad"}
    report = pack(zip_of(tmp_path / "a.zip", members), tmp_path / "out")
    assert report.class_names == ("cat",)
    assert "classes without a usable image were left out: dog, eel, fox, gnu" in report.notes


def test_folders_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folders(tmp_path / "src")
    real = os.scandir

    def refuse(path: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("boat"):  # root may read everything, so it is not the mode of the folder
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = pack(source, tmp_path / "out")
    assert report.class_names == ("ant", "cat")
    assert "left out 1: a folder that cannot be read (Permission denied) (boat)" in report.notes


def test_linked_folders_are_classes_at_the_top_and_told_elsewhere(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    write(tmp_path / "elsewhere" / "0.png", IMAGE)
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (source / "self").symlink_to(source)
    (source / "again").symlink_to(source / "cat")
    (source / "gone").symlink_to(tmp_path / "nothing")
    with open_source(source) as found:
        assert found.class_names == ("ant", "boat", "cat", "linked")
        assert len(found.entries) == 10
        notes = "\n".join(found.notes)
    assert "left out 1: a linked folder inside another is not followed (cat/more)" in notes
    assert (
        "left out 2: a link to a folder that is read anyway, or that this one lies in (again, self)" in notes
    )
    assert "gone" in notes


def test_links_that_lead_nowhere_or_to_themselves_are_told(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    for link, target in (("loop", "loop"), ("gone", "nowhere"), ("cat/loop.png", "loop.png")):
        (source / link).symlink_to(target)
    report = pack(source, tmp_path / "out")
    assert report.images == 9
    assert report.skipped == (("cat/loop.png", "not a plain file"),)
    assert "(not a plain file) (gone, loop)" in "\n".join(report.notes)


def test_a_file_of_noise_is_no_picture_by_chance(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    targa = encoded(picture(), "TGA")
    write(source / "cat" / "a.jpg", targa)  # begins like anything: only its own suffix says what it is
    write(source / "cat" / "b.dat", bytes(range(256)))
    report = pack(source, tmp_path / "out")
    assert dict(report.skipped) == {"cat/a.jpg": "not an image of a known format"}
    assert "left out 1: not a picture (cat/b.dat)" in report.notes


def test_the_first_frame_of_several_is_used_and_told(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    frames = [picture((200, 0, 0)), picture((0, 0, 200))]
    write(source / "cat" / "a.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    report = pack(source, tmp_path / "out")
    assert "noted of 1: of several frames or pages the first is used (cat/a.gif)" in report.notes


def test_too_few_levels_of_sixteen_bits_are_refused_with_both_readings(tmp_path: Path) -> None:
    source = tmp_path / "src"
    deep = Image.frombytes("I;16", (32, 32), (4000).to_bytes(2, "little") * 1024)
    for number in range(3):
        write(source / "cat" / f"{number}.png", encoded(deep))
    with pytest.raises(DataError, match=r"levels up to 4,000 .* --bits 12 .* --bits 16"):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
