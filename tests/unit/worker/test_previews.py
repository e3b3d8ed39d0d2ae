"""Small pictures of the classes: made once, only while nothing waits."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Event
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imaging.spec import ImageSpec
from jobs.job import JobSpec, ModelInfo
from jobs.worker_store import WorkerStore
from worker.engine import Engine
from worker.previews import MOST, TRUNCATION, Previews, sheet, wanted
from worker.scheduler import Scheduler


class Painter:
    """A sampler whose image of class k has the colour k."""

    def sample(self, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
        if any(spec.class_id == 200 for spec in specs):
            raise RuntimeError("no image of this class")
        return np.stack([np.full((32, 32, 3), spec.class_id, np.uint8) for spec in specs])


@dataclass
class Bench:
    """A scheduler that has `waiting` jobs at the next looks, and a store that remembers."""

    waiting: list[float] = field(default_factory=list)  # backlogs, the next one last
    sizes: list[int] = field(default_factory=list)  # of forwards
    kept: dict[str, bytes] = field(default_factory=dict)
    counted: list[bool] = field(default_factory=list)

    def backlog(self) -> float:
        return self.waiting.pop() if self.waiting else 0.0

    def call(
        self, spec: JobSpec, function: Callable[[Engine], NDArray[np.uint8]], of_map: bool
    ) -> Future[NDArray[np.uint8]]:
        assert not self.waiting
        future: Future[NDArray[np.uint8]] = Future()
        try:
            future.set_result(function(cast(Engine, Painter())))
            self.sizes.append(len(future.result()))
            self.counted.append(of_map)
        except RuntimeError as error:
            future.set_exception(error)
        return future

    def claim_previews(self, version: str) -> bool:
        if version in self.kept:
            return False
        self.kept[version] = b""
        return True

    def save_previews(self, version: str, sheet: bytes) -> None:
        self.kept[version] = sheet

    def previews(self, *infos: ModelInfo, stopping: Event | None = None) -> Previews:
        store, scheduler = cast(WorkerStore, self), cast("Scheduler[Engine]", self)
        return Previews(store, scheduler, lambda: infos, stopping or Event())


def model(classes: int, letter: str = "a", **more: bool) -> ModelInfo:
    names = tuple(f"class {number}" for number in range(classes))
    return ModelInfo(letter, letter * 64, "float32", 32, names, **more)  # type: ignore[arg-type]


def colours(webp: bytes, classes: int) -> list[int]:
    """Of the middle of each picture of a sheet, as it is documented."""
    with Image.open(io.BytesIO(webp)) as image:
        assert image.format == "WEBP"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    columns = int(np.ceil(np.sqrt(classes)))
    side = pixels.shape[1] // columns
    assert pixels.shape[0] == -(-classes // columns) * side
    middles = [(k // columns * side + side // 2, k % columns * side + side // 2) for k in range(classes)]
    return [round(pixels[place].mean()) for place in middles]


def test_each_class_has_its_picture_in_its_place() -> None:
    bench, info = Bench(), model(7)
    bench.previews(info).look()
    assert colours(bench.kept[info.version], 7) == pytest.approx(range(7), abs=2)
    assert sum(bench.sizes) == 7
    assert not any(bench.counted)  # as attention maps


def test_they_are_made_once() -> None:
    bench, info = Bench(), model(3)
    previews = bench.previews(info)
    previews.look()
    forwards = len(bench.sizes)
    previews.look()
    assert len(bench.sizes) == forwards


def test_jobs_that_wait_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.previews.PAUSE", 0.001)
    bench, info = Bench(waiting=[0.3, 0.2, 0.1]), model(3)
    bench.previews(info).look()
    assert len(colours(bench.kept[info.version], 3)) == 3


def test_a_worker_that_stops_leaves_them_to_another() -> None:
    stopping = Event()
    stopping.set()
    bench, info = Bench(), model(3)
    bench.previews(info, stopping=stopping).look()
    assert bench.kept[info.version] == b""
    assert bench.sizes == []


def test_no_pictures_of_what_is_replaced_or_of_too_many_classes() -> None:
    bench = Bench()
    bench.previews(model(3, draining=True), model(MOST + 1, "b")).look()
    assert bench.kept == {}


def test_a_model_that_fails_is_left_alone_and_the_others_get_theirs() -> None:
    bench, bad, good = Bench(), model(201, "b"), model(2, "g")
    previews = bench.previews(bad, good)
    previews.look()
    assert len(bench.kept[good.version]) > 0
    bench.kept.pop(bad.version)  # its claim has run out
    forwards = len(bench.sizes)
    previews.look()
    assert len(bench.sizes) == forwards


@pytest.mark.parametrize(("classes", "sides"), [(5, (3 * 128, 2 * 128)), (1024, (2048, 2048))])
def test_large_pictures_are_made_small(classes: int, sides: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(sheet([np.zeros((256, 256, 3), np.uint8)] * classes))) as image:
        assert image.size == sides


def measured(typical: object, **protocol: object) -> ModelInfo:
    told = {"seed": 5, "truncation": 0.9} | protocol
    metrics: dict[str, object] = {"pretrained": {"protocol": told, "generated": {"typical": typical}}}
    return replace(model(3), metrics=metrics)


def test_the_most_typical_images_are_shown_where_they_are_known() -> None:
    assert wanted(measured([7, None, 9])) == [
        ImageSpec(0, 5, 7, 0.9),
        ImageSpec(1, 0, 0, TRUNCATION),
        ImageSpec(2, 5, 9, 0.9),
    ]


@pytest.mark.parametrize(
    "info",
    [
        model(3),
        measured("7"),
        measured([-1, 2, 3]),
        measured([1.5, 2, 3]),
        measured(["1", 2, True]),
        measured([1, 2]),
        measured([1, 2, 3, 4]),
        measured([1, 2, 3], seed="x"),
        measured([1, 2, 3], truncation=0),
        replace(model(3), metrics={"pretrained": None}),
    ],
)
def test_figures_that_do_not_tell_are_no_matter(info: ModelInfo) -> None:
    assert wanted(info) == [ImageSpec(class_id, 0, 0, TRUNCATION) for class_id in range(3)]
