"""The errors of training, as one tree.

TrainError
├── DataError            images could not become a pack, or a pack could not be read
│   ├── UnknownSource    nothing here that this code knows how to read
│   ├── UnsafeSource     a file that asks for more than images: refused, never run
│   ├── NoImages         a source that has no readable image
│   └── NotAPack         a file that is not a pack, or is a damaged one
├── FeaturesError        the feature extractor, or a measurement made with it
├── PretrainedError      the ImageNet-pretrained network is missing, or its file is not the published one
└── ExperimentError      no such experiment, or not with these settings in this folder
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TrainError(Exception):
    """Root of everything this package raises on purpose; its message is one line for a person."""


class DataError(TrainError):
    """Images could not become a pack, or a pack could not be read."""


class UnknownSource(DataError):
    """Nothing here that this code knows how to read."""


class UnsafeSource(DataError):
    """A file that asks for more than images; it was refused before anything in it ran."""


class NoImages(DataError):
    """A source that has no readable image."""


class NotAPack(DataError):
    """A file that is not a pack, or is a damaged one."""


class FeaturesError(TrainError):
    """The feature extractor, or a measurement made with it, cannot be what was asked for."""


class PretrainedError(TrainError):
    """The ImageNet-pretrained network is missing, or its file is not the published one."""


class ExperimentError(TrainError):
    """No such experiment, or not with these settings in this folder."""


@contextmanager
def told_by_the_system(out: Path) -> Iterator[None]:
    """Errors of the file system (no permission, no room) as one line.

    Those of a thread go untold here: TensorBoard's raises its own again at the next point of a curve.
    """
    before = threading.excepthook
    threading.excepthook = lambda ended: None if isinstance(ended.exc_value, OSError) else before(ended)
    try:
        yield
    except OSError as error:
        at = error.filename or out
        raise TrainError(
            f"{error.strerror or error}: {at}. What had been saved in {out} before is whole."
        ) from error
    finally:
        threading.excepthook = before
