"""A folder of one's own pictures: packed once, the bad ones named, a recipe chosen, the time foretold."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli import app
from model.checkpoint import load_generator
from train.commands import run
from train.data.pack import open_pack
from train.errors import TrainError
from train.recipes.recipe import parse_recipe, read_recipe
from train.run.folder import PACK, RECIPE, SKIPPED
from train.run.loop import GENERATOR, STATE, Session
from train.run.saved import StateError

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

QUICK = (
    "optimisation.judge=plain",
    "model.resolution=32",
    "model.generator_widths=[8, 8, 8, 8]",
    "model.discriminator_widths=[8, 8, 8, 8]",
    "model.latent=8",
    "optimisation.batch=4",
    "optimisation.steps=3",
    "schedule.statistics_batches=1",
)


@pytest.fixture(autouse=True)
def passive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as `train` sets it; put back afterwards


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 48), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode).save(
        path, **options
    )


def rotated(path: Path) -> None:
    """Stored lying; its EXIF says that the left edge is the top: red is on the left, to be shown above."""
    picture = Image.new("RGB", (48, 40), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 24, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to look at it
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif, quality=95)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """17 good pictures of every kind, in two classes, and three that are none."""
    root = tmp_path / "photos"
    for i in range(6):
        save(root / "cat" / f"{i}.png")
        save(root / "dog" / f"{i}.jpg")
    rotated(root / "cat" / "rotated.jpg")
    save(root / "cat" / "grey.png", "L")
    save(root / "dog" / "clear.png", "RGBA")
    save(root / "dog" / "print.jpg", "CMYK")
    save(root / "dog" / "wide.png", size=(90, 33))
    save(root / "dog" / "cut.jpg")
    whole = (root / "dog" / "cut.jpg").read_bytes()
    (root / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "text.jpg").write_text("not a picture")
    (root / "dog" / "empty.png").touch()
    (root / "dog" / "notes.txt").write_text("nor this")
    return root


def auto(data: Path, out: Path, *settings: str, recipe: str = "auto", **session: Any) -> str:
    """The text on the screen."""
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    run(
        recipe,
        data,
        out,
        console=console,
        device="cpu",
        settings=[*QUICK, *settings],
        session=Session(**session),
    )
    return screen.getvalue()


def sagan(*arguments: object) -> str:
    """The one line that a refused command says."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("sagan: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


# -- one command --------------------------------------------------------------------------------------------


def test_classes_are_said_before_training_and_what_is_ambiguous_is_refused(
    photos: Path, tmp_path: Path
) -> None:
    told = auto(photos, tmp_path / "out")
    assert told.index("  0 cat: 8, such as cat/0.png\n") < told.index("packed at")
    assert "2 classes: cat (8), dog (9)" in auto(tmp_path / "out" / PACK, tmp_path / "from-a-pack")
    for i in range(9):
        save(photos / f"{i}.png")
    asked = ("train", "--data", photos, "--out", tmp_path / "new", "--device", "cpu")
    assert "--classes one" in sagan(*asked)
    assert not (tmp_path / "new").exists()
    assert "packed already" in sagan("train", "--data", tmp_path / "out" / PACK, *asked[3:], "--classes", "1")
    settings = [part for one in QUICK for part in ("--set", one)]
    done = CliRunner().invoke(app, [*map(str, asked), "--classes", "one", *settings])
    assert done.exit_code == 0, done.output
    assert load_generator(tmp_path / "new" / GENERATOR).class_names == ("photos",)


def test_a_folder_trains_with_one_command_and_every_choice_has_its_reason(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told = auto(photos, out)
    found = load_generator(out / GENERATOR)
    assert found.class_names == ("cat", "dog")
    assert found.metadata["steps"] == 3
    recipe = (out / RECIPE).read_text()
    lines = [line for line in recipe.splitlines() if " = " in line and not line.startswith("description")]
    assert len(lines) > 10
    for line in lines:
        setting, reason = line.split("  # ")
        assert f"  {setting} ({reason})" in told
    assert 'augment = "colour,translation,cutout"' in recipe
    assert read_recipe(str(out / RECIPE)).optimisation == parse_recipe("auto", recipe).optimisation
    images = open_pack(out / PACK)
    assert len(images) == 17
    assert images.resolution == 32
    upright = images.images[7].float().mean(dim=2)  # cat/rotated.jpg comes after 0 to 5 and grey
    assert upright[0, 0] > 200
    assert upright[2, -1] > 200


def test_pictures_that_cannot_be_used_and_small_classes_are_named(photos: Path, tmp_path: Path) -> None:
    told = auto(photos, tmp_path / "out")
    listed = (tmp_path / "out" / SKIPPED).read_text().splitlines()
    assert [line.split(":")[0] for line in listed] == ["dog/cut.jpg", "dog/empty.png", "dog/text.jpg"]
    assert all(f"  {line}\n" in told for line in listed)
    assert "3 left out" in told
    assert "left out 1: not a picture (dog/notes.txt)" in told
    assert "cat (8), dog (9)" in told
    assert "add pictures, merge classes" in told


def test_no_more_than_twenty_are_named_on_the_screen_and_all_in_the_file(
    photos: Path, tmp_path: Path
) -> None:
    for i in range(30):
        (photos / "cat" / f"bad{i:02d}.jpg").write_text("no")
    told = auto(photos, tmp_path / "out")
    assert told.count("not an image of a known format") == 20
    assert "and 13 more" in told
    assert len((tmp_path / "out" / SKIPPED).read_text().splitlines()) == 33


def test_pictures_side_by_side_are_one_class_named_after_their_folder(tmp_path: Path) -> None:
    for i in range(16):
        save(tmp_path / "holiday" / f"{i}.png")
    told = auto(tmp_path / "holiday", tmp_path / "out")
    assert load_generator(tmp_path / "out" / GENERATOR).class_names == ("holiday",)
    assert "16 images of 1 class," in told


def test_the_recipe_need_not_be_named(photos: Path, tmp_path: Path) -> None:
    settings = [word for setting in QUICK for word in ("--set", setting)]
    command = ["train", "--data", photos, "--out", tmp_path / "out", "--device", "cpu", *settings]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    assert "step 3: finished" in done.output


def test_a_dry_run_tells_all_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    settings = [word for setting in QUICK for word in ("--set", setting)]
    command = [
        "train",
        "--data",
        photos,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--dry-run",
        *settings,
    ]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "20 pictures would be packed at 32×32 into" in told
    assert "2 classes in photos, one a folder: 0 cat: 8, such as cat/0.png 1 dog: 12, such as" in told
    assert "batch = 4 (" in told
    assert "for 3 steps at" in told
    assert "GiB of memory" in told
    assert "3 cannot be used: dog/cut.jpg" in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_named_recipe_packs_a_folder_once_as_well(photos: Path, tmp_path: Path) -> None:
    told = auto(photos, tmp_path / "out", recipe="tiny")
    assert "3 left out" in told
    assert not (tmp_path / "out" / RECIPE).exists()
    again = auto(photos, tmp_path / "out", recipe="tiny", resume=True)
    assert "not read again; 3 had been left out" in again


def test_the_pretrained_judge_is_chosen_where_it_is_installed_and_goes_on(
    photos: Path, tmp_path: Path
) -> None:
    settings = [f"--set={s}" for s in QUICK if "judge" not in s]
    command = ["train", "--data", photos, "--out", tmp_path / "out", "--device", "cpu"]
    done = CliRunner().invoke(app, [*map(str, command), *settings, "--stop-after", "0"])
    assert done.exit_code == 0, done.output
    recipe = read_recipe(str(tmp_path / "out" / RECIPE))
    assert (recipe.optimisation.judge, recipe.optimisation.batch) == ("pretrained", 4)
    assert (recipe.optimisation.steps, recipe.optimisation.guide_steps) == (3, 1)
    done = CliRunner().invoke(app, [*map(str, command), "--resume"])
    assert "step 3: finished" in done.output


# -- a second start -----------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_recipe_and_the_images_it_began_with(photos: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    auto(photos, whole)
    auto(photos, parts, stop_after=0)
    packed, recipe = (parts / PACK).read_bytes(), (parts / RECIPE).read_text()
    save(photos / "cat" / "new.png")
    (photos / "dog" / "0.jpg").unlink()
    (photos / "dog" / "1.jpg").unlink()
    screen = io.StringIO()
    run(
        "auto",
        photos,
        parts,
        console=Console(file=screen, width=200),
        device="cpu",
        session=Session(resume=True),
    )
    told = screen.getvalue()
    assert "(20 pictures then, 19 now)" in told
    assert "packing" not in told
    assert (parts / PACK).read_bytes() == packed
    assert (parts / RECIPE).read_text() == recipe
    ends, wanted = load_file(parts / STATE), load_file(whole / STATE)
    assert ends.keys() == wanted.keys()
    assert all(torch.equal(ends[name], wanted[name]) for name in ends)


def test_pictures_are_read_again_only_when_they_or_the_resolution_changed(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def start(*settings: str) -> str:
        for name in (STATE, GENERATOR):
            (out / name).unlink(missing_ok=True)  # as if it had ended before its first save
        return auto(photos, out, *settings)

    start()
    before = (out / PACK).stat().st_mtime_ns
    assert "not read again" in start()
    assert (out / PACK).stat().st_mtime_ns == before
    save(photos / "dog" / "cut.jpg", quality=50)  # the same name, mended
    assert "18 pictures packed" in start()
    five = "[8, 8, 8, 8, 8]"
    bigger = [
        "model.resolution=64",
        f"model.generator_widths={five}",
        f"model.discriminator_widths={five}",
    ]
    assert "18 pictures packed at 64×64" in start(*bigger)


def test_other_pictures_or_an_edited_network_do_not_go_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    auto(photos, out, stop_after=0)
    for i in range(16):
        save(tmp_path / "others" / f"{i}.png")
    with pytest.raises(StateError, match=r"was begun with the pictures of .*photos, and .*others has others"):
        auto(tmp_path / "others", out, resume=True)
    recipe = out / RECIPE
    recipe.write_text(recipe.read_text().replace("batch = 4", "batch = 8"))
    with pytest.raises(StateError, match="another recipe"):
        run("auto", photos, out, console=Console(quiet=True), device="cpu", session=Session(resume=True))
    recipe.unlink()
    with pytest.raises(StateError, match="not begun by `auto`"):
        run("auto", photos, out, console=Console(quiet=True), device="cpu", session=Session(resume=True))


# -- what cannot be -----------------------------------------------------------------------------------------


def test_data_that_cannot_be_trained_on_is_refused_in_one_line(photos: Path, tmp_path: Path) -> None:
    def refused(data: Path) -> str:
        return sagan("train", "--data", data, "--out", tmp_path / "out")

    (tmp_path / "none").mkdir()
    assert "no image in" in refused(tmp_path / "none")
    assert "nothing at" in refused(tmp_path / "nowhere")
    save(tmp_path / "one" / "a.png")
    assert "1 picture cannot be trained on" in refused(tmp_path / "one")
    for i in range(20):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{i}.txt").write_text("x")
    assert "no image in" in refused(tmp_path / "texts")
    assert "nothing that can be packed" in refused(tmp_path / "texts" / "0.txt")
    assert not (tmp_path / "out").exists()
    for i in range(20):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{i}.jpg").write_text("x")
    assert "No picture in broken can be used" in refused(tmp_path / "broken")
    assert list((tmp_path / "out").iterdir()) == []
    for i in range(3):
        save(tmp_path / "broken" / f"good{i}.png")
    assert "3 pictures cannot be trained on" in refused(tmp_path / "broken")


def test_settings_and_devices_that_cannot_be_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path
) -> None:
    def refused(*arguments: str) -> str:
        return sagan("train", "--data", photos, "--out", tmp_path / "out", *arguments)

    assert "Did you mean 'batch'" in refused("--set", "optimisation.batchs=3")
    assert "section.field=value" in refused("--set", "flips=false")
    assert "no device 'gpu'" in refused("--device", "gpu")
    assert "a multiple of 8" in refused("--set", "model.generator_widths=[1, 2, 3, 4]")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "choose another --out" in sagan("train", "--data", photos, "--out", out)
    assert (tmp_path / "file").read_text() == "x"
    # the grids of a run would be taken for pictures at the next start
    assert "would count as pictures" in sagan("train", "--data", photos, "--out", photos / "runs")
    assert not (photos / "runs").exists()


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk does, without one: a write beyond `size` bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_a_run_in_one_line_and_leaves_what_was_whole(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files_no_larger_than(8_000), pytest.raises(TrainError, match="pack cannot be written"):
        auto(photos, out)
    assert list(out.iterdir()) == []
    auto(photos, out, stop_after=0)
    before = (out / STATE).read_bytes()
    with (
        files_no_larger_than(len(before) // 2),
        pytest.raises(TrainError, match=r"What had been saved in .* before is whole"),
    ):
        auto(photos, out, resume=True)
    assert (out / STATE).read_bytes() == before
    assert not list(out.glob(".*"))
