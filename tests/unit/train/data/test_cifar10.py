"""CIFAR-10's own files: read whole, and never run."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.unit.train.data.sources import write
from train.data.pack import open_pack, pack
from train.data.sources.cifar10 import CLASS_NAMES, restricted_loads
from train.errors import DataError, UnsafeSource


def cifar_batch(count: int, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, "labels": [int(n) for n in rng.integers(0, 10, count)], "batch_label": "x"}


def cifar_folder(root: Path) -> tuple[Path, list[dict[str, object]]]:
    batches = [cifar_batch(20, seed) for seed in range(5)]
    for number, batch in enumerate(batches, 1):
        write(root / "cifar-10-batches-py" / f"data_batch_{number}", pickle.dumps(batch, protocol=2))
    return root / "cifar-10-batches-py", batches


def test_cifar10_is_read_from_its_folder_its_parent_and_its_archive(tmp_path: Path) -> None:
    folder, batches = cifar_folder(tmp_path / "root")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    expected = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)  # type: ignore[misc]
    labels = [label for batch in batches for label in batch["labels"]]  # type: ignore[attr-defined]
    for source in (folder, folder.parent, tmp_path / "cifar-10-python.tar.gz"):
        pack(source, tmp_path / "out")
        opened = open_pack(tmp_path / "out")
        assert opened.class_names == CLASS_NAMES
        assert opened.metadata["kind"] == "cifar10"
        assert "citation" in str(opened.metadata["licence"])
        assert opened.labels.tolist() == labels
        assert np.array_equal(opened.images.numpy(), expected)
    one = pack(folder / "data_batch_2", tmp_path / "one")
    assert one.images == 20


def test_a_pickle_as_python_2_wrote_it_is_read() -> None:
    # what the real files look like: byte strings for keys and for the array's content
    python2 = (
        b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tb\x89U\x03\x01\xfe\x03tbU\x06labels]K\x05au."
    )
    batch = restricted_loads(python2, "batch")
    assert isinstance(batch, dict)
    assert batch[b"data"].value.tolist() == [[1, 254, 3]]
    assert batch[b"labels"] == [5]


class _Evil:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize(
    "evil",
    [
        _Evil(os.system, "touch pwned"),
        _Evil(eval, "open('pwned', 'w')"),
        _Evil(getattr, "x", "upper"),
        _Evil(np.load, "pwned"),
        {"data": [_Evil(os.mkdir, "pwned")]},
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_would_run_something_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: object, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = cifar_folder(tmp_path / "root")
    write(folder / "data_batch_3", pickle.dumps(evil, protocol))
    with pytest.raises(UnsafeSource, match="asks to run"):
        pack(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pickle.dumps([1], 2),
        pickle.dumps({"data": np.zeros((2, 3072), np.float64), "labels": [0, 1]}, 2),
        pickle.dumps({"data": np.array([object], object), "labels": [0]}, 2)[:60],
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, 2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 2),
        b"\x80\x02r\xff\xff\xff\xff.",
    ],
)
def test_a_damaged_cifar10_file_is_refused(tmp_path: Path, content: bytes) -> None:
    folder, _ = cifar_folder(tmp_path / "root")
    write(folder / "data_batch_3", content)
    with pytest.raises(DataError, match="data_batch_3"):
        pack(folder, tmp_path / "out")
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3"):
        pack(folder, tmp_path / "out")
