"""The contenders: their names, pinned versions and the commands that start them as tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WEB = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0")
REDIS = "redis==8.1.0"


@dataclass(frozen=True)
class Contender:
    """One way to serve the network. In commands and variables {port} and {work} are filled in."""

    name: str
    about: str
    commands: tuple[tuple[str, ...], ...]  # arguments of its Python, one process each
    requirements: tuple[str, ...] = ()  # pinned; (): the project's own environment
    redis: bool = False  # a Redis without persistence is started for it; it reads REDIS_URL
    variables: Mapping[str, str] = field(default_factory=dict)
    jobs: bool = False  # it also makes many images a request


CONTENDERS = (
    Contender(
        name="fastapi",
        about="plain FastAPI, one image at a time",
        commands=(("-m", "benchmarks.peers.plain_fastapi", "{port}"),),
        requirements=WEB,
    ),
    Contender(
        name="litserve",
        about="LitServe 0.2.19, dynamic batching",
        commands=(("-m", "benchmarks.peers.lit_serve", "{port}", "16", "0.005"),),
        requirements=("litserve==0.2.19", *WEB),
    ),
    Contender(
        name="ray",
        about="Ray Serve 2.60, @serve.batch, max_ongoing_requests=64",
        commands=(("-m", "benchmarks.peers.ray_serve", "{port}", "16", "0.005"),),
        requirements=("ray[serve]==2.60.0", *WEB),
        variables={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Contender(
        name="bentoml",
        about="BentoML 1.4.39, adaptive batching",
        commands=(("-m", "bentoml", "serve", "benchmarks.peers.bento:Front", "--port", "{port}"),),
        requirements=("bentoml==1.4.39", "fastapi==0.165.0"),
        variables={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{work}/bentoml"},
    ),
    Contender(
        name="celery",
        about="Celery 5.7, a task an image, the answer by pub/sub",
        commands=(
            ("-m", "benchmarks.peers.celery_one"),
            ("-m", "benchmarks.peers.celery_front", "{port}"),
        ),
        requirements=("celery==5.7.0", REDIS, *WEB),
        redis=True,
    ),
    Contender(
        name="celery-batches",
        about="Celery 5.6 with celery-batches 0.11, the answer by pub/sub",
        commands=(
            ("-m", "benchmarks.peers.celery_batched", "16", "0.005"),
            ("-m", "benchmarks.peers.celery_front", "{port}"),
        ),
        requirements=("celery-batches==0.11", "celery==5.6.3", REDIS, *WEB),
        redis=True,
    ),
    Contender(
        name="ours-way",
        about="this service, its engine the same plain network",
        commands=(("-m", "benchmarks.peers.ours_way", "{port}"),),
        variables={"SAGAN_CHECKPOINTS": "{work}/checkpoints", "SAGAN_STATE_DIR": "{work}/state"},
        jobs=True,
    ),
    Contender(
        name="ours",
        about="this service as it ships, on the same weights",
        commands=(("-m", "cli", "serve", "--port", "{port}"),),
        variables={"SAGAN_CHECKPOINTS": "{work}/checkpoints", "SAGAN_STATE_DIR": "{work}/state"},
        jobs=True,
    ),
)
