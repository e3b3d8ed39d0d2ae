"""`sagan keys`: what it prints where, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli import app
from jobs.api_keys import WELL_FORMED


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.json"
    monkeypatch.setenv("SAGAN_KEYS_FILE", str(path))
    return path


def sagan(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["keys", *arguments])
    assert done.exit_code == code, done.output
    if code:
        assert done.stderr.startswith("sagan: ")
        assert done.stderr.count("\n") == 1
    return done


def test_a_key_is_made_listed_and_revoked(file: Path) -> None:
    assert "No key was made yet" in sagan("list").stdout
    made = sagan("create", "--owner", "alice", "--label", "[red]", "--expires", "30d", "--quota", "9")
    key = made.stdout.strip()
    parts = WELL_FORMED.fullmatch(key)
    assert parts is not None  # alone on standard output
    assert key not in made.stderr
    assert key not in file.read_text()
    listed = sagan("list").stdout
    for told in (parts[1], "active", "alice", "[red]", "9 images/day"):
        assert told in listed
    other = json.loads(sagan("create", "--owner", "bob", "--scopes", "metrics", "--json").stdout)
    assert (other["scopes"], other["state"], other["expires_at"]) == (["metrics"], "active", None)
    assert f"{other['id']} is revoked" in sagan("revoke", other["id"]).stdout
    assert "revoked" in sagan("revoke", other["key"]).stdout  # the whole key does as well
    states = {row["id"]: row["state"] for row in json.loads(sagan("list", "--json").stdout)}
    assert states == {parts[1]: "active", other["id"]: "revoked"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create"], "Missing option '--owner'"),
        (["create", "--owner", "a b"], "An owner is 1 to 64"),
        (["create", "--owner", "a", "--expires", "soon"], "30d"),
        (["create", "--owner", "a", "--expires", "2020-01-01"], "over at once"),
        (["create", "--owner", "a", "--scopes", "read,write"], "generate, read, metrics, admin"),
        (["create", "--owner", "a", "--rate", "0"], "rate: "),
        (["create", "--owner", "a", "--quota", "many"], "'--quota'"),
        (["create", "--owner", "a", "--priority", "10"], "'--priority'"),
        (["revoke", "nobody"], "There is no key 'nobody'"),
        (["revoke"], "Missing argument"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(file: Path, arguments: list[str], says: str) -> None:
    assert says in " ".join(sagan(*arguments, code=2).stderr.split())
    assert not file.exists()


def test_a_place_that_cannot_be_read_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAGAN_KEYS_FILE", raising=False)
    assert (
        "No such file or directory"
        in sagan("create", "--owner", "a", "--file", str(tmp_path / "x/k"), code=2).stderr
    )
    (tmp_path / "odd").write_text("{")
    assert "no file of keys" in sagan("list", "--file", str(tmp_path / "odd"), code=2).stderr
    monkeypatch.setenv("SAGAN_REDIS_URL", "redis://:hush@127.0.0.1:1/0")
    for arguments in (["list"], ["create", "--owner", "a"], ["revoke", "a"]):
        said = sagan(*arguments, code=2).stderr
        assert "SAGAN_REDIS_URL" in said
        assert "hush" not in said
