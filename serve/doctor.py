"""What `sagan doctor` looks at: each finding says what is so, and what to do where it should not be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from pkgutil import resolve_name
from timeit import repeat
from typing import Any, Final, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from redis.exceptions import RedisError

from jobs.job import FORMAT, WorkerInfo
from jobs.operator import Operator
from jobs.results import REDIS, read_stores
from jobs.settings import read_settings
from jobs.worker_results import REFUSED
from serve.running import queue_settings, state_folder

Level = Literal["ok", "note", "look", "bad"]

TIMEOUT: Final = 5  # seconds of a request, or of nvidia-smi
OLDEST_REDIS: Final = (6, 2)  # that the scripts work with; from 7.0 on a look takes several jobs
CLOCK: Final = 2.0  # seconds by which a clock may be off
FULL: Final = 0.8  # of Redis' memory
SCARCE: Final = 1e9  # bytes of a disk
WAITS: Final = 60.0  # seconds
SLOW: Final = 20.0  # milliseconds of a round trip
INVENTED: Final = "192.0.2.1"  # an address of documentation (RFC 5737), which nobody has


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Level
    found: str
    advice: str = ""  # what to do; "": nothing


def examine(url: str) -> Iterator[Finding]:
    """Everything, in the order in which one depends on the other. url: where users reach the service."""
    settings_are_wrong = list(_settings())
    yield from settings_are_wrong or [Finding("settings", "ok", "each can be read")]
    try:
        settings = queue_settings()
    except SystemExit:  # told above
        return
    operator = Operator(settings)
    workers: list[WorkerInfo] = []
    try:
        yield from _redis(operator.redis)
        yield from _clock(operator.time(), datetime.now(UTC))
        workers = operator.workers()
        yield from _workers(workers, operator.silent(), operator.time())
        yield from _results(settings.result_store, workers)
        yield from _queue(operator)
    except (RedisError, OSError) as error:
        yield Finding(
            "Redis",
            "bad",
            f"no answer ({error})",
            "Start it, or set SAGAN_REDIS_URL to it. For a `sagan serve` run this in its folder, or with its "
            "SAGAN_STATE_DIR, as its user.",
        )
    finally:
        operator.close()
    yield from _disks()
    yield from _gpu(workers)
    yield from _service(url.rstrip("/"))


def _settings() -> Iterator[Finding]:
    """What is wrong with the environment's settings."""
    for name in ("jobs.settings:QueueSettings", "app.settings:Settings", "worker.settings:WorkerSettings"):
        try:
            read_settings(resolve_name(name))
        except SystemExit as error:
            for line in str(error).splitlines():
                yield Finding("settings", "bad", line.removeprefix("sagan: "), "Correct the variable.")
            return  # those of the queue are in all three
        except ModuleNotFoundError:
            continue  # that part is not installed here


def _redis(redis: Any) -> Iterator[Finding]:
    redis.ping()  # connects
    took = 1000 * min(repeat(redis.ping, number=1, repeat=5))
    info: Mapping[str, Any] = redis.info()
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    name = "Valkey" if "valkey_version" in info else "Redis"
    found = f"{name} {version}, a round trip in {took:.1f} ms"
    if tuple(map(int, str(info.get("redis_version", "0.0")).split(".")[:2])) < OLDEST_REDIS:
        yield Finding("Redis", "bad", found, "Use Redis 6.2 or later, better 7, or Valkey.")
    elif took > SLOW:
        yield Finding("Redis", "look", found, "Put it nearer to the API and the workers: each job takes two.")
    else:
        yield Finding("Redis", "ok", found)
    if info.get("role") not in (None, "master"):
        yield Finding("Redis' role", "bad", str(info["role"]), "Use the address of the primary.")
    if info.get("cluster_enabled"):
        yield Finding("Redis' role", "bad", "a cluster", "Use one server: a job's keys must be together.")
    yield from _durability(redis, info)
    yield from _memory(info)


def _durability(redis: Any, info: Mapping[str, Any]) -> Iterator[Finding]:
    always = "Set `appendonly yes` and `appendfsync always` (docker/redis.conf)."
    try:
        fsync = redis.config_get("appendfsync").get("appendfsync", "unknown")
    except RedisError:  # a provider that lets nobody ask
        fsync = "unknown"
    if not info.get("aof_enabled"):
        lost = "no append-only file: whatever was accepted since the last snapshot is lost when it dies"
        yield Finding("durability", "bad", lost, always)
    elif (
        info.get("aof_last_write_status", "ok") != "ok" or info.get("aof_last_bgrewrite_status", "ok") != "ok"
    ):
        yield Finding(
            "durability", "bad", "the last write of its file failed", "Look at its disk and its log."
        )
    elif fsync not in ("always", "unknown"):
        yield Finding("durability", "look", f"appendfsync {fsync}: a second of jobs may be lost", always)
    else:
        yield Finding("durability", "ok", f"append-only file, appendfsync {fsync}")


def _memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy, used, most = info.get("maxmemory_policy"), int(info["used_memory"]), int(info.get("maxmemory", 0))
    if policy != "noeviction":
        advice = "Set `maxmemory-policy noeviction`: another one throws waiting jobs away."
        yield Finding("eviction", "bad", str(policy), advice)
    else:
        yield Finding("eviction", "ok", "noeviction")
    if not most:
        advice = "Set `maxmemory` below what its machine has: a Redis that is killed for memory is away."
        yield Finding("memory", "look", f"{_size(used)}, without a limit", advice)
    elif used > FULL * most:
        advice = (
            "Raise `maxmemory`, shorten SAGAN_RESULT_TTL, or keep images elsewhere: a full Redis is a 503."
        )
        yield Finding("memory", "bad", f"{_size(used)} of {_size(most)}", advice)
    else:
        yield Finding("memory", "ok", f"{_size(used)} of {_size(most)}")


def _clock(theirs: datetime, ours: datetime) -> Iterator[Finding]:
    off = (ours - theirs).total_seconds()
    if abs(off) > CLOCK:
        advice = "Let both follow NTP. Times of jobs are Redis' own; log lines and keys' ends go by this one."
        yield Finding("clocks", "look", f"this machine's is {off:+.1f} s from Redis'", advice)
    else:
        yield Finding("clocks", "ok", f"this machine's is {abs(off):.2f} s from Redis'")


def _workers(
    workers: Sequence[WorkerInfo], silent: Mapping[str, datetime], now: datetime
) -> Iterator[Finding]:
    for gone, heard in silent.items():
        ago = f"{(now - heard).total_seconds():.0f} s ago"
        yield Finding(f"worker {gone}", "look", f"last heard {ago}", "It died or hangs: look at its log.")
    if not workers:
        yield Finding(
            "workers", "bad", "none is alive", "Start one: sagan worker, or sagan serve for all parts."
        )
    for worker in workers:
        yield _worker(worker, now)
        for file, why in worker.refused.items():
            yield Finding(
                f"worker {worker.id}", "look", f"does not serve {file}: {why}", "Replace or remove it."
            )
    yield from _versions(workers)


def _worker(worker: WorkerInfo, now: datetime) -> Finding:
    models = ", ".join(f"{model.name} {model.hash[:8]} {model.precision}" for model in worker.models)
    ago = (now - worker.beat_at).total_seconds()
    found = (
        f"{worker.device}; {models or 'no model'}; heartbeat {ago:.1f} s ago; {len(worker.in_hand)} in hand"
    )
    what = f"worker {worker.id}"
    if worker.stuck:
        advice = "It ends by itself after SAGAN_FORWARD_TIMEOUT."
        if worker.stuck.startswith(REFUSED):
            advice = f"Its log has what {worker.results} answered: see to the store's keys, bucket or room."
        return Finding(what, "bad", f"{worker.stuck}; {found}", advice)
    if not worker.consuming:
        return Finding(
            what, "bad", f"not connected to the queue; {found}", "Look at its log: it tries again."
        )
    if worker.format < FORMAT:
        return Finding(what, "look", f"an older release; {found}", "Update it: newer jobs wait for others.")
    return Finding(what, "ok", found)


def _versions(workers: Iterable[WorkerInfo]) -> Iterator[Finding]:
    """Models of which workers have several versions."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for worker in workers:
        for model in worker.models:
            if not model.draining:
                found[model.name].add((model.hash[:8], model.precision))
    for name, versions in found.items():
        if len({hash_ for hash_, _ in versions}) > 1:
            said = (
                f"{len(versions)} files of this name are served: {', '.join(sorted(h for h, _ in versions))}"
            )
            advice = "Fine during a rolling update. Else give all workers the same folder."
            yield Finding(f"model {name}", "look", said, advice)
        elif len(versions) > 1:
            said = f"served as {' and '.join(sorted(precision for _, precision in versions))}"
            advice = "Set SAGAN_PRECISION the same: pixels depend on it, and each has a queue of its own."
            yield Finding(f"model {name}", "look", said, advice)


def _results(setting: str, workers: Iterable[WorkerInfo]) -> Iterator[Finding]:
    """Where workers keep images, beside where this environment says that they lie."""
    ours, theirs = read_stores(setting), {worker.results for worker in workers}
    if strange := sorted(theirs - {*ours, REDIS}):
        found = f"workers write to {', '.join(strange)}, and SAGAN_RESULT_STORE here is {setting}"
        advice = "Ask again with the settings of the API. If it lacks these stores, set it as its workers."
        yield Finding("results", "look", found, advice)
    elif theirs - {ours[0]}:
        found = f"SAGAN_RESULT_STORE here is {setting}, and workers write to {', '.join(sorted(theirs))}"
        yield Finding("results", "look", found, "Start the workers again with the setting of the API.")
    else:
        yield Finding("results", "ok", f"in {ours[0]}")


def _queue(operator: Operator) -> Iterator[Finding]:
    now, waiting, running, oldest = operator.time(), 0, 0, timedelta()
    for row in operator.rows(("queued", "running")):
        if row.job.state == "running":
            running += 1
            continue
        waiting += 1
        oldest = max(oldest, now - row.job.created_at)
    found = f"{waiting} jobs wait, {running} run"
    if oldest.total_seconds() > WAITS:
        found += f"; the oldest has waited for {oldest.total_seconds():.0f} s"
        advice = "Start another worker, or see `sagan queue list` whose jobs these are."
        yield Finding("queue", "look", found, advice)
    else:
        yield Finding("queue", "ok", found)


def _disks() -> Iterator[Finding]:
    for what, folder in (
        ("state", state_folder()),
        ("checkpoints", Path(os.environ.get("SAGAN_CHECKPOINTS") or "checkpoints")),
    ):
        if not folder.is_dir():
            if what == "checkpoints":
                advice = "Fine where workers run elsewhere. Else set SAGAN_CHECKPOINTS."
                yield Finding(f"disk of {what}", "note", f"there is no folder {folder} here", advice)
            continue
        free = shutil.disk_usage(folder).free
        files = len(list(folder.glob("*.safetensors"))) if what == "checkpoints" else None
        found = f"{folder}: {_size(free)} free" + ("" if files is None else f", models: {files}")
        if free < SCARCE:
            yield Finding(f"disk of {what}", "bad", found, "Make room: a full disk stops Redis.")
        elif files == 0:
            yield Finding(f"disk of {what}", "look", found, "Put a .safetensors file there.")
        else:
            yield Finding(f"disk of {what}", "ok", found)


def _gpu(workers: Sequence[WorkerInfo], run: Callable[..., Any] = subprocess.run) -> Iterator[Finding]:
    fields = "name,driver_version,utilization.gpu,memory.used,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        if isinstance(error, FileNotFoundError):
            yield Finding("GPU", "note", "no NVIDIA driver here: forwards run on the CPU")
        else:
            yield Finding("GPU", "bad", f"nvidia-smi does not answer ({error})", "Look at the driver: dmesg.")
        return
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).strip().splitlines()
        yield Finding("GPU", "bad", said[0] if said else "nvidia-smi failed", "Repair the driver.")
        return
    cpu = [worker for worker in workers if worker.device.startswith("cpu")]
    for line in answer.stdout.strip().splitlines():
        if workers and len(cpu) == len(workers):
            advice = "Start workers with SAGAN_DEVICE=cuda, a torch that has CUDA, and in a container --gpus."
            yield Finding("GPU", "look", f"{line}; but every worker is on a CPU", advice)
        else:
            yield Finding("GPU", "ok", line)


def _service(url: str) -> Iterator[Finding]:
    """The HTTP face as users reach it, through proxies."""
    live = _get(f"{url}/health/live")
    if not isinstance(live, dict):
        yield Finding(
            "service", "look", f"{url}: {live}", "Start it, or tell doctor the address that users use."
        )
        return
    ready = _get(f"{url}/health/ready")
    if isinstance(ready, dict):
        yield Finding("service", "ok", f"{url}: ready, {', '.join(map(str, ready.get('models', ())))}")
    else:
        yield Finding("service", "bad", f"{url}: {ready}", "It answers, and cannot make images: see above.")
    seen = _get(f"{url}/health/seen", {"X-Forwarded-For": INVENTED})
    if not isinstance(seen, dict):
        yield Finding("proxy", "note", f"this release does not tell what it sees ({seen})")
        return
    yield from _proxy(urlsplit(url), seen)


def _proxy(asked: Any, seen: Mapping[str, Any]) -> Iterator[Finding]:
    forwarded = set(seen["forwarded"]) - {"x-forwarded-for"}
    if seen["address"] == INVENTED:
        advice = (
            "The proxy must append to X-Forwarded-For, not pass it on; or this machine is in "
            "SAGAN_TRUSTED_PROXIES and asked directly: ask through the proxy."
        )
        yield Finding("proxy", "look", "an invented X-Forwarded-For is believed", advice)
        return
    if forwarded and not seen["proxied"]:
        found = f"there is one, and it is not trusted: all callers count as {seen['address']}"
        yield Finding("proxy", "bad", found, f"Set SAGAN_TRUSTED_PROXIES={seen['address']}, or its network.")
        return
    wrong = [
        f"{name} is {theirs!r} there and {ours!r} here"
        for name, ours, theirs in (
            ("scheme", asked.scheme, seen["scheme"]),
            ("host", asked.netloc.rpartition("@")[2], seen["host"]),
            ("prefix", asked.path.rstrip("/"), seen["prefix"]),
        )
        if ours.lower() != theirs.lower()
    ]
    if wrong:
        advice = (
            "Links would be wrong. Let the proxy set X-Forwarded-Proto, -Host and -Prefix "
            "(docker/nginx.conf, docker/Caddyfile), and SAGAN_TRUSTED_PROXIES to it."
        )
        yield Finding("proxy", "bad", "; ".join(wrong), advice)
    elif seen["proxied"]:
        yield Finding("proxy", "ok", f"trusted; callers are told apart: you are {seen['address']}")
    else:
        open_ = asked.hostname not in ("localhost", "127.0.0.1", "::1") and asked.scheme == "http"
        advice = "Put a proxy with TLS before it: keys go over the network in clear." if open_ else ""
        yield Finding("proxy", "look" if open_ else "ok", "none: it is asked directly", advice)


def _get(url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any] | str:
    """The JSON at an address; or why there is none."""
    try:
        with urlopen(Request(url, headers=dict(headers or {})), timeout=TIMEOUT) as answer:
            found = json.load(answer)
        return found if isinstance(found, dict) else "it answers as another service"
    except HTTPError as error:
        with error:
            try:
                return str(json.load(error)["detail"])
            except (ValueError, KeyError, TypeError):
                return f"{error.code} {error.reason}"
    except (URLError, HTTPException, OSError, ValueError) as error:
        return f"no answer ({getattr(error, 'reason', None) or error})"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
