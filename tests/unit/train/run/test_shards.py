"""A pack in shards: what is in each, what a host needs of them, and which images a step takes from where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train.data.pack import open_data, open_pack, pack
from train.errors import DataError, NotAPack, TrainError
from train.run.epochs import Epochs

COUNTS = {"ant": 13, "boat": 6, "cat": 3}  # images a class; boat and cat do not divide by four
SHARDS = 4


@pytest.fixture
def source(tmp_path: Path) -> Path:
    colours = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            pixels = colours.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i:02}.png")
    return tmp_path / "images"


@pytest.fixture
def index(tmp_path: Path, source: Path) -> Path:
    pack(source, tmp_path / "cut" / "pack.safetensors", shards=SHARDS)
    return tmp_path / "cut" / "pack.safetensors"


def shard_files(index: Path) -> list[Path]:
    return sorted(index.parent.glob("pack-*.safetensors"))


def draw(purpose: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, purpose)) * 1000 + number)


# -- the files ----------------------------------------------------------------------------------------------


def test_every_shard_is_a_pack_with_its_share_of_every_class(index: Path) -> None:
    shards = [open_pack(path) for path in shard_files(index)]
    assert shard_files(index)[0].name == "pack-00000-of-00004.safetensors"
    assert len(shards) == SHARDS
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for label, count in enumerate(COUNTS.values()):
        held = [int((shard.labels == label).sum()) for shard in shards]
        assert sum(held) == count
        assert max(held) - min(held) <= 1
    assert all(shard.class_names == tuple(COUNTS) for shard in shards)


def test_the_index_opens_as_one_pack_of_the_same_images(tmp_path: Path, source: Path, index: Path) -> None:
    pack(source, tmp_path / "one.safetensors")
    whole, cut = open_pack(tmp_path / "one.safetensors"), open_data(index, 8)

    def content(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, bytes]]:
        return sorted((int(y), x.numpy().tobytes()) for x, y in zip(images, labels, strict=True))

    assert len(cut) == len(whole) == sum(COUNTS.values())
    assert cut.images.shape == whole.images.shape
    assert content(cut.images[:], cut.labels) == content(whole.images[:], whole.labels)
    assert cut.class_names == whole.class_names
    assert (
        cut.metadata["sha256"] != whole.metadata["sha256"]
    )  # a run of the one does not go on with the other
    chosen = torch.tensor([21, 0, 7, 7, 13])
    in_order = torch.cat([open_pack(path).images[:] for path in shard_files(index)])
    assert torch.equal(cut.images[chosen], in_order[chosen])
    assert torch.equal(cut.images[5:12], in_order[5:12])


def test_the_same_source_gives_the_same_shards(tmp_path: Path, source: Path, index: Path) -> None:
    report = pack(source, tmp_path / "again" / "pack.safetensors", shards=SHARDS)
    files = [*shard_files(index), index]
    for path in files:
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert report.size == sum(path.stat().st_size for path in files)
    assert "and 4 shards beside it" in report.lines()[0]


def test_a_host_needs_only_the_shards_it_reads(index: Path) -> None:
    for path in shard_files(index)[1:]:
        path.unlink()
    opened = open_pack(index)
    assert len(opened.labels) == sum(COUNTS.values())
    here = range(opened.shards[0])
    assert opened.images[torch.tensor(here)].shape == (len(here), 3, 8, 8)
    with pytest.raises(NotAPack, match=r"Shard 1 of 4 .*00001-of-00004.* is missing: copy it"):
        opened.images[torch.tensor([len(here)])]


def test_a_shard_of_another_packing_is_refused(tmp_path: Path, source: Path, index: Path) -> None:
    (source / "cat" / "00.png").unlink()
    pack(source, tmp_path / "other" / "pack.safetensors", shards=SHARDS)
    for path in shard_files(index):
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    opened = open_pack(index)
    with pytest.raises(NotAPack, match="not the shard that"):
        opened.images[:]


@pytest.mark.parametrize(
    ("shards", "says"), [(0, "choose 1 to"), (10_000, "choose 1 to"), (40, "choose at most 22")]
)
def test_a_number_of_shards_that_cannot_be_leaves_nothing_behind(
    tmp_path: Path, source: Path, shards: int, says: str
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=says):
        pack(source, tmp_path / "out" / "pack.safetensors", shards=shards)
    assert list((tmp_path / "out").iterdir()) == []


# -- which images a step takes ------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(22,), (6, 6, 5, 5), (11, 11)])
def test_the_batch_is_the_same_for_any_number_of_processes(lengths: tuple[int, ...]) -> None:
    alone = Epochs(lengths, 12, range(12), draw)
    for processes in (2, 3, 4, 12):
        each = 12 // processes
        peers = [Epochs(lengths, 12, range(i * each, (i + 1) * each), draw) for i in range(processes)]
        for play in (0, 1, 7):
            assert torch.equal(torch.cat([peer.indices(play) for peer in peers]), alone.indices(play))


@pytest.mark.parametrize("lengths", [(22,), (6, 6, 5, 5), (11, 11)])
def test_every_image_is_read_first_by_one_process(lengths: tuple[int, ...]) -> None:
    for processes in (1, 2, 3, 4, 12):
        each = 12 // processes
        peers = [Epochs(lengths, 12, range(i * each, (i + 1) * each), draw) for i in range(processes)]
        assert sorted(i for peer in peers for i in peer.read_first) == list(range(22))
        assert all(set(peer.read_first) <= set(peer.images) for peer in peers)


def test_each_shard_gives_all_its_images_before_any_comes_again() -> None:
    lengths, each = (6, 6, 4, 4), 3
    epochs = Epochs(lengths, 12, range(12), draw)
    shown = torch.stack([epochs.indices(play) for play in range(8)])  # [plays, batch]
    first = 0
    for shard, length in enumerate(lengths):
        stream = shown[:, shard * each : (shard + 1) * each].flatten()
        for epoch in range(len(stream) // length):
            seen = stream[epoch * length : (epoch + 1) * length]
            assert sorted(seen.tolist()) == list(range(first, first + length))
        assert not torch.equal(stream[:length], stream[length : 2 * length])
        first += length


def test_a_process_draws_from_the_shards_its_rows_lie_in_alone() -> None:
    lengths = (6, 6, 5, 5)
    read = {
        rank: Epochs(lengths, 12, range(rank * 6, rank * 6 + 6), draw) for rank in range(2)
    }  # two processes
    assert [list(read[rank].shards) for rank in (0, 1)] == [[0, 1], [2, 3]]
    assert [read[rank].images for rank in (0, 1)] == [range(0, 12), range(12, 22)]
    for epochs in read.values():
        for play in range(20):
            assert set(epochs.indices(play).tolist()) <= set(epochs.images)
    many = Epochs(lengths, 16, range(6, 8), draw)  # more processes than shards: two share one
    assert list(many.shards) == [1]


def test_a_batch_that_the_shards_cannot_share_is_refused() -> None:
    with pytest.raises(TrainError, match="batch 10 does not divide by the 4 shards"):
        Epochs((5, 5, 5, 5), 10, range(10), draw)
