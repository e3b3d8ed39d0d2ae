"""Keys as records, and the file that holds them."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.api_keys import (
    WELL_FORMED,
    KeyRecord,
    KeysUnreadable,
    UnknownKey,
    digest_of,
    make_key,
    owner_name,
    read_expiry,
    read_scopes,
)
from jobs.key_stores import FileKeys

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_a_record_does_not_tell_its_key() -> None:
    record, key = make_key("alice", NOW, label="laptop")
    secret = key.rsplit("_", 1)[1]
    assert WELL_FORMED.fullmatch(key)
    assert record.digest == digest_of(key)
    for told in (repr(record), str(record), record.model_dump_json(), json.dumps(record.told(NOW))):
        assert secret not in told
    assert record.digest not in repr(record)
    assert make_key("alice", NOW)[1] != key


@pytest.mark.parametrize(
    "owner", ["", "a b", "a:b", "*", "[a]", "a\n", "-a", "é", "a" * 65, "../a", "a\x00"], ids=ascii
)
def test_an_owner_that_could_be_more_than_a_name_in_redis_is_refused(owner: str) -> None:
    with pytest.raises(ValueError, match="An owner is 1 to 64"):
        make_key(owner, NOW)


def test_no_record_s_owner_is_an_operator_s_key_or_an_address() -> None:
    assert owner_name("everybody") != "everybody"
    assert owner_name("127.0.0.1") == "@127.0.0.1"


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"rate": 0}, "rate: "),
        ({"quota": -1}, "quota: "),
        ({"max_priority": 10}, "max_priority: "),
        ({"scopes": ()}, "Scopes are"),
        ({"scopes": ("root",)}, "Scopes are"),
        ({"label": "a\nb"}, "label: a label is one line"),
        ({"label": "x" * 201}, "label: "),
    ],
)
def test_a_bad_record_is_refused_in_a_sentence(terms: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        make_key("alice", NOW, **terms)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("30d", NOW + timedelta(days=30)),
        ("90m", NOW + timedelta(minutes=90)),
        ("12 h", NOW + timedelta(hours=12)),
        ("2w", NOW + timedelta(days=14)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_the_end_of_a_key(text: str, end: datetime) -> None:
    assert read_expiry(text, NOW) == end


@pytest.mark.parametrize(
    "text", ["", "30", "30y", "-1d", "1.5d", "soon", "2027-02-30", "999999999w", "9999-12-31T23:59:59-23:00"]
)
def test_what_is_no_end_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="30d"):
        read_expiry(text, NOW)


@pytest.mark.parametrize("text", ["0d", "2020-01-01", "2026-11-30T12:00:00Z"])
def test_an_end_that_is_over_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="over at once"):
        read_expiry(text, NOW)


def test_scopes_have_one_order() -> None:
    assert read_scopes("read, generate,read") == ("generate", "read")
    for wrong in ("", ",", "read,write"):
        with pytest.raises(ValueError, match="generate, read, metrics, admin"):
            read_scopes(wrong)


async def test_a_file_of_keys_is_for_its_user_alone_and_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = FileKeys(path)
    empty = await store.look()
    assert (empty.in_use, dict(empty.records)) == (True, {})  # whoever names a file wants keys
    made = [make_key("alice", NOW)[0] for _ in range(8)]
    await asyncio.gather(*(FileKeys(path).add(record) for record in made))  # none is lost
    path.chmod(0o644)
    revoked = await store.revoke(made[0].id)
    assert revoked.revoked_at is not None
    assert await store.revoke(made[0].id) == revoked  # the first time counts
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["keys.json"]
    reading = await store.look(empty)
    assert set(reading.records) == {record.id for record in made}
    assert reading.records[made[0].id].revoked_at is not None
    again = await store.look(reading)
    assert again.records is reading.records  # nothing changed: nothing is read
    with pytest.raises(UnknownKey, match="sagan keys list"):
        await store.revoke("nobody")


async def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    link, path = tmp_path / "keys.json", tmp_path / "kept.json"
    link.symlink_to(path)
    await FileKeys(link).add(make_key("alice", NOW)[0])
    assert link.is_symlink()
    assert len((await FileKeys(link).look()).records) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": 1}', '{"keys": [1]}', "[" * 10**5, "\ud800"])
async def test_a_file_that_is_none_of_ours_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = path.read_bytes()
    for call in (FileKeys(path).look(), FileKeys(path).add(make_key("alice", NOW)[0])):
        with pytest.raises(KeysUnreadable, match="no file of keys"):
            await call
    assert path.read_bytes() == before


async def test_a_record_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    good, odd = make_key("alice", NOW)[0], make_key("bob", NOW)[0]
    later = odd.model_dump(mode="json") | {"only_from": "10.0.0.0/8"}  # a newer release forbids something
    path.write_text(json.dumps({"keys": [good.model_dump(mode="json"), later]}))
    reading = await FileKeys(path).look()
    assert (set(reading.records), reading.unreadable) == ({good.id}, (odd.id,))
    with pytest.raises(KeysUnreadable, match="refused already"):
        await FileKeys(path).revoke(odd.id)


def test_a_record_survives_its_json() -> None:
    record, _ = make_key("a@b.example", NOW, label="é", quota=5, rate=3, max_priority=0, scopes=("admin",))
    assert KeyRecord.model_validate_json(record.model_dump_json()) == record
