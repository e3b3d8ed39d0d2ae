"""Which keys a process takes, and when it hears of others. Nobody listens at its Redis: 503 is let in."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.settings import Settings
from jobs import logs
from jobs.api_keys import make_key
from jobs.settings import read_settings

if TYPE_CHECKING:
    from tests.unit.app.conftest import ClientFactory, Keys

IN = 503  # let in, as far as the broker that is not there


async def asked(client: httpx.AsyncClient, key: str = "", path: str = "/jobs", method: str = "GET") -> int:
    headers = {"X-API-Key": key} if key else {}
    return (await client.request(method, path, headers=headers)).status_code


async def made(keys: Keys, owner: str = "alice", **terms: Any) -> str:
    record, key = make_key(owner, keys.now, **terms)
    await keys.add(record)
    return key


def ring(client: httpx.AsyncClient) -> Any:
    return client._transport.app.state.gate.keyring  # type: ignore[attr-defined]


async def test_a_new_key_works_at_once_and_a_revoked_one_no_more(serve: ClientFactory, keys: Keys) -> None:
    async with serve() as client:
        assert await asked(client) == IN  # no key was ever made
        first = await made(keys)
        assert await asked(client, first) == IN
        assert await asked(client) == 401
        second = await made(keys)
        assert await asked(client, second) == IN
        assert await asked(client, first) == IN
        await keys.revoke(first.split("_")[1])
        await ring(client).look()
        refused = await client.get("/jobs", headers={"Authorization": f"Bearer {first}"})
        assert refused.status_code == 401
        assert refused.json()["detail"] == "This key was revoked. Ask for a new one."
        assert await asked(client, second) == IN


async def test_revoking_the_last_key_does_not_open_the_service(serve: ClientFactory, keys: Keys) -> None:
    key = await made(keys)
    await keys.revoke(key.split("_")[1])
    async with serve() as client:
        assert await asked(client) == 401
        keys.records.clear()  # Redis has lost them all
        await ring(client).look()
        assert await asked(client) == 401
        assert await asked(client, key) == 401


async def test_a_key_ends_at_its_time_by_the_clock_of_the_records(serve: ClientFactory, keys: Keys) -> None:
    keys.now -= timedelta(days=400)  # a clock far from this machine's
    key = await made(keys, expires_at=keys.now + timedelta(hours=1))
    async with serve() as client:
        assert await asked(client, key) == IN
        keys.now += timedelta(hours=2)
        await ring(client).look()
        reply = await client.get("/jobs", headers={"X-API-Key": key})
        assert (reply.status_code, "This key ended at 20" in reply.json()["detail"]) == (401, True)


async def test_while_the_keys_cannot_be_read_the_last_reading_holds(
    serve: ClientFactory, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    known, revoked = await made(keys), await made(keys)
    await keys.revoke(revoked.split("_")[1])
    async with serve() as client:
        new = await made(keys)
        keys.away = True
        assert await asked(client, known) == IN
        assert await asked(client, revoked) == 401
        unknown = await client.get("/jobs", headers={"X-API-Key": new})
        assert unknown.json()["type"] == "urn:sagan:problem:keys-unread"
        assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "3")
        assert await asked(client, "of-no-record") == 401
        keys.away = False
        assert await asked(client, new) == IN
    assert len([line for line in caplog.messages if "the last reading holds" in line]) == 1


async def test_before_the_first_reading_nobody_is_let_in(serve: ClientFactory, keys: Keys) -> None:
    keys.away = True
    async with serve() as client:
        reply = await client.get("/jobs?odd=1")
        assert reply.json()["type"] == "urn:sagan:problem:no-broker"
        assert await asked(client, path="/health/live") == 200
        assert "sagan_broker_up 0.0" in (await client.get("/metrics")).text
        keys.away = False
        assert (await client.get("/jobs?odd=1")).status_code == 422  # let in
    keys.away = True
    async with serve(api_keys="mine") as client:
        assert await asked(client) == 401
        assert await asked(client, "mine") == IN


async def test_junk_does_not_make_it_read_at_every_request(serve: ClientFactory, keys: Keys) -> None:
    await made(keys)
    async with serve(wrong_keys=10**6) as client:
        before = keys.looks
        for number in range(200):
            assert await asked(client, f"junk-{number}") == 401
        assert keys.looks - before <= 2  # those that come with time
        before = keys.looks
        wrong = [make_key("eve", keys.now)[1] for _ in range(100)]
        assert set(await asyncio.gather(*(asked(client, key) for key in wrong))) == {401}
        assert keys.looks - before < 50  # whoever comes meanwhile shares a reading


@pytest.mark.parametrize("setting", ["require_keys", "keys_file"])
async def test_a_service_that_is_told_to_ask_for_keys_does(
    serve: ClientFactory, setting: str, tmp_path: Path
) -> None:
    async with serve(**{setting: True if setting == "require_keys" else tmp_path / "none.json"}) as client:
        for path in ("/jobs", "/models", "/classes", "/v1/models", "/metrics"):
            assert await asked(client, path=path) == 401
        for path in ("/", "/health/live", "/docs", "/openapi.json"):
            assert await asked(client, path=path) == 200


SCOPED = [
    ("POST", "/generate/3", "generate"),
    ("POST", "/morph", "generate"),
    ("POST", "/v1/images/generations", "generate"),
    ("DELETE", "/jobs/" + "A" * 22, "generate"),
    ("GET", "/jobs", "read"),
    ("GET", "/jobs/" + "A" * 22, "read"),
    ("GET", "/jobs/" + "A" * 22 + "/images/0", "read"),
    ("GET", "/attention/" + "A" * 22, "read"),
    ("GET", "/models", "read"),
    ("GET", "/classes", "read"),
    ("GET", "/v1/models", "read"),
    ("GET", "/v1/jobs", "read"),
    ("HEAD", "/models", "read"),
    ("GET", "/metrics", "metrics"),
]


async def test_a_key_may_do_what_its_scopes_say(serve: ClientFactory, keys: Keys) -> None:
    scopes = ("generate", "read", "metrics", "admin")
    of = {scope: await made(keys, scopes=(scope,)) for scope in scopes}
    async with serve() as client:
        for method, path, needed in SCOPED:
            for scope in scopes:
                reply = await client.request(method, path, headers={"X-API-Key": of[scope]})
                assert (reply.status_code == 403) == (scope != needed), (method, path, scope)
        reply = await client.get("/models", headers={"X-API-Key": of["metrics"]})
        assert reply.json()["type"] == "urn:sagan:problem:missing-scope"
        assert "scope read, and this one has metrics." in reply.json()["detail"]
        openai = await client.get("/v1/models", headers={"X-API-Key": of["metrics"]})
        assert openai.json()["error"]["code"] == "missing_scope"
        counts = (await client.get("/metrics", headers={"X-API-Key": of["metrics"]})).text
        assert 'sagan_keys_refused_total{reason="scope"}' in counts


async def test_the_document_tells_the_scopes(serve: ClientFactory, keys: Keys) -> None:
    async with serve() as client:
        assert "security" not in (await client.get("/openapi.json")).json()
        await made(keys)
        await ring(client).look()
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert paths["/metrics"]["get"]["security"] == [{"key": ["metrics"]}, {"bearer": ["metrics"]}]
        assert paths["/jobs/{job_id}"]["delete"]["security"][0] == {"key": ["generate"]}
        assert "403" in paths["/models"]["get"]["responses"]


async def test_refusals_are_audited_by_id_and_never_by_secret(
    serve: ClientFactory, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serve() as client:
        key, other = await made(keys, "bob"), make_key("eve", keys.now)[1]
        await ring(client).look()
        await asked(client, key, "/metrics")
        await keys.revoke(key.split("_")[1])
        await ring(client).look()
        for wrong in (key, other):
            assert await asked(client, wrong) == 401
    lines = [record for record in caplog.records if record.name == "sagan.audit"]
    key_id = key.split("_")[1]
    assert [(line.message, line.__dict__["key"], line.__dict__.get("reason")) for line in lines] == [
        ("key created", key_id, None),
        ("key refused", key_id, "scope"),
        ("key revoked", key_id, None),
        ("key refused", key_id, "revoked"),
        ("key refused", "", "unknown"),
    ]
    for secret in (key.rsplit("_", 1)[1], other.rsplit("_", 1)[1]):
        assert secret not in repr([line.__dict__ for line in caplog.records])
        assert secret not in caplog.text


async def test_a_file_of_an_operators_keys_is_read_again(serve: ClientFactory, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes("\ufefffirst-key\r\n\r\n  second-key:priority=3,third-key\n".encode())
    async with serve(api_keys="mine", api_keys_file=path) as client:
        for key in ("mine", "first-key", "second-key", "third-key"):
            assert await asked(client, key) == IN
        assert await asked(client) == await asked(client, "second-key:priority=3") == 401
        path.write_text("fourth-key")
        await ring(client).look()
        assert await asked(client, "fourth-key") == IN
        assert await asked(client, "first-key") == 401
        for nothing in ("", "a:nonsense=1", "\xff"):
            path.write_bytes(nothing.encode("latin-1"))
            await ring(client).look()
            assert await asked(client, "fourth-key") == IN  # the last reading holds
        os.unlink(path)
        await ring(client).look()
        assert await asked(client, "fourth-key") == IN


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no key in it"), (b" ,\n", "no key"), (b"\xff", "UTF-8"), (b"secret:prio=1", "KEY:priority=5")],
)
def test_a_file_of_keys_that_is_none_ends_the_start(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        Settings(api_keys_file=path)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Settings(api_keys_file=tmp_path / "nowhere")
    assert Settings(api_keys_file="").api_keys_file is None  # type: ignore[arg-type]


async def test_the_line_of_a_refused_request_has_its_key(
    serve: ClientFactory, keys: Keys, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caplog.handler, "formatter", logs._Json("api"))
    caplog.set_level(logging.INFO)
    async with serve() as client:
        key = await made(keys, "bob")
        await ring(client).look()
        await asked(client, key, "/metrics")
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    told = [line.get("key") for line in lines if line["event"] == "request" and line["status"] == 403]
    assert told == [key.split("_")[1]]


def test_keys_that_are_not_utf8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SAGAN_API_KEYS", "k\udcff")
    with pytest.raises(SystemExit, match="SAGAN_API_KEYS: it is not UTF-8"):
        read_settings(Settings)
