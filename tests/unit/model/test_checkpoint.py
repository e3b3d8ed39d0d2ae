"""Checkpoints: what is written comes back, and nothing else is ever read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imaging.files import write_whole
from model.checkpoint import load_generator, save_generator
from model.config import ModelConfig
from model.errors import CheckpointError
from model.generator import Generator
from model.layers import spectral_normalise

CONFIG = ModelConfig(
    resolution=32,
    classes=2,
    generator_widths=(8, 8, 8, 8),
    discriminator_widths=(8, 8, 8, 8),
    generator_attention=(16,),
    latent=4,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "pets.safetensors"
    save_generator(path, Generator(CONFIG), ("cat", "dog"), {"distance": 1.5}, {"licence": "none"})
    return path


def header(path: Path) -> dict[str, str]:
    length = int.from_bytes(path.read_bytes()[:8], "little")
    values = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert isinstance(values, dict)
    return values


def rewrite(path: Path, **changes: str | None) -> None:
    """The same tensors under a changed header; None takes a field away."""
    fields = {k: v for k, v in {**header(path), **changes}.items() if v is not None}
    save_file(load_file(path), path, metadata=fields)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    generator = Generator(CONFIG)
    spectral_normalise(generator)
    generator(torch.randn(8, 4), torch.randint(2, (8,)))
    path = tmp_path / "new folder" / "pets.safetensors"
    digest = save_generator(path, generator, ("cat", "dog"), {"distance": 1.5}, {"licence": "none"})
    found = load_generator(path)
    assert found.config == CONFIG
    assert found.class_names == ("cat", "dog")
    assert found.metrics == {"distance": 1.5}
    assert found.metadata == {"licence": "none"}
    assert found.sha256 == digest
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 0])
    torch.testing.assert_close(found.generator(z, y), generator.eval()(z, y))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_names_that_do_not_fit_the_classes_are_not_written(tmp_path: Path) -> None:
    for names in (("cat",), ("cat", "cat")):
        with pytest.raises(CheckpointError, match="2 classes"):
            save_generator(tmp_path / "x.safetensors", Generator(CONFIG), names)
    assert not list(tmp_path.iterdir())


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_generator(path)
    torch.save(Generator(CONFIG).state_dict(), path)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_generator(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"hello, this is text" * 10])
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load_generator(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_generator(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_generator(tmp_path)


def test_a_truncated_file_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_generator(saved)


def config_json(**changes: object) -> str:
    return json.dumps({**CONFIG.to_json(), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "someone-elses"}, "not a generator of ours"),
        ({"config": None}, "config is missing"),
        ({"config": "{"}, "not JSON"),
        ({"config": "[]"}, "not a JSON object"),
        ({"config": json.dumps({"resolution": 32})}, "incomplete"),
        ({"config": config_json(colour="blue")}, "unknown fields"),
        ({"config": config_json(resolution="32")}, "resolution is '32'"),
        ({"config": config_json(classes=True)}, "classes is True"),
        ({"config": config_json(generator_widths="8888")}, "generator_widths is '8888'"),
        ({"config": config_json(attention_form=[])}, "attention_form"),
        ({"config": config_json(generator_attention=[8])}, "attention.16x16"),
        ({"config": config_json(latent=5)}, "linear.weight is torch.float32"),
        ({"config": config_json(classes=3)}, "2 class names for 3 classes"),
        ({"class_names": '["cat", "cat"]'}, "class names"),
        ({"class_names": '["cat", 2]'}, "list of strings"),
        ({"metrics": "3"}, "metrics in its header"),
        ({"metadata": None}, "metadata is missing"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_in_one_line(
    saved: Path, changes: dict[str, str | None], said: str
) -> None:
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError) as refused:
        load_generator(saved)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_network_that_diverged_are_refused(saved: Path, value: float) -> None:
    tensors = load_file(saved)
    tensors["attention.16x16.gamma"].fill_(value)
    save_file(tensors, saved, metadata=header(saved))
    with pytest.raises(
        CheckpointError, match=r"attention\.16x16\.gamma has values that are no finite numbers"
    ):
        load_generator(saved)


def test_a_place_that_cannot_be_written_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as told:
        write_whole(tmp_path / "folder", b"x")
    assert told.value.filename == str(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_tensor_of_another_type_is_refused(saved: Path) -> None:
    fields = header(saved)
    save_file(
        {n: t.half() if t.is_floating_point() else t for n, t in load_file(saved).items()}, saved, fields
    )
    with pytest.raises(CheckpointError, match=r"torch\.float16"):
        load_generator(saved)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    save_generator(other, Generator(CONFIG), ("cat", "dog"))

    def replacing(path: Path, **how: str) -> object:
        opened = safe_open(path, **how)
        other.replace(saved)
        return opened

    monkeypatch.setattr("model.checkpoint.safe_open", replacing)
    with pytest.raises(CheckpointError, match="replaced while it was read"):
        load_generator(saved)
