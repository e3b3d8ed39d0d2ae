"""The scripts of docs/api.md, as they stand there, each against the service."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
ADDRESS = "http://127.0.0.1:8000"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A script of the page."""

    language: str
    code: str


def documented() -> dict[str, list[Block]]:
    """Heading -> the scripts below it, of the section Clients."""
    page = (ROOT / "docs" / "api.md").read_text()
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    [clients] = [part for part in section if part.startswith("Clients\n")]
    _, *parts = re.split(r"^### ", clients, flags=re.MULTILINE)
    return {part.split("\n")[0]: [Block(*found) for found in _BLOCK.findall(part)] for part in parts}


SCRIPTS = documented()


def node(*, with_event_source: bool) -> list[str]:
    """Node with its arguments; Playwright's own where the one on PATH is too old."""
    candidates = [shutil.which("node")]
    try:
        import playwright

        candidates.append(str(Path(playwright.__file__).parent / "driver" / "node"))
    except ImportError:
        pass
    words = ["--experimental-eventsource"] if with_event_source else []
    for candidate in filter(None, candidates):
        command = [candidate, *words]
        if (
            Path(candidate).exists()
            and not subprocess.run([*command, "--version"], capture_output=True).returncode
        ):
            return command
    pytest.skip(f"there is no node {' '.join(words)}")


def run(heading: str, url: str, folder: Path) -> str:
    """What the scripts below a heading print."""
    said = ""
    interpreters = {
        "sh": lambda: ["sh", "-eu", "script.sh"],
        "python": lambda: [sys.executable, "-W", "error", "script.py"],
        "js": lambda: [*node(with_event_source="EventSource" in heading), "script.mjs"],
    }
    endings = {"sh": "sh", "python": "py", "js": "mjs"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, code in SCRIPTS[heading]:
        command = interpreters[language]()
        assert ADDRESS in code
        (folder / f"script.{endings[language]}").write_text(code.replace(ADDRESS, url))
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    return said


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.format == "PNG"
        return image.size


def test_curl(documented_api: str, tmp_path: Path) -> None:
    run("curl", documented_api, tmp_path)
    assert size_of(tmp_path / "cats.png") == (66, 32)


def test_our_own_client(documented_api: str, tmp_path: Path) -> None:
    said = run("Python, with sagan.client", documented_api, tmp_path)
    assert sorted(re.findall(r"image (\d) has", said)) == ["0", "1"]
    names = ["cat-42-0000.png", "cat-42-0001.png"]
    assert str(names) in said
    assert [size_of(tmp_path / "cats" / name) for name in names] == [(32, 32), (32, 32)]
    assert size_of(tmp_path / "figure.png")[0] > 256
    with Image.open(tmp_path / "way.webp") as film:
        assert (film.format, getattr(film, "n_frames", 1)) == ("WEBP", 8)


def test_openai(documented_api: str, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    said = run("Python, with openai", documented_api, tmp_path)
    assert "['cifar10']" in said
    assert [size_of(tmp_path / f"cat-42-{k}.png") for k in (0, 1)] == [(256, 256), (256, 256)]


def test_a_client_made_of_the_document(documented_api: str, tmp_path: Path) -> None:
    pytest.importorskip("openapi_python_client")
    said = run("Python, made by openapi-python-client", documented_api, tmp_path)
    assert "WARNING" not in said
    assert "succeeded cat" in said
    assert [size_of(tmp_path / f"cat-42-{k}.png") for k in (0, 1)] == [(32, 32), (32, 32)]


def test_fetch(documented_api: str, tmp_path: Path) -> None:
    said = run("JavaScript, with fetch", documented_api, tmp_path)
    assert "{ state: 'succeeded', done: 2 }" in said
    assert len(re.findall(r"image/png [1-9]\d+", said)) == 2


def test_event_source(documented_api: str, tmp_path: Path) -> None:
    said = run("JavaScript, with EventSource", documented_api, tmp_path)
    assert "end { state: 'succeeded', done: 2 }" in said


def test_every_script_of_the_page_is_run() -> None:
    tests = Path(__file__).read_text()
    assert len(SCRIPTS) == 6
    for heading, blocks in SCRIPTS.items():
        assert blocks
        assert f'run("{heading}"' in tests
