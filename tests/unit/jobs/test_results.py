"""Stores of results, without a network: a folder, memory, and stores that refuse."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from pydantic import ValidationError

from jobs.errors import ResultGone, StoreUnavailable
from jobs.results import Objects, Stores, image_name, is_reference, map_name, read_stores
from jobs.settings import QueueSettings
from jobs.stopping import Stopping
from jobs.worker_results import Due, Keeper, StoreFailed

PNG = b"\x89PNG and so on"


def in_folder(tmp_path: Path) -> Objects:
    return Objects.open(f"file://{tmp_path}/kept")


def in_memory() -> Objects:
    return Objects("memory://", MemoryStore())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("", ("redis",)),
        ("redis", ("redis",)),
        ("s3://bucket", ("s3://bucket",)),
        ("s3://bucket/a/prefix/", ("s3://bucket/a/prefix",)),
        ("gs://bucket/x, s3://old ,redis", ("gs://bucket/x", "s3://old", "redis")),
        ("file:///tmp/a%20folder/", ("file:///tmp/a%20folder",)),
        ("S3://bucket/prefix", ("s3://bucket/prefix",)),
    ],
)
def test_a_setting_names_one_store_or_several(written: str, read: tuple[str, ...]) -> None:
    assert read_stores(written) == read


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("s3:/bucket", "names no bucket"),
        ("s3://", "names no bucket"),
        ("bucket", "must be redis, file:///FOLDER"),
        ("http://example.com/x", "must be redis"),
        ("memory://", "must be redis"),
        ("s3://key:hunter2@bucket/x", "keys do not belong"),
        ("s3://bucket?region=x", "neither"),
        ("file://results", "three slashes"),
        ("file:///", "three slashes"),
        ("file:///tmp/../etc", "three slashes"),
        ("file:results", "three slashes"),
        ("file:///tmp/%00", "three slashes"),
        ("file:///proc/nowhere", "may write to"),
        ("file:///dev/null/x", "may write to"),
        ("az://container/x", "Account must be specified"),
    ],
)
def test_a_setting_that_names_none_says_what_is_wrong_and_quotes_no_key(
    written: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if written == "file:///proc/nowhere" and os.geteuid() == 0:
        monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere, it is told
    with pytest.raises(ValidationError) as error:
        QueueSettings(result_store=written)
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)


async def test_a_folder_is_its_user_s_alone_and_nothing_is_there_but_whole_files(tmp_path: Path) -> None:
    store = in_folder(tmp_path)
    folder = tmp_path / "kept"
    assert folder.stat().st_mode & 0o777 == 0o700
    store.put([(image_name("a-job", index), PNG * (index + 1)) for index in range(3)])
    store.put([(map_name("a-job", 0, "16x16"), b"x")])
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"a-job/0.png", "a-job/1.png", "a-job/2.png", "a-job/0.16x16.map"}
    assert await store.get("a-job/1.png") == PNG * 2
    store.put([("a-job/1.png", PNG)])  # a second delivery
    assert await store.get("a-job/1.png") == PNG


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "a/./../../out.png"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    store = in_folder(tmp_path)
    with pytest.raises(StoreUnavailable):
        store.put([(name, PNG)])
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


async def test_what_a_killed_worker_was_writing_goes_with_its_job(tmp_path: Path) -> None:
    store = in_folder(tmp_path)
    store.put([("a-job/0.png", PNG), ("other/0.png", PNG), ("other/0.8x8.map", b"x")])
    (tmp_path / "kept" / "a-job" / "1.png#1").write_bytes(PNG[:3])
    store.delete(["a-job/0.png", "a-job/1.png"], {"a-job"})
    assert not (tmp_path / "kept" / "a-job").exists()
    store.delete(["other/0.8x8.map", "nobody/0.png", "nobody/0.8x8.map"])  # those are gone already
    assert await store.get("other/0.png") == PNG


@pytest.mark.parametrize("kind", ["folder", "memory"])
async def test_a_file_that_somebody_deleted_is_gone(tmp_path: Path, kind: str) -> None:
    store = in_folder(tmp_path) if kind == "folder" else in_memory()
    store.put([("a-job/0.png", PNG)])
    await store.remove(["a-job/0.png"])
    with pytest.raises(ResultGone, match="The same spec makes the same images again"):
        await store.get("a-job/0.png")
    assert await store.sign("GET", "a-job/0.png", 60) is None  # neither has addresses


async def test_a_folder_that_is_away_is_no_file_that_is_gone(tmp_path: Path) -> None:
    store = in_folder(tmp_path)
    store.put([("a-job/0.png", PNG)])
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        await store.get("a-job/0.png")
    with pytest.raises(StoreUnavailable):
        store.put([("a-job/1.png", PNG)])
    with pytest.raises(StoreUnavailable):
        store.delete(["a-job/0.png"])
    assert not (tmp_path / "kept").exists()  # it is not made anew, for all to read
    (tmp_path / "elsewhere").rename(tmp_path / "kept")
    assert await store.get("a-job/0.png") == PNG


async def test_a_reference_says_in_which_store_a_file_is(tmp_path: Path) -> None:
    old, new = in_folder(tmp_path), in_memory()
    stores = Stores([new, old], redis_first=False)
    old.put([("a-job/0.png", PNG)])
    assert is_reference(old.reference)
    assert not is_reference(PNG)
    assert await stores.read(old.reference, "a-job/0.png") == PNG
    assert await stores.read(PNG, "a-job/0.png") == PNG  # Redis itself has it
    assert stores.first is new
    with pytest.raises(StoreUnavailable, match="does not read"):
        stores.of(b"in:s3://another")


def test_files_are_deleted_by_store_and_those_of_another_wait(tmp_path: Path) -> None:
    store = in_memory()
    store.put([(name, PNG) for name in ("a/0.png", "a/1.png", "b/0.png", "c/0.8x8.map", "c/0.png")])
    members = ["a 2 memory://", "b 3 memory://", "c/0.8x8.map memory://", "d 1 s3://not-ours"]
    gone, left = Due(members).delete(Stores([store], redis_first=False))
    assert (gone, left) == (members[:3], members[3:])
    assert [meta["path"] for batch in store._store.list() for meta in batch] == ["c/0.png"]


class Refusing(Objects):
    """A store that refuses so many times."""

    def __init__(self, times: int) -> None:
        super().__init__("memory://", MemoryStore())
        self.left = times

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        if self.left:
            self.left -= 1
            raise StoreUnavailable
        super().put(files)


async def test_a_worker_tries_again_while_its_store_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.worker_results.sleep", lambda _: None)
    store = Refusing(7)
    keeper = Keeper(store, lambda: False, patience=60)
    keeper.put([("a/0.png", PNG)])
    assert await store.get("a/0.png") == PNG
    assert keeper.trouble is None


def test_patience_ends_with_a_reason_for_all_jobs_at_once_and_a_probe_sees_the_store_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("jobs.worker_results.monotonic", lambda: now[0])
    monkeypatch.setattr("jobs.worker_results.sleep", lambda _: now.__setitem__(0, now[0] + 20))
    store = Refusing(7)
    keeper = Keeper(store, lambda: False, patience=60)
    with pytest.raises(StoreFailed, match="has taken nothing for 80 s"):
        keeper.put([("a/0.png", PNG)])
    left = store.left
    with pytest.raises(StoreFailed):  # the next one is tried once, and does not wait as long again
        keeper.put([("b/0.png", PNG)])
    assert store.left == left - 1
    assert keeper.trouble == "the result store has taken nothing for 80 s"
    while store.left:
        keeper.probe()
        assert keeper.trouble is not None
    keeper.probe()
    assert keeper.trouble is None


def test_a_worker_that_is_stopped_waits_for_no_store() -> None:
    keeper = Keeper(Refusing(9), lambda: True, patience=60)
    with pytest.raises(Stopping):
        keeper.put([("a/0.png", PNG)])
    keeper.drop([])  # nothing to delete asks nothing
    assert keeper.trouble is None
