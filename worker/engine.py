"""A checkpoint as a sampler whose pixels do not depend on the rest of the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imaging.levels import to_pixels
from imaging.noise import noise_of
from imaging.spec import MOST_CLASSES, ImageSpec
from jobs.job import AttentionMap, AttentionSite, ModelInfo
from model.checkpoint import Checkpoint, load_generator
from model.errors import CheckpointError
from model.serving.fused import FusedGenerator
from model.serving.precision import in_precision
from worker.pending import DeviceLost

log = logging.getLogger(__name__)

# EngineError
# ├── UnknownLayer    no attention of that name in this model
# ├── NoDevice        there is no such device
# ├── NotRecorded     a forward cannot be recorded as a CUDA graph: this process must not go on
# └── NoModel         no checkpoint could be loaded (worker.models)

# Sizes of a forward, by type of device; a batch between two sizes is filled up with copies of its first row.
# One spec must give one image in any batch, but torch chooses kernels by size. So `verify_batch_sizes` admits
# a size only if it gives the same images as the base size. On the CPUs tried, weights laid out by
# model.serving.fused passed at all of these in int8, and at powers of two in float32 (on two threads a
# transposed convolution of 3, 5 or 7 images splits its sums).
SIZES: Final = {"cpu": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16), "cuda": (1, 4, 16, 64)}

# Forwards at once, at most; each runs in a lane of the scheduler. On a CPU each takes its share of the cores:
# two forwards of one thread are faster than one of two threads (benchmarks/engine.py), and no thread waits
# for another whose core a neighbour has. On a GPU the copies and launches of one run beside the kernels of
# the other.
LANES: Final = {"cpu": 4, "cuda": 2}


class EngineError(Exception):
    """Root of this module's errors."""


class UnknownLayer(EngineError):
    """No attention layer of that name in this model."""


class NoDevice(EngineError):
    """There is no such device."""


class NotRecorded(EngineError):
    """A forward cannot be recorded as a CUDA graph; torch's allocator is left as if it still recorded."""


class NotAnImage(Exception):
    """A forward made values that are no finite numbers."""


class ThreadBudget:
    """The CPU threads of a worker, shared out among the forwards that run at once."""

    def __init__(self, threads: int | None = None, lanes: int = LANES["cpu"]) -> None:
        """threads: None: torch's own choice. lanes: forwards at once, at most."""
        self.threads = torch.get_num_threads() if threads is None else threads
        self.lanes = min(lanes, self.threads)
        # A forward gets half of the threads at most: with all of them it waits at each layer for the thread
        # whose core the API, Redis or the next forward has. One image took longer, eight clients got fewer.
        self._least = min(2, self.lanes)
        self.shares = sorted({_power_of_two(self.threads // n) for n in range(self._least, self.lanes + 1)})
        self._lock = Lock()
        self._running = 0

    @contextmanager
    def share(self, allowed: Collection[int]) -> Iterator[int]:
        """Set torch's threads for a forward in this thread; yields their number, half of all if it is alone.

        allowed: the numbers to choose from, some of `shares`.
        """
        with self._lock:
            self._running += 1
            wanted = self.threads // max(self._running, self._least)
        try:
            share = max((share for share in allowed if share <= wanted), default=min(allowed))
            if torch.get_num_threads() != share:
                torch.set_num_threads(share)  # it holds for this thread alone
            yield share
        finally:
            with self._lock:
                self._running -= 1


def _power_of_two(number: int) -> int:
    """The largest power of two that is at most `number`; 1 for 0."""
    return 1 << max(0, number.bit_length() - 1)


# z [size, latent], classes and their shares [size, M] -> [size, R, R, 3]
Forward = Callable[[Tensor, Tensor, Tensor], NDArray[np.uint8]]

recording = Lock()  # a recording first synchronizes the device, which breaks another that is under way


def _record_graph(network: FusedGenerator, size: int, latent: int) -> Forward:
    """A forward as a CUDA graph: no launches from Python, pixels on the host. Raises NotRecorded.

    Its stream and buffers are its own, so its copies run beside another graph's kernels. One thread at a time
    may use it.
    """
    device = network.table.device
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    mixture = size, MOST_CLASSES
    inputs = (
        torch.zeros(size, latent, device=device, dtype=network.dtype),
        torch.zeros(mixture, device=device, dtype=torch.long),
        torch.zeros(mixture, device=device),
    )
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))  # which fills the inputs
    with torch.cuda.stream(stream):
        for _ in range(3):  # chooses kernels and takes memory before the recording
            to_pixels(network(*inputs))
        stream.synchronize()
        try:
            with torch.cuda.graph(graph, stream=stream):
                images = network(*inputs)
                pixels, total = to_pixels(images), images.sum()
        except RuntimeError as wrong:
            raise NotRecorded(f"a forward of {size} cannot be recorded as a CUDA graph ({wrong})") from wrong
    host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
    host_total = torch.empty((), dtype=total.dtype, pin_memory=True)

    def replay(z: Tensor, y: Tensor, shares: Tensor) -> NDArray[np.uint8]:
        with torch.cuda.stream(stream):
            for ours, theirs in zip(inputs, (z, y, shares), strict=True):
                ours[:, theirs.shape[1] :].zero_()  # fewer classes than there is room for
                ours[:, : theirs.shape[1]].copy_(theirs, non_blocking=True)
            graph.replay()
            host.copy_(pixels, non_blocking=True)
            host_total.copy_(total, non_blocking=True)
        stream.synchronize()
        _check(host_total)
        images: NDArray[np.uint8] = host.numpy().copy()  # the next forward overwrites the buffer
        return images

    return replay


def _check(total: Tensor) -> None:
    """total: sum of all values, so that one NaN or infinity shows in it. Raises NotAnImage."""
    if not torch.isfinite(total):
        raise NotAnImage("the network made values that are no finite numbers")


RECORDERS: Final[Mapping[str, Callable[[FusedGenerator, int, int], Forward]]] = {"cuda": _record_graph}


class Engine:
    """One model on one device. Several threads may use it at once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        device: torch.device,
        precision: str,
        budget: ThreadBudget,
        graphs: bool = True,
    ) -> None:
        """precision: as in WorkerSettings. graphs: let `verify_batch_sizes` record forwards on a GPU."""
        config = checkpoint.config
        self._device = device
        self.device = str(device)
        self._latent = config.latent
        self._budget = budget
        # always the same number of threads: int8 calibrates here, and every start must find the same scales
        with budget.share(budget.shares[:1]), torch.inference_mode():
            self._network, precision = in_precision(checkpoint.generator, device, precision)
        self._dtype = self._network.dtype
        self._record = RECORDERS.get(device.type) if graphs else None
        # on such a device recording breaks other threads' work, and theirs the recording
        self.verifies_alone = device.type in RECORDERS
        self._recorded: SimpleQueue[Mapping[int, Forward]] | None = None  # by size; one mapping a lane
        self.max_batch = _sizes(device)[-1]
        # The size in use until `verify_batch_sizes` has compared the others with it. On a GPU it is the
        # largest: losing a smaller one costs less there.
        self._base = 1 if device.type == "cpu" else self.max_batch
        self._sizes: Mapping[int, Sequence[int]] = {budget.shares[0]: (self._base,)}
        self.lanes = budget.lanes if device.type == "cpu" else LANES["cuda"]
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
        self.info = replace(self.info, attention=self._look(name))

    @classmethod
    def load(
        cls,
        path: Path,
        device: torch.device,
        precision: str = "float32",
        budget: ThreadBudget | None = None,
        graphs: bool = True,
    ) -> Engine:
        """The model in `path`, named by its stem.

        Until `verify_batch_sizes` it makes every image in a forward of one size: on a CPU one by one, on few
        threads. Raises model.errors.ModelError for any other file, for one whose network makes no images, and
        for a precision that the device lacks.
        """
        budget = ThreadBudget() if budget is None else budget
        return cls(load_generator(path), path.stem, device, precision, budget, graphs)

    def sample(self, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
        """uint8 [N, R, R, 3], one image a spec; it does not depend on the others. N: at most `max_batch`.

        Raises NotAnImage, DeviceLost.
        """
        with self._budget.share(self._sizes) as share, torch.inference_mode(), self._watched():
            fitting = [size for size in self._sizes[share] if size >= len(specs)]
            if not fitting:
                return np.concatenate([self._pixels([spec], self._base) for spec in specs])
            return self._pixels(specs, fitting[0])[: len(specs)]

    def verify_batch_sizes(self) -> None:
        """Try forwards of other sizes and numbers of threads, and use those that give the same images.

        The images are compared to the last bit, before they are rounded to levels: sums in another order then
        show in every image, not in one of many. On a GPU it also records a forward a size for every lane;
        call it before another thread uses the device. Raises NotRecorded.
        """
        trial = _some(self.max_batch, len(self.info.classes))

        def make(specs: Sequence[ImageSpec]) -> Tensor:
            images: Tensor = self._network(*self._inputs(specs, len(specs)))
            return images

        found: dict[int, list[int]] = {}
        before = torch.get_num_threads()
        with torch.inference_mode():
            torch.set_num_threads(self._budget.shares[0])
            groups = [trial[k : k + self._base] for k in range(0, self.max_batch, self._base)]
            expected = torch.cat([make(group) for group in groups])
            for share in self._budget.shares:
                torch.set_num_threads(share)
                # the last of the trial, so that an image has another place in each size
                agree = [s for s in _sizes(self._device) if torch.equal(make(trial[-s:]), expected[-s:])]
                if self._base in agree:
                    found[share] = agree
        torch.set_num_threads(before)
        if found:  # else one image is not the same twice: the size in use stays
            self._sizes = found
        log.info("%s: images a forward by threads: %s", self.info.name, found)
        if self._record is not None:
            lanes: SimpleQueue[Mapping[int, Forward]] = SimpleQueue()
            with recording, torch.inference_mode():
                for _ in range(self.lanes):
                    wanted = sorted({size for sizes in found.values() for size in sizes})
                    lanes.put({size: self._record(self._network, size, self._latent) for size in wanted})
            self._recorded = lanes

    def attention(self, spec: ImageSpec, layer: str) -> tuple[NDArray[np.uint8], AttentionMap]:
        """The image again [R, R, 3], and the map of one layer. Raises UnknownLayer, DeviceLost."""
        if layer not in {site.name for site in self.info.attention}:
            names = ", ".join(site.name for site in self.info.attention) or "none"
            raise UnknownLayer(f"Model {self.info.name!r} has no attention layer {layer!r}; it has: {names}.")
        with self._budget.share(self._sizes), torch.inference_mode(), self._watched():
            images, traces = self._network.forward_with_attention(*self._inputs([spec], 1))
            trace = next(trace for trace in traces if trace.name == layer)
            return to_pixels(images[:1])[0].cpu().numpy(), AttentionMap(
                layer=layer,
                query_grid=trace.query_grid,
                key_grid=trace.key_grid,
                gamma=float(trace.gamma),
                share=float(trace.share[0]),
                map=trace.map[0].to(torch.float16).cpu().numpy(),
            )

    def _pixels(self, specs: Sequence[ImageSpec], size: int) -> NDArray[np.uint8]:
        """uint8 [size, R, R, 3] of one forward of exactly that size."""
        inputs = self._inputs(specs, size)
        if self._recorded is None:
            images = self._network(*inputs)
            _check(images.sum())
            return to_pixels(images).cpu().numpy()
        lane = self._recorded.get()  # waits if all lanes are at work
        try:
            return lane[size](*inputs)
        finally:
            self._recorded.put(lane)

    def _inputs(self, specs: Sequence[ImageSpec], size: int) -> tuple[Tensor, Tensor, Tensor]:
        """z [size, latent], classes and their shares [size, M]; the rows after the specs repeat the first."""
        drawn = [noise_of(spec, self._latent) for spec in specs]
        more = size - len(specs)
        z = torch.from_numpy(np.stack(drawn + drawn[:1] * more))
        mixtures = [spec.classes for spec in specs]
        most = max(map(len, mixtures))
        # class 0 with a share of 0 changes nothing
        filled = [mixture + ((0, 0.0),) * (most - len(mixture)) for mixture in mixtures]
        parts = torch.tensor(filled + filled[:1] * more, dtype=torch.float64)
        y, shares = parts[..., 0].long(), parts[..., 1].float()
        return z.to(self._device, self._dtype), y.to(self._device), shares.to(self._device)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Tells a lost device from an error that the next forward need not have. Raises DeviceLost."""
        try:
            yield
        except RuntimeError as error:
            if not self.answers():
                raise DeviceLost(f"{self.device} answers no more ({error})") from error
            raise

    def answers(self) -> bool:
        """Whether the device computes: after a fault a GPU refuses everything until its process ends."""
        try:
            return bool(torch.ones(1, device=self._device).item() == 1)
        except RuntimeError:
            return False

    def _look(self, name: str) -> tuple[AttentionSite, ...]:
        """The layers that attend, by a first forward, which also warms up. Raises CheckpointError."""
        with self._budget.share(self._sizes), torch.inference_mode():
            images, traces = self._network.forward_with_attention(*self._inputs(_some(1, 1), 1))
        finite = all(torch.isfinite(part).all() for part in (images, *(trace.map for trace in traces)))
        if not finite or images[0].amax() - images[0].amin() < 1 / 255 or (images[0].abs() > 0.9999).all():
            what = "values that are no finite numbers" if not finite else "one colour, not an image"
            raise CheckpointError(
                f"{name}: its network makes {what}: its training diverged. Use an earlier one."
            )
        return tuple(AttentionSite(t.name, t.query_grid[0], float(t.gamma)) for t in traces)


def _sizes(device: torch.device) -> Sequence[int]:
    return SIZES.get(device.type, SIZES["cuda"])


def _some(count: int, classes: int) -> list[ImageSpec]:
    """Specs of different noise, of one class after the other."""
    return [ImageSpec(k % classes, k, 0, 1.0) for k in range(count)]


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


def choose_exact_kernels() -> None:
    """Keep pixels the same: no kernels chosen by timing, and no TF32, whose mantissa is short."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
