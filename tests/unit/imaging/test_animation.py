"""Films: frames go in one by one, and come back as any reader has them."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging import mp4
from imaging.animation import Apng, Film, Gif, Reel, Webp
from imaging.recipes import read_recipe

TEXT = json.dumps({"model": "birds", "class_name": "Grünfink", "count": 5, "long": "x" * 600})
LIGHT = np.linspace(0, 255, 40)
# slopes of colour, another in each frame; 40 × 24 px
FRAMES = [
    np.stack(
        [
            np.tile(LIGHT, (24, 1)),
            np.full((24, 40), 50.0 * k),
            np.tile(LIGHT[::-1], (24, 1)) * (np.arange(24) / 24)[:, None],
        ],
        axis=2,
    ).astype(np.uint8)
    for k in range(5)
]
TIMES = [80, 90, 100, 110, 1000]

needs_ffmpeg = pytest.mark.skipif(mp4.ffmpeg() is None, reason="ffmpeg is not on PATH")


def reel(*, loop: bool = True, text: str | None = TEXT) -> Reel:
    return Reel(40, 24, 5, loop, text)


def made(film: Film) -> bytes:
    pieces = [film.add(frame, ms) for frame, ms in zip(FRAMES, TIMES, strict=True)]
    return b"".join([*pieces, *film.end()])


MAKERS: dict[str, Callable[[Reel], Film]] = {
    "webp": lambda reel: Webp(reel, None),
    "lossy webp": lambda reel: Webp(reel, 90),
    "apng": Apng,
    "gif": Gif,
}


@pytest.mark.parametrize(("kind", "most"), [("webp", 0), ("apng", 0), ("lossy webp", 12), ("gif", 12)])
def test_every_frame_comes_back_in_its_place_and_time(kind: str, most: float) -> None:
    data = made(MAKERS[kind](reel()))
    with Image.open(io.BytesIO(data)) as film:
        assert (film.size, film.n_frames) == ((40, 24), 5)  # type: ignore[attr-defined]
        for index, (frame, ms) in enumerate(zip(FRAMES, TIMES, strict=True)):
            film.seek(index)
            film.load()
            apart = np.abs(np.asarray(film.convert("RGB")).astype(int) - frame)
            assert apart.mean() <= most / 2
            assert apart.max() <= most * 6
            assert film.info["duration"] == ms


@pytest.mark.parametrize("kind", MAKERS)
def test_a_film_says_how_it_was_made_and_is_the_same_again(kind: str) -> None:
    data = made(MAKERS[kind](reel()))
    assert data == made(MAKERS[kind](reel()))
    recipe = read_recipe(data)
    assert recipe.text == TEXT
    assert recipe.frames == 5
    assert recipe.lossless is (kind in ("webp", "apng"))


@pytest.mark.parametrize(("kind", "once"), [("webp", 1), ("apng", 1), ("gif", None)])
def test_a_film_begins_again_or_is_shown_once(kind: str, once: int | None) -> None:
    with Image.open(io.BytesIO(made(MAKERS[kind](reel())))) as film:
        assert film.info["loop"] == 0
    with Image.open(io.BytesIO(made(MAKERS[kind](reel(loop=False))))) as film:
        assert film.info.get("loop") == once


def test_a_gif_loses_no_time_to_its_hundredths() -> None:
    film = Gif(reel())
    pieces = [film.add(frame, 83) for frame in FRAMES * 20]
    with Image.open(io.BytesIO(b"".join([*pieces, *film.end()]))) as shown:
        total = 0
        for index in range(100):
            shown.seek(index)
            total += shown.info["duration"]
    assert total == 8300


@needs_ffmpeg
def test_an_mp4_has_its_frames_colours_and_recipe(tmp_path: Path) -> None:
    program = mp4.ffmpeg()
    assert program is not None
    datas = []
    for _ in range(2):
        film = mp4.Mp4(reel(), Fraction(25, 2), program)
        datas.append(made(film))
        film.close()
    assert datas[0] == datas[1]
    assert datas[0].index(b"moov") < datas[0].index(b"mdat")  # a player begins before it has the whole
    recipe = read_recipe(datas[0])
    assert (recipe.text, recipe.kind, recipe.lossless) == (TEXT, "MP4", False)
    (tmp_path / "film.mp4").write_bytes(datas[0])
    subprocess.run(
        [program, "-v", "error", "-i", tmp_path / "film.mp4", tmp_path / "%d.png"], check=True, timeout=60
    )
    assert len(list(tmp_path.glob("*.png"))) == 5
    for index, frame in enumerate(FRAMES):
        with Image.open(tmp_path / f"{index + 1}.png") as shown:
            apart = np.abs(np.asarray(shown.convert("RGB")).astype(int) - frame)
        assert apart.mean() < 5


def program(folder: Path, script: str) -> str:
    """An ffmpeg that does something else."""
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_an_ffmpeg_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    film = mp4.Mp4(reel(), Fraction(12), program(tmp_path, "echo 'no such codec' >&2; exit 1"))
    with pytest.raises(mp4.Mp4Error, match="no such codec"):
        made(film)
    film.close()


def test_a_film_that_is_left_ends_its_ffmpeg_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    # it is asked for its codecs first, and then sleeps over the film
    script = f'case "$2" in -encoders) exit 0;; esac; echo $$ > {tmp_path}/pid; exec sleep 600'
    film = mp4.Mp4(reel(), Fraction(12), program(tmp_path, script))
    film.add(FRAMES[0], 80)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        pass
    film.close()
    film.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not list((tmp_path / "here").iterdir())
