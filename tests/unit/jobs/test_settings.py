"""Wrong settings: a line for each, for every command, and never a password."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings
from jobs.settings import QueueSettings, read_settings
from worker.health import silence

SECRET = "hunter2"
WRONG_URLS = [
    f"amqp://user:{SECRET}@host",
    f"{SECRET}@host:6379",
    f"redis://:{SECRET}/x@host:6379/0",  # a slash must be written %2F
    f"redis://:@host:{SECRET}",
    f"redis://user:{SECRET}@host:99999999",
    f"redis://[{SECRET}",
    f"redis://:{SECRET}@host?no_such_option={SECRET}",
    f"redis://:{SECRET}@host?db={SECRET}",
    f"rediss://:{SECRET}@host?ssl_cert_reqs={SECRET}",
]
COMMANDS = {
    "serve": ["-m", "cli", "serve", "--port", "0"],
    "api": ["-m", "cli", "api", "--port", "0"],
    "worker": ["-m", "cli", "worker"],
    "module": ["-m", "worker"],
}


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_of_redis_never_shows_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError) as raised:
        QueueSettings(redis_url=url)
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("SAGAN_REDIS_URL", url)
    with pytest.raises(SystemExit) as told:
        read_settings(QueueSettings)
    assert SECRET not in str(told.value)
    assert "SAGAN_REDIS_URL: it " in str(told.value)
    assert SECRET not in (silence({"SAGAN_REDIS_URL": url}, "here") or "")


def test_no_settings_show_a_password_or_a_key() -> None:
    settings = Settings(redis_url=f"redis://:{SECRET}@host", api_keys=(f"{SECRET}-key",))  # type: ignore[arg-type]
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:p%2Fw@h:6379/3",
        "rediss://u:p@h:6380/0?ssl_cert_reqs=none",
        "rediss://h?ssl_ca_certs=/a/b.pem&ssl_check_hostname=false",
        "unix:///run/redis.sock?db=2",
        "unix://:pw@/run/redis.sock",
        "redis://[::1]:6379/0",
    ],
)
def test_a_right_url_of_redis_is_taken(url: str) -> None:
    assert QueueSettings(redis_url=url).redis_url == url


def test_every_wrong_setting_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_MAX_QUEUED", "0")
    monkeypatch.setenv("SAGAN_WORKER_TTL", "soon")
    with pytest.raises(SystemExit) as told:
        read_settings(QueueSettings)
    lines = str(told.value).splitlines()
    assert lines == [
        "sagan: SAGAN_MAX_QUEUED is '0': Input should be greater than or equal to 1.",
        "sagan: SAGAN_WORKER_TTL is 'soon': "
        "Input should be a valid number, unable to parse string as a number.",
    ]


def test_a_worker_lives_between_its_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAN_HEARTBEAT_PERIOD", "10")
    with pytest.raises(SystemExit, match=r"sagan: SAGAN_WORKER_TTL \(6 s\) must be at least twice"):
        read_settings(QueueSettings)
    monkeypatch.setenv("SAGAN_WORKER_TTL", "20")
    assert read_settings(QueueSettings).worker_ttl == 20


def run(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder of its own, with these settings alone."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SAGAN_")}
    ours |= {"PYTHONPATH": str(Path(__file__).parents[3]), **env}
    return subprocess.run(
        [sys.executable, *COMMANDS[command]], cwd=folder, env=ours, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_wrong_settings_in_a_line_each(tmp_path: Path, command: str) -> None:
    ended = run(command, tmp_path, SAGAN_MAX_QUEUED="0", SAGAN_REDIS_URL=f"redis://:{SECRET}/@h")
    assert ended.returncode in (1, 2)
    said = (ended.stdout + ended.stderr).strip().splitlines()
    assert len(said) == 2, said
    assert any("SAGAN_MAX_QUEUED is '0'" in line for line in said)
    assert SECRET not in str(said)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["a file", "in a file", "read-only", "a file in it"])
def test_a_state_folder_that_cannot_be_used_is_told_in_a_line(tmp_path: Path, state: str) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "redis").write_text("no folder either")
    folder = {
        "a file": file,
        "in a file": file / "state",
        "read-only": Path("/proc/state"),  # for root as well
        "a file in it": tmp_path / "there",
    }[state]
    ended = run("serve", tmp_path, SAGAN_STATE_DIR=str(folder))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if "cannot be used" in line]
    assert str(folder) in line
    assert "SAGAN_STATE_DIR" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("IDLE_TIMEOUT", "inf"), ("ATTENTION_TIMEOUT", "nan"), ("WORKER_TTL", "inf"), ("RESULT_TTL", "1" * 20)],
)
def test_no_time_is_endless(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SAGAN_{name}", value)
    with pytest.raises(SystemExit) as told:
        read_settings(Settings)
    assert f"SAGAN_{name} is '{value}'" in str(told.value)
