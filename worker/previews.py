"""One small picture of each class, so that a list of classes can show what it offers.

They are made once a version of a model, a few at a time while no job waits, and kept in Redis as one sheet.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Event
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imaging.spec import ImageSpec
from jobs.job import JobSpec, ModelInfo
from jobs.worker_store import Stopping, WorkerStore
from worker.engine import Engine
from worker.scheduler import Scheduler

log = logging.getLogger(__name__)

SIDE: Final = 128  # pixels of a picture, at most
WHOLE: Final = 2048  # pixels of the sheet's sides, about: the pictures of many classes are smaller
MOST: Final = 1024  # classes; a sheet of more would not be looked at
TRUNCATION: Final = 0.7  # as the page's form begins
AT_ONCE: Final = 4  # images between two looks at what waits
PAUSE: Final = 0.5  # seconds between two looks while jobs wait


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Protocol(_Strict):
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    truncation: Annotated[float, Field(gt=0, le=1)]


class _Generated(_Strict):
    typical: list[Annotated[int, Field(ge=0, lt=2**53)] | None]  # numbers of images, by class


class _Pretrained(_Strict):
    protocol: _Protocol
    generated: _Generated


class _Metrics(_Strict):
    """What is read here of the figures in a checkpoint."""

    pretrained: _Pretrained


class Previews:
    """Makes the sheets that are missing. One thread calls `look`."""

    def __init__(
        self,
        store: WorkerStore,
        scheduler: Scheduler[Engine],
        infos: Callable[[], Iterable[ModelInfo]],
        stopping: Event,
    ) -> None:
        """infos: the models served now."""
        self._store = store
        self._scheduler = scheduler
        self._infos = infos
        self._stopping = stopping
        self._failed: set[str] = set()  # versions

    def look(self) -> None:
        """Make the sheet of each served model that has none. Raises Stopping."""
        for info in self._infos():
            if info.draining or info.version in self._failed or len(info.classes) > MOST:
                continue
            if not self._store.claim_previews(info.version):
                continue
            try:
                made = self._make(info)
            except Stopping:
                raise
            except Exception:  # whoever lists the classes does without
                log.exception("previews of %s", info.name)
                self._failed.add(info.version)
                continue
            if made is not None:
                self._store.save_previews(info.version, made)

    def _make(self, info: ModelInfo) -> bytes | None:
        """The sheet; None: the worker stops."""
        pictures: list[NDArray[np.uint8]] = []
        specs = wanted(info)
        spec = JobSpec(info.name, info.hash, info.precision, 0, info.classes[0], 1, 0, TRUNCATION)
        while len(pictures) < len(info.classes):
            while self._scheduler.backlog() > 0 and not self._stopping.is_set():
                self._stopping.wait(PAUSE)
            if self._stopping.is_set():
                return None
            some = specs[len(pictures) : len(pictures) + AT_ONCE]
            call = self._scheduler.call(spec, partial(_sample, some), of_map=False)
            pictures.extend(call.result())
        return sheet(pictures)


def wanted(info: ModelInfo) -> list[ImageSpec]:
    """An image of each class: the most typical that `evaluate --pretrained --keep` saw, else image 0."""
    specs = [ImageSpec(class_id, 0, 0, TRUNCATION) for class_id in range(len(info.classes))]
    try:
        report = _Metrics.model_validate(info.metrics).pretrained
    except ValidationError:  # not measured so, or by an earlier version
        return specs
    typical, protocol = report.generated.typical, report.protocol
    if len(typical) != len(specs):
        return specs
    return [
        plain if index is None else ImageSpec(plain.class_id, protocol.seed, index, protocol.truncation)
        for plain, index in zip(specs, typical, strict=True)
    ]


def _sample(specs: Sequence[ImageSpec], engine: Engine) -> NDArray[np.uint8]:
    return engine.sample(specs)


def sheet(pictures: Sequence[NDArray[np.uint8]]) -> bytes:
    """Pictures [R, R, 3] -> WebP: rows of ceil(sqrt(their number)), without gaps, each `SIDE` px at most."""
    columns = math.ceil(math.sqrt(len(pictures)))
    side = min(SIDE, WHOLE // columns, len(pictures[0]))
    whole = Image.new("RGB", (columns * side, math.ceil(len(pictures) / columns) * side))
    for k, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
        whole.paste(small, (k % columns * side, k // columns * side))
    content = io.BytesIO()
    whole.save(content, "WEBP", quality=85)
    return content.getvalue()
