"""The models of a worker: the checkpoints in its folder, as files come and go.

The folder is looked at every second, by stat alone: that works on network and mounted file systems as well,
where a kernel's news of changes do not come through. A file is read once it has been the same for two looks,
so that one that is still being copied is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Final

import torch

from jobs.job import ModelInfo
from jobs.records import announceable, printable
from model.errors import ModelError
from worker.engine import Engine, EngineError, ThreadBudget, choose_device, choose_exact_kernels
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

AT_ONCE: Final = 4  # checkpoints loaded at the start

_Stamp = tuple[int, int, int]  # time of change, size, inode


class NoModel(EngineError):
    """No checkpoint could be loaded."""


class EngineLoader:
    """Loads checkpoints as engines: on one device, sharing the CPU's threads."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Raises NoDevice."""
        self.budget = ThreadBudget(settings.threads)
        choose_exact_kernels()
        self.device = choose_device(settings.device)
        self._precision, self._graphs = settings.precision, settings.cuda_graphs

    def __call__(self, path: Path) -> Engine:
        """The model in `path`. Raises ModelError."""
        return Engine.load(path, self.device, self._precision, self.budget, self._graphs)


class ModelFolder:
    """The models of a folder by version, and which of them get new jobs.

    One thread calls `load` and then `look` and `let_go`; any thread reads `engines`, `infos` and `refused`.
    """

    def __init__(self, folder: Path, load: Callable[[Path], Engine]) -> None:
        """load: raises ModelError."""
        self._folder = folder
        self._load = load
        self._read: dict[Path, _Stamp] = {}  # files as they were when they were read
        self._seen: dict[Path, _Stamp] = {}  # files as they were at the last look
        self._current: dict[str, ModelInfo] = {}  # by name
        self._dropped: dict[str, tuple[ModelInfo, float]] = {}  # by version, and monotonic() of that
        self.engines: Mapping[str, Engine] = {}  # by version
        self.refused: Mapping[str, str] = {}  # file -> why it is not served

    def load(self) -> Mapping[str, Engine]:
        """Read every checkpoint; returns the engines by version. Raises NoModel when none can be loaded."""
        self._read = self._seen = self._stamps()
        with ThreadPoolExecutor(min(AT_ONCE, torch.get_num_threads()), "load") as side_by_side:
            found = list(zip(self._read, side_by_side.map(self._try, self._read), strict=True))
        for path, engine in found:
            if engine is not None:
                self._take(path.stem, engine)
        if not self.engines:
            many = len(self._read)
            what = f"none of the {many} in it can be loaded" if many else "there is no *.safetensors in it"
            raise NoModel(
                f"No model to serve from {self._folder}: {what}. Train one with `sagan train`, "
                "or point SAGAN_CHECKPOINTS to a folder of checkpoints."
            )
        for engine in self.engines.values():
            if engine.verifies_alone:
                engine.verify_batch_sizes()  # one after the other, while no job uses the device
        return self.engines

    def look(self, prepare: Callable[[Engine], None]) -> bool:
        """Take up what has changed in the folder; True: other models are served now.

        prepare: called with each new engine before it serves.
        """
        before, stamps = self._served(), self._stamps()
        for path in self._read.keys() - stamps.keys():
            del self._read[path]
            self._accept(path)
            if (gone := self._current.pop(path.stem, None)) is not None:
                log.info("%s was removed: %s gets no more jobs", path.name, path.stem)
                self._drop(gone)
        for path, stamp in stamps.items():
            if self._read.get(path) == stamp or self._seen.get(path) != stamp:
                continue
            self._read[path] = stamp
            if (engine := self._try(path)) is not None:
                if engine.info.version not in self.engines:
                    prepare(engine)
                self._take(path.stem, engine)
        self._seen = stamps
        return self._served() != before

    def infos(self) -> tuple[ModelInfo, ...]:
        """What the heartbeat tells: the models, and those replaced that still have jobs."""
        return (
            *self._current.values(),
            *(replace(info, draining=True) for info, _ in self._dropped.values()),
        )

    def announced(self, now: datetime) -> tuple[ModelInfo, ...]:
        """`infos`, for a heartbeat; a model is loaded when it is first announced. now: by Redis' clock."""
        for name, info in list(self._current.items()):
            if info.loaded_at is None:
                self._current[name] = replace(info, loaded_at=now)
        return self.infos()

    def _served(self) -> tuple[set[tuple[str, str]], set[str]]:
        """Name and version of what gets jobs, and versions of what gets none any more."""
        return {(info.name, info.version) for info in self._current.values()}, set(self._dropped)

    def dropped(self) -> dict[str, float]:
        """Version that gets no more jobs -> seconds since then."""
        return {version: monotonic() - at for version, (_, at) in self._dropped.items()}

    def let_go(self, version: str) -> None:
        """Forget the engine of a dropped version."""
        info, _ = self._dropped.pop(version)
        self.engines = {name: engine for name, engine in self.engines.items() if name != version}
        log.info("%s: version %s has no more jobs and is unloaded", info.name, version)

    def _stamps(self) -> dict[Path, _Stamp]:
        found = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                stat = path.stat()
            except OSError:  # removed since, or a link to nowhere
                continue
            found[path] = (stat.st_ctime_ns, stat.st_size, stat.st_ino)  # not st_mtime: `cp -p` keeps it
        return found

    def _try(self, path: Path) -> Engine | None:
        """The engine of a file; None: it is refused, which is told once."""
        try:
            engine = self._load(path)
            announceable(engine.info)
        except EngineError:  # the process cannot go on
            raise
        except Exception as error:  # whatever one file does, the others are served  # noqa: BLE001
            why = str(error) if isinstance(error, ModelError) else f"{path}: {type(error).__name__}: {error}"
            why = printable(why)
            log.error("refused: %s", why)
            self.refused = {**self.refused, printable(path.name): why}
            return None
        self._accept(path)
        log.info("loaded %s on %s, %s", path.stem, engine.device, engine.info.precision)
        return engine

    def _accept(self, path: Path) -> None:
        self.refused = {name: why for name, why in self.refused.items() if name != printable(path.name)}

    def _take(self, name: str, engine: Engine) -> None:
        version = engine.info.version
        self._dropped.pop(version, None)
        before = self._current.get(name)
        if before is not None and before.version == version:
            return
        self.engines = {version: engine, **self.engines}  # one file under two names is loaded once
        self._current[name] = replace(engine.info, name=name)
        if before is not None:
            log.info("%s was replaced: its version %s gets no more jobs", name, before.version)
            self._drop(before)

    def _drop(self, info: ModelInfo) -> None:
        if info.version not in {other.version for other in self._current.values()}:
            self._dropped[info.version] = (info, monotonic())
