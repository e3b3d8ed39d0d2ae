"""`sagan reproduce` of whatever leaves the service."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from app import films, pictures, recipes
from cli import app
from imaging.animation import Apng, Film, Gif, Reel, Webp
from imaging.enlarging import enlarged
from imaging.png import png, text_of
from imaging.recipes import with_enlargement
from imaging.spec import Provenance
from imaging.stills import still
from jobs.job import Draw, JobSpec
from networks import random_checkpoint
from worker.offline import load
from worker.pending import class_name, image_spec

CLASSES = ("cat", "dog")
CAT, DOG = Draw(((0, 1.0),), "cat", 1), Draw(((1, 1.0),), "dog", 2, 3)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    random_checkpoint(folder / "pets.safetensors", CLASSES)
    return folder


class Job:
    """A job and its PNGs, as a worker makes them."""

    def __init__(self, checkpoints: Path, **changes: Any) -> None:
        engine = load(checkpoints / "pets.safetensors", "cpu", "float32")
        usual = {"class_id": 0, "class_name": "cat", "count": 5, "seed": 7, "truncation": 0.8}
        info = engine.info
        self.spec = JobSpec(info.name, info.hash, info.precision, **{**usual, **changes})
        specs = [image_spec(self.spec, k) for k in range(self.spec.count)]
        self.images = engine.sample(specs)
        named = [class_name(self.spec, k) for k in range(self.spec.count)]
        self.pngs = [
            png(image, Provenance(info.name, info.hash, info.precision, name, spec).to_json())
            for image, name, spec in zip(self.images, named, specs, strict=True)
        ]


@pytest.fixture(scope="module")
def job(checkpoints: Path) -> Job:
    return Job(checkpoints)


def reproduced(data: bytes, checkpoints: Path, path: Path, code: int = 0) -> str:
    """What the command says of a file; a failure is one line."""
    path.write_bytes(data)
    done = CliRunner().invoke(app, ["reproduce", str(path), "--checkpoints", str(checkpoints)])
    assert done.exit_code == code, done.output
    assert done.output.count("\n") == 1
    return done.output


def test_an_image_in_any_lossless_format_and_size_is_the_same(
    job: Job, checkpoints: Path, tmp_path: Path
) -> None:
    for side, resample in ((32, None), (77, "nearest"), (96, "lanczos")):
        image, text = job.images[2], text_of(job.pngs[2])
        assert text is not None
        if resample is not None:
            image = enlarged(image, side, resample)  # type: ignore[arg-type]
            text = with_enlargement(text, side, resample)  # type: ignore[arg-type]
        for data in (png(image, text), still(image, "webp", None, text)):
            assert "the same" in reproduced(data, checkpoints, tmp_path / "x")
        other = image.copy()
        other[1, 2, 0] ^= 1
        assert "by 1 at most" in reproduced(png(other, text), checkpoints, tmp_path / "x", code=1)


@pytest.mark.parametrize(("kind", "quality"), [("jpeg", None), ("jpeg", 30), ("webp", 60)])
def test_a_lossy_image_is_told_how_far_it_is_apart(
    job: Job, checkpoints: Path, tmp_path: Path, kind: Any, quality: int | None
) -> None:
    data = still(job.images[0], kind, quality, text_of(job.pngs[0]))
    told = reproduced(data, checkpoints, tmp_path / "x", code=1)
    assert "levels apart on average" in told
    assert "cannot be exact" in told


@pytest.mark.parametrize("asked", [{}, {"size": 48, "resample": "lanczos"}])
def test_a_grid_is_made_again(job: Job, checkpoints: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    text = recipes.of_job(job.spec, "grid", **asked)
    side, resample = asked.get("size"), asked.get("resample", "nearest")
    for kind in ("png", "webp"):
        data = b"".join(pictures.grid(job.pngs, side, resample, text, kind))
        told = reproduced(data, checkpoints, tmp_path / "x")
        assert "a grid of 5 images: the same" in told
    lossy = b"".join(pictures.grid(job.pngs, side, resample, text, "jpeg"))
    assert "levels apart" in reproduced(lossy, checkpoints, tmp_path / "x", code=1)


JOBS: dict[str, dict[str, Any]] = {
    "from an index": {"start": 37, "count": 3},
    "a mixture": {"ends": (Draw(((0, 0.25), (1, 0.75)), "cat and dog", 7, 2),), "start": 2, "class_id": 1},
    "a morph": {"ends": (CAT, DOG), "class_name": "cat to dog", "seed": 1},
    "a loop": {"ends": (CAT, DOG, CAT), "loop": True, "count": 7, "seed": 1},
    "weights": {"ends": (CAT, DOG), "weights": ((1.0, 0.0), (0.3, 0.7)), "count": 2, "seed": 1},
}


@pytest.mark.parametrize("name", JOBS)
def test_a_film_and_a_strip_of_any_job_are_made_again(name: str, checkpoints: Path, tmp_path: Path) -> None:
    job = Job(checkpoints, **JOBS[name])
    for kind, asked in (("webp", {"bounce": True}), ("apng", {"size": 40}), ("strip", {"columns": 2})):
        planned = films.plan(films.FilmIn.model_validate(asked), kind, job.spec.count, 32)  # type: ignore[arg-type]
        how = "strip" if kind == "strip" else "film"
        options = {"size": planned.side, "resample": "nearest", **asked}
        film = planned.film(recipes.of_job(job.spec, how, **options))
        frames = [enlarged(job.images[index], planned.side, "nearest") for index in planned.order]
        pieces = [film.add(frame, 80) for frame in frames]
        data = b"".join([*pieces, *film.end()])
        assert f"a {how} of {job.spec.count} images: the same" in reproduced(
            data, checkpoints, tmp_path / "x"
        )


def filmed(make: Callable[[Reel], Film], job: Job, text: str) -> bytes:
    film = make(Reel(32, 32, job.spec.count, True, text))
    pieces = [film.add(image, 80) for image in job.images]
    return b"".join([*pieces, *film.end()])


def test_what_a_film_cannot_show_is_told(job: Job, checkpoints: Path, tmp_path: Path) -> None:
    text = recipes.of_job(job.spec, "film", size=32, resample="nearest")
    assert "levels apart" in reproduced(filmed(Gif, job, text), checkpoints, tmp_path / "x", code=1)
    painted = recipes.of_job(job.spec, "film", size=32, attention="1,2")
    assert "Attention is painted" in reproduced(filmed(Apng, job, painted), checkpoints, tmp_path / "x", 2)
    other = Job(checkpoints, seed=8)
    assert "values differ" in reproduced(filmed(Apng, other, text), checkpoints, tmp_path / "x", code=1)
    longer = recipes.of_job(Job(checkpoints, count=6).spec, "film", size=32, resample="nearest")
    assert "5 frames of 32" in reproduced(filmed(Apng, job, longer), checkpoints, tmp_path / "x", code=2)
    cut = filmed(lambda reel: Webp(reel, None), job, text)[:-4000]
    assert "not a readable" in reproduced(cut, checkpoints, tmp_path / "x", code=2)


END = {"class_weights": {"0": 1.0}, "class_name": "cat", "seed": 1, "index": 0}
MORPH = {"ends": [END, {**END, "seed": 2}], "loop": False}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 10**9}, "no job"),
        ({"count": "5"}, "no job"),
        ({"seed": -1}, "no image has that"),
        ({"seed": 0.5}, "must be int"),
        ({"class_id": 9}, "says class 9"),
        ({"truncation": 7.0}, "no image has that"),
        ({"class_weights": {"0": -1.0}}, "no job"),
        ({"class_weights": []}, "no job"),
        ({"morph": {"ends": []}}, "no job"),
        ({"morph": 7}, "no job"),
        ({"morph": {**MORPH, "weights": [[1.0]] * 5}}, "no job"),
        ({"morph": {**MORPH, "weights": [[0.0, 0.0]] * 5}}, "no job"),
        ({"morph": {**MORPH, "weights": [[2.0, 1.0]] * 5}}, "no image has that"),
        ({"drawn": {"as": "cube"}}, "no job"),
        ({"drawn": {"as": "grid", "size": 10**9, "resample": "nearest"}}, "no job"),
        ({"drawn": {"as": "grid", "size": 64, "resample": "cubic"}}, "no job"),
        ({"drawn": {"as": "strip", "columns": 0}}, "no job"),
        ({"drawn": {"as": "grid", "size": 33, "resample": "nearest"}}, "its recipe"),
        ({"model": None}, "must be str"),
        ({"model_hash": "0" * 64}, "none of the 1 checkpoints"),
    ],
)
def test_a_recipe_that_no_job_has_is_one_line(
    job: Job, checkpoints: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    text = json.dumps({**json.loads(recipes.of_job(job.spec, "grid")), **change})
    data = b"".join(pictures.grid(job.pngs, None, "nearest", text))
    assert says in reproduced(data, checkpoints, tmp_path / "x", code=2)


def test_the_text_of_a_grid_is_what_its_job_says(job: Job) -> None:
    with Image.open(io.BytesIO(b"".join(pictures.grid(job.pngs, None, "nearest", "{}")))) as image:
        np.testing.assert_array_equal(np.asarray(image)[:32, :32], job.images[0])
    told = json.loads(recipes.of_job(job.spec, "grid"))
    assert told["drawn"] == {"as": "grid"}
    assert (told["seed"], told["start"], told["version"]) == (7, 0, 1)
    assert not told.keys() & {"priority", "morph", "class_weights", "listed"}
