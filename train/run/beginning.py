"""The weights of another run, for a run on other classes and pictures to begin with (fine-tuning).

Of a checkpoint the generator, of a state also the plain judge's discriminator. What belongs to one class is
kept for a class of the same name; a new class begins at the mean of all theirs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model.checkpoint import load_generator
from model.discriminator import Discriminator
from model.generator import Generator
from model.layers import Scaled, settle
from train.data.automatic import WHY
from train.data.sources.base import spoken
from train.run.saved import FORMAT, StateError, read, saved_recipe

_NORMED = 1.5  # a σ above this is no averaged W/σ, which stays near 1
JUDGE_FIRST = 25  # steps under `auto`, in which a new judge catches up with a trained generator
_AS_TRAINED = ("generator_spectral_norm", "attention_scale")  # `auto` keeps to these
_NAMED = 10  # classes that a line names; the others are counted


@dataclass(frozen=True)
class Start:
    """What the file at `path` has to begin with."""

    path: Path
    generator: Mapping[str, Tensor]  # the averaged one, as it serves
    discriminator: Mapping[str, Tensor]  # the plain judge's as it is saved; {}: none
    class_names: tuple[str, ...] | None  # None: a state of an earlier version, which names none
    model: Mapping[str, Any]  # settings of its recipe, or of its config
    optimisation: Mapping[str, Any]  # settings of its recipe; {}: the file does not say
    origin: Mapping[str, object]  # sha256, steps, images_seen: for the checkpoint to say
    of_state: bool


@dataclass(frozen=True)
class TakenOver:
    """What a run began with, and what began anew."""

    start: Start
    kept: tuple[str, ...]  # classes of both
    new: tuple[str, ...]  # begun at the mean of all theirs
    judge: str | None = None  # why the discriminator began anew; None: it was taken over

    def lines(self) -> list[str]:
        """For the screen."""
        path, theirs = self.start.path, self.start.class_names
        lines = [f"{path}: the generator{'' if self.judge else ' and the discriminator'} taken over."]
        if theirs is None:
            lines.append("It does not name its classes: all begin at the mean of its own.")
        elif not self.new and len(self.kept) == len(theirs):
            lines.append("It has the same classes: theirs too.")
        else:
            lines += [f"Classes that it knows: {_some(self.kept)}."] if self.kept else []
            lines += (
                [f"Classes new to it, begun at the mean of its own: {_some(self.new)}."] if self.new else []
            )
            left = len(theirs) - len(self.kept)
            lines += (
                [f"{left:,} of its {len(theirs):,} classes are not in the data and are let go."]
                if left
                else []
            )
        if self.judge:
            lines.append(f"The judge begins anew: {self.judge}.")
        return lines


def open_start(path: Path) -> Start:
    """A generator or a training state of ours. Raises CheckpointError for another file."""
    if not _is_state(path):
        found = load_generator(path)
        about = ("steps", "images_seen", "licence")
        origin = {"sha256": found.sha256} | {name: found.metadata.get(name) for name in about}
        recipe = found.metadata.get("recipe")
        trained = recipe.get("optimisation", {}) if isinstance(recipe, dict) else {}
        shape = found.config.to_json()
        weights = found.generator.state_dict()
        return Start(path, weights, {}, found.class_names, shape, trained, origin, of_state=False)
    header, tensors = read(path)
    recipe, step = saved_recipe(header), int(header["step"])
    optimisation = recipe.optimisation
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    plain = {"plain": "discriminator.", "both": "discriminator.0."}.get(optimisation.judge)
    names = json.loads(header.get("class_names", "null"))
    return Start(
        path,
        _part(tensors, "ema."),
        _part(tensors, plain) if plain else {},
        None if names is None else tuple(names),
        recipe.model,
        dataclasses.asdict(optimisation),
        {
            "sha256": digest,
            "steps": step,
            "images_seen": step * optimisation.discriminator_steps * optimisation.batch,
            "licence": header.get("licence"),
        },
        of_state=True,
    )


def fitting(start: Start) -> dict[str, str]:
    """Settings by which the recipe `auto` fits `start`: its shape, and the form of its weights.

    "section.field" -> TOML value, as `--set` takes them, and why. The rates are not among them: those of the
    end of a long run were too low for other pictures (docs/experiments/small-folders.md).
    """
    why = f"{WHY}as in {start.path.name}"
    shape = {name: value for name, value in start.model.items() if name != "classes"}
    settings = {f"model.{name}": f"{json.dumps(value)}{why}" for name, value in shape.items()}
    trained = {n: start.optimisation[n] for n in _AS_TRAINED if n in start.optimisation}
    settings |= {f"optimisation.{name}": f"{json.dumps(value)}{why}" for name, value in trained.items()}
    catch_up = f"{JUDGE_FIRST}{WHY}steps: a new judge catches up with a trained generator"
    return settings | {"optimisation.judge_first": catch_up}


def take_over(
    start: Start,
    generator: Generator,
    average: Generator,
    discriminator: Discriminator | None,  # the plain judge's; None: the recipe has another judge
    class_names: Sequence[str],
) -> TakenOver:
    """Fill a run's networks with what `start` has for them.

    The discriminator begins anew where there is none of the same shape. Raises StateError for a generator of
    another shape, and for one trained without spectral norm where this one has it, since dividing by σ would
    make another network of it.
    """
    rows = _rows(start.class_names, class_names)
    _fill_generators(start, generator, average, rows)
    judge = _fill_discriminator(start, discriminator, rows)
    kept = tuple(name for name, row in zip(class_names, rows, strict=True) if row is not None)
    new = tuple(name for name, row in zip(class_names, rows, strict=True) if row is None)
    return TakenOver(start, kept, new, judge)


@torch.no_grad()
def _fill_generators(
    start: Start, generator: Generator, average: Generator, rows: Sequence[int | None]
) -> None:
    path, theirs, used = start.path, start.generator, set[str]()
    for network in (generator, average):
        for name, tensor in network.state_dict().items():
            plain = name.replace(".parametrizations.weight.original", ".weight")
            used.add(plain)
            if ".parametrizations." in plain:
                continue
            of_a_class = plain == "shared.weight" or _is_table(plain)
            if plain not in theirs or theirs[plain].shape[of_a_class:] != tensor.shape[of_a_class:]:
                raise StateError(
                    f"{path} has another shape than this recipe's generator ({plain} does not fit): "
                    "use the recipe that it was trained with."
                )
            tensor.copy_(_of_classes(theirs[plain], rows) if of_a_class else theirs[plain])
            if scale := _scale(network, name):
                tensor.div_(scale)  # the file holds the product
    if left := sorted(theirs.keys() - used):
        raise StateError(
            f"{path} has {left[0]}, for which this recipe's generator has no place: use the recipe that "
            "it was trained with."
        )
    if settle(generator) > _NORMED:
        raise StateError(
            f"{path} was trained without spectral norm in the generator, and this recipe has it, which "
            "would make another network of it: add --set optimisation.generator_spectral_norm=false."
        )


@torch.no_grad()
def _fill_discriminator(
    start: Start, discriminator: Discriminator | None, rows: Sequence[int | None]
) -> str | None:
    """Why it begins anew; None: it is filled."""
    theirs = start.discriminator
    if not start.of_state:
        return "a checkpoint has none, the state of its run would"
    if discriminator is None:
        return "a pretrained judge's heads belong to the pictures that they were measured on"
    if not theirs:
        return "the state has a pretrained judge, and the recipe the plain one"
    ours = discriminator.state_dict()
    tables = {name for name in ours if name.startswith("embedding.") and ours[name].dim() == 2}
    if ours.keys() != theirs.keys() or any(
        theirs[n].shape[n in tables :] != t.shape[n in tables :]
        for n, t in ours.items()
        if n[-2:] not in _VECTORS
    ):
        return "the state's discriminator has another shape than the recipe's"
    for name, tensor in ours.items():
        if name[-2:] not in _VECTORS:
            tensor.copy_(_of_classes(theirs[name], rows) if name in tables else theirs[name])
    settle(discriminator)
    return None


_VECTORS = (".u", ".v")  # of spectral norm, which are found anew


def _rows(theirs: Sequence[str] | None, ours: Sequence[str]) -> list[int | None]:
    """For each of our classes the number of theirs of that name; None: there is none.

    Case and underscores make no difference.
    """
    known = {name.casefold(): number for number, name in enumerate(spoken(theirs or ()))}
    return [known.get(name.casefold()) for name in spoken(ours)]


def _of_classes(theirs: Tensor, rows: Sequence[int | None]) -> Tensor:
    """A table of their classes [K, ...] as one of ours."""
    mean = theirs.float().mean(0).to(theirs)
    return torch.stack([mean if row is None else theirs[row] for row in rows])


def _is_table(name: str) -> bool:
    """Whether a generator's tensor is a norm's, with a row for each class."""
    return name.endswith((".gamma", ".beta")) and ".norm" in name


def _scale(network: nn.Module, name: str) -> float | None:
    """The fixed factor on the weight `name`; None: there is none."""
    owner = network.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, parametrize.ParametrizationList) and isinstance(owner[0], Scaled):
        return owner[0].factor
    return None


def _is_state(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False  # said when it is opened as a generator


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
