"""sagan queue and sagan doctor against a real Redis and a real worker."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from cli import app
from jobs.job import Context, Terms
from tests.integration.conftest import Service

Sagan = Callable[..., str]


@pytest.fixture
def sagan(service: Service, monkeypatch: pytest.MonkeyPatch) -> Sagan:
    """Runs a command beside the service; returns what it printed."""
    monkeypatch.setenv("SAGAN_REDIS_URL", service.settings.redis_url)
    monkeypatch.setenv("SAGAN_NAMESPACE", service.settings.namespace)
    monkeypatch.setenv("SAGAN_CHECKPOINTS", str(service.checkpoints))

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        return done.output

    return run


async def test_everybody_s_jobs_are_listed_told_and_cancelled(service: Service, sagan: Sagan) -> None:
    terms = Terms(Context("a-request", "key-of-bob"), expires_in=600)
    cat, _ = await service.store.create(await service.spec(priority=9), "alice", caller="alice-address")
    dog, _ = await service.store.create(await service.spec(seed=8), "bob", terms=terms)
    last, _ = await service.store.create(await service.spec(seed=9, class_name="[red]dog"), "bob")

    listed = sagan("queue", "list")
    assert [line.split()[0] for line in listed.splitlines()[1:]] == [cat.id, dog.id, last.id]
    assert "[red]dog" in listed  # a name is no markup
    for caller, theirs in (("alice", [cat]), ("alice-", [cat]), ("bob", [dog, last]), ("key-of-bob", [dog])):
        rows = json.loads(sagan("queue", "list", "--caller", caller, "--json"))["jobs"]
        assert [row["id"] for row in rows] == [job.id for job in theirs], caller
    assert json.loads(sagan("queue", "list", "--limit", "1", "--json"))["more"] is True
    assert "No job is failed" in sagan("queue", "list", "--state", "failed")

    told = json.loads(sagan("queue", "inspect", dog.id, "--json"))
    assert (told["owner"], told["request_id"], told["position"]) == ("bob", "a-request", 1)
    assert [event["state"] for event in told["events"]] == ["queued"]
    assert "no job 'unknown'" in sagan("queue", "inspect", "unknown", code=2)

    assert "1 of 1 jobs are cancelled" in sagan("queue", "cancel", cat.id)
    assert "0 of 1 jobs are cancelled" in sagan("queue", "cancel", cat.id, code=2)
    assert "Name jobs by their ids, or choose" in sagan("queue", "cancel", code=2)
    assert "2 of 2 jobs are cancelled" in sagan("queue", "cancel", "--caller", "bob", "--yes")
    assert await service.store.depth() == 0
    assert (await service.store.get(dog.id, "bob")).error == "The operator cancelled it."
    assert {
        row["id"] for row in json.loads(sagan("queue", "list", "--state", "cancelled", "--json"))["jobs"]
    } == {job.id for job in (cat, dog, last)}


async def test_doctor_finds_a_service_without_and_with_a_worker(service: Service, sagan: Sagan) -> None:
    def found(code: int) -> dict[str, str]:
        told = json.loads(sagan("doctor", "http://127.0.0.1:1", "--json", code=code))
        assert told["healthy"] is (code == 0)
        return {each["what"]: each["level"] for each in told["findings"]}

    assert found(1)["workers"] == "bad"
    service.start_worker()
    await service.ready()
    healthy = found(0)
    assert (healthy["Redis"], healthy["durability"], healthy["eviction"], healthy["queue"]) == ("ok",) * 4
    assert [level for what, level in healthy.items() if what.startswith("worker ")] == ["ok"]
    assert healthy["service"] == "look"  # nothing listens there
    service.redis.stop()
    assert found(1)["Redis"] == "bad"
    assert "Set SAGAN_REDIS_URL" in sagan("queue", "list", code=2)
