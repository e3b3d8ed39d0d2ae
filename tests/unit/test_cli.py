"""The command line: what each subcommand writes and says, and how it fails."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli import app
from imaging.png import png, read_provenance
from imaging.spec import ImageSpec, Provenance
from model.checkpoint import load_generator
from networks import judge_with, random_checkpoint
from train.measure.features import open_features

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as `train` sets it; put back afterwards


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    random_checkpoint(folder / "pets.safetensors", CLASSES)
    return folder


def sagan(*arguments: object, code: int = 0) -> str:
    """What the command printed; its exit code must be `code`, and a failure is one line."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    if code == 2:
        assert done.stderr.startswith("sagan: ")
        assert done.stderr.count("\n") == 1
    return done.output


def test_a_sample_is_what_the_service_makes_and_can_be_made_again(checkpoints: Path, tmp_path: Path) -> None:
    model = checkpoints / "pets.safetensors"
    told = sagan("sample", model, "dog", "--count", 6, "--seed", 7, "--out", tmp_path)
    paths = [Path(line) for line in told.split()]
    assert [p.name for p in paths] == [f"pets-dog-7-{k}.png" for k in range(6)]
    made = read_provenance(paths[5].read_bytes())
    assert (made.class_name, made.image) == ("dog", ImageSpec(1, 7, 5, 1.0))
    assert made.model_hash == load_generator(model).sha256
    assert len({p.read_bytes() for p in paths}) == 6
    assert "the same" in sagan("reproduce", paths[5], "--checkpoints", checkpoints)


@pytest.mark.slow
def test_a_class_is_found_however_it_is_written(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    random_checkpoint(model, ("bird_of_paradise", "Border collie"))
    for asked, found in (("Bird of Paradise", "bird_of_paradise"), ("border_collie", "Border_collie")):
        told = sagan("sample", model, asked, "--out", tmp_path)
        assert told.strip() == str(tmp_path / f"m-{found}-0-0.png")  # a file's name without spaces
    assert "Did you mean 'Border collie'" in sagan("sample", model, "border colie", code=2)


def test_an_image_that_was_changed_is_told_apart(checkpoints: Path, tmp_path: Path) -> None:
    sagan("sample", checkpoints / "pets.safetensors", "0", "--out", tmp_path)
    path = tmp_path / "pets-cat-0-0.png"
    with Image.open(path) as image:
        text = image.info["sagan"]
        pixels = np.asarray(image).copy()
    pixels[3, 4, 0] ^= 1
    from PIL.PngImagePlugin import PngInfo

    chunk = PngInfo()
    chunk.add_text("sagan", text)
    Image.fromarray(pixels).save(path, pnginfo=chunk)
    assert "differ, by 1 at most" in sagan("reproduce", path, "--checkpoints", checkpoints, code=1)


def test_reproducing_needs_a_spec_and_its_model(checkpoints: Path, tmp_path: Path) -> None:
    plain = io.BytesIO()
    Image.new("RGB", (4, 4)).save(plain, "PNG")
    (tmp_path / "plain.png").write_bytes(plain.getvalue())
    assert "no spec" in sagan("reproduce", tmp_path / "plain.png", code=2)
    assert "no.png" in sagan("reproduce", tmp_path / "no.png", code=2)
    sagan("sample", checkpoints / "pets.safetensors", "cat", "--out", tmp_path)
    random_checkpoint(tmp_path / "pets.safetensors", CLASSES, seed=1)
    made = tmp_path / "pets-cat-0-0.png"
    assert "another pets" in sagan("reproduce", made, "--checkpoints", tmp_path, code=2)
    assert "no such file" in sagan("reproduce", made, "--checkpoints", tmp_path / "none", code=2)


def test_a_renamed_checkpoint_is_found_by_its_hash(checkpoints: Path, tmp_path: Path) -> None:
    sagan("sample", checkpoints / "pets.safetensors", "cat", "--out", tmp_path)
    folder = tmp_path / "others"
    random_checkpoint(folder / "pets.safetensors", CLASSES, seed=1)
    (folder / "aaa.safetensors").write_bytes(b"nonsense")
    (folder / "best.safetensors").write_bytes((checkpoints / "pets.safetensors").read_bytes())
    assert "the same" in sagan("reproduce", tmp_path / "pets-cat-0-0.png", "--checkpoints", folder)
    assert "the same" in sagan(
        "reproduce", tmp_path / "pets-cat-0-0.png", "--checkpoints", folder / "best.safetensors"
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("class_id", 99, "says class 99, and pets has 0 to 1"),
        ("class_id", -1, "class_id = -1"),
        ("seed", 10**40, "no image has that"),
        ("index", 2**63, "no image has that"),
        ("truncation", math.nan, "truncation = nan"),
        ("truncation", math.inf, "truncation = inf"),
        ("precision", "x" * 500, "precision is"),
        ("model_hash", "\ud800", "none of the 1 checkpoints"),
    ],
)
def test_a_spec_that_no_image_has_is_one_line(
    checkpoints: Path, tmp_path: Path, name: str, value: object, said: str
) -> None:
    made = Provenance(
        "pets",
        load_generator(checkpoints / "pets.safetensors").sha256,
        "float32",
        "cat",
        ImageSpec(0, 0, 0, 1.0),
    )
    spec = json.dumps({**json.loads(made.to_json()), name: value})
    (tmp_path / "odd.png").write_bytes(png(np.zeros((32, 32, 3), np.uint8), spec))
    assert said in sagan("reproduce", tmp_path / "odd.png", "--checkpoints", checkpoints, code=2)


def test_a_class_of_any_name_has_pictures_of_a_name_that_can_be_written(tmp_path: Path) -> None:
    names = ("a" * 250, "a" * 249 + "b", "../do/g\n é")
    random_checkpoint(tmp_path / "m.safetensors", names)
    paths = []
    for name in names:
        paths += sagan("sample", tmp_path / "m.safetensors", name, "--out", tmp_path / "out").splitlines()
    assert len({Path(path).name for path in paths}) == 3
    assert sorted((tmp_path / "out").iterdir()) == sorted(Path(path) for path in paths)
    sagan("attention", tmp_path / "m.safetensors", "2", "--out", tmp_path / "a.png")
    sagan("sheet", tmp_path / "m.safetensors", "--out", tmp_path / "s.png", "--columns", 1)
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width < 500  # of a long name only the beginning


def test_a_picture_that_we_have_not_made_is_never_written_over(checkpoints: Path, tmp_path: Path) -> None:
    model, photo, out = checkpoints / "pets.safetensors", tmp_path / "photo.png", tmp_path / "sheet.png"
    Image.new("RGB", (4, 4)).save(photo)
    before = photo.read_bytes()
    for words in (("sheet", model), ("attention", model, "cat"), ("neighbours", model, "--data", "x")):
        assert "was not made by sagan" in sagan(*words, "--out", photo, code=2)
    photo.rename(tmp_path / "pets-cat-0-0.png")
    assert "was not made by sagan" in sagan("sample", model, "cat", "--out", tmp_path, code=2)
    assert (tmp_path / "pets-cat-0-0.png").read_bytes() == before
    for words in (("sheet", model), ("attention", model, "cat"), ("sheet", model)):
        sagan(*words, "--out", out)  # our own is


def test_a_film_of_a_run_shows_its_grids(tmp_path: Path) -> None:
    samples, out = tmp_path / "run" / "samples", tmp_path / "film.webp"
    samples.mkdir(parents=True)
    for step, level in enumerate((0, 120, 250)):
        if step == 1:
            assert "needs two" in sagan("progress", tmp_path / "run", "--out", tmp_path / "f.gif", code=2)
        Image.new("RGB", (300, 40), (level,) * 3).save(samples / f"step-000000{step}.png")
    for name in ("film.webp", "film.gif", "film.webp"):
        assert "3 of 3 grids" in sagan("progress", tmp_path / "run", "--out", tmp_path / name)
        with Image.open(tmp_path / name) as film:
            assert (film.n_frames, film.size) == (3, (300, 40))  # type: ignore[attr-defined]
            film.seek(2)
            assert np.asarray(film.convert("RGB")).min() > 240
    assert ".webp or .gif" in sagan("progress", tmp_path / "run", "--out", tmp_path / "film.mp4", code=2)
    assert "no folder" in sagan("progress", tmp_path / "nowhere", code=2)
    (samples / "step-0000003.png").write_text("no picture")
    assert "step-0000003.png cannot be" in sagan("progress", tmp_path / "run", "--out", out, code=2)
    Image.new("1", (20_000, 10_000)).save(samples / "step-0000003.png")  # more pixels than Pillow opens
    assert "step-0000003.png cannot be" in sagan("progress", tmp_path / "run", "--out", out, code=2)


def test_a_sheet_has_a_row_a_class_with_its_name(checkpoints: Path, tmp_path: Path) -> None:
    sagan("sheet", checkpoints / "pets.safetensors", "--columns", 5, "--out", tmp_path / "sheet.png")
    sagan("sample", checkpoints / "pets.safetensors", "dog", "--count", 5, "--out", tmp_path)
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "pets-dog-0-4.png") as last:
        left = sheet.width - (5 * 33 - 1)
        assert left > 0
        assert sheet.height == 2 * 33 - 1
        cell = sheet.crop((left + 4 * 33, 33, left + 4 * 33 + 32, 65))
        assert np.array_equal(np.asarray(cell), np.asarray(last))
        for top in (0, 33):
            assert np.asarray(sheet.crop((0, top, left, top + 32))).min() == 0  # something is written


def test_a_sheet_of_fewer_rows_spreads_over_the_classes(checkpoints: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    sagan("sheet", checkpoints / "pets.safetensors", "--columns", 1, "--rows", 1, "--out", sheet)
    with Image.open(sheet) as found:
        assert found.height == 32


def test_the_attention_figure_is_drawn(checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "why.png"
    sagan("attention", checkpoints / "pets.safetensors", "cat", "--index", 2, "--out", out)
    with Image.open(out) as figure:
        assert figure.width > 6 * 256
    refused = sagan("attention", checkpoints / "pets.safetensors", "cat", "--layer", "4x4", code=2)
    assert "it has: 16x16" in refused


def test_models_of_a_service_are_listed_with_their_workers() -> None:
    version = {"hash": "ab" * 32, "precision": "float32", "draining": True, "served_by": ["a:1:x", "b:2:y"]}
    with answering(200, {"models": [{"name": "tiny", "versions": [version]}]}) as url:
        assert sagan("models", url).strip() == f"tiny {'ab' * 6}… float32: draining by a:1:x, b:2:y"
    with answering(401, {}) as url:
        assert "--api-key" in sagan("models", url, code=2)
    assert "does not answer" in sagan("models", "http://127.0.0.1:1", code=2)
    assert "begins with http://" in sagan("models", "127.0.0.1:8000", code=2)


@contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """A server that answers every GET so; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_models_are_listed_and_a_bad_one_is_named(checkpoints: Path, tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "pets.safetensors", CLASSES)
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    bad, good = sagan("models", tmp_path).strip().split("\n")
    assert "bad.safetensors: not a readable safetensors file" in bad
    assert good.startswith("pets: 32×32, 2 classes, attention 16x16 (γ 0.700)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "{}", "dgo"], "Did you mean 'dog'"),
        (["sample", "{}", "2"], "0 to 1"),
        (["sample", "{}", "cat", "--truncation", "0"], "above 0"),
        (["sample", "nowhere.safetensors", "cat"], "no such file"),
        (["sample", "{}", "cat", "--device", "abacus"], "no device 'abacus'"),
        (["sample", "{}", "cat", "--seed", "1" + "0" * 40], "--help` tells more"),
        (["sample", "{}", "c" * 300], "no class"),
        (["sample", "x" * 300, "cat"], "name too long"),
        (["sheet", "{}", "--out", "x" * 300 + ".png"], "name too long"),
        (["sheet", "{}", "--out", "/proc/sheet.png"], "No such file"),
        (["attention", "{}", "cat", "--index", "1" + "0" * 40], "Invalid value"),
        (["models", "x" * 300], "name too long"),
        (["models", "http://a b"], "does not answer"),
        (["shoot"], "No such command"),
        (["train", "--data", "x", "--out", "y", "--dry-run", "--resume"], "leave --resume out"),
        (["train", "--data", "nowhere", "--out", "y", "--dry-run"], "nothing at nowhere"),
        (["train", "tyny", "--data", "x", "--out", "y"], "Did you mean 'tiny'"),
        (["train", "tiny", "--data", "nowhere", "--out", "y"], "nothing at nowhere"),
        (["train", "tiny", "--data", "x", "--out", "y", "--stop-after", "soon"], "write 90s"),
        (["train", "tiny", "--data", "x", "--out", "y", "--set", "steps"], "section.field=value"),
        (["train", "features", "--data", "x", "--out", "y", "--resume"], "--resume is for networks"),
        (
            ["train", "features", "--data", "x", "--out", "y", "--stop-after", "9m"],
            "--stop-after is for networks",
        ),
        (["train", "features", "--data", "x", "--out", "y", "--compile"], "--compile is for networks"),
        (["train", "features", "--data", "x", "--out", "y", "--no-compile"], "--no-compile is for networks"),
        (["train", "features", "--data", "x", "--out", "y", "--set", "epoch=3"], "Did you mean 'epochs'"),
        (["train", "features", "--data", "x", "--out", "y", "--set", "epochs=0"], "at least 1"),
        (
            ["train", "features", "--data", "x", "--out", "y", "--set", "features.flips=5"],
            "must be of type bool",
        ),
        (
            ["train", "features", "--data", "x", "--out", "y", "--set", "model.latent=5"],
            "There are epochs, batch",
        ),
        (["train", "features", "--data", "x", "--out", "y", "--set", "shift=1.5"], "under 1"),
        (["train", "features", "--data", "x", "--out", __file__], "is no feature extractor"),
        (["train", "features", "--data", "x", "--out", "/"], "is no feature extractor"),
        (["evaluate", "{}", "--data", "x"], "Nothing to measure with"),
        (["evaluate", "{}", "--data", "x", "--inception-weights", "nowhere"], "nowhere cannot be read"),
        (["evaluate", "{}", "--data", "nowhere", "--cas"], "nothing at nowhere"),
        (["data", "pack", "nowhere", "out.safetensors"], "nothing at nowhere"),
        (["train", "tiny", "--data", "x", "--out", "y", "--from", "nowhere"], "no such file"),
        (["train", "tiny", "--data", "x", "--out", "y", "--from", __file__], "not a readable safetensors"),
        (["train", "--data", "x", "--out", "y", "--set", "optimisation.guide=nan"], "not a value"),
        (["train", "--data", "x", "--out", "y", "--set", "optimisation.guide={a=1}"], "not a value"),
        (["evaluate", "{}", "--data", "x", "--cas", "--truncation", "nan"], "above 0"),
        (["neighbours", "{}", "--data", "x", "--truncation", "-3"], "above 0"),
        (["neighbours", "{}", "--data", "x", "--out", "{}"], "must end in .png"),
        (["sheet", "{}", "--out", "{}"], "must end in .png"),
        (["sheet", "{}", "--out", f"{__file__}/sheet.png"], "Not a directory"),
        (["sample", "{}", "cat", "--out", __file__], "Not a directory"),
        (["attention", "{}", "cat", "--out", "attention.jpg"], "must end in .png"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_the_way_out(
    checkpoints: Path, arguments: list[str], said: str
) -> None:
    model = str(checkpoints / "pets.safetensors")
    assert said in sagan(*(a.replace("{}", model) for a in arguments), code=2)


@pytest.mark.slow
def test_from_a_folder_of_images_to_a_measured_checkpoint(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, level in zip(CLASSES, (60, 190), strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(40):
            pixels = draw.integers(level - 60, level + 60, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    pack, run = tmp_path / "photos.safetensors", tmp_path / "run"
    assert "80 images of 2 classes" in sagan("data", "pack", tmp_path / "photos", pack, "--resolution", 32)
    short = ["--set", "optimisation.steps=2", "--set", "schedule.statistics_batches=1", "--device", "cpu"]
    assert "finished" in sagan("train", "tiny", "--data", pack, "--out", run, *short)
    features = tmp_path / "features.safetensors"
    told = sagan("train", "features", "--data", pack, "--out", features, "--set", "epochs=30")
    assert "right on the tenth" in told
    assert "warning" not in told
    made = run / "generator.safetensors"
    measure = ["--features", features, "--cas", "--samples", 20, "--keep", "--device", "cpu"]
    told = sagan("evaluate", made, "--data", pack, *measure)
    assert "20 images in 256 features" in told  # a Fréchet distance of so few says little
    reports = json.loads(told[told.index("{") : told.rindex("}") + 1])
    figures = reports["own_features"]
    assert figures["protocol"]["samples"] == 20
    assert figures["real_held_back"]["frechet_own_features"] < figures["generated"]["frechet_own_features"]
    served = ["--features", features, "--samples", 20, "--device", "cpu", "--precision", "float32"]
    told = sagan("evaluate", made, "--data", pack, *served)
    again = json.loads(told[told.index("{") : told.rindex("}") + 1])["own_features"]
    assert again["precision"] == "float32"
    wanted = figures["generated"]["frechet_own_features"]
    assert again["generated"]["frechet_own_features"] == pytest.approx(wanted, rel=1e-2)
    assert "must be auto or" in sagan("evaluate", made, "--data", pack, *served[:-1], "int4", code=2)
    kept = load_generator(made).metrics["own_features"]
    assert isinstance(kept, dict)
    assert kept["generated"] == figures["generated"]
    assert load_generator(made).metrics["cas"] == reports["cas"]
    assert reports["cas"]["protocol"]["images"] == 20
    assert 0 <= reports["cas"]["generated"] <= reports["cas"]["real"] <= 1

    judge_with(features, features, 0.6, 1000)
    done = CliRunner().invoke(app, ["evaluate", str(made), "--data", str(pack), *map(str, served)])
    assert done.stderr.count("sagan: warning: The classifier is a poor judge") == 1
    assert "poor judge" in json.loads(done.stdout)["own_features"]["protocol"]["warning"]
    beside = next(line for line in done.stderr.splitlines() if line.startswith("frechet_own_features "))
    assert float(beside.split()[1]) == pytest.approx(wanted, rel=1e-2)
    less = ["--set", "features.epochs=1", "--set", "learning_rate=0"]  # features. is the same as nothing
    assert "sagan: warning: The classifier only guesses" in sagan(
        "train", "features", "--data", pack, "--out", features, *less
    )
    recipe = open_features(features).metadata["recipe"]
    assert (recipe["epochs"], recipe["learning_rate"], recipe["batch"]) == (1, 0, 32)
    assert "only guesses" in sagan("evaluate", made, "--data", pack, *served, code=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("torch", ["train", "--data", "photos", "--out", "run"], "train"),
        ("torch", ["sample", "tiny.safetensors", "cat"], "worker"),
        ("celery", ["worker"], "worker"),
        ("uvicorn", ["api"], "api"),
        ("PIL", ["data", "pack", "photos", "pack.safetensors"], "train"),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_extra_that_brings_it(
    missing: str, command: list[str], extra: str
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from cli import app; app({command!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert f"sagan-service[{extra}]" in done.stderr
