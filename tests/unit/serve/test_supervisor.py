"""The pauses between tries, and the reasons that a private Redis is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve import private_redis, supervisor
from serve.private_redis import PrivateRedis


def test_pauses_grow_to_half_a_minute_and_begin_anew_after_a_quiet_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(supervisor, "monotonic", lambda: now)
    pauses = supervisor._Pauses(0.0)
    found = []
    for _ in range(8):
        found.append(pauses.next())
        now += found[-1] + 5  # it lives for five seconds
    assert found == [0, 1, 2, 4, 8, 16, 30, 30]
    now += 61
    assert pauses.next() == 0


def test_a_full_disk_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PrivateRedis(tmp_path)
    assert server.trouble() == ""
    monkeypatch.setattr(private_redis, "FULL", 10**18)
    assert server.trouble() == f"the disk of {tmp_path} is full"
