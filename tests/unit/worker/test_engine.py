"""The engine: one recipe, one image."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.int8 import has_int8
from worker.engine import Crew, Engine, NoDevice, NoModel, UnknownLayer, choose_device, load_engines, noise
from worker.jobs import Recipe
from worker.settings import WorkerSettings

CPU = torch.device("cpu")
KNOWN = [-1.7496944665908813, 0.5745441317558289, 0.6142833828926086]  # of seed 7, image 0
INT8 = pytest.mark.skipif(not has_int8(CPU), reason="this processor has no instructions for int8")
RECIPES = [Recipe(class_id=seed % 3, seed=seed, index=seed % 2, truncation=1.0) for seed in range(9)]


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
    engine.widen()
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16", pytest.param("int8", marks=INT8)])
def test_an_image_does_not_depend_on_its_company_or_place(checkpoint: Path, precision: str) -> None:
    engine = Engine.load(checkpoint, CPU, precision)
    alone = {recipe: engine.sample([recipe])[0] for recipe in RECIPES}
    assert len({image.tobytes() for image in alone.values()}) == len(RECIPES)
    for recipe, image in zip(RECIPES, engine.sample(RECIPES), strict=True):
        np.testing.assert_array_equal(image, alone[recipe], err_msg="before other sizes were tried")
    engine.widen()
    for size in range(1, engine.rows + 1):
        for first in range(len(RECIPES) - size + 1):  # so each recipe comes by at every place
            group = RECIPES[first : first + size]
            for recipe, image in zip(group, engine.sample(group), strict=True):
                np.testing.assert_array_equal(
                    image, alone[recipe], err_msg=f"{recipe} in a forward of {size}"
                )


def test_an_image_does_not_depend_on_the_number_of_threads(engine: Engine) -> None:
    images = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        images.append(engine.sample(RECIPES[:4]))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_a_size_that_gives_other_images_is_not_used(
    engine: Engine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Engine.load(checkpoint, CPU)
    made = other._network.forward

    def odd(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return made(z, y) * (1 + 1e-6 * (len(z) == 4))

    monkeypatch.setattr(other._network, "forward", odd)
    other.widen()
    assert all(4 not in sizes for sizes in other._sizes.values())
    np.testing.assert_array_equal(other.sample(RECIPES[:4]), engine.sample(RECIPES[:4]))


@INT8
def test_int8_is_the_same_at_each_start_and_on_any_number_of_threads(checkpoint: Path) -> None:
    one, two = (Engine.load(checkpoint, CPU, "int8", Crew(threads)) for threads in (1, 4))
    two.widen()
    np.testing.assert_array_equal(one.sample(RECIPES), two.sample(RECIPES))


def test_every_part_of_a_recipe_matters(engine: Engine) -> None:
    first = Recipe(0, 1, 0, 1.0)
    others = [Recipe(1, 1, 0, 1.0), Recipe(0, 2, 0, 1.0), Recipe(0, 1, 1, 1.0), Recipe(0, 1, 0, 0.5)]
    image = engine.sample([first])[0]
    for other in others:
        assert not np.array_equal(engine.sample([other])[0], image), other


def test_noise_has_a_stream_of_its_own_for_each_image() -> None:
    expected = np.random.Generator(np.random.Philox(key=[2**63 - 1, 5])).standard_normal(8) * 0.5
    drawn = noise(Recipe(0, 2**63 - 1, 5, 0.5), 8)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, expected.astype(np.float32))
    # the numbers of one recipe, so that an update of numpy cannot change every image unseen
    np.testing.assert_allclose(noise(Recipe(0, 7, 0, 1.0), 3), KNOWN, rtol=1e-6)


def test_attention_belongs_to_the_image(engine: Engine) -> None:
    recipe = RECIPES[5]
    pixels, found = engine.attention(recipe, "16x16")
    assert np.abs(pixels.astype(int) - engine.sample([recipe])[0]).max() <= 1
    assert found.map.shape == (256, 64)
    assert found.map.dtype == np.float16
    np.testing.assert_allclose(found.map.astype(np.float64).sum(axis=1), 1, atol=5e-3)
    assert found.share > 0
    other = engine.attention(RECIPES[6], "16x16")[1]
    assert not np.array_equal(other.map, found.map)
    with pytest.raises(UnknownLayer, match="it has: 16x16"):
        engine.attention(recipe, "8x8")


def test_bad_checkpoints_are_left_out_and_told_about(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.safetensors").write_bytes(checkpoint.read_bytes())
    (tmp_path / "bad.safetensors").write_bytes(checkpoint.read_bytes()[:1000])
    with caplog.at_level(logging.ERROR):
        engines = load_engines(WorkerSettings(checkpoints=tmp_path, device="cpu"))
    assert list(engines) == ["good"]
    [record] = caplog.records
    assert "bad.safetensors" in record.message


def test_no_model_at_all_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match="sagan train"):
        load_engines(WorkerSettings(checkpoints=tmp_path, device="cpu"))


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(NoDevice, match="auto"):
        choose_device("cuda:99")
    with pytest.raises(NoDevice, match="toaster"):
        choose_device("toaster")
