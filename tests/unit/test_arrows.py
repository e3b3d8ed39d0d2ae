"""The arrows between the folders run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# folder -> the other folders of ours that it may import
ARROWS = {
    "app": {"imaging", "jobs"},
    "jobs": set(),
    "worker": {"imaging", "jobs", "model"},
    "serve": {"jobs"},
    "imaging": set(),
    "model": {"imaging"},
    "train": {"imaging", "model"},
    "loadtest": {"imaging"},
    "sagan": set(),
    "cli": {"app", "imaging", "jobs", "loadtest", "model", "serve", "train", "worker"},
}
WEB = {"fastapi", "starlette", "uvicorn"}
QUEUE = {"celery", "kombu", "redis"}
# folder -> packages of others that it must not import
FOREIGN = {
    "app": {"torch", "torchvision", "celery", "kombu"},
    "jobs": {"torch", "torchvision", "celery", "kombu"} | WEB,
    "worker": {"torchvision"} | WEB,
    "serve": {"torch", "celery", "kombu"},
    "imaging": {"pydantic"} | WEB | QUEUE,
    "model": {"pydantic"} | WEB | QUEUE,
    "train": WEB | QUEUE,
    "loadtest": {"torch"} | WEB | QUEUE,
    "sagan": {"pydantic", "torch"} | WEB | QUEUE,
    "cli": set(),
}


def imports(path: Path) -> Iterator[str]:
    """Top-level names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("folder", sorted(ARROWS))
def test_a_folder_imports_only_what_its_row_says(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert len(files) > 2
    forbidden = (ARROWS.keys() - ARROWS[folder] - {folder}) | FOREIGN[folder]
    found = {
        (str(path.relative_to(ROOT)), name) for path in files for name in imports(path) if name in forbidden
    }
    assert not found


def test_every_folder_of_the_wheel_has_its_row() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"benchmarks"} == set(ARROWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("app.main", ["torch", "model", "train", "celery", "kombu", "httpx"]),
        ("jobs.job", ["torch", "celery", "redis", "pydantic"]),
        ("jobs.client", ["torch", "celery", "obstore"]),
        ("worker.offline", ["pydantic", "celery", "redis", "fastapi"]),
        ("worker.celery_app", ["torch"]),
        ("model.checkpoint", ["pydantic", "celery", "redis", "fastapi"]),
        ("loadtest.command", ["torch", "celery", "fastapi", "redis"]),
        ("train.commands", ["celery", "redis", "fastapi"]),
        ("sagan.client", ["torch", "celery", "fastapi", "redis", "pydantic", "numpy"]),
        ("cli", ["torch", "celery", "fastapi"]),
    ],
)
def test_what_a_module_really_loads(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
