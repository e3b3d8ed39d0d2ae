"""Stanford Dogs: a picture a box."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.unit.train.data.sources import encoded, picture, write
from train.data.pack import open_pack, pack
from train.data.sources import Reading
from train.errors import DataError


def annotation(boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (200, 120)) -> bytes:
    objects = "".join(
        f"<object><name>x</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for a, b, c, d in boxes
    )
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"
    ).encode()


def dogs(root: Path) -> Path:
    """Two breeds; a red square stands at x 100-180, y 20-100 of each picture."""
    image = picture((0, 0, 255), (200, 120))
    image.paste((255, 0, 0), (100, 20, 180, 100))
    jpeg = encoded(image, "JPEG", quality=95)
    for breed in ("n02085620-Chihuahua", "n02085936-Maltese_dog"):
        name = breed.partition("-")[0]
        for index in range(2):
            write(root / "Images" / breed / f"{name}_{index}.jpg", jpeg)
            write(root / "Annotation" / breed / f"{name}_{index}", annotation([(100, 20, 180, 100)]))
    return root


def test_dogs_are_cropped_around_their_boxes_from_folders_and_from_the_tars(tmp_path: Path) -> None:
    source = dogs(tmp_path / "src")
    breed = source / "Annotation" / "n02085620-Chihuahua"
    # a second dog in the first picture, too small; and one picture that nobody annotated
    (breed / "n02085620_0").write_bytes(annotation([(100, 20, 180, 100), (0, 0, 30, 40)]))
    (breed / "n02085620_1").unlink()
    (tmp_path / "tars").mkdir()
    for name, folder in (("images.tar", "Images"), ("annotation.tar", "Annotation")):
        with tarfile.open(tmp_path / "tars" / name, "w") as archive:
            archive.add(source / folder, folder)
    for place in (source, tmp_path / "tars", tmp_path / "tars" / "images.tar"):
        report = pack(place, tmp_path / "out", 32)
        assert report.class_names == ("Chihuahua", "Maltese dog")
        assert report.class_counts == (1, 2)
        assert report.skipped == (
            ("n02085620-Chihuahua/n02085620_0.jpg#1", "the box is 40 pixels, under 48"),
        )
        assert any("n02085620_1.jpg" in note for note in report.notes)
        opened = open_pack(tmp_path / "out")
        assert "non-commercial" in str(opened.metadata["licence"])
        assert "annotated box" in str(opened.metadata["how"])
        assert opened.images[:, 0].float().mean() > 245  # all red,
        assert opened.images[:, 2].float().mean() < 10  # nothing of the blue around it
    assert pack(source, tmp_path / "all", 32, reading=Reading(min_crop=0)).images == 4


@pytest.mark.parametrize(
    "content",
    [
        b"<annotation>",
        b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>',
        b'<!DOCTYPE a [<!ENTITY e "1">]>' + annotation([(100, 20, 180, 100)]).replace(b"100", b"&e;00"),
        annotation([(180, 20, 100, 100)]),
        annotation([(100, 20, 180, 100)]).replace(b"180", b"nan"),
        annotation([(100, 20, 180, 100)]).replace(b"180", b"1e999"),
        b"\xff\xfe\x00",
    ],
)
def test_an_annotation_that_cannot_be_trusted_leaves_its_picture_out(tmp_path: Path, content: bytes) -> None:
    source = dogs(tmp_path / "src")
    (source / "Annotation" / "n02085936-Maltese_dog" / "n02085936_1").write_bytes(content)
    report = pack(source, tmp_path / "out", 32)
    assert report.images == 3
    assert any("n02085936_1.jpg" in note for note in report.notes)


def test_dogs_without_annotations_are_told_what_is_missing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(dogs(tmp_path / "src") / "Images", "Images")
    with pytest.raises(DataError, match=r"annotation\.tar"):
        pack(tmp_path / "images.tar", tmp_path / "out", 32)
