"""The file a generator lives in: safetensors with its config, class names and metrics as JSON inside.

Nothing else is ever read: a pickle can run code, and is refused like any other file that is not ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from imaging.files import write_whole
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.generator import Generator

FORMAT = "sagan-generator-1"


@dataclass(frozen=True)
class Checkpoint:
    """A generator ready to sample, and what its file says about it."""

    generator: Generator  # eval mode, spectral norm folded away, float32, on the CPU
    class_names: tuple[str, ...]
    metrics: Mapping[str, object]  # name -> figure, each with its protocol
    metadata: Mapping[str, object]  # recipe, data, licence, description, version ...
    sha256: str  # of the whole file; "" before it was written
    config: ModelConfig = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.generator.config)


def save_generator(
    path: Path,
    generator: Generator,
    class_names: Sequence[str],
    metrics: Mapping[str, object] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> str:
    """Write `generator` as it serves (spectral norm folded) and return the file's sha256.

    A tensor that bfloat16 holds without loss is stored so; float32 is what loads, with the same values.
    The file appears whole or not at all. Raises CheckpointError when the names do not fit the classes.
    """
    config = generator.config
    if len(class_names) != config.classes or len(set(class_names)) != config.classes:
        raise CheckpointError(
            f"{config.classes} classes need as many different names, not {len(class_names)}."
        )
    tensors = {name: _narrowed(t).cpu().contiguous() for name, t in generator.folded().state_dict().items()}
    header = {
        "format": FORMAT,
        "config": json.dumps(config.to_json()),
        "class_names": json.dumps(list(class_names), ensure_ascii=False),
        "metrics": json.dumps(dict(metrics or {}), ensure_ascii=False),
        "metadata": json.dumps(dict(metadata or {}), ensure_ascii=False),
    }
    content = save(tensors, metadata=header)
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def load_generator(path: Path) -> Checkpoint:
    """The generator in `path`. Raises CheckpointError, with one line that says why, for any other file."""
    digest, header, tensors = _read(path)
    try:
        config = ModelConfig.from_json(_mapping(header, "config", path))
    except ConfigError as wrong:
        raise CheckpointError(f"{path}: {wrong}") from None
    names = _json(header, "class_names", path)
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise CheckpointError(f"{path}: class_names must be a list of strings.")
    if len(set(names)) != config.classes:
        raise CheckpointError(f"{path}: {len(names)} class names for {config.classes} classes.")
    with torch.device("meta"):  # no time spent on initial weights that are about to be replaced
        generator = Generator(config)
    _check_shapes(path, generator.state_dict(), tensors)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: {name} has values that are no finite numbers: its training diverged, and it "
                "makes no images. Use an earlier one."
            )
    generator.load_state_dict(tensors, assign=True)
    if digest != _sha256(path):  # else images would be of other weights than their hash says
        raise CheckpointError(f"{path}: it was replaced while it was read. Try again.")
    return Checkpoint(
        generator=generator.eval().requires_grad_(False),
        class_names=tuple(names),
        metrics=_mapping(header, "metrics", path),
        metadata=_mapping(header, "metadata", path),
        sha256=digest,
    )


def _read(path: Path) -> tuple[str, dict[str, str], dict[str, Tensor]]:
    if path.exists() and not path.is_file():  # opening a pipe waits for ever, and all of Python with it
        raise CheckpointError(f"{path}: not a file.")
    try:
        digest = _sha256(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path}: a safetensors file, but not a generator of ours ({FORMAT}); a run of `sagan "
                    "train` leaves it as generator.safetensors."
                )
            names = file.keys()  # the file itself is not a dict
            return digest, header, {name: _widened(file.get_tensor(name)) for name in names}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file.") from None
    except (SafetensorError, OSError) as wrong:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({wrong}); only what `sagan train` wrote loads."
        ) from None


def _narrowed(tensor: Tensor) -> Tensor:
    narrow = tensor.bfloat16() if tensor.dtype == torch.float32 and tensor.dim() else tensor
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _json(header: Mapping[str, str], name: str, path: Path) -> object:
    try:
        return json.loads(header[name])
    except KeyError:
        raise CheckpointError(f"{path}: {name} is missing from its header.") from None
    except (ValueError, RecursionError) as wrong:
        raise CheckpointError(f"{path}: {name} in its header is not JSON ({wrong}).") from None


def _mapping(header: Mapping[str, str], name: str, path: Path) -> dict[str, object]:
    value = _json(header, name, path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {name} in its header is not a JSON object.")
    return value


def _check_shapes(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise CheckpointError(f"{path}: its config needs a tensor {name}, which is missing.")
        if name not in wanted:
            raise CheckpointError(f"{path}: its config has no place for its tensor {name}.")
        if wanted[name].shape != found[name].shape or wanted[name].dtype != found[name].dtype:
            raise CheckpointError(
                f"{path}: {name} is {found[name].dtype} {list(found[name].shape)}, "
                f"its config needs {wanted[name].dtype} {list(wanted[name].shape)}."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
