"""The network that every contender serves: a 64-pixel generator of random weights, plain eager float32."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from model.checkpoint import save_generator
from model.config import ModelConfig
from model.generator import Generator
from model.layers import UpBlock

CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CONFIG: Final = ModelConfig(
    resolution=64,
    classes=len(CLASSES),
    generator_widths=(256, 128, 64, 32, 32),
    discriminator_widths=(32, 32, 64, 128, 256),
    generator_attention=(32,),
)
NAME: Final = "peers"  # of the checkpoint with these weights
SETTLING: Final = 10  # training-mode forwards of 64 images, which settle batch norm's statistics


class PlainUpBlock(nn.Module):
    """UpBlock as everyone writes it: nearest enlargement first, then the 3×3 convolution."""

    def __init__(self, block: UpBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.conv1, self.conv2, self.skip = block.conv1, block.conv2, block.skip

    def forward(self, x: Tensor, y: Tensor, vector: Tensor | None = None) -> Tensor:
        h = self.conv1(_double(F.relu(self.norm1(x, y, vector))))
        h = self.conv2(F.relu(self.norm2(h, y, vector)))
        doubled: Tensor = h + _double(self.skip(x))
        return doubled


def generator() -> Generator:
    """The network with its random weights, always the same, and no norm folded.

    Its gates are open and its classes differ, so that nothing in it is a multiplication by 0.
    """
    torch.manual_seed(0)
    made = Generator(CONFIG)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("attention.32x32.gamma"):
                parameter.fill_(0.5)
            elif name.endswith("gamma"):
                parameter.normal_(1, 0.3)
            elif name.endswith("beta"):
                parameter.normal_(0, 0.3)
        made.train()
        for _ in range(SETTLING):
            made(torch.randn(64, CONFIG.latent), torch.randint(len(CLASSES), (64,)))
    return made.eval()


def write_checkpoint(folder: Path) -> Path:
    """The same weights as a file that our service loads; returns its path."""
    path = folder / f"{NAME}.safetensors"
    save_generator(path, generator(), CLASSES)
    return path


def plain(source: Generator) -> Generator:
    """`source` as a peer would serve it: channels_last, spectral norm folded, batch norm not."""
    network = source.folded()
    network.blocks = nn.ModuleList(
        PlainUpBlock(block) for block in network.blocks if isinstance(block, UpBlock)
    )
    return network.to(memory_format=torch.channels_last)


class Model:
    """Classes and seeds in, pictures out. Only the thread that made it may call it."""

    def __init__(self, threads: int | None = None) -> None:
        """threads: of a forward; None: one a core."""
        torch.set_num_threads(threads or os.cpu_count() or 1)
        self._network = plain(generator())

    @torch.inference_mode()
    def pixels(self, asked: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """(class, seed) of each image -> uint8 [N, 64, 64, 3]."""
        z = torch.from_numpy(np.stack([noise(seed) for _, seed in asked]))
        images = self._network(z, torch.tensor([class_id for class_id, _ in asked]))
        levels = ((images + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
        pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().numpy()
        return pixels

    def pngs(self, asked: Sequence[tuple[int, int]]) -> list[bytes]:
        """(class, seed) of each image -> its PNG."""
        return [png(image) for image in self.pixels(asked)]


class Alone:
    """A Model in a thread of its own, one batch at a time.

    A lock around it would do the same, but the network is much slower in other threads than the one that
    made it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._model = self._thread.submit(Model).result()

    async def pixels(self, asked: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """As Model.pixels."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._model.pixels, asked)

    async def pngs(self, asked: Sequence[tuple[int, int]]) -> list[bytes]:
        """As Model.pngs."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._model.pngs, asked)


def noise(seed: int) -> NDArray[np.float32]:
    """z of one image, [latent]."""
    stream = np.random.Generator(np.random.Philox(key=[seed, 0]))
    return stream.standard_normal(CONFIG.latent).astype(np.float32)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The PNG of an image by Pillow, at its defaults."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def model() -> Model:
    """The Model of this process."""
    return Model()


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
