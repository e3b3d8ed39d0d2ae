"""From a job to what its images are made of, and the engine between classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from imaging.noise import noise_of
from imaging.spec import End, ImageSpec
from jobs.job import FORMAT, PLAIN, Draw, JobSpec
from model.config import ModelConfig
from model.generator import Generator
from model.serving.fused import FusedGenerator
from networks import random_checkpoint
from worker.engine import Engine
from worker.pending import class_name, image_spec

PLAIN_JOB = JobSpec("m", "0" * 64, "float32", 3, "cat", 4, 9, 0.7)
CAT, DOG = Draw(((3, 1.0),), "cat", 1), Draw(((5, 1.0),), "dog", 2, 7)
MORPH = replace(PLAIN_JOB, ends=(CAT, DOG), count=5, class_name="cat to dog", seed=1)
MIXED = (((0, 0.5), (1, 0.5)), ((2, 0.25), (0, 0.75)))


def test_image_k_of_a_job_is_image_start_and_k_of_its_seed() -> None:
    later = replace(PLAIN_JOB, start=37)
    assert image_spec(PLAIN_JOB, 2) == ImageSpec(3, 9, 2, 0.7)
    assert image_spec(later, 2) == ImageSpec(3, 9, 39, 0.7)
    assert (PLAIN_JOB.format, later.format, MORPH.format) == (PLAIN, FORMAT, FORMAT)


def test_a_mixture_has_its_seed_s_images() -> None:
    mixed = replace(PLAIN_JOB, ends=(Draw(MIXED[0], "a + b", 9, 2),), start=2)
    made = image_spec(mixed, 1)
    assert made.classes == MIXED[0]
    np.testing.assert_array_equal(noise_of(made, 16), noise_of(ImageSpec(0, 9, 3, 0.7), 16))


def test_a_morph_begins_and_ends_with_the_plain_images() -> None:
    assert image_spec(MORPH, 0) == ImageSpec(3, 1, 0, 0.7)
    assert image_spec(MORPH, 4) == ImageSpec(5, 2, 7, 0.7)
    assert [class_name(MORPH, k) for k in range(5)] == ["cat", *["cat to dog"] * 3, "dog"]
    assert [MORPH.shares(k)[1] for k in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_a_loop_ends_one_step_before_its_beginning() -> None:
    loop = replace(MORPH, loop=True, count=4)
    assert [loop.shares(k) for k in range(4)] == [(1, 0), (0.5, 0.5), (0, 1), (0.5, 0.5)]
    three = replace(MORPH, ends=(CAT, DOG, CAT), loop=True, count=6)
    assert [three.shares(k) for k in (1, 4, 5)] == [(0.5, 0.5, 0), (0, 0, 1), (0.5, 0, 0.5)]


def test_weights_are_a_row_an_image() -> None:
    given = replace(MORPH, weights=((1.0, 0.0), (0.25, 0.75)), count=2)
    assert image_spec(given, 0) == ImageSpec(3, 1, 0, 0.7)
    assert image_spec(given, 1).ends == (End(CAT.classes, 1, 0, 0.25), End(DOG.classes, 2, 7, 0.75))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("blends") / "tiny.safetensors"
    random_checkpoint(path, ("a", "b", "c"), seed=3)
    torch.set_num_threads(1)
    engine = Engine.load(path, torch.device("cpu"))
    engine.verify_batch_sizes()
    return engine


def test_what_a_batch_has_beside_a_blend_changes_nothing(engine: Engine) -> None:
    specs = [
        ImageSpec(0, 1, 0, 1.0),
        ImageSpec.blend((End(MIXED[0], 1, 0, 0.3), End(MIXED[1], 2, 0, 0.7)), 1.0),
        ImageSpec.blend((End(MIXED[0], 1, 0, 1.0),), 0.5),
        ImageSpec(2, 5, 0, 1.0),
    ]
    together = engine.sample(specs)
    for spec, made in zip(specs, together, strict=True):
        np.testing.assert_array_equal(engine.sample([spec])[0], made)


def test_a_mixture_lies_on_the_line_between_the_rows_of_the_tables(engine: Engine) -> None:
    network = engine._network
    z = torch.randn(1, 128)[:, : engine._latent]
    with torch.inference_mode():
        _, rows = network._begin(z, torch.tensor([[0, 2]]), torch.tensor([[0.25, 0.75]]))
        _, first = network._begin(z, torch.tensor([0]))
        _, second = network._begin(z, torch.tensor([2]))
    torch.testing.assert_close(rows, 0.25 * first + 0.75 * second)
    assert not torch.allclose(first, second)


def test_the_line_is_that_between_class_embeddings_too() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        resolution=32,
        classes=3,
        latent=32,
        class_embedding=8,
        generator_widths=(16,) * 4,
        discriminator_widths=(16,) * 4,
        generator_attention=(16,),
    )
    generator = Generator(config).eval()
    fused = FusedGenerator(generator)
    z = torch.randn(1, 32)
    assert generator.shared is not None
    with torch.inference_mode():
        made = fused(z, torch.tensor([[0, 2]]), torch.tensor([[0.25, 0.75]]))
        table = generator.shared.weight
        table[0] = 0.25 * table[0] + 0.75 * table[2]
        torch.testing.assert_close(made, generator(z, torch.tensor([0])), atol=1e-4, rtol=0)
