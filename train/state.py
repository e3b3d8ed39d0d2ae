"""Both networks, their optimisers and the average, as one thing that is stepped, saved and resumed.

All randomness of a step comes from (seed, purpose, step), never from a stream, so a resumed run needs
nothing but the step's number to go on exactly as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils import parametrize

from model.checkpoint import write_whole
from model.discriminator import Discriminator
from model.generator import Generator
from model.layers import power_iterate, spectral_normalise
from train.augment import flip, to_network
from train.data import Pack
from train.distributed import World
from train.ema import Ema
from train.errors import TrainError
from train.losses import discriminator_hinge, generator_hinge
from train.recipe import Recipe

FORMAT = "sagan-training-1"


class StateError(TrainError):
    """A saved state that cannot be read, or belongs to another run."""


class TrainingState:
    """A run at one step. `step` counts generator steps done."""

    def __init__(self, recipe: Recipe, pack: Pack, world: World) -> None:
        self.recipe, self.pack, self.world = recipe, pack, world
        optimisation = recipe.optimisation
        self.config = recipe.config(len(pack.class_names))
        torch.manual_seed(optimisation.seed)  # the initial weights
        self.generator = Generator(self.config)
        self.discriminator = Discriminator(self.config)
        if optimisation.generator_spectral_norm:
            spectral_normalise(self.generator)
        if optimisation.discriminator_spectral_norm:
            spectral_normalise(self.discriminator)
        for network in (self.generator, self.discriminator):
            network.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        betas = (optimisation.beta1, optimisation.beta2)
        self.generator_adam = torch.optim.Adam(
            self.generator.parameters(), optimisation.generator_lr, betas, foreach=True
        )
        self.discriminator_adam = torch.optim.Adam(
            self.discriminator.parameters(), optimisation.discriminator_lr, betas, foreach=True
        )
        self.ema = Ema(self.generator, optimisation.ema_half_life, optimisation.ema_ramp)
        self.step = 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)  # how the images of an epoch come
        self.losses: dict[str, Tensor] = {}  # of the last step, on the device: reading one waits for it

    @property
    def images_seen(self) -> int:
        """Real images shown to the discriminator so far."""
        return self.step * self.recipe.optimisation.discriminator_steps * self.recipe.optimisation.batch

    def advance(self) -> None:
        """One step of the game: the discriminator's steps, then the generator's, then the average."""
        plays = self.recipe.optimisation.discriminator_steps
        for i in range(plays):
            # the generator answers the last of these fakes, so their graph is needed only then
            with torch.set_grad_enabled(i == plays - 1):
                fakes, labels = self._fakes(self.step * plays + i)
            self._discriminator_step(self.step * plays + i, fakes, labels)
        self._generator_step(fakes, labels)
        self.step += 1
        with parametrize.cached():
            self.ema.update(self.generator, self.recipe.optimisation.batch, self.images_seen)

    def _fakes(self, play: int) -> tuple[Tensor, Tensor]:
        batch = self.recipe.optimisation.batch
        draw = self._draw("noise", play)
        z = torch.randn(batch, self.config.latent, generator=draw)
        y = torch.randint(self.config.classes, (batch,), generator=draw)
        z, y = (self.world.share(t).to(self.world.device, non_blocking=True) for t in (z, y))
        with parametrize.cached():
            return self.generator(z, y), y

    def _discriminator_step(self, play: int, fakes: Tensor, labels: Tensor) -> None:
        self.discriminator_adam.zero_grad(set_to_none=True)
        power_iterate(self.discriminator)
        reals, real_labels = self._reals(play)
        with parametrize.cached():
            # one pass over both halves: every weight is normalised once
            scores = self.discriminator(
                torch.cat([reals, fakes.detach()]), torch.cat([real_labels, labels])
            ).float()
        real, fake = scores.chunk(2)
        loss = discriminator_hinge(real, fake)
        loss.backward()  # type: ignore[no-untyped-call]
        self.world.average_gradients(self.discriminator.parameters())
        self.discriminator_adam.step()
        self.losses |= {
            "discriminator": loss.detach(),
            "score_real": real.detach().mean(),
            "score_fake": fake.detach().mean(),
        }

    def _generator_step(self, fakes: Tensor, labels: Tensor) -> None:
        self.generator_adam.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)  # its own gradients are not wanted here
        with parametrize.cached():
            loss = generator_hinge(self.discriminator(fakes, labels).float())
        loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator.requires_grad_(True)
        self.world.average_gradients(self.generator.parameters())
        self.generator_adam.step()
        power_iterate(self.generator)
        self.losses["generator"] = loss.detach()

    def _reals(self, play: int) -> tuple[Tensor, Tensor]:
        """The images of one discriminator step: epochs without replacement, each in its own order."""
        batch, total = self.recipe.optimisation.batch, len(self.pack.labels)
        first = play * batch
        indices = []
        while first < (play + 1) * batch:
            epoch, offset = divmod(first, total)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = torch.randperm(total, generator=self._draw("epoch", epoch))
            indices.append(self._order[offset : offset + (play + 1) * batch - first])
            first += len(indices[-1])
        chosen = self.world.share(torch.cat(indices))
        images = to_network(self.pack.images[chosen].to(self.world.device, non_blocking=True))
        if self.recipe.optimisation.flips:
            mirrored = torch.rand(batch, generator=self._draw("flips", play)) < 0.5
            images = flip(images, self.world.share(mirrored).to(self.world.device))
        return images, self.pack.labels[chosen].to(self.world.device)

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
        }
        write_whole(path, save(tensors, metadata=header))

    def load(self, path: Path) -> None:
        """Become the state in `path`. Raises StateError when it is not a state of this recipe and data."""
        header, tensors = _read(path)
        # how long to train and when to look may change on resuming; what a step computes may not
        if _computation(json.loads(header["recipe"])) != _computation(self.recipe.to_json()):
            raise StateError(f"{path} comes from another recipe. Resume with that one, or use a new --out.")
        if header["data"] != str(self.pack.metadata.get("sha256", "")):
            raise StateError(f"{path} comes from other data. Resume with that, or use a new --out.")
        for adam in (self.generator_adam, self.discriminator_adam):
            for parameter in adam.param_groups[0]["params"]:
                adam.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        ours = dict(self._tensors())
        if ours.keys() != tensors.keys() or any(ours[n].shape != t.shape for n, t in tensors.items()):
            raise StateError(f"{path} does not fit the networks of this recipe.")
        with torch.no_grad():
            for name, tensor in tensors.items():
                ours[name].copy_(tensor)
        self.step = int(header["step"])

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


def _computation(recipe: Mapping[str, object]) -> object:
    optimisation = recipe["optimisation"]
    assert isinstance(optimisation, dict)
    plain = {"model": recipe["model"], **{k: v for k, v in optimisation.items() if k != "steps"}}
    return json.loads(json.dumps(plain))
