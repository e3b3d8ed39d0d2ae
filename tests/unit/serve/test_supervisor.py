"""The pauses between tries, and the reasons that a private Redis is given."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from jobs.errors import BrokerUnavailable
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


async def test_a_worker_that_lives_and_is_silent_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not while Redis is away: nobody could hear it then."""
    now, beats = 1000.0, ["host:7:a"]
    monkeypatch.setattr(supervisor, "monotonic", lambda: now)
    killed = Mock()
    worker = SimpleNamespace(pid=7, poll=lambda: None, kill=killed)

    class Store:
        away = False

        async def workers(self) -> list[SimpleNamespace]:
            if self.away:
                raise BrokerUnavailable
            return [SimpleNamespace(id=beat) for beat in beats]

        async def models(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="tiny")]

    store = Store()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = supervisor._Service(listener, "redis://nowhere", Path(), [])
        service._worker = worker  # type: ignore[assignment]

        async def pass_by(seconds: float) -> None:
            nonlocal now
            for _ in range(int(seconds)):
                now += 1
                await service._look_after_worker(store)  # type: ignore[arg-type]

        await pass_by(100)
        store.away = True
        await pass_by(100)
        store.away = False
        beats.clear()
        await pass_by(50)
        killed.assert_not_called()
        await pass_by(30)
        killed.assert_called()
