"""The attention figure: aligned with the image, and honest about what it shows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app import overlay
from app.colours import POINT_COLOURS, Colormap, colours
from app.overlay import FigureStyle
from app.points import Point, default_points, row_of, target_of
from jobs.job import AttentionMap

R = 32  # side of the image, pixels
GREY = np.full((R, R, 3), 128, np.uint8)


def planted(
    query: Point,
    key: Point,
    *,
    queries: tuple[int, int] = (16, 16),
    keys: tuple[int, int] = (8, 8),
    share: float = 0.1,
) -> AttentionMap:
    """All rows even, but the one of cell `query` (column, line), which has nearly all on cell `key`."""
    count = keys[0] * keys[1]
    values = np.full((queries[0] * queries[1], count), 1 / count, np.float16)
    row = np.full(count, 0.1 / (count - 1))
    row[key[1] * keys[1] + key[0]] = 0.9
    values[query[1] * queries[1] + query[0]] = row
    return AttentionMap("16x16", queries, keys, 0.5, share, values)


def figure(
    image: npt.NDArray[np.uint8], attention: AttentionMap, points: list[Point], style: FigureStyle, title: str
) -> Image.Image:
    """The figure when its last panel is drawn."""
    *_, drawn = overlay.figure(image, attention, points, style, title)
    return drawn


def array(picture: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


# (query cell, key cell): column differs from line everywhere, so that a swap of x and y cannot hide
PLACES = [((3, 12), (6, 1)), ((12, 3), (1, 6)), ((0, 15), (7, 0)), ((9, 5), (0, 7))]


@pytest.mark.parametrize(("query", "key"), PLACES)
def test_a_planted_map_is_found_at_its_place(query: Point, key: Point) -> None:
    attention = planted(query, key)
    point = (query[0] * 2 + 1, query[1] * 2)  # a pixel inside the query's 2×2 cell
    heat = array(overlay.heatmap(GREY, attention, point, FigureStyle(256, "grey")))[..., 0].astype(float)
    y, x = np.mgrid[0:256, 0:256]
    hot = heat > 0.8 * heat.max()
    # a key cell is 32 pixels wide; at the border its light reaches on outwards, inside it is centred
    at_border = min(key) == 0 or max(key) == 7
    centre = (x[hot].mean() + 0.5, y[hot].mean() + 0.5)
    assert centre == pytest.approx((key[0] * 32 + 16, key[1] * 32 + 16), abs=8 if at_border else 0.5)
    assert target_of(row_of(attention, point, R), R) == (key[0] * 4 + 2, key[1] * 4 + 2)


@pytest.mark.parametrize(("query", "key"), PLACES)
def test_the_arrow_runs_from_the_point_to_the_hottest_place(query: Point, key: Point) -> None:
    size = 512
    point = (query[0] * 2, query[1] * 2 + 1)
    # alpha 0: no heat, so that nothing but marker and arrow has colour
    drawn = array(overlay.overlay(GREY, planted(query, key), point, FigureStyle(size, alpha=0.0)))
    blue = np.abs(drawn.astype(int) - POINT_COLOURS[0]).sum(axis=2) < 30
    ys, xs = np.nonzero(blue)
    start = ((point[0] + 0.5) / R * size, (point[1] + 0.5) / R * size)
    tip = ((key[0] + 0.5) / 8 * size, (key[1] + 0.5) / 8 * size)
    inked = {(int(x), int(y)) for x, y in zip(xs, ys, strict=True)}
    assert (int(start[0]), int(start[1])) in inked
    farthest = max(zip(xs, ys, strict=True), key=lambda at: math.dist(at, start))
    assert math.dist(farthest, tip) < 4
    # the head is wider than the shaft: the arrow points at the target, not back at the query
    ux, uy = (np.array(tip) - start) / math.dist(start, tip)

    def width(along: float) -> int:
        length = math.dist(start, tip)
        place = np.array(start) + np.array((ux, uy)) * length * along
        across = [place + np.array((-uy, ux)) * offset for offset in np.arange(-30, 30, 0.5)]
        return sum((int(x), int(y)) in inked for x, y in across)

    length = math.dist(start, tip)
    assert width(1 - 25 / length) > 1.5 * width(0.5)


def test_the_overlay_is_brightest_where_the_map_is() -> None:
    attention, point = planted((3, 12), (6, 1)), (7, 25)
    drawn = array(overlay.overlay(GREY, attention, point, FigureStyle(256, alpha=1.0))).astype(float)
    quiet = array(overlay.overlay(GREY, attention, point, FigureStyle(256, alpha=0.0))).astype(float)
    added = (drawn - quiet).sum(axis=2)
    y, x = np.unravel_index(int(added.argmax()), added.shape)
    assert (int(x) // 32, int(y) // 32) == (6, 1)


def test_grids_that_are_not_square_keep_their_axes() -> None:
    attention = planted((2, 1), (5, 1), queries=(4, 8), keys=(2, 6))
    row = row_of(attention, (2 * 4 + 1, 1 * 8 + 3), R)
    assert row.shape == (2, 6)
    assert np.unravel_index(int(row.argmax()), row.shape) == (1, 5)
    x, y = target_of(row, R)
    assert (x, y) == (pytest.approx(5.5 / 6 * R), pytest.approx(1.5 / 2 * R))


def test_every_pixel_falls_into_its_own_cell() -> None:
    identity = AttentionMap("16x16", (16, 16), (16, 16), 1.0, 1.0, np.eye(256, dtype=np.float16))
    for x in range(R):
        for y in range(0, R, 5):
            row = row_of(identity, (x, y), R)
            assert np.unravel_index(int(row.argmax()), row.shape) == (y // 2, x // 2)


def test_a_point_that_attends_to_itself_gets_a_ring() -> None:
    attention = planted((8, 8), (4, 4))
    drawn = array(overlay.overlay(GREY, attention, (17, 17), FigureStyle(256, alpha=0.0)))
    blue = np.abs(drawn.astype(int) - POINT_COLOURS[0]).sum(axis=2) < 60
    centre = (17.5 / R * 256, 17.5 / R * 256)
    ys, xs = np.nonzero(blue)
    distance = np.hypot(xs + 0.5 - centre[0], ys + 0.5 - centre[1])
    assert distance.max() < 30
    assert np.histogram(distance, bins=[0, 8, 13, 30])[0].min() == 0  # disc, gap, ring


class TestDefaultPoints:
    def test_they_are_apart_and_away_from_the_border(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.dirichlet(np.full(64, 0.3), size=256).astype(np.float16)
        points = default_points(AttentionMap("l", (16, 16), (8, 8), 0.5, 0.1, values), R)
        assert len(set(points)) == 5
        assert all(R / 8 <= x < R * 7 / 8 and R / 8 <= y < R * 7 / 8 for x, y in points)
        gaps = [math.dist(a, b) for a in points for b in points if a != b]
        assert min(gaps) >= 0.15 * R

    def test_they_prefer_rows_that_differ(self) -> None:
        """Left and right half attend to two different cells, and all else is even: both are looked at."""
        values = np.full((256, 64), 1 / 64, np.float16)
        peaks = [9, 54, 14]
        for index, peak in enumerate(peaks):
            query = (5 + 2 * index) * 16 + 5 + 2 * index
            values[query] = 0.1 / 63
            values[query, peak] = 0.9
        attention = AttentionMap("l", (16, 16), (8, 8), 0.5, 0.1, values)
        rows = [row_of(attention, point, R) for point in default_points(attention, R)]
        assert {int(row.argmax()) for row in rows if row.max() > 0.5} == set(peaks)

    def test_an_even_map_still_gives_five_starting_in_the_middle(self) -> None:
        even = AttentionMap("l", (8, 8), (4, 4), 0.0, 0.0, np.full((64, 16), 1 / 16, np.float16))
        points = default_points(even, R)
        assert len(set(points)) == 5
        assert math.dist(points[0], (16, 16)) < 4

    def test_a_grid_with_fewer_cells_gives_what_it_has(self) -> None:
        tiny = AttentionMap("l", (2, 2), (1, 1), 0.5, 0.1, np.ones((4, 1), np.float16))
        assert len(set(default_points(tiny, R))) == 4

    def test_they_are_the_same_each_time(self) -> None:
        attention = planted((3, 12), (6, 1))
        assert default_points(attention, R) == default_points(attention, R)


class TestFigure:
    def test_one_panel_a_point_and_the_images_own(self) -> None:
        attention = planted((3, 12), (6, 1))
        widths = [
            figure(GREY, attention, [(4 * k, 4 * k) for k in range(count)], FigureStyle(128), "t").width
            for count in (1, 2, 5)
        ]
        assert widths[1] - widths[0] == pytest.approx(128 + 12, abs=8)
        assert widths[2] - widths[1] == pytest.approx(3 * (128 + 12), abs=24)

    def test_points_have_their_colours_on_the_image_and_on_their_panel(self) -> None:
        points = default_points(planted((3, 12), (6, 1)), R)
        drawn = array(figure(GREY, planted((3, 12), (6, 1)), points, FigureStyle(256), "cat")).astype(int)
        image_end = 256 + 30
        for colour in POINT_COLOURS[:5]:
            near = np.abs(drawn - colour).sum(axis=2) < 12
            assert near[:, :image_end].sum() > 50
            assert near[:, image_end:].sum() > 200

    def test_the_image_is_enlarged_crisply(self) -> None:
        rng = np.random.default_rng(1)
        image = rng.integers(0, 256, (R, R, 3), np.uint8)
        drawn = array(figure(image, planted((3, 12), (6, 1)), [(31, 31)], FigureStyle(256), "cat"))
        crisp = np.kron(image, np.ones((8, 8, 1), np.uint8))[:128, :128]
        windows = np.lib.stride_tricks.sliding_window_view(drawn[10:220, 10:180], (128, 128, 3))[:, :, 0]
        found = (windows[:, :, ::16, ::16] == crisp[::16, ::16]).all(axis=(2, 3, 4))
        place = np.argwhere(found).min(axis=0)  # it matches a few pixels further on, too: each is 8 wide
        y, x = place + 10
        np.testing.assert_array_equal(drawn[y : y + 128, x : x + 128], crisp)

    def test_a_gate_that_is_nearly_shut_is_said_so(self) -> None:
        points = [(4, 4)]
        open_gate = figure(GREY, planted((3, 12), (6, 1), share=0.011), points, FigureStyle(256), "cat")
        for share in (0.009, 0.0, -0.001, math.nan):
            shut = figure(GREY, planted((3, 12), (6, 1), share=share), points, FigureStyle(256), "cat")
            assert shut.height > open_gate.height
        panel = overlay.overlay(GREY, planted((3, 12), (6, 1), share=0.001), (4, 4), FigureStyle(256))
        quiet = overlay.overlay(GREY, planted((3, 12), (6, 1), share=0.1), (4, 4), FigureStyle(256))
        changed = np.nonzero((array(panel) != array(quiet)).any(axis=(1, 2)))[0]
        assert changed.min() >= 256 - 20  # a line at the foot, the point being in the upper half

    @pytest.mark.parametrize("size", [64, 1024])
    @pytest.mark.parametrize("count", [1, 8])
    def test_any_size_and_number_of_points_can_be_drawn(self, size: int, count: int) -> None:
        points = [(4 * k, 31 - 4 * k) for k in range(count)]
        drawn = figure(GREY, planted((3, 12), (6, 1)), points, FigureStyle(size), "a very long title " * 20)
        assert drawn.height > size


@pytest.mark.parametrize("name", ["inferno", "magma", "viridis", "turbo", "grey"])
def test_colormaps_run_between_their_ends(name: Colormap) -> None:
    table = colours(name).astype(int)
    assert table.shape == (256, 3)
    assert np.abs(np.diff(table, axis=0)).max() < 12  # no jumps
    if name != "turbo":
        assert (np.diff(table @ (0.2126, 0.7152, 0.0722)) > -0.5).all()  # lightness rises
