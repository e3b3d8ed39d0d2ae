"""An attention map as a whole: rows are queries, and what is drawn lies where the map says."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app import overviews, painted, pictures, views
from app.flows import MOST, flows_of, rings_of, strongest
from app.overlay import FigureStyle
from app.painted import Tile
from app.points import Point, mean_row, target_of
from app.views import View
from jobs.job import AttentionMap

R = 32  # side of the image, pixels
GREY = np.full((R, R, 3), 128, np.uint8)
SQUARE = (8, 8)  # as many queries as keys: rows and columns could be swapped unnoticed


def attending(
    targets: dict[Point, Point],
    *,
    otherwise: Point | None = None,
    queries: tuple[int, int] = SQUARE,
    keys: tuple[int, int] = SQUARE,
    share: float = 0.1,
) -> AttentionMap:
    """Each query (column, line) has nearly all on its key; the others on `otherwise`, or evenly on all."""
    count = keys[0] * keys[1]
    values = np.full((queries[0] * queries[1], count), 1 / count)

    def aim(row: npt.NDArray[np.float64], key: Point) -> None:
        row[:] = 0.1 / (count - 1)
        row[key[1] * keys[1] + key[0]] = 0.9

    if otherwise is not None:
        for row in values:
            aim(row, otherwise)
    for query, key in targets.items():
        aim(values[query[1] * queries[1] + query[0]], key)
    return AttentionMap("8x8", queries, keys, 0.5, share, values.astype(np.float16))


def array(picture: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB"))


class TestMean:
    def test_it_is_over_the_queries(self) -> None:
        """One key that all attend to stands out; one query that attends to one key does not."""
        attention = attending({(2, 6): (0, 7)}, otherwise=(5, 1))
        row = mean_row(attention)
        assert row.sum() == pytest.approx(1, abs=2e-3)
        assert np.unravel_index(int(row.argmax()), row.shape) == (1, 5)
        assert row[1, 5] == pytest.approx(0.9 * 63 / 64, abs=0.01)
        assert row[7, 0] == pytest.approx(0.9 / 64, abs=0.01)

    def test_grids_that_are_not_square_keep_their_axes(self) -> None:
        row = mean_row(attending({}, otherwise=(5, 1), queries=(4, 8), keys=(2, 6)))
        assert row.shape == (2, 6)
        assert np.unravel_index(int(row.argmax()), row.shape) == (1, 5)

    @pytest.mark.parametrize("key", [(5, 1), (1, 6), (3, 3)])
    def test_the_picture_is_hottest_where_the_queries_look(self, key: Point) -> None:
        attention = attending({}, otherwise=key)
        drawn = array(overviews.mean(GREY, attention, FigureStyle(256, alpha=1.0)))[:256].astype(float)
        quiet = array(overviews.mean(GREY, attention, FigureStyle(256, alpha=0.0)))[:256].astype(float)
        added = (drawn - quiet).sum(axis=2)
        y, x = np.unravel_index(int(added.argmax()), added.shape)
        assert (int(x) // 32, int(y) // 32) == key

    @pytest.mark.parametrize("share", [0.001, math.nan])
    def test_a_gate_that_is_nearly_shut_is_said_so(self, share: float) -> None:
        style = FigureStyle(256)
        shut = array(overviews.mean(GREY, attending({}, otherwise=(5, 1), share=share), style))
        quiet = array(overviews.mean(GREY, attending({}, otherwise=(5, 1)), style))
        lines = np.nonzero((shut != quiet).any(axis=(1, 2)))[0]
        assert 256 - 20 <= lines.min() < 256


class TestEveryQuery:
    @pytest.mark.parametrize(
        ("grid", "side", "step"),
        [((32, 32), 256, 4), ((32, 32), 512, 2), ((32, 32), 1024, 1), ((16, 16), 256, 2), ((8, 8), 256, 1)],
    )
    def test_as_many_are_drawn_as_are_legible(self, grid: tuple[int, int], side: int, step: int) -> None:
        assert overviews.step_of(grid, side) == step
        assert side / (grid[0] / step) >= overviews.LEGIBLE

    @pytest.mark.parametrize("queries", [(8, 8), (16, 16), (4, 8), (9, 5)])
    def test_each_map_lies_at_the_place_of_its_query(self, queries: tuple[int, int]) -> None:
        attention = attending({}, queries=queries)
        cells = overviews.small_maps(attention, 128)
        for query, (x, y), (left, top, right, bottom) in cells:
            line, column = divmod(query, queries[1])
            assert (x, y) == ((column + 0.5) / queries[1], (line + 0.5) / queries[0])
            odd = 0.5 if queries == (9, 5) else 0.02  # of its side: the step does not divide the grid
            assert -odd <= (x * 128 - left) / (right - left) <= 1 + odd
            assert -odd <= (y * 128 - top) / (bottom - top) <= 1 + odd
        assert len({cell.query for cell in cells}) == len(cells) >= 8

    def test_a_small_map_is_hottest_where_its_query_looks(self) -> None:
        targets = {(3, 6): (6, 1), (6, 2): (0, 7)}
        attention = attending(targets, otherwise=(4, 4))
        by_query = {cell.query: cell.box for cell in overviews.small_maps(attention, 512)}
        panel = array(
            overviews._small_multiples(
                attention, overviews.small_maps(attention, 512), FigureStyle(512, "grey")
            )
        )
        for (column, line), key in targets.items():
            left, top, right, bottom = by_query[line * 8 + column]
            small = panel[top:bottom, left:right].astype(int)
            white = (small.min(axis=2) > 240).nonzero()
            centre = (white[1].mean() / (right - left) * 8, white[0].mean() / (bottom - top) * 8)
            assert (int(centre[0]), int(centre[1])) == key


class TestFlows:
    def corner_to_corner(self, share: float = 0.1) -> AttentionMap:
        """The queries of region 0, at the top left, look at region 11, at the right; the others evenly."""
        return attending({(x, y): (7, 5) for x in (0, 1) for y in (0, 1)}, share=share)

    def test_they_run_from_the_region_of_the_queries_to_that_of_the_keys(self) -> None:
        flows = flows_of(self.corner_to_corner())
        assert flows.share[0, 11] == pytest.approx(0.9, abs=0.02)
        assert flows.share[11, 0] == pytest.approx(1 / 16, abs=0.01)
        assert [(flow.source, flow.to) for flow in strongest(flows)] == [(0, 11)]
        np.testing.assert_allclose(flows.share.sum(axis=1), 1, atol=5e-3)

    def test_what_is_received_is_counted_over_all_queries(self) -> None:
        flows = flows_of(self.corner_to_corner())
        assert flows.received.sum() == pytest.approx(1, abs=5e-3)
        assert flows.received[11] == pytest.approx((0.9 + 15 / 16) / 16, abs=0.01)
        assert flows.received.argmax() == 11
        assert flows.received[0] < 1.05 / 16

    def test_regions_that_keep_their_attention_get_a_ring_and_no_arrow(self) -> None:
        own = AttentionMap("8x8", SQUARE, SQUARE, 1.0, 1.0, np.eye(64, dtype=np.float16))
        flows = flows_of(own)
        assert strongest(flows) == []
        assert [flow.source for flow in rings_of(flows)] == list(range(16))

    def test_an_even_map_has_no_flow_that_means_anything(self) -> None:
        flows = flows_of(attending({}))
        assert (strongest(flows), rings_of(flows)) == ([], [])
        assert overviews._of_flows([], []) == "no region sends much to one other"

    def test_a_place_that_all_attend_to_gets_the_strongest_alone(self) -> None:
        flows = flows_of(attending({}, otherwise=(5, 1)))
        arrows = strongest(flows)
        assert len(arrows) == MOST
        assert {flow.to for flow in arrows} == {2}
        assert [flow.source for flow in rings_of(flows)] == [2]

    @pytest.mark.parametrize(
        ("queries", "keys", "regions"),
        [
            ((16, 16), (8, 8), (4, 4)),
            ((4, 8), (2, 6), (2, 4)),
            ((9, 7), (5, 3), (4, 3)),
            ((2, 2), (1, 1), (1, 1)),
        ],
    )
    def test_regions_fit_any_grid(
        self, queries: tuple[int, int], keys: tuple[int, int], regions: tuple[int, int]
    ) -> None:
        flows = flows_of(attending({}, queries=queries, keys=keys))
        assert flows.grid == regions
        np.testing.assert_allclose(flows.share, np.tile(flows.even, (len(flows.even), 1)), atol=5e-3)

    def test_the_arrow_points_at_the_region_that_receives(self) -> None:
        size = 512
        flows = flows_of(self.corner_to_corner())
        drawn = array(overviews._arrows(GREY, flows, strongest(flows), [], FigureStyle(size)))
        blue = np.abs(drawn.astype(int) - overviews.BLUE).sum(axis=2) < 30
        ys, xs = np.nonzero(blue)
        source, target = (64, 64), (7 * 64, 5 * 64)
        to_source, to_target = (np.hypot(xs - x, ys - y) for x, y in (source, target))
        assert to_target.min() == pytest.approx(0.3 * 128, abs=5)
        assert to_source.min() < 0.2 * 128
        # it is widest at its head: in as many pixels of its length it has more
        assert (to_target < 0.3 * 128 + 20).sum() > 1.5 * (to_source < 0.12 * 128 + 20).sum()


@pytest.mark.parametrize("view", ["figure", "overlay", "heatmap", "mean", "all", "received"])
def test_several_layers_are_rows(view: View) -> None:
    coarse, fine = attending({}, otherwise=(5, 1)), attending({}, otherwise=(3, 6), queries=(16, 16))
    style, points = FigureStyle(128), [(4, 4), (20, 9)]

    def drawn(*maps: AttentionMap) -> Image.Image:
        *_, last = views.draw(view, GREY, maps, points, style, "cat")
        assert last is not None
        return last

    both, each = drawn(coarse, fine), [drawn(coarse), drawn(fine)]
    assert both.width == each[0].width
    assert both.height >= each[0].height + each[1].height
    np.testing.assert_array_equal(array(both)[:100], array(each[0])[:100])
    assert both.width * both.height <= views.pixels_of(view, 128, 2, 2)


@pytest.mark.parametrize("size", [64, 1024])
@pytest.mark.parametrize("view", ["mean", "all", "received"])
def test_any_size_can_be_drawn(view: View, size: int) -> None:
    attention = attending({}, otherwise=(5, 1), queries=(9, 7), keys=(5, 6))
    *_, drawn = views.draw(view, GREY, [attention], [], FigureStyle(size), "a very long title " * 20)
    assert drawn is not None
    assert size < drawn.height
    assert drawn.width * drawn.height <= views.pixels_of(view, size, 0)


class TestGrid:
    def png(self, level: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.full((R, R, 3), level, np.uint8)).save(out, "PNG")
        return out.getvalue()

    def test_each_image_is_painted_at_its_place(self) -> None:
        keys = [(5, 1), (1, 6), (3, 3), (7, 0), (0, 4)]
        tiles = [
            Tile(self.png(40 * k), mean_row(attending({}, otherwise=key)), None) for k, key in enumerate(keys)
        ]
        style = FigureStyle(64)
        sheet = Image.open(io.BytesIO(b"".join(painted.grid(tiles, "mean", style, shut=False))))
        assert sheet.size == (3 * 66 - 2, 2 * 66 - 2)
        for k, tile in enumerate(tiles):
            line, column = divmod(k, 3)
            crop = array(sheet)[line * 66 : line * 66 + 64, column * 66 : column * 66 + 64]
            alone = overviews.mean_panel(pictures.read(tile.png), tile.row, style)
            np.testing.assert_array_equal(crop, array(alone))
            assert target_of(tile.row, 8) == (keys[k][0] + 0.5, keys[k][1] + 0.5)

    def test_a_shut_gate_is_said_below(self) -> None:
        tiles = [Tile(self.png(90), mean_row(attending({})), None)] * 4
        heights = [
            Image.open(io.BytesIO(b"".join(painted.grid(tiles, "mean", FigureStyle(64), shut=shut)))).height
            for shut in (False, True)
        ]
        assert heights[0] == 130
        assert heights[1] >= 130 + 14
