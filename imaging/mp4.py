"""Frames -> MP4, by the `ffmpeg` of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from imaging.animation import Pixels, Reel
from imaging.stills import MADE_BY

_PAUSE: Final = 0.2  # seconds
_PART: Final = 2**18  # bytes of the file read at once
# one thread: more would choose other bits by their number
_H264: Final = ("-c:v", "libx264", "-preset", "medium", "-crf", "16", "-threads", "1")
_MPEG4: Final = ("-c:v", "mpeg4", "-q:v", "2", "-threads", "1")  # a build without libx264
_COLOURS: Final = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")


class Mp4Error(Exception):
    """ffmpeg could not make the film; the message is its own, in one line."""


def ffmpeg() -> str | None:
    """Where ffmpeg is; None: not on PATH."""
    return shutil.which("ffmpeg")


class Mp4:
    """H.264 of 4:2:0 where ffmpeg has libx264, else MPEG-4 part 2. Width and height must be even."""

    def __init__(self, reel: Reel, rate: Fraction, program: str) -> None:
        """rate: frames a second. program: where ffmpeg is. Raises OSError if it cannot be started."""
        self._folder = TemporaryDirectory(prefix="sagan-film-", ignore_cleanup_errors=True)
        here = Path(self._folder.name)
        self._out = here / "film.mp4"
        self._said = here / "said"
        command = [
            *(program, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            *("-s", f"{reel.width}x{reel.height}", "-framerate", str(rate), "-i", "pipe:0"),
            *(_H264 if "libx264" in _encoders(program) else _MPEG4),
            *(
                "-pix_fmt",
                "yuv420p",
                "-vf",
                "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int",
                *_COLOURS,
            ),
            # without its version and the time, so that the same frames are the same bytes
            *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"),
            # the index comes first: a player begins before it has the whole
            *("-metadata", f"comment={reel.text or MADE_BY}", "-movflags", "+faststart", str(self._out)),
        ]
        try:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
                )
        except OSError:
            self._folder.cleanup()
            raise

    def add(self, frame: Pixels, ms: int) -> bytes:
        """ms is not used: every frame stands as long. Raises Mp4Error."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame.tobytes())
        except OSError:
            self._process.wait()
            raise self._failed() from None
        return b""

    def end(self) -> Iterator[bytes]:
        """Empty pieces are pauses while ffmpeg works. Raises Mp4Error."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended; its exit status says so
            self._process.stdin.close()
        while self._process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PAUSE)
            yield b""
        if self._process.returncode != 0:
            raise self._failed()
        with self._out.open("rb") as file:
            while piece := file.read(_PART):
                yield piece

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):  # of what was not written yet
                self._process.stdin.close()
        self._folder.cleanup()

    def _failed(self) -> Mp4Error:
        said = self._said.read_text(errors="replace").split("\n")
        return Mp4Error(
            next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")[:200]
        )


@cache
def _encoders(program: str) -> str:
    told = subprocess.run(
        [program, "-hide_banner", "-encoders"], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    return told.stdout.decode(errors="replace")
