"""The terminal, its signals and its streams: nothing that is said, or not, loses what is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from model.checkpoint import load_generator
from networks import random_checkpoint
from train.run.loop import GENERATOR, STATE

pytestmark = pytest.mark.slow  # it starts processes that load torch

ROOT = Path(__file__).parents[2]
# several commands as one process, whose imports take seconds
MANY = """
import json, os, sys, traceback
from cli import app
codes = []
for words in json.loads(sys.argv[1]):
    try:
        app([os.fsdecode(word.encode()) for word in words])  # as a process gets them
    except SystemExit as end:
        codes.append(end.code)
    except BaseException:
        traceback.print_exc()
        codes.append(1)
open(sys.argv[2], "w").write(json.dumps(codes))
"""
LONG = ("--device", "cpu", "--set", "optimisation.steps=100000", "--set", "schedule.statistics_batches=1")
SHORT = ("--device", "cpu", "--set", "optimisation.steps=3", "--set", "schedule.statistics_batches=1")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    random_checkpoint(folder / "pets.safetensors", ("chat siamois", "épagneul 犬"))
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    from train.data.pack import pack as write_pack

    folder = tmp_path_factory.mktemp("data")
    for name, colour in (("bleu é", (0, 0, 200)), ("red", (200, 0, 0))):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(16):
            Image.new("RGB", (32, 32), tuple(max(0, c - 10 * i) for c in colour)).save(
                folder / "images" / name / f"{i}.png"
            )
    write_pack(folder / "images", folder / "pack.safetensors")
    return folder / "pack.safetensors"


def start(*words: object, env: dict[str, str] | None = None, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        **streams,
    )


def shell(line: str, *words: object) -> tuple[int, str, str]:
    """Exit code of `sagan WORDS`, and what came out and to standard error; {} in the line is the command."""
    command = " ".join(f"'{word}'" for word in (sys.executable, "-m", "cli", *words))
    # the code of the command, not of what reads it
    done = subprocess.run(
        ["bash", "-c", f"{line.replace('{}', command)}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def saved_step(run: Path) -> int:
    with safe_open(run / STATE, framework="pt") as file:
        return int(file.metadata()["step"])


# -- signals ------------------------------------------------------------------------------------------------


def stopped(process: subprocess.Popen[bytes], *signals: signal.Signals) -> str:
    """What a run said that got these signals after its first step."""
    assert process.stdout is not None
    told = ""
    try:
        while "step 1/" not in told:
            line = process.stdout.readline().decode()
            assert line, told  # it has ended
            told += line
        for how in signals:
            process.send_signal(how)
        told += process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == 0
    return told


def test_a_closed_terminal_before_the_first_save_saves_and_is_told(pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(
        *("train", "tiny", "--data", pack, "--out", run, *LONG),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )
    assert "stopped (SIGHUP), all saved; --resume goes on." in stopped(process, signal.SIGHUP)
    assert saved_step(run) >= 1
    assert load_generator(run / GENERATOR).metadata["steps"] == saved_step(run)


def test_under_nohup_a_closed_terminal_does_not_end_a_run(pack: Path, tmp_path: Path) -> None:
    process = start(
        *("train", "tiny", "--data", pack, "--out", tmp_path / "run", *LONG),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert "stopped (SIGTERM)" in stopped(process, signal.SIGHUP, signal.SIGTERM)


# -- streams that fail --------------------------------------------------------------------------------------


def test_a_reader_that_goes_does_not_end_a_run(pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = shell("{} | head -1", "train", "tiny", "--data", pack, "--out", run, *SHORT)
    assert (code, out.count("\n")) == (0, 1)
    assert err == "sagan: Nobody reads the output any more: the command goes on in silence.\n"
    assert saved_step(run) == 3


def test_a_full_disk_under_the_output_is_told_as_such_and_ends_no_run(pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, err = shell("{} > /dev/full", "train", "tiny", "--data", pack, "--out", run, *SHORT)
    assert code == 2  # what it had to say is lost
    told = "Standard output cannot be written to (No space left on device)"
    assert err == f"sagan: {told}: the command goes on without it.\n"
    assert saved_step(run) == 3


def test_other_commands_lose_words_as_well_and_not_their_work(checkpoints: Path, tmp_path: Path) -> None:
    model, out = checkpoints / "pets.safetensors", tmp_path / "out"
    code, _, err = shell("{} > /dev/full", "sample", model, 0, "--out", out, "--count", 3)
    assert (code, len(list(out.glob("*.png")))) == (2, 3)
    assert err.startswith("sagan: Standard output cannot be written to")
    assert err.count("\n") == 1
    code, _, err = shell("{} | true", "models", checkpoints)
    assert (code, err.count("\n")) == (0, 1)


def test_closed_streams_are_no_trouble_and_no_file_gets_what_was_meant_for_them(
    checkpoints: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    code, *_ = shell(
        "{} >&- 2>&- <&-", "sheet", checkpoints / "pets.safetensors", "--out", out, "--columns", 1
    )
    assert code == 0
    assert out.read_bytes().startswith(b"\x89PNG")


# -- letters that the terminal does not have ----------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_terminal_of_ascii_ends_no_command(
    pack: Path, checkpoints: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    model = checkpoints / "pets.safetensors"
    (tmp_path / "é.png").write_bytes(b"no picture")
    commands: list[tuple[list[object], int]] = [
        (["train", "--data", pack, "--out", tmp_path / "r", *SHORT, "--set", "optimisation.judge=plain"], 0),
        (["train", "features", "--data", pack, "--out", tmp_path / "f", "--set", "epochs=1"], 0),
        (["data", "pack", pack.parent / "images", tmp_path / "é.safetensors"], 0),
        (["models", checkpoints], 0),
        (["sample", model, "1", "--out", tmp_path], 0),
        (["sample", model, "épagneul 犭", "--out", tmp_path], 2),
        (["sheet", model, "--out", tmp_path / "sheet é.png"], 0),
        (["attention", model, "1", "--out", tmp_path / "attention é.png"], 0),
        (["reproduce", tmp_path / "é.png", "--checkpoints", checkpoints], 2),
        (["evaluate", model, "--data", tmp_path / "è", "--cas"], 2),
        (["neighbours", model, "--data", tmp_path / "è", "--out", tmp_path / "n.png"], 2),
        (["choose", tmp_path / "è", "--data", pack], 2),
        (["bench", "http://127.0.0.1:1/é"], 2),
        (["train", "--help"], 0),
    ]
    typed = [[str(word) for word in command] for command, _ in commands]
    done = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(typed), str(tmp_path / "codes")],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    codes = json.loads((tmp_path / "codes").read_text())
    strange = "PYTHONUTF8" in env  # there a path with an accent may be refused, in one sentence
    for (words, wanted), code in zip(commands, codes, strict=True):
        assert code == wanted or (strange and code == 2), (words, code, done.stderr)
    assert done.stdout.isascii()
    assert done.stderr.isascii()
