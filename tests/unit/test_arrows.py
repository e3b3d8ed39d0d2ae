"""The arrows between the rooms run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WEB = {"fastapi", "starlette", "uvicorn", "celery", "kombu", "redis", "pydantic", "pydantic_settings"}
FORBIDDEN = {
    "app": {"torch", "torchvision", "model", "train"},
    "bench": {"app", "worker", "model", "train", "torch"} | WEB,
    "worker": {"app", "train", "torchvision", "fastapi", "starlette"},
    "model": {"app", "worker", "train"} | WEB,
    "train": {"app", "worker"} | WEB,
}
# Of the worker, the API may know only the contract and the queue.
FOR_THE_API = {"worker.classes", "worker.jobs", "worker.job_store", "worker.settings", "worker.wire"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            folder = ROOT / module.replace(".", "/")
            for alias in node.names:
                yield f"{module}.{alias.name}" if (folder / f"{alias.name}.py").exists() else module


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_package_imports_what_it_must_not_know(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 3
    found = {
        (path.name, name)
        for path in files
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN[package]
    }
    assert not found


def test_the_api_knows_of_the_worker_only_the_contract_and_the_queue() -> None:
    found = {
        name for path in (ROOT / "app").rglob("*.py") for name in imports(path) if name.startswith("worker")
    }
    assert found <= FOR_THE_API


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("app.main", ["torch", "model", "train", "celery", "kombu"]),
        ("worker.jobs", ["torch", "celery", "redis", "pydantic"]),
        ("worker.offline", ["pydantic", "celery", "redis", "fastapi"]),
        ("worker.job_store", ["torch", "celery"]),
        ("worker.queue", ["torch"]),
        ("model.checkpoint", ["pydantic", "celery", "redis", "fastapi"]),
        ("bench.command", ["torch", "celery", "fastapi", "redis"]),
        ("train.run", ["pydantic", "celery", "redis", "fastapi"]),
        ("cli", ["torch", "celery", "fastapi"]),
    ],
)
def test_what_a_module_really_loads(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
