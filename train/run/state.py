"""Both networks, their optimisers and the average: one state, which is stepped, saved and resumed.

All randomness of a step comes from (seed, purpose, step), never from a stream: a resumed run takes the same
steps as one that never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from imaging.files import write_whole
from model.attention import SelfAttention
from model.config import ModelConfig
from model.generator import Generator
from model.layers import Scaled, power_iterate, spectral_normalise
from train.data.pack import Pack
from train.efficientnet import open_network
from train.recipes.recipe import Optimisation, Recipe
from train.run.augment import Adaptive, draw, draw_gates, neutral
from train.run.beginning import TakenOver, open_start, take_over
from train.run.cross_replica import join_norms
from train.run.distributed import World
from train.run.ema import Ema
from train.run.epochs import Epochs
from train.run.execution import Compute, Execution, Passes, Replayed, precision
from train.run.judge import SIGN, BothJudges, Judge, PlainJudge, StepInputs, plain_part
from train.run.pretrained_judge import NETWORK, PretrainedJudge
from train.run.saved import FORMAT, StateError, check_network, opened, read, same_computation, saved_recipe

# images under DiffAugment, each by draws of its own; "answers": the fakes in the generator's loss. Draws are
# seeded with these names, so no name may change
AUGMENTED = ("reals", "fakes", "answers")


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
        self.pretrained = pretrained.seen_with if pretrained else None  # names the frozen network
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
        self._judging = self._not_frozen()
        self.generator_adam = self._adam([*self.generator.parameters()], optimisation.generator_lr)
        self.discriminator_adam = self._adam(self._judging, optimisation.discriminator_lr)
        self.adaptive = None  # how often images are augmented is steered, or they always are
        if optimisation.augment_target:
            self.adaptive = Adaptive(optimisation.augment_target, optimisation.augment_span).to(world.device)
        self.step = 0
        self.began_from: dict[str, object] | None = None  # names the generator that this run took over
        self.due = False  # shown and saved by the clock, whatever the schedule says; set by the loop
        self.licence = str(pack.metadata.get("licence", ""))  # of the pictures; goes with what is served
        self.losses: dict[str, Tensor] = {}  # of the last step, on the device: reading one waits for the step
        self._epochs = Epochs(
            pack.shards or (len(pack),), optimisation.batch, world.rows(optimisation.batch), self._draw
        )
        pack.open(self._epochs.shards)  # a missing file fails now, not hours later
        if pretrained is not None:
            pretrained.measure(pack, self._epochs.read_first, world)
            pretrained.place_classes(self.generator)
        self.ema = Ema(self.generator, optimisation.ema_half_life, optimisation.ema_ramp)
        self._resident = self._pixels_on_device()
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
        # plain functions of tensors, each compiled as one graph
        self._generate, self._look = self._fakes, self.judge.look
        self._discriminator_loss = self.judge.discriminator_loss
        self._generator_loss = self.judge.generator_loss
        if execution.compile:
            self._generate = torch.compile(self._generate, dynamic=False)
            self._look = torch.compile(self._look, dynamic=False)
            self._discriminator_loss = torch.compile(self._discriminator_loss, dynamic=False)
            self._generator_loss = torch.compile(self._generator_loss, dynamic=False)
        self._carry_out: Compute = Replayed(self._compute) if execution.graph else self._compute

    def _not_frozen(self) -> list[nn.Parameter]:
        """The discriminator's parameters that learn; its first blocks may not."""
        frozen: set[nn.Parameter] = set()
        first = self.recipe.optimisation.freeze_discriminator
        if (plain := plain_part(self.judge)) and first:
            frozen = set(plain.network.first(first))
        for parameter in frozen:
            parameter.requires_grad_(False)
        return [parameter for parameter in self.discriminator.parameters() if parameter not in frozen]

    @property
    def images_seen(self) -> int:
        """Real images shown to the discriminator so far."""
        return self.step * self.recipe.optimisation.discriminator_steps * self.recipe.optimisation.batch

    def advance(self) -> None:
        """Train both networks by one generator step. Returns before a GPU has finished it."""
        optimisation = self.recipe.optimisation
        steps = optimisation.discriminator_steps
        tensors: list[Tensor] = [t for i in range(steps) for t in self._drawn(self.step * steps + i)]
        towards = self.ema.weight(optimisation.batch, self.images_seen + steps * optimisation.batch)
        learns = float(self.step >= optimisation.judge_first)
        tensors += [self._on_device(torch.tensor(scalar)) for scalar in (towards, self._guide(), learns)]
        self.losses = self._carry_out(tensors)
        self.step += 1  # last: a step does not count if a peer is lost in it

    def _guide(self) -> float:
        """Weight of the class's cross-entropy in this step's generator loss, for a judge that has one."""
        optimisation = self.recipe.optimisation
        over = self.step / optimisation.guide_steps if optimisation.guide_steps else 0.0
        return optimisation.guide * max(1 - over, 0.0)

    # -- the inputs of a step, drawn on the host ---------------------------------------------------------

    def _changes(self, purpose: str, number: int) -> Tensor:
        """The augmentation of the images of that purpose: draws, and with ADA gates behind them."""
        batch = self.recipe.optimisation.batch
        if self.step < self.recipe.optimisation.augment_after:
            return neutral(batch)
        draws = draw(batch, self._draw(f"augment {purpose}", number))
        if self.adaptive is None:
            return draws
        return torch.cat([draws, draw_gates(batch, self._draw(f"gates {purpose}", number))], dim=1)

    def _drawn(self, number: int) -> StepInputs:
        """The inputs of discriminator step `number` of the run, on the device."""
        batch = self.recipe.optimisation.batch
        noise = self._draw("noise", number)
        z = torch.randn(batch, self.config.latent, generator=noise)
        y = torch.randint(self.config.classes, (batch,), generator=noise)
        if self.recipe.optimisation.variety:
            y = y[::2].repeat_interleave(2)  # pairs of one class
        mirrored = torch.rand(batch, generator=self._draw("flips", number)) < 0.5
        if not self.recipe.optimisation.flips:
            mirrored = torch.zeros_like(mirrored)
        changes = [self._changes(purpose, number) for purpose in AUGMENTED]
        chosen = self._epochs.indices(number)
        shares = [self.world.share(t) for t in (mirrored, z, y, *changes)]
        return StepInputs(self._pixels(chosen), *map(self._on_device, (self.pack.labels[chosen], *shares)))

    def _pixels(self, chosen: Tensor) -> Tensor:
        if self._resident is None:
            return self._on_device(self.pack.images[chosen])
        return self._resident[self._on_device(chosen - self._epochs.images.start)]

    def _pixels_on_device(self) -> Tensor | None:
        """The uint8 images that this process reads, on its GPU if half of its free memory holds them.

        None: each batch is copied as it is needed.
        """
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
        # from pinned memory: else the copy waits for the step before
        return tensor.pin_memory().to(self.world.device, non_blocking=True)

    # -- the computation of a step, on the device, which never waits for the host -----------------------

    def _compute(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The discriminator's steps, then the generator's, then the average.

        tensors: the StepInputs of every discriminator step, one after the other, then three scalars: how far
        the average moves, the guide's weight, and 1 or, while D alone learns, 0.
        """
        *tensors, towards, guide, learns = tensors
        size = len(StepInputs._fields)
        steps = [StepInputs(*tensors[i : i + size]) for i in range(0, len(tensors), size)]
        losses: dict[str, Tensor] = {}
        for inputs in steps:
            last = inputs is steps[-1]
            if self.adaptive is not None:
                inputs = inputs.thinned(self.adaptive)
            # the generator's loss is of the last of these fakes: only they need a graph
            with torch.set_grad_enabled(last):
                seen = self._look(self._generate(inputs.z, inputs.y), inputs)
            losses |= self._discriminator_step(inputs, seen)
        losses |= self._generator_step(inputs, seen, guide, learns)
        self.ema.update(self.generator, towards)
        return losses

    def _discriminator_step(self, inputs: StepInputs, seen: Sequence[Tensor]) -> dict[str, Tensor]:
        self.discriminator_adam.zero_grad(set_to_none=True)
        power_iterate(self.discriminator)
        loss, figures = self._discriminator_loss(inputs, [tensor.detach() for tensor in seen])
        loss.backward()  # type: ignore[no-untyped-call]
        losses = {"discriminator": loss.detach(), **figures}
        self.world.average_gradients(self._judging, *losses.values())
        self.discriminator_adam.step()
        sign = losses.pop(SIGN)
        if self.adaptive is not None:
            self.adaptive.steer(sign, self.recipe.optimisation.batch)
            losses["augmented"] = self.adaptive.p.clone()
        return losses

    def _generator_step(
        self, inputs: StepInputs, seen: Sequence[Tensor], guide: Tensor, learns: Tensor
    ) -> dict[str, Tensor]:
        self.generator_adam.zero_grad(set_to_none=True)
        for parameter in self._judging:  # their own gradients are not wanted here
            parameter.requires_grad_(False)
        loss = self._generator_loss(inputs, seen, guide)
        torch.autograd.backward(learns * loss)  # Adam stands still where no gradient ever was
        for parameter in self._judging:
            parameter.requires_grad_(True)
        losses = {"generator": loss.detach()}
        self.world.average_gradients(self.generator.parameters(), *losses.values())
        self.generator_adam.step()
        power_iterate(self.generator)
        return losses

    def _fakes(self, z: Tensor, y: Tensor) -> Tensor:
        with self._passes.autocast():
            images: Tensor = self.generator(z, y)
            return images

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        betas = (self.recipe.optimisation.beta1, self.recipe.optimisation.beta2)
        if self.world.device.type == "cuda":
            return torch.optim.Adam(parameters, rate, betas, fused=True, capturable=True)
        return torch.optim.Adam(parameters, rate, betas, foreach=True)

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
            "licence": self.licence,
            "class_names": json.dumps(list(self.pack.class_names)),
            **({"pretrained": json.dumps(self.pretrained)} if self.pretrained else {}),
        }
        write_whole(path, save(tensors, metadata=header))

    def begin_from(self, path: Path) -> TakenOver:
        """Take over the networks in `path`. Raises as `open_start` and `take_over` do."""
        plain = plain_part(self.judge)
        found = take_over(
            open_start(path),
            self.generator,
            self.ema.network,
            plain.network if plain else None,
            self.pack.class_names,
        )
        if found.judge and self.recipe.optimisation.freeze_discriminator:
            raise StateError(
                f"freeze_discriminator keeps blocks that --from brings, and {path} brings none "
                f"({found.judge}): begin with such a state, or leave it out."
            )
        self.began_from = dict(found.start.origin)
        return found

    def load(self, path: Path) -> None:
        """Become the state in `path`. Raises StateError when it is not a state of this recipe and data."""
        header, tensors = read(path)
        if not same_computation(saved_recipe(header), self.recipe):
            raise StateError(f"{path} comes from another recipe. Resume with that one, or use a new --out.")
        if header["data"] != str(self.pack.metadata.get("sha256", "")):
            raise StateError(f"{path} comes from other data. Resume with that, or use a new --out.")
        check_network(path, header, self.pretrained)
        self._make_moments()
        ours = dict(self._tensors())
        if ours.keys() != tensors.keys() or any(ours[n].shape != t.shape for n, t in tensors.items()):
            raise StateError(f"{path} does not fit the networks of this recipe.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                ours[name].copy_(tensor)
        self.step = int(header["step"])
        self.began_from = json.loads(header.get("from", "null"))
        self.licence = header.get("licence", self.licence)

    def follow(self) -> None:
        """Become process 0's state, as it was loaded or begun: its files need not be on this host."""
        step = torch.tensor(self.step)
        self.world.follow([step])
        if not self.world.leads:
            self.step = int(step)
            if self.step:
                self._make_moments()
        self.world.follow(tensor for _, tensor in self._tensors())

    def _make_moments(self) -> None:
        """Zeros for Adam's moments, to be filled; Adam itself makes them only at its first step."""
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
        if self.adaptive is not None:
            for name, tensor in self.adaptive.state_dict().items():
                yield f"augment.{name}", tensor
        for prefix, adam in (
            ("generator_adam", self.generator_adam),
            ("discriminator_adam", self.discriminator_adam),
        ):
            for i, parameter in enumerate(adam.param_groups[0]["params"]):
                for name, tensor in adam.state[parameter].items():
                    yield f"{prefix}.{i}.{name}", tensor


def saved_judge(path: Path, classes: int, device: torch.device) -> tuple[Judge, Recipe, int]:
    """The judge in the state at `path`, frozen and in float32, with its recipe and step.

    Raises StateError when the file is no state, or one of another number of classes.
    """
    with opened(path) as (header, file):
        recipe = saved_recipe(header)
        judge, pretrained = _judge(recipe.config(classes), recipe.optimisation, Passes(device, "float32"))
        check_network(path, header, pretrained.seen_with if pretrained else None)
        if recipe.optimisation.discriminator_spectral_norm:
            judge.normalise()
        names = judge.network.state_dict().keys()
        try:
            judge.network.load_state_dict({name: file.get_tensor(f"discriminator.{name}") for name in names})
        except (SafetensorError, RuntimeError):
            raise StateError(f"{path} has no discriminator for {classes} classes.") from None
    # laid out as in the run, so that scores are its own to the last bit
    judge.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    judge.network.eval().requires_grad_(False)
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
    """Raises PretrainedError where the recipe's judge needs a network that is not on this machine."""
    if recipe.optimisation.judge != "plain":
        open_network(NETWORK)
