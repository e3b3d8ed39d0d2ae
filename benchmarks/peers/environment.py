"""A virtual environment a contender, made on first use; it sees the main one's torch and leaves it alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Uninstallable(Exception):
    """A contender's requirements cannot be installed."""


def python_of(name: str, requirements: Sequence[str], cache: Path) -> Path:
    """The interpreter that has `requirements`; with none it is this one. Raises Uninstallable."""
    if not requirements:
        return Path(sys.executable)
    folder = cache / name
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = hashlib.sha256("\n".join([*requirements, sys.version]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *requirements]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Uninstallable(
            f"{name}: {' '.join(requirements)} cannot be installed: {_last_line(done.stderr)}"
        )
    # the project's packages come after its own: it takes torch from here, and its pins from there
    ours = sysconfig.get_path("purelib")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "main.pth").write_text(f"{ours}\n")
    stamp.write_text(wanted)
    return python


def variables(python: Path) -> dict[str, str]:
    """The environment of a process that runs in it."""
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SAGAN_", "OMP_", "VIRTUAL_ENV"))}
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT)}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1] if lines else "pip said nothing"
