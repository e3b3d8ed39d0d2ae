"""Settings of a worker: environment variables with the prefix SAGAN_."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.settings import QueueSettings


class WorkerSettings(QueueSettings):
    """Settings of a worker process. Each field is read from SAGAN_<NAME>."""

    checkpoints: Path = Field(
        default=Path("checkpoints"),
        description="folder; every *.safetensors in it is a model, named by its stem",
    )
    device: str = Field(
        default="auto", description='"cpu", "cuda" or "cuda:1"; "auto": a GPU if there is one'
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        default="auto",
        description='of the forward; pixels depend on it. "auto": bfloat16 or int8 where the device has it '
        "and images stay near those of float32",
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads that forwards share; None: torch's own choice"
    )
    cuda_graphs: bool = Field(
        default=True, description="record forwards as CUDA graphs, which saves their launches; on a GPU alone"
    )
    forward_timeout: float = Field(
        default=60.0,
        gt=0,
        description="seconds after which a forward counts as hung: the worker ends, its jobs go elsewhere",
    )
    maps_share: float = Field(
        default=0.5,
        gt=0,
        le=0.9,
        description="of the device's time that attention maps may take while images wait",
    )
    celery_tools: bool = Field(
        default=False,
        description="Celery's inspect, control, events and Flower reach this worker; a job costs more then",
    )
    concurrency: int = Field(default=64, ge=1, description="jobs in hand at once")
    backlog: float = Field(
        default=4.0,
        gt=0,
        description="seconds of work in hand above which no more jobs are taken, only attention maps",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port of this worker's /metrics, for Prometheus; None: none, and under `sagan serve` the "
        "service's /metrics has its series",
    )
    metrics_address: str = Field(
        default="127.0.0.1", min_length=1, description="address that this port is opened on; 0.0.0.0: all"
    )
