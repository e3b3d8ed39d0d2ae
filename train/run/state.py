"""Both networks, their optimisers and the average, as one thing that is stepped, saved and resumed.

All randomness of a step comes from (seed, purpose, step), never from a stream, so a resumed run needs
nothing but the step's number to go on exactly as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from imaging.files import write_whole
from model.attention import SelfAttention
from model.checkpoint import load_generator
from model.config import ModelConfig
from model.generator import Generator
from model.layers import Scaled, power_iterate, settle, spectral_normalise
from train.data.pack import Pack
from train.data.sources.base import same_classes
from train.efficientnet import open_network
from train.errors import TrainError
from train.recipes.recipe import Optimisation, Recipe
from train.run.augment import draw, neutral
from train.run.cross_replica import join_norms
from train.run.distributed import World
from train.run.ema import Ema
from train.run.epochs import Epochs
from train.run.execution import Compute, Execution, Passes, Replayed, precision
from train.run.judge import BothJudges, Judge, PlainJudge, Play
from train.run.pretrained_judge import NETWORK, PretrainedJudge

FORMAT = "sagan-training-1"
_NORMED = 1.5  # a σ above this is no averaged W/σ, which stays near 1
AUGMENTED = ("reals", "fakes", "answers")  # each by draws of its own


class StateError(TrainError):
    """A saved state that cannot be read, or belongs to another run."""


class TrainingState:
    """A run at one step. `step` counts generator steps done."""

    def __init__(self, recipe: Recipe, pack: Pack, world: World, execution: Execution | None = None) -> None:
        self.recipe, self.pack, self.world = recipe, pack, world
        execution = execution or Execution()
        optimisation = recipe.optimisation
        self.config = recipe.config(len(pack.class_names))
        torch.manual_seed(optimisation.seed)  # the initial weights
        self.generator = Generator(self.config, optimisation.initialisation)
        self.precision = precision(optimisation.precision, world.device)
        self._passes = Passes(world.device, self.precision)
        self.judge, pretrained = _judge(self.config, optimisation, self._passes)
        self.pretrained = pretrained.seen_with if pretrained else None  # the network that no state holds
        self.discriminator = self.judge.network
        if optimisation.generator_spectral_norm:
            spectral_normalise(self.generator)
        if optimisation.attention_scale != 1:
            for layer in self.generator.attention.modules():
                if isinstance(layer, SelfAttention) and isinstance(layer.f, nn.Conv2d):
                    scaled = Scaled(optimisation.attention_scale)
                    parametrize.register_parametrization(layer.f, "weight", scaled, unsafe=True)
        if optimisation.discriminator_spectral_norm:
            self.judge.normalise()
        for network in (self.generator, self.discriminator):
            network.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if optimisation.cross_replica_norm and world.size > 1:
            join_norms(self.generator, world)
        self.generator_adam = self._adam(self.generator, optimisation.generator_lr)
        self.discriminator_adam = self._adam(self.discriminator, optimisation.discriminator_lr)
        self.step = 0
        self.began_from: dict[str, object] | None = None  # the generator that this run took over
        self.losses: dict[str, Tensor] = {}  # of the last step, on the device: reading one waits for it
        self._epochs = Epochs(
            pack.shards or (len(pack),), optimisation.batch, world.rows(optimisation.batch), self._draw
        )
        pack.open(self._epochs.shards)  # a missing file is told now
        if pretrained is not None:
            pretrained.measure(pack, self._epochs.read_first, world)
            pretrained.place_classes(self.generator)
        self.ema = Ema(self.generator, optimisation.ema_half_life, optimisation.ema_ramp)
        self._resident = self._pixels_on_device()
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
        # plain functions of tensors, so that each is compiled as one
        self._generate, self._look = self._fakes, self.judge.look
        self._judge, self._answer = self.judge.judge, self.judge.answer
        if execution.compile:
            self._generate = torch.compile(self._generate, dynamic=False)
            self._look = torch.compile(self._look, dynamic=False)
            self._judge = torch.compile(self._judge, dynamic=False)
            self._answer = torch.compile(self._answer, dynamic=False)
        self._carry_out: Compute = Replayed(self._compute) if execution.graph else self._compute

    @property
    def images_seen(self) -> int:
        """Real images shown to the discriminator so far."""
        return self.step * self.recipe.optimisation.discriminator_steps * self.recipe.optimisation.batch

    def advance(self) -> None:
        """One step of the game. Returns before a GPU is done with it."""
        plays = self.recipe.optimisation.discriminator_steps
        inputs: list[Tensor] = [t for i in range(plays) for t in self._drawn(self.step * plays + i)]
        batch = self.recipe.optimisation.batch
        towards = self.ema.weight(batch, self.images_seen + plays * batch)
        learns = float(self.step >= self.recipe.optimisation.judge_first)
        inputs += [self._on_device(torch.tensor(scalar)) for scalar in (towards, self._guide(), learns)]
        self.losses = self._carry_out(inputs)
        self.step += 1  # last: a step that a lost peer breaks off does not count

    def _guide(self) -> float:
        """How much the class's cross-entropy weighs in this step, where the judge has one."""
        optimisation = self.recipe.optimisation
        over = self.step / optimisation.guide_steps if optimisation.guide_steps else 0.0
        return optimisation.guide * max(1 - over, 0.0)

    # -- what a step is made of, drawn on the host -----------------------------------------------------

    def _drawn(self, number: int) -> Play:
        """What discriminator step `number` of the run is made of, on the device."""
        batch = self.recipe.optimisation.batch
        noise = self._draw("noise", number)
        z = torch.randn(batch, self.config.latent, generator=noise)
        y = torch.randint(self.config.classes, (batch,), generator=noise)
        if self.recipe.optimisation.variety:
            y = y[::2].repeat_interleave(2)  # pairs of one class
        mirrored = torch.rand(batch, generator=self._draw("flips", number)) < 0.5
        if not self.recipe.optimisation.flips:
            mirrored = torch.zeros_like(mirrored)
        if self.step < self.recipe.optimisation.augment_after:
            changes = [neutral(batch) for _ in AUGMENTED]
        else:
            changes = [draw(batch, self._draw(f"augment {what}", number)) for what in AUGMENTED]
        chosen = self._epochs.indices(number)
        shares = [self.world.share(t) for t in (mirrored, z, y, *changes)]
        return Play(self._pixels(chosen), *map(self._on_device, (self.pack.labels[chosen], *shares)))

    def _pixels(self, chosen: Tensor) -> Tensor:
        if self._resident is None:
            return self._on_device(self.pack.images[chosen])
        return self._resident[self._on_device(chosen - self._epochs.images.start)]

    def _pixels_on_device(self) -> Tensor | None:
        """The uint8 images that this process reads, if a GPU has room for them; else they travel by batch."""
        if self.world.device.type != "cuda":
            return None
        ours = self._epochs.images
        size = len(ours) * 3 * self.pack.resolution**2
        if size > torch.cuda.mem_get_info(self.world.device)[0] // 2:
            return None
        return self.pack.images[ours.start : ours.stop].to(self.world.device)

    def _on_device(self, tensor: Tensor) -> Tensor:
        if self.world.device.type != "cuda":
            return tensor
        # from pinned memory, or the copy would wait for the step before
        return tensor.pin_memory().to(self.world.device, non_blocking=True)

    # -- what a step computes, on the device, without a word to the host --------------------------------

    def _compute(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """The discriminator's steps, then the generator's, then the average. inputs: plays, one after the
        other, how far the average moves, how much the guide weighs, and 1, or 0 while D alone learns."""
        *inputs, towards, guide, learns = inputs
        plays = [Play(*inputs[i : i + len(Play._fields)]) for i in range(0, len(inputs), len(Play._fields))]
        losses: dict[str, Tensor] = {}
        for play in plays:
            # the generator answers the last of these fakes, so their graph is needed only then
            with torch.set_grad_enabled(play is plays[-1]):
                seen = self._look(self._generate(play.z, play.y), play)
            losses |= self._discriminator_step(play, seen)
        losses |= self._generator_step(plays[-1], seen, guide, learns)
        self.ema.update(self.generator, towards)
        return losses

    def _discriminator_step(self, play: Play, seen: Sequence[Tensor]) -> dict[str, Tensor]:
        self.discriminator_adam.zero_grad(set_to_none=True)
        power_iterate(self.discriminator)
        loss, figures = self._judge(play, [tensor.detach() for tensor in seen])
        loss.backward()  # type: ignore[no-untyped-call]
        losses = {"discriminator": loss.detach(), **figures}
        self.world.average_gradients(self.discriminator.parameters(), *losses.values())
        self.discriminator_adam.step()
        return losses

    def _generator_step(
        self, play: Play, seen: Sequence[Tensor], guide: Tensor, learns: Tensor
    ) -> dict[str, Tensor]:
        self.generator_adam.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)  # its own gradients are not wanted here
        loss = self._answer(play, seen, guide)
        torch.autograd.backward(learns * loss)  # Adam stands still where no gradient ever was
        self.discriminator.requires_grad_(True)
        losses = {"generator": loss.detach()}
        self.world.average_gradients(self.generator.parameters(), *losses.values())
        self.generator_adam.step()
        power_iterate(self.generator)
        return losses

    def _fakes(self, z: Tensor, y: Tensor) -> Tensor:
        with self._passes.autocast():
            images: Tensor = self.generator(z, y)
            return images

    def _adam(self, network: nn.Module, rate: float) -> torch.optim.Adam:
        betas = (self.recipe.optimisation.beta1, self.recipe.optimisation.beta2)
        if self.world.device.type == "cuda":
            return torch.optim.Adam(network.parameters(), rate, betas, fused=True, capturable=True)
        return torch.optim.Adam(network.parameters(), rate, betas, foreach=True)

    def _draw(self, purpose: str, number: int) -> torch.Generator:
        name = f"{self.recipe.optimisation.seed}/{purpose}/{number}"
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1
        return torch.Generator().manual_seed(seed)

    def finite(self) -> bool:
        """Whether every weight and the last losses are finite."""
        norms = [
            *torch._foreach_norm(list(self.generator.parameters())),
            *torch._foreach_norm(list(self.discriminator.parameters())),
            *self.losses.values(),
        ]
        return bool(torch.isfinite(torch.stack([n.float().reshape(()) for n in norms])).all())

    # -- saving and resuming ---------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the whole state; the file appears whole or not at all."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._tensors()}
        header = {
            "format": FORMAT,
            "step": str(self.step),
            "recipe": json.dumps(self.recipe.to_json()),
            "data": str(self.pack.metadata.get("sha256", "")),
            "from": json.dumps(self.began_from),
            **({"pretrained": json.dumps(self.pretrained)} if self.pretrained else {}),
        }
        write_whole(path, save(tensors, metadata=header))

    def begin_from(self, path: Path) -> bool:
        """Take over the weights of the generator in `path`; whether those of its classes too.

        They count where both have the same classes; else only the classes begin anew. Raises StateError for a
        network of another shape, and for one trained without spectral norm where this recipe has it, since
        that would make another network of it; CheckpointError for another file.
        """
        found = load_generator(path)
        theirs, known = found.generator.state_dict(), same_classes(found.class_names, self.pack.class_names)
        used: set[str] = set()
        with torch.no_grad():
            for network in (self.generator, self.ema.network):
                for name, tensor in network.state_dict().items():
                    plain = name.replace(".parametrizations.weight.original", ".weight")
                    used.add(plain)
                    if ".parametrizations." in plain or (_of_a_class(plain) and not known):
                        continue
                    if plain not in theirs or theirs[plain].shape != tensor.shape:
                        raise StateError(
                            f"{path} has another shape than this recipe's generator ({plain} does not fit): "
                            "use the recipe that it was trained with."
                        )
                    tensor.copy_(theirs[plain])
                    owner = network.get_submodule(name.rpartition(".")[0])
                    if isinstance(owner, parametrize.ParametrizationList) and isinstance(owner[0], Scaled):
                        tensor.div_(owner[0].factor)  # what passes through it is what the file holds
        if left := sorted(theirs.keys() - used):
            raise StateError(
                f"{path} has {left[0]}, for which this recipe's generator has no place: use the recipe that "
                "it was trained with."
            )
        if settle(self.generator) > _NORMED:
            raise StateError(
                f"{path} was trained without spectral norm in the generator, and this recipe has it, which "
                "would make another network of it: add --set optimisation.generator_spectral_norm=false."
            )
        steps, images = (found.metadata.get(name) for name in ("steps", "images_seen"))
        self.began_from = {"sha256": found.sha256, "steps": steps, "images_seen": images}
        return known

    def load(self, path: Path) -> None:
        """Become the state in `path`. Raises StateError when it is not a state of this recipe and data."""
        header, tensors = _read(path)
        # how long to train and when to look may change on resuming; what a step computes may not
        theirs = Recipe.from_json(json.loads(header["recipe"]))  # settings newer than the file: the defaults
        if _computation(theirs.to_json()) != _computation(self.recipe.to_json()):
            raise StateError(f"{path} comes from another recipe. Resume with that one, or use a new --out.")
        if header["data"] != str(self.pack.metadata.get("sha256", "")):
            raise StateError(f"{path} comes from other data. Resume with that, or use a new --out.")
        _check_network(path, header, self.pretrained)
        self._make_moments()
        ours = dict(self._tensors())
        if ours.keys() != tensors.keys() or any(ours[n].shape != t.shape for n, t in tensors.items()):
            raise StateError(f"{path} does not fit the networks of this recipe.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                ours[name].copy_(tensor)
        self.step = int(header["step"])
        self.began_from = json.loads(header.get("from", "null"))

    def follow(self) -> None:
        """Become process 0's state: what it has loaded or begun with, wherever its files are."""
        step = torch.tensor(self.step)
        self.world.follow([step])
        if not self.world.leads:
            self.step = int(step)
            if self.step:
                self._make_moments()
        self.world.follow(tensor for _, tensor in self._tensors())

    def _make_moments(self) -> None:
        """Adam's, which it makes itself at its first step: here to be filled before it."""
        for adam in (self.generator_adam, self.discriminator_adam):
            for parameter in adam.param_groups[0]["params"]:
                adam.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, network in (
            ("generator", self.generator),
            ("discriminator", self.discriminator),
            ("ema", self.ema.network),
        ):
            for name, tensor in network.state_dict().items():
                yield f"{prefix}.{name}", tensor
        for prefix, adam in (
            ("generator_adam", self.generator_adam),
            ("discriminator_adam", self.discriminator_adam),
        ):
            for i, parameter in enumerate(adam.param_groups[0]["params"]):
                for name, tensor in adam.state[parameter].items():
                    yield f"{prefix}.{i}.{name}", tensor


def saved_judge(path: Path, classes: int, device: torch.device) -> tuple[Judge, Recipe, int]:
    """The judge in the state at `path`, for looking alone in float32, with its recipe and step.

    Raises StateError when the file is no state, or one of another number of classes.
    """
    with _opened(path) as (header, file):
        recipe = Recipe.from_json(json.loads(header["recipe"]))
        judge, pretrained = _judge(recipe.config(classes), recipe.optimisation, Passes(device, "float32"))
        _check_network(path, header, pretrained.seen_with if pretrained else None)
        if recipe.optimisation.discriminator_spectral_norm:
            judge.normalise()
        names = judge.network.state_dict().keys()
        try:
            judge.network.load_state_dict({name: file.get_tensor(f"discriminator.{name}") for name in names})
        except (SafetensorError, RuntimeError):
            raise StateError(f"{path} has no discriminator for {classes} classes.") from None
    judge.network.to(device).eval().requires_grad_(False)
    return judge, recipe, int(header["step"])


def _judge(
    config: ModelConfig, optimisation: Optimisation, passes: Passes
) -> tuple[Judge, PretrainedJudge | None]:
    """The recipe's judge, and the part of it that must measure the reals before it begins."""
    plain = None if optimisation.judge == "pretrained" else PlainJudge(config, optimisation, passes)
    if optimisation.judge == "plain":
        assert plain is not None
        return plain, None
    pretrained = PretrainedJudge(open_network(NETWORK), config, optimisation, passes)
    return (BothJudges(plain, pretrained) if plain else pretrained), pretrained


def check_judge(recipe: Recipe) -> None:
    """Raises PretrainedError where the recipe's judge sees with a network that is not on this machine."""
    if recipe.optimisation.judge != "plain":
        open_network(NETWORK)


def _check_network(path: Path, header: Mapping[str, str], ours: Mapping[str, str] | None) -> None:
    theirs = json.loads(header.get("pretrained", "null"))  # null: plain, or from before it was named
    if theirs is not None and theirs != ours:
        raise StateError(
            f"{path} was judged through {theirs['network']} (sha256 {theirs['sha256'][:16]}…), not through "
            "the network that is here. Use the version of this package that began it, or a new --out."
        )


def saved_step(path: Path) -> int:
    """The step of the state in `path`, without reading its tensors. Raises StateError."""
    with _opened(path) as (header, _):
        return int(header["step"])


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with _opened(path) as (header, file):
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, str], Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise StateError(f"{path} is not a training state of ours.")
            yield header, file
    except (SafetensorError, OSError) as wrong:
        raise StateError(f"{path} cannot be read ({wrong}).") from None


def _of_a_class(name: str) -> bool:
    """Whether a generator's tensor has a row for each class."""
    return name == "shared.weight" or (name.endswith((".gamma", ".beta")) and ".norm" in name)


def _computation(recipe: Mapping[str, object]) -> object:
    optimisation = recipe["optimisation"]
    assert isinstance(optimisation, dict)
    plain = {"model": recipe["model"], **{k: v for k, v in optimisation.items() if k != "steps"}}
    return json.loads(json.dumps(plain))
