"""The images of a job one after the other: what is asked for, checked, and drawn frame by frame."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from app import pictures
from app.colours import Colormap
from app.drawing import Place
from app.errors import Invalid, NotAcceptable, TooLarge
from app.formats import Moving
from imaging.animation import Apng, Film, Gif, Pixels, Reel, Webp
from imaging.enlarging import Resample, strips
from imaging.mp4 import Mp4, Mp4Error, ffmpeg
from imaging.png import Writer
from imaging.stills import STILL_MEMORY

POINT: Final = r" *-?[0-9]{1,6}(\.[0-9]{1,6})? *, *-?[0-9]{1,6}(\.[0-9]{1,6})? *"  # as attention.parse_points

USUAL_RATE: Final = 12  # frames a second
FASTEST: Final = 60
FASTEST_GIF: Final = 50  # a GIF counts in hundredths of a second, and players slow down one hundredth
SLOWEST: Final = 10  # seconds of a frame
MOST_PIXELS: Final = 2**26  # of all frames: 256 of 512 px
WIDEST: Final = 8192  # pixels of a strip's side
_ENCODER: Final = 2**26  # bytes of ffmpeg's own, beside 100 a pixel of a frame
_PAINTED: Final = (64, 1024)  # sides of a frame with attention, as of a panel of GET /attention
_STANDING: Final = {"seconds", "fps", "loop", "bounce"}  # what a strip does not have


class FilmIn(BaseModel):
    """How a job's images become a film."""

    model_config = ConfigDict(extra="forbid")

    format: Moving | None = Field(
        None,
        description="Absent: as `Accept` asks, webp unless it names another. mp4 where ffmpeg is on the "
        "API's machine. strip: one PNG, the frames side by side without gaps.",
    )
    seconds: float | None = Field(
        None, gt=0, le=2560, allow_inf_nan=False, description="Of the whole. Absent: a twelfth a frame."
    )
    fps: float | None = Field(
        None, gt=0, le=FASTEST, allow_inf_nan=False, description="Frames a second, instead of `seconds`."
    )
    loop: bool = Field(True, description="It begins again at its end.")
    bounce: bool = Field(False, description="It plays forward, then back: a loop without a jump.")
    size: int | None = Field(None, ge=16, description="Side of a frame, pixels; of an mp4 made even.")
    resample: Resample = "nearest"
    columns: int | None = Field(None, ge=1, le=256, description="Frames in a row of a strip. Absent: all.")
    quality: int | None = Field(None, ge=1, le=100, description="Of a lossy webp; absent: lossless.")
    attention: str | None = Field(
        None,
        max_length=40,
        description="x,y in pixels of the image: each frame shows where this point attends, as view=overlay "
        "of GET /attention does. The maps must be there: POST /morph with attention "
        "makes them, or GET /attention, image by image.",
        examples=["8,12"],
        json_schema_extra={"pattern": f"^{POINT};?$"},
    )
    layer: str | None = Field(None, max_length=100, description="Of the attention; absent: the first.")
    colormap: Colormap = "inferno"
    alpha: float = Field(0.8, ge=0, le=1, description="How far the hottest place covers the image.")

    def check(self, kind: Moving) -> None:
        """Raises Invalid for what does not go together. kind: the format, asked for or chosen."""
        given = self.model_fields_set
        if self.seconds is not None and self.fps is not None:
            raise Invalid("seconds and fps both say how fast it plays: give one of them.")
        if kind == "strip" and (moving := sorted(_STANDING & given)):
            raise Invalid(f"A strip stands still: leave out {', '.join(moving)}, or ask for format=webp.")
        if kind != "strip" and self.columns is not None:
            raise Invalid("columns is for format=strip: add that, or leave columns out.")
        if kind == "mp4" and "loop" in given:
            raise Invalid("Whether an mp4 begins again is up to its player: leave loop out, or ask for webp.")
        if kind != "webp" and self.quality is not None:
            raise Invalid("quality is for format=webp: leave it out, or ask for that.")
        if self.attention is None and (painting := sorted({"layer", "colormap", "alpha"} & given)):
            raise Invalid(f"{', '.join(painting)}: of attention=x,y. Add that, or leave them out.")
        if self.attention is not None and "resample" in given:
            raise Invalid("Attention is painted over crisp pixels: leave resample out.")
        low, high = _PAINTED
        if self.attention is not None and self.size is not None and not low <= self.size <= high:
            raise Invalid(f"size must be {low} to {high} pixels where attention is painted.")


@dataclass(frozen=True)
class Plan:
    """A film whose parts fit together."""

    kind: Moving
    side: int  # of a frame, pixels
    order: tuple[int, ...]  # of the images
    times: tuple[int, ...]  # ms that each stands
    rate: Fraction  # frames a second
    columns: int  # of a strip
    loop: bool
    quality: int | None

    @property
    def pixels(self) -> int:
        return len(self.order) * self.side**2

    def film(self, text: str) -> Film:
        """What draws it. text: the recipe in it. Raises NotAcceptable."""
        reel = Reel(self.side, self.side, len(self.order), self.loop, text)
        match self.kind:
            case "webp":
                return Webp(reel, self.quality)
            case "apng":
                return Apng(reel)
            case "gif":
                return Gif(reel)
            case "mp4":
                program = ffmpeg()
                try:
                    return Mp4(reel, self.rate, program or "ffmpeg")
                except OSError as error:
                    raise NotAcceptable(
                        f"ffmpeg does not start here ({error.strerror}). Ask for webp."
                    ) from error
            case "strip":
                return Strip(self.side, self.columns, len(self.order), text)

    def memory(self, resolution: int) -> int:
        """Bytes that it uses at most, with the PNGs of its images. resolution: of these, pixels."""
        frame = self.side**2
        pngs = 2 * 3 * resolution**2 * len(set(self.order))
        kept = {"webp": 3 * self.pixels, "mp4": _ENCODER + 100 * frame, "strip": 4 * 3 * frame * self.columns}
        return pngs + kept.get(self.kind, 0) + 2 * STILL_MEMORY * frame + pictures.ALWAYS


def plan(asked: FilmIn, kind: Moving, count: int, resolution: int) -> Plan:
    """The film of `count` images of `resolution` pixels. Raises Invalid, TooLarge."""
    order = tuple(range(count))
    if asked.bounce:
        order += order[-2:0:-1]
    usual = resolution if asked.attention is None else max(resolution, 256)
    side = asked.size or usual
    side += side % 2 if kind == "mp4" else 0  # its colours are stored for 2 × 2 pixels
    if len(order) * side * side > MOST_PIXELS:
        most = int((MOST_PIXELS / len(order)) ** 0.5)
        raise TooLarge(f"size must be at most {most} for a film of {len(order)} frames.")
    columns = min(count, asked.columns or max(1, min(count, WIDEST // side)))
    rows = -(-count // columns)
    if kind == "strip" and max(columns, rows) * side > WIDEST:
        raise TooLarge(
            f"A strip of {columns} columns and {rows} rows of {side} px is larger than {WIDEST} px. "
            "Ask for other columns, or a smaller size."
        )
    seconds = _seconds(asked, kind, len(order))
    ends = [round(1000 * seconds * k / len(order)) for k in range(len(order) + 1)]
    return Plan(
        kind=kind,
        side=side,
        order=order,
        times=tuple(after - before for before, after in pairwise(ends)),
        rate=(len(order) / Fraction(seconds)).limit_denominator(1000),
        columns=columns,
        loop=asked.loop,
        quality=asked.quality,
    )


def _seconds(asked: FilmIn, kind: Moving, frames: int) -> float:
    """Of the whole film. Raises Invalid where that is faster or slower than players can."""
    seconds = frames / USUAL_RATE
    if asked.seconds is not None:
        seconds = asked.seconds
    elif asked.fps is not None:
        seconds = frames / asked.fps
    fastest = FASTEST_GIF if kind == "gif" else FASTEST
    least, most = frames / fastest, frames * SLOWEST
    if not least * 0.999 <= seconds <= most * 1.001:
        raise Invalid(
            f"{frames} frames in {seconds:.3g} s are too {'fast' if seconds < least else 'slow'}: ask for "
            f"{least:.3g} to {most:.3g} seconds, which is fps {1 / SLOWEST:g} to {fastest} as {kind}."
        )
    return seconds


class Strip:
    """All frames as one PNG, row by row, without gaps."""

    def __init__(self, side: int, columns: int, frames: int, text: str) -> None:
        self._side = side
        self._row: list[Pixels] = []
        self._columns = columns
        self._writer = Writer(columns * side, -(-frames // columns) * side, text)

    def add(self, frame: Pixels, ms: int) -> bytes:
        self._row.append(frame)
        return self._written() if len(self._row) == self._columns else b""

    def end(self) -> Iterator[bytes]:
        if self._row:
            yield self._written()
        yield self._writer.end()

    def close(self) -> None:
        self._row.clear()

    def _written(self) -> bytes:
        """The row at hand; white where it has no more frames."""
        row = pictures.blank(self._columns * self._side, self._side)
        for column, frame in enumerate(self._row):
            row[:, column * self._side : (column + 1) * self._side] = frame
        self._row.clear()
        bounds = strips(row.shape[1], self._side)
        return b"".join(self._writer.add(row[top:bottom]) for top, bottom in bounds)


async def drawn(
    place: Place, planned: Plan, text: str, frame_of: Callable[[int], Awaitable[Pixels]]
) -> AsyncGenerator[bytes]:
    """The pieces of a film. frame_of: draws an image of the job, [side, side, 3]. Raises NotAcceptable."""
    film = await place.run(planned.film, text)
    try:
        for index, ms in zip(planned.order, planned.times, strict=True):
            frame = await frame_of(index)
            if piece := await place.run(film.add, frame, ms):
                yield piece
        async for piece in place.pieces(film.end()):
            yield piece
    except Mp4Error as error:
        raise NotAcceptable(f"ffmpeg could not make this film: {error}. Ask for webp.") from error
    finally:
        film.close()
