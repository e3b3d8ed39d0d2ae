"""What a worker counts, and where it is read."""

from __future__ import annotations

import json
import socket
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from redis.exceptions import OutOfMemoryError

from jobs.exposition import read_worker
from jobs.job import ModelInfo
from jobs.records import read_workers
from jobs.settings import METRICS_SOCKET
from jobs.worker_results import StoreFailed
from serve.private_redis import free_port
from worker.engine import NotAnImage
from worker.metrics import (
    ERROR,
    NOT_FINITE,
    OUT_OF_MEMORY,
    REASONS,
    STORE,
    CannotExport,
    WorkerMetrics,
    export,
    reason_of,
)
from worker.settings import WorkerSettings

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def metrics() -> WorkerMetrics:
    """Of a worker with one model and another one that drains."""
    metrics = WorkerMetrics()
    models = [
        ModelInfo("tiny", "ab" * 32, "float32", 32, ("cat", "dog")),
        ModelInfo("old", "cd" * 32, "int8", 32, ("cat",), draining=True),
    ]
    metrics.watch(lambda: models, "cpu", lambda: 3, lambda: 0.5, lambda: 1.5, lambda: True)
    metrics.know(["tiny"])
    return metrics


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_it_counts_forwards_jobs_and_failures_by_model(metrics: WorkerMetrics) -> None:
    assert [value(metrics, "sagan_job_failures_total", model="tiny", reason=why) for why in REASONS] == [
        0
    ] * 6
    metrics.forward("tiny", 6, 0.03)
    metrics.forward("tiny", 2, 0.01)
    metrics.called("tiny", 0.5, of_map=True)
    metrics.called("tiny", 0.5, of_map=False)
    metrics.made("tiny", 70.0, 71.0)
    metrics.failed("tiny", ERROR)
    metrics.failed("", "no_worker", 12)
    assert value(metrics, "sagan_images_total", model="tiny") == 8
    assert value(metrics, "sagan_forward_images_bucket", model="tiny", le="4.0") == 1
    assert value(metrics, "sagan_forward_seconds_sum", model="tiny") == pytest.approx(0.04)
    assert value(metrics, "sagan_device_busy_seconds_total", model="tiny") == pytest.approx(1.04)
    assert value(metrics, "sagan_attention_maps_total", model="tiny") == 1
    assert value(metrics, "sagan_job_queue_seconds_bucket", model="tiny", le="60.0") == 0
    assert value(metrics, "sagan_job_queue_seconds_bucket", model="tiny", le="120.0") == 1
    assert value(metrics, "sagan_job_seconds_count", model="tiny") == 1
    assert value(metrics, "sagan_job_failures_total", model="tiny", reason=ERROR) == 1
    assert value(metrics, "sagan_job_failures_total", model="", reason="no_worker") == 12


def test_it_shows_its_state_and_no_series_that_is_new_at_each_start(metrics: WorkerMetrics) -> None:
    found = {(s.name, *sorted(s.labels)): s for family in metrics.registry.collect() for s in family.samples}
    names = {name for name, *_ in found}
    assert {"sagan_jobs_in_hand", "sagan_forward_running_seconds", "sagan_backlog_seconds"} <= names
    models = [s for key, s in found.items() if key[0] == "sagan_model_info"]
    assert [(s.labels["model"], s.labels["hash"], s.labels["classes"]) for s in models] == [
        ("tiny", "ab" * 8, "2")
    ]
    assert not any(name.startswith("sagan_device_memory") for name in names)
    labels = {label for _, *labels in found for label in labels}
    assert labels == {
        *("model", "reason", "le", "component", "version", "python"),
        *("hash", "precision", "resolution", "classes", "device"),
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotAnImage("values that are no finite numbers"), NOT_FINITE),
        (torch.OutOfMemoryError("CUDA out of memory"), OUT_OF_MEMORY),
        (OutOfMemoryError("OOM command not allowed"), STORE),
        (StoreFailed("the bucket is gone"), STORE),
        (RuntimeError("anything"), ERROR),
        (ValueError("anything"), ERROR),
    ],
)
def test_a_failure_has_one_of_few_reasons(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
    assert reason in REASONS


def test_a_port_shows_them_in_both_formats(metrics: WorkerMetrics) -> None:
    settings = WorkerSettings(metrics_port=free_port())
    export(metrics, settings)
    metrics.made("tiny", 0.1, 0.2, f"00-{TRACE}-b7ad6b7169203331-01")
    url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as reply:
        text = reply.read().decode()
    assert 'sagan_job_seconds_count{model="tiny"} 1.0' in text
    assert "process_cpu_seconds_total" in text
    assert TRACE not in text  # the old format has no place for it
    asked = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(asked, timeout=10) as reply:
        assert reply.headers["content-type"].startswith("application/openmetrics-text")
        assert f'# {{trace_id="{TRACE}"}} 0.2' in reply.read().decode()


def test_a_port_that_is_taken_is_told_at_once(metrics: WorkerMetrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = WorkerSettings(metrics_port=taken.getsockname()[1])
        with pytest.raises(CannotExport, match="Choose another SAGAN_METRICS_PORT"):
            export(metrics, settings)
    with pytest.raises(CannotExport, match="SAGAN_METRICS_ADDRESS"):
        export(metrics, WorkerSettings(metrics_port=free_port(), metrics_address="no.such.name.invalid"))


async def test_the_service_reads_them_at_a_socket(
    metrics: WorkerMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.sock"
    assert await read_worker(str(path)) == ()  # it starts
    path.touch()  # of a worker that was killed
    monkeypatch.setenv(METRICS_SOCKET, str(path))
    export(metrics, WorkerSettings())
    for _ in range(2):
        names = {family.name for family in await read_worker(str(path))}
        assert {"sagan_job_seconds", "sagan_model", "sagan_build"} <= names
        assert not any(name.startswith("process_") for name in names)  # the service counts its processes


def test_heartbeats_of_releases_that_told_more_are_read() -> None:
    now = datetime.now(UTC).isoformat()
    stats = {
        "images": 5,
        "forwards": 2,
        "busy_seconds": 0.4,
        "batch_sizes": {"4": 1, "1": 1},
        "attention_maps": 3,
    }
    beat = {
        **{"id": "host:1:abcd", "device": "cpu", "started_at": now, "beat_at": now},
        **{"models": [], "stats": {"tiny": stats}, "format": 2},
    }
    [worker] = read_workers({"host:1:abcd": json.dumps(beat).encode()})
    assert worker.stats["tiny"].attention_maps == 3
