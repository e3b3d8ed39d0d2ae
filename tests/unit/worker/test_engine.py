"""The engine: one spec, one image."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imaging.levels import to_pixels
from imaging.noise import noise
from imaging.spec import ImageSpec
from model.serving.fused import FusedGenerator
from model.serving.int8 import has_int8
from worker.engine import (
    Engine,
    Forward,
    NoDevice,
    NotRecorded,
    ThreadBudget,
    UnknownLayer,
    choose_device,
)
from worker.models import EngineLoader, ModelFolder, NoModel
from worker.settings import WorkerSettings

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
KNOWN = [-1.7496944665908813, 0.5745441317558289, 0.6142833828926086]  # of seed 7, image 0
INT8 = pytest.mark.skipif(not has_int8(CPU), reason="this processor has no instructions for int8")
SPECS = [ImageSpec(class_id=seed % 3, seed=seed, index=seed % 2, truncation=1.0) for seed in range(9)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads than free cores wait for each other, for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    engine = Engine.load(checkpoint, CPU)
    engine.verify_batch_sizes()
    return engine


def test_it_tells_what_it_is(engine: Engine, checkpoint: Path) -> None:
    info = engine.info
    assert info.name == "tiny"
    assert info.hash == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (info.precision, info.resolution, info.classes) == ("float32", 32, ("cat", "dog", "ship"))
    assert (info.licence, info.description, info.metrics) == ("none", "random", {"fid": 12.5})
    [site] = info.attention
    assert (site.name, site.resolution) == ("16x16", 16)
    assert site.gamma == pytest.approx(0.7)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", pytest.param("int8", marks=INT8)])
def test_an_image_does_not_depend_on_its_company_or_place(checkpoint: Path, precision: str) -> None:
    engine = Engine.load(checkpoint, CPU, precision)
    alone = {spec: engine.sample([spec])[0] for spec in SPECS}
    assert len({image.tobytes() for image in alone.values()}) == len(SPECS)
    for spec, image in zip(SPECS, engine.sample(SPECS), strict=True):
        np.testing.assert_array_equal(image, alone[spec], err_msg="before other sizes were tried")
    engine.verify_batch_sizes()
    for size in range(1, engine.max_batch + 1):
        for first in range(len(SPECS) - size + 1):  # so each spec comes by at every place
            group = SPECS[first : first + size]
            for spec, image in zip(group, engine.sample(group), strict=True):
                np.testing.assert_array_equal(image, alone[spec], err_msg=f"{spec} in a forward of {size}")


def test_an_image_does_not_depend_on_the_number_of_threads(engine: Engine) -> None:
    images = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        images.append(engine.sample(SPECS[:4]))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_a_size_that_gives_other_images_is_not_used(
    engine: Engine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Engine.load(checkpoint, CPU)
    made = other._network.forward

    def odd(z: torch.Tensor, y: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return made(z, y, shares) * (1 + 1e-6 * (len(z) == 4))

    monkeypatch.setattr(other._network, "forward", odd)
    other.verify_batch_sizes()
    assert all(4 not in sizes for sizes in other._sizes.values())
    np.testing.assert_array_equal(other.sample(SPECS[:4]), engine.sample(SPECS[:4]))


@INT8
def test_int8_is_the_same_at_each_start_and_on_any_number_of_threads(checkpoint: Path) -> None:
    one, two = (Engine.load(checkpoint, CPU, "int8", ThreadBudget(threads)) for threads in (1, 4))
    two.verify_batch_sizes()
    np.testing.assert_array_equal(one.sample(SPECS), two.sample(SPECS))


def test_every_part_of_a_recipe_matters(engine: Engine) -> None:
    first = ImageSpec(0, 1, 0, 1.0)
    others = [
        ImageSpec(1, 1, 0, 1.0),
        ImageSpec(0, 2, 0, 1.0),
        ImageSpec(0, 1, 1, 1.0),
        ImageSpec(0, 1, 0, 0.5),
    ]
    image = engine.sample([first])[0]
    for other in others:
        assert not np.array_equal(engine.sample([other])[0], image), other


def test_noise_has_a_stream_of_its_own_for_each_image() -> None:
    expected = np.random.Generator(np.random.Philox(key=[2**63 - 1, 5])).standard_normal(8) * 0.5
    drawn = noise(2**63 - 1, 5, 8, 0.5)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, expected.astype(np.float32))
    # the numbers of one spec, so that an update of numpy cannot change every image unseen
    np.testing.assert_allclose(noise(7, 0, 3), KNOWN, rtol=1e-6)


def test_attention_belongs_to_the_image(engine: Engine) -> None:
    spec = SPECS[5]
    pixels, found = engine.attention(spec, "16x16")
    assert np.abs(pixels.astype(int) - engine.sample([spec])[0]).max() <= 1
    assert found.map.shape == (256, 64)
    assert found.map.dtype == np.float16
    np.testing.assert_allclose(found.map.astype(np.float64).sum(axis=1), 1, atol=5e-3)
    assert found.share > 0
    other = engine.attention(SPECS[6], "16x16")[1]
    assert not np.array_equal(other.map, found.map)
    with pytest.raises(UnknownLayer, match="it has: 16x16"):
        engine.attention(spec, "8x8")


def folder_of(settings: WorkerSettings) -> ModelFolder:
    return ModelFolder(settings.checkpoints, EngineLoader(settings))


def test_bad_checkpoints_are_left_out_and_told_about(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.safetensors").write_bytes(checkpoint.read_bytes())
    (tmp_path / "bad.safetensors").write_bytes(checkpoint.read_bytes()[:1000])
    with caplog.at_level(logging.ERROR):
        folder = folder_of(WorkerSettings(checkpoints=tmp_path, device="cpu"))
        folder.load()
    assert [info.name for info in folder.infos()] == ["good"]
    assert list(folder.refused) == ["bad.safetensors"]
    [record] = caplog.records
    assert "bad.safetensors" in record.message


def test_a_file_that_is_written_over_with_its_old_time_is_read_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    served = tmp_path / "tiny.safetensors"
    served.write_bytes(checkpoint.read_bytes())
    folder = folder_of(WorkerSettings(checkpoints=tmp_path, device="cpu"))
    folder.load()
    before = served.stat()
    content = bytearray(served.read_bytes())
    content[-1] ^= 1  # a weight's last bit
    with served.open("r+b") as file:
        file.write(content)
    os.utime(served, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` does
    assert not folder.look(lambda engine: None)  # it may still grow
    assert folder.look(lambda engine: None)
    assert [info.draining for info in folder.infos()] == [False, True]


def test_no_model_at_all_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match="sagan train"):
        folder_of(WorkerSettings(checkpoints=tmp_path, device="cpu")).load()


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(NoDevice, match="auto"):
        choose_device("cuda:99")
    with pytest.raises(NoDevice, match="toaster"):
        choose_device("toaster")


class Recorder:
    """A recorder without a GPU: fails as CUDA does when two record at once, or one thread's forward is used
    by two."""

    def __init__(self) -> None:
        self.recording = 0
        self.threads: set[int] = set()
        self.sizes: list[int] = []

    def __call__(self, network: FusedGenerator, size: int, latent: int) -> Forward:
        self.recording += 1
        time.sleep(0.002)
        if self.recording != 1:
            raise NotRecorded("operation not permitted when stream is capturing")
        self.recording -= 1
        self.threads.add(threading.get_ident())
        self.sizes.append(size)
        busy = threading.Lock()

        def replay(z: torch.Tensor, y: torch.Tensor, shares: torch.Tensor) -> NDArray[np.uint8]:
            assert len(z) == len(y) == size
            assert busy.acquire(blocking=False)
            with torch.inference_mode():
                pixels = to_pixels(network(z, y, shares)).numpy()
            busy.release()
            return pixels

        return replay


def test_forwards_are_recorded_by_one_thread_and_each_is_used_by_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr("worker.engine.RECORDERS", {"cpu": recorder})
    # two lanes, and whoever loads or widens several models at a time
    engines = [Engine.load(checkpoint, CPU, budget=ThreadBudget(2)) for _ in range(2)]
    before = engines[0].sample(SPECS)
    assert not recorder.sizes  # not by whichever thread happens to be first
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Engine.verify_batch_sizes, engines))
    assert len(recorder.threads) == 2
    sizes = {size for sizes in engines[0]._sizes.values() for size in sizes}
    assert sorted(recorder.sizes) == sorted([*sizes] * 2 * engines[0].lanes)
    with ThreadPoolExecutor(6) as pool:  # more than there are lanes
        made = list(pool.map(lambda k: engines[k % 2].sample(SPECS), range(12)))
    for images in made:
        np.testing.assert_array_equal(images, before)
    assert sorted(recorder.sizes) == sorted([*sizes] * 2 * engines[0].lanes)


@pytest.mark.slow
def test_models_are_recorded_before_the_first_job_and_one_that_cannot_be_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(checkpoint.read_bytes())
    settings = WorkerSettings(checkpoints=tmp_path, device="cpu", threads=1)
    recorder = Recorder()
    monkeypatch.setattr("worker.engine.RECORDERS", {"cpu": recorder})
    folder_of(settings).load()
    assert recorder.threads == {threading.get_ident()}
    recorder.recording = 1  # as if another recorded
    with pytest.raises(NotRecorded):
        folder_of(settings).load()
    [engine] = folder_of(settings.model_copy(update={"cuda_graphs": False})).load().values()
    assert len(engine.sample(SPECS)) == len(SPECS)


def test_noise_is_drawn_once_an_image(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []

    def counted(seed: int, index: int, latent: int, truncation: float) -> NDArray[np.float32]:
        drawn.append((seed, index))
        return noise(seed, index, latent, truncation)

    monkeypatch.setattr("imaging.noise.noise", counted)
    z, y, shares = engine._inputs(SPECS[:2], 16)
    assert drawn == [(spec.seed, spec.index) for spec in SPECS[:2]]
    assert y[:, 0].tolist() == [SPECS[0].class_id, SPECS[1].class_id, *[SPECS[0].class_id] * 14]
    assert shares.tolist() == [[1.0]] * 16
    assert torch.equal(z[2:], z[:1].expand(14, -1))


@pytest.mark.slow
def test_a_worker_whose_forwards_cannot_be_recorded_starts_again_without(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from worker.engine import NotRecorded\n"
        "from worker.models import NoModel\n"
        "from worker.main import run_worker\n"
        "from worker.settings import WorkerSettings\n"
        "def load(settings):\n"
        "    print(os.getpid(), settings.cuda_graphs, sys.argv[1:], flush=True)\n"
        "    raise NotRecorded('no') if settings.cuda_graphs else NoModel('seen')\n"
        "sys.exit(run_worker(WorkerSettings(), load))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), "kept"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    first, second = (line.split(" ", 1) for line in done.stdout.splitlines())
    assert first[1] == "True ['kept']"
    assert second == [first[0], "False ['kept']"]  # whoever watches the process still does
    assert "SAGAN_CUDA_GRAPHS=false" in done.stderr
    assert "seen" in done.stderr
    assert done.returncode == 1


@pytest.mark.gpu
def test_what_is_recorded_gives_the_images_of_what_is_not(checkpoint: Path) -> None:
    device = torch.device("cuda")
    engine = Engine.load(checkpoint, device)
    eager = engine.sample(SPECS)
    engine.verify_batch_sizes()
    assert engine._recorded is not None
    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(lambda _: engine.sample(SPECS), range(16)):
            np.testing.assert_array_equal(images, eager)
    for spec, image in zip(SPECS, eager, strict=True):
        np.testing.assert_array_equal(engine.sample([spec])[0], image)
