"""What a film is asked to be, before anything of it is drawn."""

from __future__ import annotations

import io
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import Invalid, TooLarge
from app.films import FilmIn, Plan, Strip, plan
from app.formats import Moving


def planned(kind: Moving = "webp", count: int = 16, resolution: int = 32, **asked: Any) -> Plan:
    film = FilmIn.model_validate(asked)
    film.check(kind)
    return plan(film, kind, count, resolution)


def test_a_film_has_twelve_frames_a_second_unless_told() -> None:
    film = planned()
    assert film.order == tuple(range(16))
    assert (sum(film.times), film.rate, film.side) == (1333, 12, 32)
    assert sum(planned(seconds=4).times) == 4000
    assert planned(seconds=4).rate == 4
    assert sum(planned(fps=25).times) == 640
    assert planned("mp4", count=7, seconds=3).rate == Fraction(7, 3)


def test_there_and_back_shows_no_frame_twice_in_a_row() -> None:
    assert planned(count=4, bounce=True).order == (0, 1, 2, 3, 2, 1)
    assert planned(count=2, bounce=True).order == (0, 1)


def test_an_mp4_has_even_sides() -> None:
    assert planned("mp4", size=77).side == 78
    assert planned("mp4", resolution=33).side == 34
    assert planned("webp", size=77).side == 77


def test_attention_is_painted_large_enough_to_be_seen() -> None:
    assert planned(attention="3,4").side == 256
    assert planned(attention="3,4", size=100).side == 100


@pytest.mark.parametrize(
    ("count", "asked", "columns"),
    [(16, {}, 16), (256, {}, 256), (256, {"size": 128}, 64), (16, {"columns": 5}, 5), (4, {"columns": 9}, 4)],
)
def test_a_strip_is_a_row_as_long_as_it_may_be(count: int, asked: dict[str, int], columns: int) -> None:
    assert planned("strip", count=count, **asked).columns == columns


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("webp", {"seconds": 1, "fps": 12}, "give one of them"),
        ("strip", {"seconds": 1}, "leave out seconds"),
        ("strip", {"loop": True, "bounce": False}, "leave out bounce, loop"),
        ("webp", {"columns": 3}, "add that, or leave columns out"),
        ("mp4", {"loop": False}, "leave loop out"),
        ("gif", {"quality": 80}, "quality is for format=webp"),
        ("webp", {"layer": "16x16", "alpha": 1}, "alpha, layer: of attention=x,y"),
        ("webp", {"attention": "1,2", "size": 32}, "64 to 1024 pixels"),
        ("webp", {"attention": "1,2", "size": 2048}, "64 to 1024 pixels"),
        ("webp", {"attention": "1,2", "resample": "lanczos"}, "leave resample out"),
        ("webp", {"seconds": 0.1}, "ask for 0.267 to 160 seconds"),
        ("webp", {"seconds": 200}, "too slow"),
        ("gif", {"fps": 60}, "fps 0.1 to 50 as gif"),
    ],
)
def test_what_does_not_go_together_says_what_to_leave_out(
    kind: Moving, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(Invalid, match=says):
        planned(kind, **asked)


@pytest.mark.parametrize(
    ("kind", "count", "asked", "says"),
    [
        ("webp", 256, {"size": 513}, "size must be at most 512 for a film of 256 frames"),
        ("webp", 256, {"size": 512, "bounce": True}, "at most 362 for a film of 510 frames"),
        ("strip", 64, {"size": 512, "columns": 64}, "Ask for other columns, or a smaller size"),
        ("strip", 64, {"size": 512, "columns": 1}, "Ask for other columns, or a smaller size"),
    ],
)
def test_a_film_too_large_says_what_to_ask_for(
    kind: Moving, count: int, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(TooLarge, match=says):
        planned(kind, count=count, **asked)
    assert planned("webp", count=256, size=512).pixels == 2**26


def test_a_strip_has_each_frame_at_its_place_and_paper_where_there_is_none() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 3), np.uint8)
    strip = Strip(20, 3, 5, '{"count": 5}')
    pieces = [strip.add(frame, 0) for frame in frames]
    with Image.open(io.BytesIO(b"".join([*pieces, *strip.end()]))) as image:
        assert image.info["sagan"] == '{"count": 5}'
        shown = np.asarray(image)
    assert shown.shape == (40, 60, 3)
    for index, frame in enumerate(frames):
        top, left = index // 3 * 20, index % 3 * 20
        np.testing.assert_array_equal(shown[top : top + 20, left : left + 20], frame)
    assert (shown[20:, 40:] == 255).all()


PEAK = """if True:
    import resource, sys
    import numpy as np
    from app.films import FilmIn, plan
    from app.pictures import grid
    import io
    from PIL import Image
    kind, count, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = np.random.default_rng(0)

    def frame(side):
        coarse = rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))

    def draw(count, side):
        planned = plan(FilmIn(size=side), kind, count, 32)
        film = planned.film("{}")
        for ms in planned.times:
            film.add(frame(side), ms)
        for _ in film.end():
            pass
        film.close()
        return planned
    draw(2, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    planned = draw(count, side)
    took = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(took, planned.memory(32))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "side"), [("webp", 2, 2048), ("webp", 60, 512), ("apng", 4, 2048), ("gif", 4, 2048)]
)
def test_a_film_takes_no_more_memory_than_it_says(kind: str, count: int, side: int) -> None:
    command = [sys.executable, "-c", PEAK, kind, str(count), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took, said = map(int, done.stdout.split())
    assert took < said < 400 * 2**20
