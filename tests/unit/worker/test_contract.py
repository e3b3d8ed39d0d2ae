"""What the API and a worker agree on, without a broker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from worker.jobs import AttentionMap
from worker.message import broker_priority
from worker.queue import make_celery
from worker.settings import QueueSettings, WorkerSettings


def test_an_attention_map_survives_the_way_through_redis() -> None:
    values = np.random.default_rng(0).random((12, 6)).astype(np.float16)
    values[0, 0] = np.frombuffer(b"\n\n", np.float16)[0]  # a newline among the numbers
    found = AttentionMap("4x3", (4, 3), (2, 3), 0.25, 0.125, values)
    again = AttentionMap.from_bytes(found.to_bytes())
    assert (again.layer, again.query_grid, again.key_grid) == ("4x3", (4, 3), (2, 3))
    assert (again.gamma, again.share) == (0.25, 0.125)
    np.testing.assert_array_equal(again.map, values)


def test_nine_is_most_urgent_and_redis_counts_the_other_way() -> None:
    assert [broker_priority(priority) for priority in range(10)] == list(range(9, -1, -1))


def test_the_settings_that_decide_whether_a_job_can_be_lost() -> None:
    conf = make_celery(QueueSettings(namespace="here")).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.accept_content == ["json"]
    assert conf.broker_connection_max_retries is None
    options = conf.broker_transport_options
    assert options["global_keyprefix"] == "here:celery:"
    assert (options["unacked_restore_interval"], options["unacked_restore_throttle"]) == (1, 1)
    assert options["visibility_timeout"] >= 3600


def test_settings_come_from_the_environment_and_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_RESULT_TTL", "60")
    monkeypatch.setenv("SAGAN_CHECKPOINTS", "elsewhere")
    monkeypatch.setenv("SAGAN_SOMETHING_OF_THE_API", "x")
    settings = WorkerSettings()
    assert (settings.result_ttl, settings.checkpoints) == (60, Path("elsewhere"))
    monkeypatch.setenv("SAGAN_REDIS_URL", "amqp://localhost")
    with pytest.raises(ValidationError, match="redis://"):
        WorkerSettings()


@pytest.mark.parametrize("module", ["worker.jobs", "worker.health", "worker.embedded", "app.main"])
def test_neither_torch_nor_celery_on_the_api_s_side(module: str) -> None:
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'celery', 'kombu'}} & sys.modules.keys()))"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
