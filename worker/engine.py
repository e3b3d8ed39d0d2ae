"""A checkpoint as a ready sampler whose pixels do not depend on what else is in the batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock, local
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import Checkpoint, load_generator
from model.errors import ModelError
from model.fused import FusedGenerator
from model.precision import has_bf16
from worker.jobs import AttentionMap, AttentionSite, ModelInfo, Recipe
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

# EngineError
# ├── UnknownLayer    no attention of that name in this model
# ├── NoDevice        the device that was asked for is not there
# └── NoModel         no checkpoint could be loaded

# Sizes that a forward may have, by type of device; between two sizes the last rows repeat the first. One
# recipe must give one image in any company, and kernels are chosen by size: so a size is used only if a trial
# at the start gives the same images in it as in the largest. Powers of two, of images and of threads: weights
# laid out by model.fused passed at all of these on the CPUs tried, while 3, 5 and 7 images on two threads did
# not (a transposed convolution then splits its sums).
SIZES: Final = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 4, 16, 64)}

# Forwards at once, at most. On a CPU each takes its share of the cores: two forwards of one thread each are
# faster than one of two threads (benchmarks/engine.py), and no thread waits for another that a neighbour's
# process keeps from its core. On a GPU the copies and launches of one run beside the kernels of the other.
LANES: Final = {"cpu": 4, "cuda": 2}
WORST_BF16: Final = 1.5  # levels of 255: mean difference from float32 above which bf16 is not used

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class EngineError(Exception):
    """Root of what this module raises on purpose."""


class UnknownLayer(EngineError):
    """No attention layer of that name in this model."""


class NoDevice(EngineError):
    """The device that was asked for is not there."""


class NoModel(EngineError):
    """No checkpoint could be loaded."""


def noise(recipe: Recipe, latent: int) -> NDArray[np.float32]:
    """z of one image, [latent]: from a stream of its own, keyed by (seed, index), scaled by truncation."""
    stream = np.random.Generator(np.random.Philox(key=[recipe.seed, recipe.index]))
    return (stream.standard_normal(latent) * recipe.truncation).astype(np.float32)


def to_pixels(images: Tensor) -> Tensor:
    """[B, 3, R, R] in [-1, 1] -> uint8 [B, R, R, 3], on the device."""
    levels = ((images.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


class Crew:
    """The CPU threads of a worker, shared by the forwards that run at one time."""

    def __init__(self, threads: int | None = None, lanes: int = LANES["cpu"]) -> None:
        """threads: None: as many as torch would take. lanes: forwards at one time, at most."""
        self.threads = torch.get_num_threads() if threads is None else threads
        self.lanes = min(lanes, self.threads)
        self.shares = sorted({_power_of_two(self.threads // n) for n in range(1, self.lanes + 1)})
        self._lock = Lock()
        self._running = 0

    @contextmanager
    def share(self) -> Iterator[None]:
        """Run with this thread's share: all of them, where no other forward is under way."""
        with self._lock:
            self._running += 1
            wanted = self.threads // self._running
        try:
            share = max((share for share in self.shares if share <= wanted), default=self.shares[0])
            if torch.get_num_threads() != share:
                torch.set_num_threads(share)  # of this thread's forwards alone
            yield
        finally:
            with self._lock:
                self._running -= 1

    def agree_on(self, shares: Sequence[int]) -> None:
        """Only these from now on."""
        self.shares = [share for share in self.shares if share in shares]


def _power_of_two(number: int) -> int:
    """The largest that is not above it; 1 for 0."""
    return 1 << max(0, number.bit_length() - 1)


class Engine:
    """One model on one device. Several threads may use it at once."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, device: torch.device, precision: str, crew: Crew
    ) -> None:
        """precision: "float32" or "bfloat16"."""
        config = checkpoint.config
        self._device = device
        self.device = str(device)
        self._dtype = DTYPES[precision]
        self._latent = config.latent
        self._crew = crew
        self._network = FusedGenerator(checkpoint.generator, device, self._dtype)
        self._runs = (
            _Graphs(self._network, device, self._latent, self._dtype) if device.type == "cuda" else None
        )
        self._sizes: tuple[int, ...] = SIZES.get(device.type, SIZES["cuda"])
        self.rows = self._sizes[-1]
        self.lanes = crew.lanes if device.type == "cpu" else LANES["cuda"]
        self.info = ModelInfo(
            name=name,
            hash=checkpoint.sha256,
            precision=precision,
            resolution=config.resolution,
            classes=checkpoint.class_names,
            metrics=dict(checkpoint.metrics),
            licence=str(checkpoint.metadata.get("licence", "")),
            description=str(checkpoint.metadata.get("description", "")),
        )
        self.info = replace(self.info, attention=self._look())
        self._sizes = self._sizes_that_agree()

    @classmethod
    def load(
        cls, path: Path, device: torch.device, precision: str = "float32", crew: Crew | None = None
    ) -> Engine:
        """The model in `path`, named by its stem. Raises model.errors.ModelError for any other file.

        precision: "auto" is bfloat16 where the device has it and the images stay near those of float32.
        """
        checkpoint = load_generator(path)
        crew = Crew() if crew is None else crew
        if precision != "auto":
            return cls(checkpoint, path.stem, device, precision, crew)
        exact = cls(checkpoint, path.stem, device, "float32", crew)
        if not has_bf16(device):
            return exact
        short = cls(checkpoint, path.stem, device, "bfloat16", crew)
        apart = short.difference(exact)
        log.info("%s in bfloat16: images differ from float32 by %.2f of 255 on average", path.stem, apart)
        return short if apart <= WORST_BF16 else exact

    def sample(self, recipes: Sequence[Recipe]) -> NDArray[np.uint8]:
        """uint8 [N, R, R, 3], one image a recipe, the same whatever the others are; N at most `rows`."""
        size = next(size for size in self._sizes if size >= len(recipes))
        return self._pixels(recipes, size)[: len(recipes)]

    def difference(self, other: Engine) -> float:
        """Mean absolute difference of the pixels of some images, levels of 255."""
        recipes = self._trial()
        return float(np.abs(self.sample(recipes).astype(int) - other.sample(recipes)).mean())

    def attention(self, recipe: Recipe, layer: str) -> tuple[NDArray[np.uint8], AttentionMap]:
        """The image again [R, R, 3], and the map of one layer. Raises UnknownLayer."""
        if layer not in {site.name for site in self.info.attention}:
            names = ", ".join(site.name for site in self.info.attention) or "none"
            raise UnknownLayer(f"Model {self.info.name!r} has no attention layer {layer!r}; it has: {names}.")
        with self._crew.share(), torch.inference_mode():
            images, traces = self._network.forward_with_attention(*self._inputs([recipe], 1))
            trace = next(trace for trace in traces if trace.name == layer)
            return to_pixels(images[:1])[0].cpu().numpy(), AttentionMap(
                layer=layer,
                query_grid=trace.query_grid,
                key_grid=trace.key_grid,
                gamma=float(trace.gamma),
                share=float(trace.share[0]),
                map=trace.map[0].to(torch.float16).cpu().numpy(),
            )

    def _pixels(self, recipes: Sequence[Recipe], size: int) -> NDArray[np.uint8]:
        """uint8 [size, R, R, 3] of one forward of exactly that size."""
        with self._crew.share(), torch.inference_mode():
            inputs = self._inputs(recipes, size)
            if self._runs is not None:
                return self._runs(*inputs)
            return to_pixels(self._network(*inputs)).numpy()

    def _inputs(self, recipes: Sequence[Recipe], size: int) -> tuple[Tensor, Tensor]:
        """z [size, latent] and y [size]; the rows after the recipes repeat the first."""
        rows = [*recipes, *[recipes[0]] * (size - len(recipes))]
        z = torch.from_numpy(np.stack([noise(row, self._latent) for row in rows]))
        y = torch.tensor([row.class_id for row in rows])
        return z.to(self._device, self._dtype), y.to(self._device)

    def _trial(self) -> list[Recipe]:
        classes = len(self.info.classes)
        return [Recipe(k % classes, k, 0, 1.0) for k in range(self.rows)]

    def _look(self) -> tuple[AttentionSite, ...]:
        """Run once, as a warm-up, and see which layers attend."""
        with self._crew.share(), torch.inference_mode():
            _, traces = self._network.forward_with_attention(*self._inputs(self._trial()[:1], 1))
        return tuple(AttentionSite(t.name, t.query_grid[0], float(t.gamma)) for t in traces)

    def _sizes_that_agree(self) -> tuple[int, ...]:
        """The sizes in which the images of a trial come out as in the largest, to the last bit.

        And as with any share of the threads; else the crew keeps to the shares that agree with the smallest.
        Before they are rounded to levels: sums in another order then show in every image, not in one of many.
        """
        trial = self._trial()

        def make(size: int) -> Tensor:
            # the last of the trial: each comes by at another place than in the largest
            images: Tensor = self._network(*self._inputs(trial[-size:], size))
            return images

        before = torch.get_num_threads()
        agree, shares = set(self._sizes), list[int]()
        with torch.inference_mode():
            for share in self._crew.shares:
                torch.set_num_threads(share)
                if not shares:
                    expected = make(self.rows)
                if torch.equal(make(self.rows), expected):
                    shares.append(share)
                    agree &= {size for size in agree if torch.equal(make(size), expected[-size:])}
        torch.set_num_threads(before)
        self._crew.agree_on(shares)
        log.info("%s: forwards of %s images on %s threads", self.info.name, sorted(agree), self._crew.shares)
        return tuple(sorted(agree))


class _Graphs:
    """Forwards on a GPU, recorded once a size and thread: no launches from Python, pixels on the host.

    Each thread has streams, graphs and buffers of its own, so that its copies run beside another's kernels.
    """

    def __init__(
        self, network: FusedGenerator, device: torch.device, latent: int, dtype: torch.dtype
    ) -> None:
        self._network = network
        self._device = device
        self._latent = latent
        self._dtype = dtype
        self._mine = local()

    def __call__(self, z: Tensor, y: Tensor) -> NDArray[np.uint8]:
        """uint8 [size, R, R, 3]."""
        recorded = self._mine.__dict__.setdefault("graphs", {})
        if len(z) not in recorded:
            recorded[len(z)] = self._record(len(z))
        graph, stream, inputs, pixels, host = recorded[len(z)]
        with torch.cuda.stream(stream):
            inputs[0].copy_(z, non_blocking=True)
            inputs[1].copy_(y, non_blocking=True)
            graph.replay()
            host.copy_(pixels, non_blocking=True)
        stream.synchronize()
        images: NDArray[np.uint8] = host.numpy().copy()  # the buffer is used again
        return images

    def _record(
        self, size: int
    ) -> tuple[torch.cuda.CUDAGraph, torch.cuda.Stream, list[Tensor], Tensor, Tensor]:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        z = torch.zeros(size, self._latent, device=self._device, dtype=self._dtype)
        y = torch.zeros(size, device=self._device, dtype=torch.long)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(3):  # kernels are chosen and memory is taken before the recording
                to_pixels(self._network(z, y))
            stream.synchronize()
            # thread_local: the other lanes go on meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                pixels = to_pixels(self._network(z, y))
        return graph, stream, [z, y], pixels, torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)


def choose_device(wanted: str) -> torch.device:
    """The torch device of a setting. Raises NoDevice."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NoDevice(
            f'There is no device {wanted!r} here ({error}). "auto" takes what there is.'
        ) from error
    return device


def load_engines(settings: WorkerSettings) -> dict[str, Engine]:
    """Every model in the checkpoints folder, by name. One that is no good is told about and left out.

    Raises NoModel when none is left, NoDevice.
    """
    crew = Crew(settings.threads)
    # Pixels must not depend on which kernel a heuristic finds fastest today, nor on TF32's short mantissa.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    device = choose_device(settings.device)
    engines = {}
    paths = sorted(settings.checkpoints.glob("*.safetensors"))
    for path in paths:
        try:
            engines[path.stem] = Engine.load(path, device, settings.precision, crew)
        except ModelError as error:
            log.error("refused: %s", error)
        else:
            log.info("loaded %s on %s, %s", path.stem, device, engines[path.stem].info.precision)
    if not engines:
        found = (
            f"none of the {len(paths)} in it can be loaded" if paths else "there is no *.safetensors in it"
        )
        raise NoModel(
            f"No model to serve from {settings.checkpoints}: {found}. Train one with `sagan train`, "
            "or point SAGAN_CHECKPOINTS to a folder of checkpoints."
        )
    return engines
