"""Packing: what is read, how it is cropped, what is refused, and the file it makes."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from tests.unit.train.data.sources import class_folders, encoded, picture, write, zip_of
from train.data.pack import Pack, image_progress, open_data, open_pack, pack
from train.data.pictures import square_around, to_square
from train.data.sources import Reading, open_source
from train.data.sources.base import Box, spoken
from train.data.sources.cifar10 import CLASS_NAMES
from train.errors import DataError, NoImages, NotAPack, UnknownSource

SHARED = Path(__file__).parents[4].parent / "shared" / "data"


def pixels(image: Image.Image, resolution: int | None = None) -> np.ndarray:
    return to_square(image, None, resolution, 0)


# --- the file ---------------------------------------------------------------------------------------


def test_folders_become_a_pack_with_classes_sorted_by_name(tmp_path: Path) -> None:
    report = pack(
        class_folders(tmp_path / "src"), tmp_path / "out.safetensors", reading=Reading(licence="CC0")
    )
    opened = open_pack(tmp_path / "out.safetensors")
    assert opened.class_names == ("ant", "boat", "cat")
    assert opened.images.shape == (9, 3, 32, 32)
    assert opened.images.dtype == torch.uint8
    assert opened.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert opened.images[4, :, 5, 5].tolist() == [80, 20, 7]
    assert opened.metadata["licence"] == "CC0"
    assert opened.metadata["sha256"] == report.sha256
    assert "Lanczos" in str(opened.metadata["how"])
    assert report.few == ("ant", "boat", "cat")
    assert any("fewer than" in line for line in report.lines())


def test_a_pack_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    pack(class_folders(tmp_path / "src"), tmp_path / "out.safetensors")
    tensors = load_file(tmp_path / "out.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"images": (9, 3, 32, 32), "labels": (9,)}


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    for name in ("a", "b"):
        pack(source, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_large_pack_opens_at_once_and_is_not_read(tmp_path: Path) -> None:
    path, count = tmp_path / "huge.safetensors", 1_300_000
    about = {"format": "sagan-pack-1", "class_names": ["a"], "sha256": ""}
    pixels_end = count * 3 * 128 * 128  # 64 GB as ImageNet has, sparse: nothing of it is on the disk
    header = json.dumps(
        {
            "__metadata__": {"pack": json.dumps(about)},
            "images": {"dtype": "U8", "shape": [count, 3, 128, 128], "data_offsets": [0, pixels_end]},
            "labels": {
                "dtype": "I64",
                "shape": [count],
                "data_offsets": [pixels_end, pixels_end + 8 * count],
            },
        }
    ).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + pixels_end + 8 * count)
    started = time.monotonic()
    opened = open_pack(path)
    assert time.monotonic() - started < 2
    assert opened.labels.shape == (count,)
    assert len(opened) == count
    assert opened.images[count // 2].sum() == 0


def test_an_interrupted_or_failed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    write(source / "cat" / "other.png", encoded(picture(size=(40, 40))))
    out = tmp_path / "out"
    with pytest.raises(DataError, match="differ in size"):
        pack(source, out / "a.safetensors")
    assert list(out.iterdir()) == []


def test_progress_is_shown_with_images_a_second(tmp_path: Path) -> None:
    screen = io.StringIO()
    with image_progress(Console(file=screen, width=120)) as progress:
        pack(class_folders(tmp_path / "src"), tmp_path / "out", progress=progress)
    assert "9/9" in screen.getvalue()
    assert "images/s" in screen.getvalue()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", encoded(picture()), pickle.dumps({1: 2})])
def test_any_other_file_is_not_a_pack(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "file", content)
    with pytest.raises(NotAPack, match="sagan data pack"):
        open_pack(tmp_path / "file")


def test_a_missing_file_a_folder_and_foreign_tensors_are_not_packs(tmp_path: Path) -> None:
    with pytest.raises(NotAPack, match="no file"):
        open_pack(tmp_path / "none")
    with pytest.raises(NotAPack, match="not a pack"):
        open_pack(tmp_path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(NotAPack, match="not a pack of images"):
        open_pack(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 9])),
    ],
)
def test_a_pack_that_does_not_fit_itself_is_refused(
    tmp_path: Path, images: torch.Tensor, labels: torch.Tensor
) -> None:
    about = json.dumps({"format": "sagan-pack-1", "class_names": ["a", "b"]})
    save_file({"images": images, "labels": labels}, tmp_path / "p", {"pack": about})
    with pytest.raises(NotAPack, match="damaged"):
        open_pack(tmp_path / "p")


def test_a_truncated_pack_is_refused(tmp_path: Path) -> None:
    pack(class_folders(tmp_path / "src"), tmp_path / "out")
    content = (tmp_path / "out").read_bytes()
    (tmp_path / "short").write_bytes(content[:-100])
    with pytest.raises(NotAPack):
        open_pack(tmp_path / "short")


def test_open_data_takes_a_pack_or_a_source_and_says_how_to_be_quicker(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    write(source / "cat" / "bad.png", b"")
    pack(source, tmp_path / "out")
    with image_progress(Console(file=(screen := io.StringIO()), width=200)) as progress:
        raw = open_data(source, progress=progress)
    ready = open_data(tmp_path / "out", 32)
    assert isinstance(raw, Pack)
    assert torch.equal(raw.images, ready.images)
    assert torch.equal(raw.labels, ready.labels)
    for told in ("sagan data pack", "0 ant: 3, such as ant/0.png", "cat/bad.png: an empty file"):
        assert told in screen.getvalue()
    with pytest.raises(DataError, match="--resolution 64"):
        open_data(tmp_path / "out", 64)
    with pytest.raises(UnknownSource):
        open_data(tmp_path / "none")


# --- folders and zips -------------------------------------------------------------------------------


def test_what_file_managers_leave_behind_and_empty_classes_are_ignored(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    (source / "empty").mkdir()
    for name in (
        ".hidden/x.png",
        "__MACOSX/cat/x.png",
        "cat/.DS_Store",
        "cat/._0.png",
        "loose.png",
    ):
        write(source / name, encoded(picture()))
    write(source / "cat" / "a.txt", b"text")
    report = pack(source, tmp_path / "out")
    assert report.class_names == ("ant", "boat", "cat")
    assert report.images == 9
    assert report.skipped_count == 0
    assert set(report.notes) == {
        "left out 1: not a picture (cat/a.txt)",
        "left out 1: outside any class folder (loose.png)",
        "left out 2: a hidden or system file (cat/.DS_Store, cat/._0.png)",
        "left out 2: in a folder that is hidden or keeps thumbnails or metadata (.hidden, __MACOSX)",
        "classes without a usable image were left out: empty",
    }


def test_classes_are_called_as_people_write_them_and_keep_the_order_of_their_folders(tmp_path: Path) -> None:
    # by what is shown, "a z" would come before "a-b"
    folders = ["Border_collie", "a-b", "a_z", "bird_of_paradise", "fox_", "one", "sea__lion"]
    shown = ("Border collie", "a-b", "a z", "bird of paradise", "fox", "one", "sea lion")
    for number, folder in enumerate(folders):
        write(tmp_path / "src" / folder / "x.png", encoded(picture((number, 30, 60))))
    with zipfile.ZipFile(tmp_path / "src.zip", "w") as archive:
        for path in (tmp_path / "src").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    for source in (tmp_path / "src", tmp_path / "src.zip"):
        with open_source(source) as found:
            assert found.class_names == shown
            assert [entry.name.split("/")[-2] for entry in found.entries] == folders
            assert [entry.label for entry in found.entries] == list(range(7))


def test_classes_that_would_become_one_keep_their_folders_names() -> None:
    assert spoken(("Sea_lion", "fly_trap", "sea lion")) == ("Sea_lion", "fly trap", "sea lion")
    assert spoken(("a__b", "a_b", "c_d")) == ("a__b", "a_b", "c d")
    assert spoken(("_", "x")) == ("_", "x")


def test_pictures_that_cannot_be_read_are_named_and_left_out(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write(source / "cat" / "cut.jpg", encoded(Image.fromarray(noise), "JPEG")[:900])
    write(source / "cat" / "not.png", b"this is text")
    write(source / "cat" / "zero.webp", b"")
    write(source / "bad" / "only.png", b"\x89PNG\r\n\x1a\n")
    os.mkfifo(source / "ant" / "pipe.png")
    report = pack(source, tmp_path / "out", 32)
    assert report.images == 9
    assert {name for name, _ in report.skipped} == {
        "ant/pipe.png",
        "bad/only.png",
        "cat/cut.jpg",
        "cat/not.png",
        "cat/zero.webp",
    }
    assert report.class_names == ("ant", "boat", "cat")
    assert any("bad" in note for note in report.notes)
    assert any("cat/cut.jpg" in line for line in report.lines())
    assert open_pack(tmp_path / "out").labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for name, side in (("warned", 9_500), ("refused", 60_000)):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        write(source / "cat" / f"{name}.png", bomb + chunk(b"IEND", b""))
    report = pack(source, tmp_path / "out", 32)
    assert [(name, "pixels" in reason) for name, reason in report.skipped] == [
        ("cat/refused.png", True),
        ("cat/warned.png", True),
    ]


def test_a_picture_that_would_start_another_program_is_not_opened(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src")
    write(source / "cat" / "x.jpg", encoded(picture(), "EPS"))
    report = pack(source, tmp_path / "out")
    assert [name for name, _ in report.skipped] == ["cat/x.jpg"]


def test_a_zip_is_read_without_writing_any_of_its_members(tmp_path: Path) -> None:
    image = encoded(picture())
    source = zip_of(
        tmp_path / "a.zip",
        {
            "data/cat/1.png": image,
            "data/dog/1.png": image,
            "data/dog/sub/2.PNG": image,
            "../../evil/1.png": image,
            "/abs/../x/1.png": image,
            "__MACOSX/data/cat/._1.png": image,
        },
    )
    report = pack(source, tmp_path / "out" / "p")
    assert report.class_names == ("cat", "dog")
    assert report.class_counts == (1, 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "out", "p"]


def test_damaged_members_and_zips_are_reported(tmp_path: Path) -> None:
    good = zip_of(
        tmp_path / "a.zip", {"cat/1.png": encoded(picture()), "dog/1.png": encoded(picture((1, 2, 3)))}
    )
    content = bytearray(good.read_bytes())
    content[60] ^= 0xFF  # inside the first picture: its checksum is wrong now
    good.write_bytes(content)
    report = pack(good, tmp_path / "out")
    assert [name for name, _ in report.skipped] == ["cat/1.png"]
    (tmp_path / "cut.zip").write_bytes(bytes(content[:-10]))
    with pytest.raises(DataError):
        pack(tmp_path / "cut.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        ([], NoImages, "no image"),
        (["train/cat/1.png", "val/cat/1.png"], DataError, "splits"),
        (["cat/1.png", "Cat/1.png"], DataError, "same name"),
    ],
)
def test_a_source_of_another_shape_is_refused_with_the_way_out(
    tmp_path: Path, names: list[str], error: type[DataError], says: str
) -> None:
    source = zip_of(
        tmp_path / "a.zip", {"readme.txt": b"text"} | {name: encoded(picture()) for name in names}
    )
    with pytest.raises(error, match=says):
        pack(source, tmp_path / "out")


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"text")
    for path in (tmp_path / "a.txt", tmp_path / "none"):
        with pytest.raises(UnknownSource, match="Stanford Dogs"):
            pack(path, tmp_path / "out")
    with pytest.raises(DataError, match="multiple of 4"):
        pack(class_folders(tmp_path / "src"), tmp_path / "out", 33)


# --- one picture ------------------------------------------------------------------------------------


def test_every_mode_becomes_rgb() -> None:
    red = picture((255, 0, 0), (8, 8))
    assert pixels(red.convert("P"))[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels(Image.new("L", (8, 8), 77))[:, 3, 3].tolist() == [77, 77, 77]
    assert pixels(Image.new("1", (8, 8), 1))[:, 3, 3].tolist() == [255, 255, 255]
    assert pixels(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))[:, 3, 3].tolist() == [255, 255, 255]
    assert pixels(Image.new("LA", (8, 8), (0, 255)))[:, 3, 3].tolist() == [0, 0, 0]
    assert pixels(Image.new("CMYK", (8, 8), (0, 0, 0, 0)))[:, 3, 3].tolist() == [255, 255, 255]


def test_exif_rotation_is_applied() -> None:
    image = picture((0, 0, 0), (16, 16))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = pixels(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))))
    assert turned[0, :, 12].min() == 255  # white at the right
    assert turned[0, :, 3].max() == 0


def test_the_centre_square_is_kept_and_small_things_are_averaged() -> None:
    wide = picture((0, 0, 0), (64, 32))
    wide.paste((255, 0, 0), (16, 0, 48, 32))
    assert pixels(wide, 16)[0].min() == 255
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: grey, not black or white by chance
    small = pixels(Image.fromarray(stripes), 16)
    assert abs(small.astype(int) - 128).max() < 24


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(pixels(Image.fromarray(noise), 32), noise.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("box", "square"),
    [
        (Box(20, 10, 40, 50, 100, 80), (10, 10, 50, 50)),  # around the centre of the box
        (Box(0, 10, 20, 50, 100, 80), (0, 10, 40, 50)),  # moved to the right, into the picture
        (Box(90, 60, 100, 80, 100, 80), (80, 60, 100, 80)),  # moved to the left
        (Box(0, 0, 100, 80, 100, 80), (10, 0, 90, 80)),  # no larger than the picture
        (Box(10, 5, 20, 25, 50, 40), (10, 10, 50, 50)),  # annotated on a copy of half the size
        (Box(-30, -30, 500, 500, 100, 80), (10, 0, 90, 80)),
    ],
)
def test_the_square_around_a_box_stays_inside(box: Box, square: tuple[int, int, int, int]) -> None:
    assert square_around(box, 100, 80) == square


# --- the real thing ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not beside this checkout")
def test_the_shared_zips_are_what_their_readme_says() -> None:
    from train.data.sources import open_source

    with (
        open_source(SHARED / "cifar10-train.zip") as cifar,
        open_source(SHARED / "stanford-dogs-64.zip") as dogs,
    ):
        assert cifar.class_names == CLASS_NAMES
        assert len(cifar.entries) == 50_000
        assert (len(dogs.class_names), len(dogs.entries)) == (120, 19_469)
        assert to_square(cifar.read(cifar.entries[0]), None, None, 0).shape == (3, 32, 32)
        assert to_square(dogs.read(dogs.entries[-1]), None, None, 0).shape == (3, 64, 64)
