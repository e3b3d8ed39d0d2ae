"""Frames and script time of the page while the pointer moves over an image with its attention map.

    python -m benchmarks.hover [--url http://127.0.0.1:8000/] [--model dogs64] [--seconds 6]

Playwright drives a real Chromium: it opens the link of an image, waits for the map and moves a pointer over
the picture. Frame intervals are those of requestAnimationFrame. Script is the CPU time of handlers and
animation frames, with the layout they force, from the browser's own trace (CDP). Without a GPU the browser
composes its frames on the CPU, beside everything else that runs there; script is what the page itself costs.
Without --url a service is started on a fresh folder.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parent.parent
BUDGET = 1000 / 60  # ms a frame
PAUSE = 8.0  # ms between two moves, as of a mouse of 125 Hz; the browser handles them once a frame
HANDLERS = frozenset({"pointermove", "mousemove", "pointerover", "mouseover", "pointerenter", "mouseenter"})

# Keeps the times of all frames from `start()` to `stop()`, which returns them.
RECORDER = """
window.frames_seen = [];
window.start = () => {
  window.recording = true;
  const next = (now) => { window.frames_seen.push(now); if (window.recording) requestAnimationFrame(next); };
  requestAnimationFrame(next);
};
window.stop = () => { window.recording = false; return window.frames_seen; };
"""


@contextmanager
def service() -> Iterator[str]:
    """`sagan serve` on a free port; its URL."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"SAGAN_STATE_DIR": folder}
        env.pop("SAGAN_REDIS_URL", None)
        command = [sys.executable, "-c", "import cli; cli.app()", "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            ready = next((line for line in process.stderr if "ready with" in line), None)
            if ready is None:
                raise SystemExit("The service did not start; see above.")
            yield next(word for word in ready.split() if word.startswith("http")) + "/"
        finally:
            process.terminate()
            process.wait(60)


def launch(playwright: Any) -> Browser:
    """The Chromium on PATH, else Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    browser: Browser = playwright.chromium.launch(executable_path=found, args=flags)
    return browser


def run_over(page: Page, seconds: float) -> int:
    """Move the pointer over the picture on a slow spiral; the number of moves."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    began, moves = time.perf_counter(), 0
    while (at := time.perf_counter() - began) < seconds:
        radius, angle = 0.45 * abs(math.sin(0.4 * at)), 2.5 * at
        x, y = 0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        moves += 1
        time.sleep(max(0.0, moves * PAUSE / 1000 - (time.perf_counter() - began)))
    return moves


def scripts(trace: bytes) -> list[float]:
    """Script of each frame that drew, its handlers and its animation frames: ms of CPU."""
    events = json.loads(trace)["traceEvents"]
    spans: list[tuple[float, str, float]] = []
    for event in events:
        if event.get("ph") != "X":
            continue
        kind = event.get("args", {}).get("data", {}).get("type")
        if event["name"] == "FireAnimationFrame" or (event["name"] == "EventDispatch" and kind in HANDLERS):
            spans.append((event["ts"], event["name"], event.get("tdur", event["dur"]) / 1000))
    spans.sort()
    frames: list[float] = []
    spent, drawing = 0.0, False
    for _, name, took in spans:
        if name == "EventDispatch" and drawing:  # handlers of the next frame
            frames.append(spent)
            spent, drawing = 0.0, False
        spent += took
        drawing = drawing or name == "FireAnimationFrame"
    return frames


def quantiles(values: Sequence[float]) -> str:
    """p50, p95 and the largest, ms."""
    cuts = statistics.quantiles(values, n=20)
    return f"{statistics.median(values):8.2f}{cuts[18]:8.2f}{max(values):8.2f}"


def main(
    url: Annotated[str | None, typer.Option(help="A running service; unless told, one is started")] = None,
    model: Annotated[str, typer.Option(help="One with attention")] = "dogs64",
    seconds: Annotated[float, typer.Option(help="How long the pointer moves", min=1)] = 6,
) -> None:
    """Print quantiles of frame intervals and script time."""
    if url is None:
        with service() as started:
            return main(started, model, seconds)
    with urllib.request.urlopen(f"{url}models/{model}") as answer:
        first = json.load(answer)["classes"][0]["name"]
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(RECORDER)
        page.goto(f"{url}?{urlencode({'model': model, 'class': first, 'seed': 1, 'image': 0})}")
        page.locator("#gate").wait_for()
        run_over(page, 1)  # the map is drawn and the code compiled before anything counts
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        browser.start_tracing(page=page, categories=["devtools.timeline"])
        page.evaluate("start()")
        moves = run_over(page, seconds)
        times = page.evaluate("stop()")
        script = scripts(browser.stop_tracing())
        version, side = browser.version, page.locator("#stage").bounding_box()
        browser.close()
    assert side is not None
    intervals = [after - before for before, after in pairwise(times)]
    on_time = sum(interval < 1.5 * BUDGET for interval in intervals) / len(intervals)
    typer.echo(
        f"Chromium {version}, {platform.machine()}, {os.cpu_count()} cores, picture {side['width']:.0f} px; "
        f"{moves} moves, {len(intervals)} frames in {seconds:g} s, {len(asked)} requests"
    )
    typer.echo(f"{'ms':24}{'p50':>8}{'p95':>8}{'max':>8}")
    typer.echo(f"{'between two frames':24}{quantiles(intervals)}   ({on_time:.1%} without a missed one)")
    typer.echo(f"{'script of a frame':24}{quantiles(script)}   ({len(script)} frames drew)")


if __name__ == "__main__":
    typer.run(main)
