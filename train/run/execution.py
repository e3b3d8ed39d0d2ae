"""The execution of a step: its precision, its compilation, its recording as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.serving.precision import has_bf16
from train.errors import TrainError

Precision = Literal["float32", "bf16"]
Compute = Callable[[Sequence[Tensor]], dict[str, Tensor]]
WARM_UP = 3  # steps before a graph is recorded: compilation, tuning and the optimisers' first allocations


class CaptureFailed(TrainError):
    """The step cannot be recorded as a CUDA graph here; this process must not use its device any more.

    torch 2.11 leaves its allocator as if it still recorded.
    """


@dataclass(frozen=True)
class Execution:
    """How fast a step is made; nothing here changes its meaning. None: not decided yet, so not done."""

    compile: bool | None = None  # torch.compile both losses: minutes of start-up on a CPU, 40 s on a GPU
    graph: bool | None = None  # record the whole step once and replay it: no launches from Python; CUDA only

    @classmethod
    def fitting(
        cls,
        device: torch.device,
        processes: int,
        compile: bool | None = None,
        graph: bool | None = None,
    ) -> Execution:
        """The fastest on this device; None lets it decide. Raises TrainError for an impossible graph."""
        cuda = device.type == "cuda"
        recordable = cuda and processes == 1  # messages between processes are not recorded
        if graph and not recordable:
            where = "several processes" if cuda else f'the device "{device}"'
            raise TrainError(f"--graph records CUDA graphs of one process, not of {where}. Leave it out.")
        return cls(compile=cuda if compile is None else compile, graph=recordable if graph is None else graph)


@dataclass(frozen=True)
class Passes:
    """The precision of forward and backward passes on a device."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """Type of a frozen network's weights: they need no float32 copy."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> torch.autocast:
        # each weight is cast once a pass anyway, and a graph must not replay a cast of an earlier step
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False
        )


def precision(wanted: str, device: torch.device) -> Precision:
    """A recipe's precision on a device; "auto" is bf16 where the device has the instructions."""
    if wanted == "auto":
        return "bf16" if has_bf16(device) else "float32"
    return "bf16" if wanted == "bf16" else "float32"


class Replayed:
    """A computation on tensors of fixed shapes, recorded as a CUDA graph after WARM_UP calls.

    The inputs are copied into the graph's own; the outputs are the same tensors at every replay. Raises
    CaptureFailed.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.calls = 0
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls <= WARM_UP:
            # not on the default stream: recording needs gradients that were never made on it
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.compute(inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if self.graph is None:
            self.inputs = [torch.empty_like(tensor) for tensor in inputs]
            self.graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self.graph, stream=self.stream):
                    self.outputs = self.compute(self.inputs)
            except RuntimeError as wrong:
                reason = str(wrong).strip().splitlines()[0]
                raise CaptureFailed(f"The step cannot be recorded as a CUDA graph ({reason}).") from wrong
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        return self.outputs
