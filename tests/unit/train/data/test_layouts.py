"""Classes are concluded from all of a source, said, and refused where they could be two things."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app
from tests.unit.train.data.sources import IMAGE, class_folders, counts, folder, notes, write, zip_of
from train.data.pack import pack
from train.data.sources import open_source
from train.errors import DataError


def zipped(root: Path) -> Path:
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    return root.with_suffix(".zip")


@pytest.mark.parametrize(
    ("layout", "classes", "told"),
    [
        ({"cat": 5, "dog": 4, "loose": 1}, {"cat": 5, "dog": 4}, "loose0.png"),
        ({"all__cat": 5, "all__dog": 4, "loose": 1}, {"cat": 5, "dog": 4}, "loose0.png"),
        ({"train__cat": 5, "train__dog": 4, "loose": 2}, {"cat": 5, "dog": 4}, "loose1.png"),
        ({"train__cat": 5, "train__dog": 4, "train": 1}, {"cat": 5, "dog": 4}, "train/train0.png"),
        ({"a__b__cat": 5, "a__b__dog": 4}, {"cat": 5, "dog": 4}, ""),
        ({"cat": 5, "dog": 4, "dog__puppies": 3}, {"cat": 5, "dog": 7}, ""),
        ({"cat__images": 5, "dog__images": 3}, {"cat": 5, "dog": 3}, ""),
        ({"bus": 3, "car": 3, "train": 3}, {"bus": 3, "car": 3, "train": 3}, ""),
        ({"loose": 3}, {"photos": 3}, ""),
        ({"images": 3}, {"photos": 3}, ""),  # no names of classes
        ({"data__train": 3}, {"photos": 3}, ""),
        ({"cat": 3}, {"cat": 3}, ""),
    ],
)
def test_a_layout_is_read_by_most_of_it(
    tmp_path: Path, layout: dict[str, int], classes: dict[str, int], told: str
) -> None:
    source = folder(tmp_path / "photos", **layout)
    for path in (source, zipped(source)):
        assert counts(path) == classes
        assert told in notes(path)
        assert bool(told) == ("outside any class folder" in notes(path))


@pytest.mark.parametrize(
    ("layout", "readings"),
    [
        ({"cat": 5, "dog": 4, "loose": 6}, {"one": {"photos": 15}, "1": {"cat": 5, "dog": 4}}),
        ({"edited": 1, "loose": 2}, {"one": {"photos": 3}, "1": {"edited": 1}}),
        ({"edited": 3, "loose": 50}, {"one": {"photos": 53}, "1": {"edited": 3}}),
        (
            {"all__cat": 5, "all__dog": 4, "all": 6},
            {"one": {"photos": 15}, "2": {"cat": 5, "dog": 4}},
        ),
        (
            {"2019__cat": 3, "2019__dog": 3, "2020__cat": 3, "2020__dog": 3},
            {"1": {"2019": 6, "2020": 6}, "2": {"cat": 6, "dog": 6}},
        ),
        (
            {"pets__cat": 5, "pets__dog": 4, "cars__van": 3, "pets": 1},
            {"1": {"cars": 3, "pets": 10}, "2": {"cat": 5, "dog": 4, "van": 3}},
        ),
    ],
)
def test_what_could_be_two_things_is_refused_with_both_and_the_option(
    tmp_path: Path, layout: dict[str, int], readings: dict[str, dict[str, int]]
) -> None:
    source = folder(tmp_path / "photos", **layout)
    for path in (source, zipped(source)):
        with pytest.raises(DataError) as refused:
            counts(path)
        for classes, expected in readings.items():
            assert f"--classes {classes}" in str(refused.value)
            assert counts(path, classes) == expected


@pytest.mark.parametrize(
    "layout",
    [
        {"train": 3, "test": 3, "extra": 2},
        {"trainA": 3, "trainB": 3, "testA": 2, "testB": 2},
        {"seg_train__sea": 3, "seg_train__ice": 3, "seg_test__sea": 3, "seg_test__ice": 3, "seg_pred": 9},
        {"train2017": 9, "val2017": 3},
        {"train__cat": 9, "train__dog": 9, "misc": 9},
        {"train": 9, "val": 3, "cat": 3},
        {"training_set__cat": 9, "test_set__cat": 3},
        {"train": 5, "unlabeled": 9},
        {"trainset": 3, "testset": 3},
        {"traindata": 3, "test_images": 3, "sunset": 2},
    ],
)
def test_splits_are_no_classes(tmp_path: Path, layout: dict[str, int]) -> None:
    source = folder(tmp_path / "photos", **layout)
    for path in (source, zipped(source)):
        with pytest.raises(DataError, match=r"splits .* give one of its folders, such as .*train") as refused:
            counts(path)
        assert "--classes 1" in str(refused.value)
        assert len(counts(path, "1")) == len({at.split("__")[0] for at in layout})


def test_a_folder_of_a_zip_is_a_source_too(tmp_path: Path) -> None:
    source = zipped(folder(tmp_path / "photos", train__cat=3, train__dog=2, test__cat=1, test__dog=1))
    assert counts(source / "train") == {"cat": 3, "dog": 2}
    assert counts(source / "train" / "cat") == {"cat": 3}
    with pytest.raises(DataError, match="no image"):
        counts(source / "val")
    with pytest.raises(DataError, match="is what is to be read"):
        pack(source / "train", source, force=True)


def test_masks_are_no_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="what was drawn for them"):
        counts(folder(tmp_path / "photos", images=5, masks=5))


@pytest.mark.parametrize("classes", ["0", "12", "two", "-1", ""])
def test_another_answer_than_the_options_is_refused(tmp_path: Path, classes: str) -> None:
    with pytest.raises(DataError, match="from 1"):
        counts(folder(tmp_path / "photos", cat=3), classes)
    with pytest.raises(DataError, match="3 folders deep"):
        counts(folder(tmp_path / "photos", cat=3), "3")


def test_known_folders_of_thumbnails_and_metadata_are_left_out_and_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "photos", cat=3, dog=3)
    apart = ["@eaDir", "__MACOSX", ".thumbnails", "lost+found", "$RECYCLE.BIN", "Thumbnails"]
    for name in apart:
        write(source / name / "a.png", IMAGE)
        write(source / "cat" / name / "b.jpg", IMAGE)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        write(source / "cat" / name, b"x")
    for path in (source, zipped(source)):
        assert counts(path) == {"cat": 3, "dog": 3}
        assert "left out 12: in a folder that is hidden or keeps thumbnails or metadata" in notes(path)
        assert "left out 3: a hidden or system file" in notes(path)
        assert "@eaDir" in notes(path)


# --- tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        [["00000/a.png", 10], ["00000/b.png", 2], ["00001/c.png", 10]],
        {"00000/a.png": 10, "00000/b.png": 2, "00001/c.png": 10},
    ],
)
def test_stylegans_dataset_json_says_the_classes(tmp_path: Path, labels: object) -> None:
    members = {f"{name}.png": IMAGE for name in ("00000/a", "00000/b", "00001/c", "00001/d")}
    table = json.dumps({"labels": labels}).encode()
    for path in (
        zip_of(tmp_path / "flat.zip", members | {"dataset.json": table}),
        zip_of(tmp_path / "in.zip", {f"in/{n}": c for n, c in (members | {"dataset.json": table}).items()}),
    ):
        assert counts(path) == {"2": 1, "10": 2}
        assert "without a label in" in notes(path)
        assert counts(path, "one") == {path.stem: 4}


def test_a_dataset_json_without_classes_makes_one(tmp_path: Path) -> None:
    members = {"00000/a.png": IMAGE, "00001/b.png": IMAGE, "dataset.json": b'{"labels": null}'}
    assert counts(zip_of(tmp_path / "faces.zip", members)) == {"faces": 2}
    coco = {"cat/a.png": IMAGE, "dog/b.png": IMAGE, "dataset.json": b'{"images": []}'}
    assert counts(zip_of(tmp_path / "coco.zip", coco)) == {"cat": 1, "dog": 1}
    assert "a table without labels (dataset.json)" in notes(tmp_path / "coco.zip")


@pytest.mark.parametrize(
    "table",
    [
        "file_name,label\na.png,cat\nb.png,dog\nsub/c.png,cat\n",
        "a.png,cat\nb.png,dog\nsub/c.png,cat\n",
        "id;breed\na;cat\nb;dog\nc;cat\n",
        "\ufefffilename\tsize\tclass\r\n./a.png\t3\tcat\r\nb.png\t4\t dog \r\nsub\\c.png\t5\tcat\r\n",
        'image,class_id,class_name\n"a.png",0,cat\n"b.png",1,dog\n"sub/c.png",0,cat\n',
    ],
)
def test_labels_csv_says_the_classes_in_these_forms(tmp_path: Path, table: str) -> None:
    root = tmp_path / "photos"
    for name in ("a.png", "b.png", "sub/c.png"):
        write(root / name, IMAGE)
    write(root / "labels.csv", table.encode())
    for path in (root, zipped(root)):
        assert counts(path) == {"cat": 2, "dog": 1}
        with open_source(path) as found:
            assert found.classes()[0].startswith("2 classes in photos")
            assert "by labels.csv" in found.classes()[0]


def test_a_table_finds_names_in_another_case_or_with_letters_composed_otherwise(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("A.PNG", unicodedata.normalize("NFD", "é.png")):
        write(root / name, IMAGE)
    write(root / "Labels.CSV", "File Name,Class\na.png,cat\né.png,dog\n".encode())
    assert counts(root) == {"cat": 1, "dog": 1}


def test_names_that_look_like_classes_are_told(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for number in range(3):
        for kind in ("cat", "dog"):
            write(root / "train" / f"{kind}.{number}.png", IMAGE)
    assert counts(root) == {"photos": 6}
    assert "names begin with cat, dog: if these are classes" in notes(root)
    assert "names begin with" in notes(root / "train")
    assert "names begin with" not in notes(folder(tmp_path / "plain", cat=3, dog=3))


def test_what_a_table_and_the_pictures_lack_of_each_other_is_told(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", loose=3)
    write(root / "labels.csv", b"file,label\nloose0.png,cat\nloose1.png,\ngone.png,cat\n")
    assert counts(root) == {"cat": 1}
    assert "left out 2: without a label in labels.csv (loose1.png, loose2.png)" in notes(root)
    assert "named in labels.csv, and there is no such picture (gone.png)" in notes(root)


@pytest.mark.parametrize(
    ("name", "table", "says"),
    [
        ("labels.csv", b"picture_no,kind\n1,2\n", "needs one of files"),
        ("labels.csv", b"", "none"),
        ("labels.csv", b"file,label\n\xff,cat\n", "UTF-8"),
        ("labels.csv", b"file,label\nx.png,cat\n", "names none of the 3 pictures"),
        ("labels.csv", b"file,label\nloose0.png,cat\nloose0.png,dog\n", "of class 'cat' and of 'dog'"),
        ("dataset.json", b"{", "not JSON"),
        ("dataset.json", b'{"labels": [["loose0.png", [0.0, 1.0]]]}', "number or name"),
        ("dataset.json", b'{"labels": 3}', "number or name"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(
    tmp_path: Path, name: str, table: bytes, says: str
) -> None:
    root = folder(tmp_path / "photos", loose=3)
    write(root / name, table)
    with pytest.raises(DataError, match=says):
        counts(root)
    assert counts(root, "one") == {"photos": 3}


def test_a_name_that_two_pictures_have_is_not_guessed(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("a/1.png", "b/1.png"):
        write(root / name, IMAGE)
    write(root / "labels.csv", b"id,breed\n1,cat\n")
    with pytest.raises(DataError, match=r"there are a/1\.png and b/1\.png"):
        counts(root)


def test_a_table_against_the_folders_is_refused_with_both(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", red=2, blue=2)
    write(root / "labels.csv", b"file,label\nred0.png,cat\nred1.png,dog\nblue0.png,cat\nblue1.png,dog\n")
    with pytest.raises(DataError, match=r"--classes labels .* --classes 1"):
        counts(root)
    assert counts(root, "labels") == {"cat": 2, "dog": 2}
    assert counts(root, "1") == {"blue": 2, "red": 2}
    write(root / "labels.csv", b"file,label\nred0.png,R\nred1.png,R\nblue0.png,B\nblue1.png,B\n")
    assert counts(root) == {"B": 2, "R": 2}
    (root / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"no dataset\.json"):
        counts(root, "labels")


def test_a_table_of_a_few_pictures_in_class_folders_is_refused_with_both(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", red=5, blue=5)
    write(root / "labels.csv", b"file,label\nred0.png,red\nblue0.png,blue\n")
    with pytest.raises(DataError, match=r"8 pictures have none.*--classes labels .* --classes 1"):
        counts(root)
    assert counts(root, "labels") == {"blue": 1, "red": 1}
    assert counts(root, "1") == {"blue": 5, "red": 5}


# --- told -------------------------------------------------------------------------------------------


def test_the_classes_are_said_with_numbers_and_an_example_before_packing(tmp_path: Path) -> None:
    said: list[str] = []
    report = pack(class_folders(tmp_path / "src"), tmp_path / "out", say=said.append)
    assert said == [
        "3 classes in src, one a folder:",
        "  0 ant: 3, such as ant/0.png",
        "  1 boat: 3, such as boat/0.png",
        "  2 cat: 3, such as cat/0.png",
    ]
    assert report.images == 9
    done = CliRunner().invoke(app, ["data", "pack", str(tmp_path / "src"), str(tmp_path / "two")])
    assert done.exit_code == 0
    assert "0 ant: 3, such as ant/0.png" in done.stdout


def test_the_command_takes_the_option_that_decides(tmp_path: Path) -> None:
    source = folder(tmp_path / "photos", cat=5, loose=6)
    asked = ["data", "pack", str(source), str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert "--classes one" in done.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*asked, "--classes", "one"])
    assert done.exit_code == 0
    assert "0 photos: 11" in done.stdout


def test_classes_that_a_format_says_itself_are_not_to_be_chosen(tmp_path: Path) -> None:
    for name in ("Images/n1-pug/0.jpg", "Annotation/n1-pug/0"):
        write(tmp_path / "dogs" / name, IMAGE)
    with pytest.raises(DataError, match="leave --classes out"):
        counts(tmp_path / "dogs", "1")
