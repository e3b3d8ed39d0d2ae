"""The embedded service without clients: its CPU at rest, and the seconds to its first image.

    python -m benchmarks.idle_and_cold_start idle [--seconds 60]
    python -m benchmarks.idle_and_cold_start cold [--rounds 5]

`sagan serve` as it ships, with the checkpoints that ship, on a state folder of its own.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Annotated, Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil
import typer

from serve.private_redis import end, free_port

ROOT: Final = Path(__file__).parent.parent
# an installed service finds byte code from its second start on
ENV: Final = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)


class Service:
    """`sagan serve`, from the moment it is started."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / "log"
        self.began = time()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "serve", "--port", str(self.port)],
                env={**ENV, "SAGAN_STATE_DIR": str(folder / "state")},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def asked(self) -> bytes:
        """Ask for an image until one comes; its PNG."""
        headers = {"Prefer": "wait=30", "Accept": "image/png", "Content-Type": "application/json"}
        request = Request(f"http://127.0.0.1:{self.port}/generate/0", b"{}", headers)
        while True:
            assert self.process.poll() is None, self._log.read_text()
            try:
                with urlopen(request, timeout=40) as answer:
                    if answer.status == 200:
                        png: bytes = answer.read()
                        return png
            except (HTTPError, URLError, ConnectionError):
                sleep(0.01)

    def said(self, words: str) -> float:
        """Seconds from the start to the worker's first line with these words."""
        line = next(line for line in self._log.read_text().splitlines() if words in line)
        stamp = re.match(r"[-0-9]+ [:0-9]+,[0-9]+", line)
        assert stamp, line
        return datetime.strptime(stamp[0], "%Y-%m-%d %H:%M:%S,%f").timestamp() - self.began

    def parts(self) -> dict[str, psutil.Process]:
        """Its processes by part."""
        api = psutil.Process(self.process.pid)
        children = {"worker" if "worker" in child.cmdline() else "Redis": child for child in api.children()}
        return {"API": api, **children}


@contextmanager
def _service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder))
        try:
            yield service
        finally:
            end(service.process, 40)


@app.command()
def idle(seconds: Annotated[float, typer.Option(min=1)] = 60) -> None:
    """Share of a core that each part takes, user and system, ten seconds after the first image."""
    with _service() as service:
        service.asked()
        sleep(10)
        before = {name: part.cpu_times() for name, part in service.parts().items()}
        sleep(seconds)
        for name, part in service.parts().items():
            now, then = part.cpu_times(), before[name]
            used = now.user + now.system - then.user - then.system
            typer.echo(
                f"{name:8}{100 * used / seconds:6.2f} % of a core, {part.memory_info().rss / 1e6:.0f} MB"
            )


@app.command()
def cold(rounds: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Seconds from the command to the first PNG, and to the worker's lines on the way.

    One start before the ones that count brings files and byte code into memory.
    """
    marks: dict[str, list[float]] = {}
    with _service() as service:
        service.asked()
    for _ in range(rounds):
        with _service() as service:
            began = monotonic()
            service.asked()
            png = monotonic() - began
            for words in ("loading models", "loaded", "serving"):
                marks.setdefault(words, []).append(service.said(words))
            marks.setdefault("the first PNG", []).append(png)
    for words, times in marks.items():
        typer.echo(f"{words:16}{statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    app()
