"""A judge that sees from the start: small heads on the maps of a frozen, pretrained network.

Projected GANs (Sauer et al. 2021): maps at several strides, each mixed by a fixed random 1×1 convolution and
seen by a small discriminator. The class enters by projection, on an embedding that begins at the network's
own view of the class, as in StyleGAN-XL (Sauer et al. 2022). The maps hardly tell colours, so one more head
looks at the pixels. A linear probe of the class learns from reals; its cross-entropy can guide the generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.convolution import Convolution
from model.generator import Generator
from model.layers import spectral_normalise
from train.data.pack import Pack
from train.efficientnet import EfficientNetLite, FrozenConv
from train.recipes.recipe import Optimisation, comma_list
from train.run.augment import augment, draw, to_network
from train.run.distributed import World
from train.run.execution import Passes
from train.run.judge import SIGN, StepInputs, Verdict
from train.run.losses import discriminator_hinge, generator_hinge

NETWORK = "lite0"
SIDES: Mapping[int, int] = {32: 64, 64: 96, 128: 128}  # resolution: side to which images are enlarged, px
MIXED: Mapping[int, int] = {4: 64, 8: 64, 16: 128, 32: 256}  # stride of a map: channels after mixing
POOLED = (16, 32)  # strides; the means of these maps know the class
WIDTH = 64  # channels of a head; the pixels' has half
GRID = 6  # largest side of a head's map of scores
MEASURED = 2_400  # reals, at least 16 a class, that maps are normalised by
_AT_ONCE = 100  # images in one forward while measuring
_LEAST = 1e-6  # variance; a channel with less counts as constant
_LEAST_SPREAD = 1e-2  # least variance within a class, as a share of that over all
_EMBEDDED = 0.5  # standard deviation of the class embedding at the start


class Head(nn.Module):
    """A map [B, C, S, S] and labels [B] -> scores [B, places]."""

    def __init__(self, channels: int, side: int, width: int, classes: int, known: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > GRID:
            layers += [Convolution(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            channels, side = width, side // 2
        layers += [Convolution(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.score = nn.Conv2d(width, 1, 1)
        self.table = nn.Embedding(classes, width)
        self.project = nn.Linear(known, width, bias=False)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.project.weight, std=1 / math.sqrt(known))

    def forward(self, x: Tensor, y: Tensor, known: Tensor) -> Tensor:
        """known: [B, known], the network's view of each label's class."""
        h = self.body(x)
        direction = F.normalize((self.table(y) + self.project(known)).float(), dim=1)
        of_class = (h.float() * direction[:, :, None, None]).sum(1)
        scores: Tensor = self.score(h).float().squeeze(1) + of_class
        return scores.flatten(1)


class Heads(nn.Module):
    """All of the judge that learns, with the statistics of the reals that were measured before it began."""

    mean: Tensor
    deviation: Tensor
    known: Tensor
    spread: Tensor

    def __init__(
        self, eye: EfficientNetLite, config: ModelConfig, optimisation: Optimisation, side: int
    ) -> None:
        """side: pixels of the images that `eye` sees."""
        super().__init__()
        draw = torch.Generator().manual_seed(optimisation.seed)
        length = sum(eye.channels[stride] for stride in POOLED)
        self.mix = nn.ModuleDict()  # each map, normalised and mixed
        for stride, channels in MIXED.items():
            inputs = eye.channels[stride]
            weight = torch.randn(channels, inputs, 1, 1, generator=draw) / math.sqrt(inputs)
            self.mix[str(stride)] = FrozenConv(weight, torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(length))  # of pooled maps
        self.register_buffer("deviation", torch.ones(length))
        self.register_buffer("known", torch.zeros(config.classes, length))  # the network's view of each class
        self.register_buffer("spread", torch.ones(config.classes))  # variance within each class
        shapes = {str(stride): (c, side // stride, WIDTH) for stride, c in MIXED.items()}
        if optimisation.pixel_head:
            shapes = {"pixels": (3, config.resolution, WIDTH // 2)} | shapes
        self.heads = nn.ModuleDict({n: Head(*shape, config.classes, length) for n, shape in shapes.items()})
        self.probe = nn.Linear(length, config.classes) if optimisation.guide else None
        if self.probe is not None:
            nn.init.zeros_(self.probe.weight)
            nn.init.zeros_(self.probe.bias)

    def forward(self, maps: Sequence[Tensor], y: Tensor) -> list[Tensor]:
        known = self.known[y]
        return [head(x, y, known) for head, x in zip(self.heads.values(), maps, strict=True)]


class PretrainedJudge:
    """Heads on `eye`, a frozen network: no state and no checkpoint holds its weights."""

    def __init__(
        self,
        eye: EfficientNetLite,
        config: ModelConfig,
        optimisation: Optimisation,
        passes: Passes,
    ) -> None:
        self.eye = eye.to(passes.device, passes.dtype)
        self.kinds = comma_list(optimisation.augment)
        self.variety = optimisation.variety
        self.passes = passes
        self.side = optimisation.judge_side or SIDES[config.resolution]
        self.network = Heads(eye, config, optimisation, self.side)
        self.enlarge = _enlarging(config.resolution, self.side).to(passes.device, passes.dtype)

    @property
    def seen_with(self) -> dict[str, str]:
        """The frozen network's name and hash, for states and checkpoints."""
        return {"network": f"efficientnet-{NETWORK}", "sha256": self.eye.sha256}

    def normalise(self) -> None:
        for head in cast(Iterable[Head], self.network.heads.values()):
            spectral_normalise(head.body)
            spectral_normalise(head.score)

    def look(self, fakes: Tensor, inputs: StepInputs) -> list[Tensor]:
        return self._look(augment(fakes, inputs.for_fakes, self.kinds))

    def discriminator_loss(self, inputs: StepInputs, seen: Sequence[Tensor]) -> Verdict:
        with torch.no_grad():
            *reals, pooled = self._look(augment(inputs.reals(), inputs.for_reals, self.kinds))
        both = [torch.cat([r.to(f.dtype), f]) for r, f in zip(reals, seen[:-1], strict=True)]
        with self.passes.autocast():
            scores = [s.chunk(2) for s in self.network(both, torch.cat([inputs.labels, inputs.y]))]
        loss = torch.stack([discriminator_hinge(real, fake) for real, fake in scores]).sum()
        if self.network.probe is not None:
            loss = loss + F.cross_entropy(self.network.probe(pooled), inputs.labels)
        real, fake = (torch.stack([s.detach().mean() for s in of]).mean() for of in zip(*scores, strict=True))
        figures = {"score_real": real, "score_fake": fake}
        figures[SIGN] = torch.stack([s.detach().mean(1) for s, _ in scores]).sum(0).sign().mean()
        if self.variety:
            figures["variety"] = self._variety(seen[-1], inputs.y)
        return Verdict(loss, figures)

    def generator_loss(self, inputs: StepInputs, seen: Sequence[Tensor], guide: Tensor) -> Tensor:
        *maps, pooled = seen
        with self.passes.autocast():
            scores = self.network(maps, inputs.y)
        loss = torch.stack([generator_hinge(part) for part in scores]).sum()
        if self.network.probe is not None:
            loss = loss + guide * F.cross_entropy(self.network.probe(pooled), inputs.y)
        if self.variety:
            loss = loss + self.variety * F.relu(1 - self._variety(pooled, inputs.y))
        return loss

    def _variety(self, pooled: Tensor, y: Tensor) -> Tensor:
        """Distance of the pairs of one class, as a share of that of real pairs: 1 is as varied as real.

        Mode seeking GANs (Mao et al. 2019) reward any distance; here the reals' own is enough.
        """
        apart = (pooled[::2] - pooled[1::2]).square().mean(1)
        return (apart / (2 * self.network.spread[y[::2]])).mean()

    def scores(self, images: Tensor, y: Tensor) -> Tensor:
        *maps, _ = self._look(images)
        with self.passes.autocast():
            return torch.stack([part.mean(1) for part in self.network(maps, y)]).sum(0)

    def _look(self, images: Tensor) -> list[Tensor]:
        """The maps for the heads, in their order, and last the pooled maps [B, known], float32."""
        maps = self._maps(images)
        pooled = (_pooled(maps) - self.network.mean) / self.network.deviation
        mixed = [self.network.mix[str(stride)](maps[stride]) for stride in MIXED]
        return [*([images] if "pixels" in self.network.heads else []), *mixed, pooled]

    def _maps(self, images: Tensor) -> dict[int, Tensor]:
        x = images.to(self.passes.dtype)
        if x.shape[-1] != self.side:
            # as two products: on GPUs the gradient of torch's own enlargement differs from run to run
            x = self.enlarge @ x.contiguous() @ self.enlarge.T
        return self.eye.maps(x)

    # -- before the first step --------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, pack: Pack, ours: range, world: World) -> None:
        """Normalise the maps and place the classes by MEASURED reals. ours: those that this process reads."""
        classes, length = self.network.known.shape
        chosen = _of_each_class(pack.labels, classes, max(16, MEASURED // classes))
        chosen = chosen[(chosen >= ours.start) & (chosen < ours.stop)]
        maps_seen = {stride: _Sums(1, self.eye.channels[stride]) for stride in MIXED}
        seen, changed = _Sums(classes, length), _Sums(classes, length)  # images as they are, and augmented
        changes = draw(len(pack), torch.Generator().manual_seed(0))
        device = self.enlarge.device
        for part in torch.split(chosen, _AT_ONCE):
            images, labels = to_network(pack.images[part].to(device)), pack.labels[part]
            maps = self._maps(images)
            for stride, sums in maps_seen.items():
                places = maps[stride].permute(0, 2, 3, 1).flatten(0, 2)
                sums.add(places, torch.zeros(len(places), dtype=torch.int64))
            seen.add(_pooled(maps), labels)
            if self.variety:
                images = augment(images, changes[part].to(device), self.kinds)
                changed.add(_pooled(self._maps(images)), labels)
        for sums in (*maps_seen.values(), seen, changed):
            for tensor in (sums.count, sums.total, sums.square):
                world.sum(tensor)
        for stride, sums in maps_seen.items():
            layer = cast(FrozenConv, self.network.mix[str(stride)])
            mean, variance = (t.to(layer.weight) for t in sums.moments())
            layer.weight.div_(variance.sqrt()[None, :, None, None])
            layer.bias.copy_(-layer.weight[:, :, 0, 0] @ mean)
        mean, variance = seen.moments()
        known = (seen.means() - mean) / variance.sqrt()
        known[seen.count[:, 0] == 0] = 0  # a class without images: as the mean of all
        self.network.mean.copy_(mean)
        self.network.deviation.copy_(variance.sqrt())
        self.network.known.copy_(known / known.std().clamp_min(_LEAST))
        spread, several = (changed.within() / variance).mean(1), changed.count[:, 0] > 1
        spread[~several] = spread[several].mean() if several.any() else 1.0  # one image has no variance
        self.network.spread.copy_(spread.clamp_min(_LEAST_SPREAD))

    @torch.no_grad()
    def place_classes(self, generator: Generator) -> None:
        """Begin the generator's class embedding, if it has one, at the network's view of the classes."""
        if generator.shared is None:
            return
        table = generator.shared.weight
        left, sizes, _ = torch.linalg.svd(self.network.known.to(table.device), full_matrices=False)
        placed = (left * sizes)[:, : table.shape[1]]
        spread = placed.std(correction=0)
        if float(spread) > 0:  # one class alone has no place
            nn.init.normal_(table, std=_EMBEDDED)
            table[:, : placed.shape[1]] = placed * (_EMBEDDED / spread)


class _Sums:
    """Sums of values [N, C] and of their squares, by class, in float64 on the CPU."""

    def __init__(self, classes: int, channels: int) -> None:
        self.count = torch.zeros(classes, 1, dtype=torch.float64)
        self.total, self.square = torch.zeros(2, classes, channels, dtype=torch.float64)

    def add(self, values: Tensor, labels: Tensor) -> None:
        values = values.double().cpu()
        self.count.index_add_(0, labels, torch.ones(len(values), 1, dtype=torch.float64))
        self.total.index_add_(0, labels, values)
        self.square.index_add_(0, labels, values.square())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over all classes, [C] each."""
        mean = self.total.sum(0) / self.count.sum()
        return mean, (self.square.sum(0) / self.count.sum() - mean.square()).clamp_min(_LEAST)

    def means(self) -> Tensor:
        """Mean of each class, [K, C]."""
        means: Tensor = self.total / self.count.clamp_min(1)
        return means

    def within(self) -> Tensor:
        """Unbiased variance of each class, [K, C]; 0 for fewer than two."""
        apart: Tensor = self.square - self.total.square() / self.count.clamp_min(1)
        return apart / (self.count - 1).clamp_min(1)


def _pooled(maps: Mapping[int, Tensor]) -> Tensor:
    return torch.cat([maps[stride].float().mean((2, 3)) for stride in POOLED], dim=1)


def _of_each_class(labels: Tensor, classes: int, most: int) -> Tensor:
    """Sorted indices of at most `most` images of each class: the same ones in every process."""
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=draw)
    return torch.cat([order[labels[order] == label][:most] for label in range(classes)]).sort().values


def _enlarging(side: int, to: int) -> Tensor:
    """[to, side]: bilinear enlargement of a column of pixels, as a matrix."""
    columns = torch.eye(side)[None, None]
    return F.interpolate(columns, size=(to, side), mode="bilinear", align_corners=False)[0, 0]
