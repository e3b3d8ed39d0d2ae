"""Files -> the pieces of a ZIP that holds them as they are."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime


class _Tail(io.BytesIO):
    """The end of a file whose beginning was sent: zipfile goes back to write the sizes before a content."""

    _sent = 0  # bytes

    def tell(self) -> int:
        return self._sent + super().tell()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return super().seek(offset - self._sent, whence) + self._sent

    def take(self) -> bytes:
        piece = self.getvalue()
        self._sent += len(piece)
        super().seek(0)
        self.truncate()
        return piece


def zipped(files: Iterable[tuple[str, bytes]], made_at: datetime) -> Iterator[bytes]:
    """Stored, not deflated: pictures are packed already. files: names in ASCII, and contents."""
    tail = _Tail()
    with zipfile.ZipFile(tail, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            about = zipfile.ZipInfo(name, made_at.timetuple()[:6])
            about.create_system = 3  # Unix, whatever runs here
            about.external_attr = 0o644 << 16
            archive.writestr(about, content)
            yield tail.take()
    yield tail.take()
