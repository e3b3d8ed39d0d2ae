"""sagan doctor: what is told of each state, and the way out."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.exceptions import ResponseError

from jobs.job import FORMAT, ModelInfo, WorkerInfo
from serve import doctor
from serve.doctor import Finding

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD: Mapping[str, Any] = {
    "redis_version": "7.2.4",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "maxmemory_policy": "noeviction",
    "used_memory": 10**6,
    "maxmemory": 10**9,
    "role": "master",
}


class Told:
    """A Redis that says this of itself."""

    def __init__(self, info: Mapping[str, Any], fsync: str | None = "always") -> None:
        self._info, self._fsync = info, fsync

    def ping(self) -> None:
        pass

    def info(self) -> Mapping[str, Any]:
        return self._info

    def config_get(self, name: str) -> dict[str, str]:
        if self._fsync is None:
            raise ResponseError("NOPERM")
        return {name: self._fsync}


def levels(findings: list[Finding]) -> dict[str, str]:
    return {each.what: each.level for each in findings if each.level != "ok"}


def worker(hash_: str = "a" * 64, precision: str = "float32", **changes: Any) -> WorkerInfo:
    models = (ModelInfo("tiny", hash_, precision, 32, ("cat",)),)
    values: dict[str, Any] = {"id": "w", "device": "cpu", "models": models, "format": FORMAT}
    return WorkerInfo(started_at=NOW, beat_at=NOW, **(values | changes))


@pytest.mark.parametrize(
    ("changes", "fsync", "found"),
    [
        ({}, "always", {}),
        ({}, None, {}),  # a provider that lets nobody ask
        ({"redis_version": "5.0.7"}, "always", {"Redis": "bad"}),
        ({"role": "slave"}, "always", {"Redis' role": "bad"}),
        ({"cluster_enabled": 1}, "always", {"Redis' role": "bad"}),
        ({"aof_enabled": 0}, "always", {"durability": "bad"}),
        ({"aof_last_write_status": "err"}, "always", {"durability": "bad"}),
        ({}, "everysec", {"durability": "look"}),
        ({"maxmemory_policy": "allkeys-lru"}, "always", {"eviction": "bad"}),
        ({"used_memory": 9 * 10**8}, "always", {"memory": "bad"}),
        ({"maxmemory": 0}, "always", {"memory": "look"}),
    ],
)
def test_what_is_wrong_with_redis_is_told_with_the_way_out(
    changes: Mapping[str, Any], fsync: str | None, found: Mapping[str, str]
) -> None:
    findings = list(doctor._redis(Told({**GOOD, **changes}, fsync)))
    assert levels(findings) == found
    assert all(each.advice for each in findings if each.level != "ok")


def test_a_clock_that_is_off_is_told() -> None:
    assert [each.level for each in doctor._clock(NOW, NOW + timedelta(seconds=1))] == ["ok"]
    [off] = doctor._clock(NOW, NOW - timedelta(seconds=90))
    assert (off.level, "-90.0 s" in off.found) == ("look", True)


@pytest.mark.parametrize(
    ("workers", "found"),
    [
        ([], {"workers": "bad"}),
        ([worker()], {}),
        ([worker(stuck="a forward has been running for 20 s")], {"worker w": "bad"}),
        ([worker(consuming=False)], {"worker w": "bad"}),
        ([worker(format=FORMAT - 1)], {"worker w": "look"}),
        ([worker(refused={"odd.safetensors": "it is cut short"})], {"worker w": "look"}),
        ([worker(), worker("b" * 64, id="v")], {"model tiny": "look"}),
        ([worker(), worker(precision="int8", id="v")], {"model tiny": "look"}),
    ],
)
def test_what_is_wrong_with_workers_is_told(workers: list[WorkerInfo], found: Mapping[str, str]) -> None:
    assert levels(list(doctor._workers(workers, {}, NOW))) == found


@pytest.mark.parametrize(
    ("setting", "theirs", "level", "said"),
    [
        ("redis", ["redis"], "ok", "in redis"),
        ("s3://b", [], "ok", "in s3://b"),
        ("s3://b,file:///x", ["s3://b", "s3://b"], "ok", "in s3://b"),
        ("redis", ["file:///x"], "look", "write to file:///x, and SAGAN_RESULT_STORE here is redis"),
        ("s3://b", ["redis", "s3://b"], "look", "workers write to redis, s3://b"),
    ],
)
def test_workers_that_keep_images_elsewhere_are_told(
    setting: str, theirs: list[str], level: str, said: str
) -> None:
    [finding] = doctor._results(setting, [worker(results=store) for store in theirs])
    assert finding.level == level
    assert said in finding.found


def test_a_worker_whose_store_refuses_is_told_to_have_its_keys_and_room_seen_to() -> None:
    refused = worker(stuck="the result store has taken nothing for 20 s", results="s3://b")
    assert "what s3://b answered" in doctor._worker(refused, NOW).advice


def test_a_worker_without_a_word_is_told() -> None:
    findings = list(doctor._workers([worker()], {"gone": NOW - timedelta(seconds=30)}, NOW))
    assert levels(findings) == {"worker gone": "look"}
    assert "30 s ago" in findings[0].found


SEEN = {"address": "10.0.0.9", "scheme": "https", "host": "a.example", "prefix": "", "proxied": True}


@pytest.mark.parametrize(
    ("url", "seen", "level", "words"),
    [
        ("https://a.example", {"forwarded": ["x-forwarded-for"]}, "ok", "you are 10.0.0.9"),
        ("https://a.example/sagan", {"prefix": "/sagan", "forwarded": []}, "ok", "trusted"),
        ("https://a.example/sagan", {"forwarded": []}, "bad", "prefix"),
        ("https://a.example", {"scheme": "http", "forwarded": []}, "bad", "scheme"),
        ("https://b.example", {"forwarded": []}, "bad", "host"),
        (
            "https://a.example",
            {"proxied": False, "forwarded": ["x-forwarded-for", "x-forwarded-proto"]},
            "bad",
            "all callers count as 10.0.0.9",
        ),
        ("https://a.example", {"address": doctor.INVENTED, "forwarded": []}, "look", "is believed"),
        ("http://a.example", {"scheme": "http", "proxied": False, "forwarded": []}, "look", "directly"),
        (
            "http://127.0.0.1:8000",
            {"scheme": "http", "host": "127.0.0.1:8000", "proxied": False, "forwarded": []},
            "ok",
            "directly",
        ),
    ],
)
def test_what_a_proxy_says_is_compared_with_the_address(
    url: str, seen: Mapping[str, Any], level: str, words: str
) -> None:
    [finding] = doctor._proxy(urlsplit(url), {**SEEN, **seen})
    assert finding.level == level
    assert words in finding.found


def test_a_gpu_that_nobody_uses_is_told() -> None:
    def says(code: int, text: str) -> Any:
        return lambda *_, **__: subprocess.CompletedProcess([], code, text, "")

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    on_gpu = worker(device="cuda (NVIDIA H200)")
    assert [each.level for each in doctor._gpu([worker()], says(0, "H200, 1, 0 %, 0, 9\n"))] == ["look"]
    assert [each.level for each in doctor._gpu([on_gpu], says(0, "H200, 1, 0 %, 0, 9\n"))] == ["ok"]
    assert [each.level for each in doctor._gpu([], says(9, "Driver/library version mismatch"))] == ["bad"]
    assert [each.level for each in doctor._gpu([], missing)] == ["note"]


def test_a_wrong_setting_is_told_and_not_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_RESULT_TTL", "soon")
    findings = list(doctor.examine("http://127.0.0.1:1"))
    assert [each.level for each in findings] == ["bad"]
    assert findings[0].found.startswith("SAGAN_RESULT_TTL is 'soon'")
