"""What a run refuses before it writes anything: files that it would write over, and ones that are damaged."""

from __future__ import annotations

import errno
import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from typer.testing import CliRunner

from cli import app
from model.checkpoint import load_generator
from tests.unit.train.tiny import make_pack
from train.commands import rehearsal, run
from train.data.sources import Reading
from train.errors import TrainError, told_by_the_system
from train.run.loop import GENERATOR, STATE, Session
from train.run.saved import StateError

pytestmark = pytest.mark.slow  # it trains

ONE = ("optimisation.steps=1", "schedule.statistics_batches=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pack = make_pack(20)
    path = tmp_path_factory.mktemp("data") / "pack.safetensors"
    about = {"format": "sagan-pack-1", "class_names": pack.class_names, "sha256": "0"}
    path.write_bytes(save({"images": pack.images[:], "labels": pack.labels}, {"pack": json.dumps(about)}))
    return path


def begin(data: Path, out: Path, *settings: str, **session: object) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=300)
    run("tiny", data, out, console=console, settings=[*ONE, *settings], session=Session(**session))  # type: ignore[arg-type]
    return screen.getvalue()


def tried(data: Path, out: Path, *settings: str, reading: Reading | None = None, **session: object) -> None:
    rehearsal(
        "tiny",
        data,
        out,
        console=Console(quiet=True),
        device="cpu",
        settings=settings,
        session=Session(**session),  # type: ignore[arg-type]
        **({"reading": reading} if reading else {}),
    )


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    out = tmp_path_factory.mktemp("done")
    begin(data, out)
    return out


@pytest.mark.parametrize(
    "name",
    [
        GENERATOR,
        "best.safetensors",
        "snapshots/step-0000001.safetensors",
        "log.jsonl",
    ],
)
def test_a_new_run_writes_over_nothing_that_has_no_state(data: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for start in (begin, tried):
        with pytest.raises(StateError, match=rf"{mine.name} is .*choose another --out"):
            start(data, tmp_path)
    assert mine.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "damage",
    [
        {"recipe": "{"},
        {"recipe": "{}"},
        {"recipe": None},
        {"step": None},
        {"step": "x"},
        {"class_names": "["},
    ],
)
def test_a_damaged_state_is_told_in_one_sentence(
    data: Path, done: Path, tmp_path: Path, damage: dict[str, str | None]
) -> None:
    with safe_open(done / STATE, framework="pt") as file:
        header = {name: text for name, text in (file.metadata() | damage).items() if text is not None}
    save_file(load_file(done / STATE), tmp_path / STATE, header)
    for session in ({"resume": True}, {"start": tmp_path / STATE}):
        out = tmp_path if "resume" in session else tmp_path / "new"
        with pytest.raises(StateError, match=r"state\.safetensors cannot be read: its header is damaged"):
            begin(data, out, **session)


def test_a_dry_run_refuses_what_the_run_would(data: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    narrow = "model.generator_widths=[8, 8, 8, 8]"
    with pytest.raises(StateError, match="another shape"):
        tried(data, out, narrow, start=done / STATE)
    with pytest.raises(TrainError, match="--from brings"):
        tried(data, out, "optimisation.freeze_discriminator=1")
    with pytest.raises(TrainError, match="is packed already"):
        tried(data, out, reading=Reading("one"))
    with pytest.raises(TrainError, match="choose another --out"):
        tried(data, data)
    with pytest.raises(TrainError, match="--licence says nothing"):
        tried(data, out, licence="")
    assert not out.exists()
    told = CliRunner().invoke(
        app, ["train", "tiny", "--data", str(data), "--out", str(out), "--dry-run", "--resolution", "64"]
    )
    assert told.exit_code == 2
    assert "--set model.resolution=64" in told.stderr


@pytest.mark.parametrize("licence", ["", " \n", "caf\udce9", "\x1b[31mred", "\u202egnp", "x" * 301])
def test_a_licence_that_cannot_be_shown_is_refused_before_anything_is_done(
    data: Path, tmp_path: Path, licence: str
) -> None:
    with pytest.raises(TrainError, match="--licence") as refused:
        begin(data, tmp_path / "out", licence=licence)
    assert str(refused.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_a_licence_on_several_lines_becomes_one(data: Path, tmp_path: Path) -> None:
    begin(data, tmp_path, licence="CC BY\r\n 4.0,\tŽoé 犬 ")
    assert load_generator(tmp_path / GENERATOR).metadata["licence"] == "CC BY 4.0, Žoé 犬"


def test_features_that_nothing_would_be_measured_by_are_no_slip_to_pass_over(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match=r"schedule\.measure_every"):
        begin(data, tmp_path, features=tmp_path / "features.safetensors")


def test_a_full_disk_is_told_once_whichever_thread_finds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = threading.Thread(target=write)  # as TensorBoard's
    with told_by_the_system(tmp_path):
        writer.start()
        writer.join()
    with pytest.raises(TrainError, match="No space left"), told_by_the_system(tmp_path):
        write()
    assert capsys.readouterr().err == ""


def test_a_refused_run_leaves_the_terminal_its_cursor(data: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    console, frozen = Console(file=screen, force_terminal=True), "optimisation.freeze_discriminator=1"
    with pytest.raises(TrainError, match="--from brings"):
        run("tiny", data, tmp_path, console=console, settings=[*ONE, frozen])
    assert "recipe tiny" in screen.getvalue()
    assert "\x1b[?25l" not in screen.getvalue()  # hides it
