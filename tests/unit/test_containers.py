"""The container files, as far as they can be checked without an engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError

from app.settings import Settings
from jobs.deadlines import WORKER_STOPS
from jobs.settings import QueueSettings
from serve.private_redis import CONFIG, PrivateRedis, server_command
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVING = ("redis", "api", "worker", "prometheus", "grafana")
BUILT = ("api", "worker", "train")
MONITORING = ("prometheus", "grafana")


def check_against_the_specification(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)


def dockerfile(service: str) -> str:
    path: str = SERVICES[service]["build"]["dockerfile"]
    return (ROOT / path).read_text()


def directives(config: str) -> dict[str, str]:
    """redis.conf: name -> value, without comments."""
    lines = [line for line in config.splitlines() if line and not line.startswith("#")]
    return dict(line.split(maxsplit=1) for line in lines)


def seconds(duration: str) -> int:
    assert duration.endswith("s")
    return int(duration[:-1])


def test_the_compose_files_are_what_the_specification_allows() -> None:
    verdict = check_against_the_specification(ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml")
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_that_check_sees_a_gpu_reservation_that_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.gpu.yml"
    text = (ROOT / "docker-compose.gpu.yml").read_text()
    assert "capabilities: [gpu]" in text
    wrong.write_text(text.replace("capabilities: [gpu]", "capabilities: gpu"))
    assert check_against_the_specification(wrong).returncode == 1


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert "privileged" not in service
    assert "cap_add" not in service
    assert "docker.sock" not in str(service.get("volumes"))


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_runs_as_root(name: str) -> None:
    user = SERVICES[name].get("user") or re.findall(r"^USER (\S+)$", dockerfile(name), re.MULTILINE)[-1]
    assert user.partition(":")[0] not in ("", "0", "root")


@pytest.mark.parametrize("name", SERVING)
def test_what_serves_is_watched_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])


@pytest.mark.parametrize("name", ["api", "worker"])
def test_nothing_starts_before_redis_answers(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_a_worker_is_given_more_time_to_stop_than_it_takes() -> None:
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > WORKER_STOPS


@pytest.mark.parametrize(("name", "settings"), [("api", Settings), ("worker", WorkerSettings)])
def test_every_setting_can_be_set_from_outside(name: str, settings: type[QueueSettings]) -> None:
    known = {f"SAGAN_{field.upper()}" for field in settings.model_fields}
    given: dict[str, str | None] = SERVICES[name]["environment"]
    # OpenTelemetry has its own names, and more of them than we hand on
    assert {variable for variable in given if not variable.startswith("OTEL_")} == known
    fixed = {variable for variable, value in given.items() if value is not None}
    exported = {"SAGAN_METRICS_PORT", "SAGAN_METRICS_ADDRESS"}
    assert fixed <= {"SAGAN_REDIS_URL", "SAGAN_CHECKPOINTS", "SAGAN_DEVICE"} | exported


def test_only_the_api_is_published_and_to_this_machine_alone() -> None:
    published = [name for name in SERVICES if "ports" in SERVICES[name]]
    assert [name for name in published if name not in MONITORING] == ["api"]
    for name in MONITORING:
        assert SERVICES[name]["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
    assert SERVICES["api"]["ports"] == ["${SAGAN_HOST:-127.0.0.1}:${PORT:-8000}:8000"]
    assert COMPOSE["networks"]["queue"]["internal"] is True
    assert SERVICES["redis"]["networks"] == ["queue"]
    # who is in Redis' network is nobody that reads metrics, and workers have no way out
    assert [name for name in SERVICES if "queue" in SERVICES[name].get("networks", ())] == [
        *("redis", "api", "worker")
    ]
    assert all(COMPOSE["networks"][name]["internal"] for name in SERVICES["worker"]["networks"])


def test_redis_has_one_password_and_everybody_uses_it() -> None:
    password = "${SAGAN_REDIS_PASSWORD:-sagan}"
    assert SERVICES["redis"]["environment"]["REDISCLI_AUTH"] == password
    for name in ("api", "worker"):
        assert SERVICES[name]["environment"]["SAGAN_REDIS_URL"] == f"redis://:{password}@redis:6379/0"


def test_the_command_of_redis_sets_that_password_and_shows_it_to_nobody(tmp_path: Path) -> None:
    """It runs here, with the server of these tests and the config's folder and port replaced."""
    config = (ROOT / "docker" / "redis.conf").read_text().replace("dir /data", "dir .")
    (tmp_path / "redis.conf").write_text(f"{config}\nport 0\nunixsocket ./redis.sock\n")
    shell, option, script = SERVICES["redis"]["command"]
    script = script.replace("$$", "$").replace("/etc/redis.conf", "redis.conf")
    script = script.replace("redis-server", server_command(), 1)
    process = subprocess.Popen(
        [shell, option, script],
        cwd=tmp_path,
        env={**os.environ, "REDISCLI_AUTH": "hunter2"},
        stdout=subprocess.DEVNULL,
    )
    try:
        with Redis(unix_socket_path=str(tmp_path / "redis.sock"), password="hunter2") as redis:
            deadline = time.monotonic() + 20
            while not (tmp_path / "redis.sock").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert redis.ping()
        stranger = Redis(unix_socket_path=str(tmp_path / "redis.sock"))
        with stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        assert b"hunter2" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.kill()
        process.wait()


def test_redis_keeps_what_it_was_given() -> None:
    given = directives((ROOT / "docker" / "redis.conf").read_text())
    assert given["appendonly"] == "yes"
    assert given["maxmemory-policy"] == "noeviction"
    assert "redis:/data" in SERVICES["redis"]["volumes"]
    assert given["dir"] == "/data"
    defaults = signature(PrivateRedis).parameters
    chosen = {name: defaults[name].default for name in ("appendfsync", "maxmemory")}
    embedded = directives(CONFIG.format(port=0, socket="x", password="x", **chosen))
    for name in ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy"):
        assert given[name] == embedded[name]


def test_with_the_gpu_file_workers_and_training_ask_for_nvidia_gpus() -> None:
    for name in ("worker", "train"):
        (device,) = GPU["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
    assert set(GPU["services"]) <= set(SERVICES)
    devices = [part["services"]["worker"]["environment"]["SAGAN_DEVICE"] for part in (COMPOSE, GPU)]
    assert devices == ["${SAGAN_DEVICE:-cpu}", "${SAGAN_DEVICE:-cuda}"]


def test_the_three_images_are_made_of_one_wheel_and_all_of_it_reaches_their_builds() -> None:
    stages = {
        dockerfile(name).split("FROM python:3.11-slim-bookworm AS wheel")[1].split("\nFROM ")[0]
        for name in BUILT
    }
    (stage,) = {re.sub(r"^#.*$", "", text, flags=re.MULTILINE) for text in stages}
    assert "COPY . ." in stage
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in let_in
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert {line[1:] for line in let_in if line.startswith("!")} == packages | {
        "constraints.txt",
        "pyproject.toml",
        "README.md",
    }


def test_the_api_image_asks_for_no_torch() -> None:
    assert "[api,trace]" in dockerfile("api")
    assert "torch" not in re.sub(r"^#.*$", "", dockerfile("api"), flags=re.MULTILINE)


def test_worker_and_training_share_the_layer_that_holds_torch() -> None:
    def torch_layer(name: str) -> str:
        final = dockerfile(name).split("\nFROM ")[-1]
        text = final[: final.index(" torch\n")]
        return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)

    assert torch_layer("worker") == torch_layer("train")


@pytest.mark.parametrize("file", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda file: file.name)
def test_images_are_named_by_short_names_alone(file: Path) -> None:
    for image in re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE):
        assert re.fullmatch(r"[a-z]+(:[\w.-]+)?", image)
