"""What the API and its workers export to Prometheus alike, and how an API reads the worker beside it."""

from __future__ import annotations

import asyncio
import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import disable_created_metrics
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.samples import Exemplar, Sample

from jobs.tracing import trace_id

# seconds; from an answer out of memory to a job that waited behind a full queue
SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 120, 300),
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for

ANSWERS_WITHIN: Final = 2.0  # seconds for a worker to tell its series


class Families:
    """Families as a collector; those of one name, from several owners, become one."""

    def __init__(self, *parts: Iterable[Metric]) -> None:
        merged: dict[str, Metric] = {}
        for family in (family for part in parts for family in part):
            if family.name in merged:
                merged[family.name].samples.extend(family.samples)
            else:
                merged[family.name] = family
        self._families = list(merged.values())

    def collect(self) -> Iterable[Metric]:
        return self._families


def build_version() -> str:
    """The release; "0" in a checkout that was not installed."""
    try:
        return version("sagan-service")
    except PackageNotFoundError:
        return "0"


def build_info(component: str) -> Metric:
    """`sagan_build_info` of an API or a worker."""
    labels = {"component": component, "version": build_version(), "python": platform.python_version()}
    return InfoMetricFamily("sagan_build", "Release and Python of a component", value=labels)


def exemplar_of(traceparent: str) -> dict[str, str] | None:
    """The exemplar of what was traced so (W3C's traceparent); None: no trace is recorded."""
    found = trace_id(traceparent) if traceparent else None
    return {"trace_id": found} if found else None


async def read_worker(path: str) -> Sequence[Metric]:
    """The families that a worker tells at a socket; none while it starts, or is too busy to answer."""
    try:
        async with asyncio.timeout(ANSWERS_WITHIN):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                told = await reader.read()
            finally:
                writer.close()
        return heard(told)
    except (OSError, TimeoutError, ValueError):  # ValueError: cut off, as the worker ended
        return ()


def tell(families: Iterable[Metric]) -> bytes:
    """Families as JSON: a tenth of the work of reading OpenMetrics."""
    return json.dumps(
        [
            (family.name, family.documentation, family.type, [_told(sample) for sample in family.samples])
            for family in families
        ]
    ).encode()


def _told(sample: Sample) -> tuple[object, ...]:
    shown = sample.exemplar
    return sample.name, sample.labels, sample.value, shown and (shown.labels, shown.value, shown.timestamp)


def heard(told: bytes) -> Sequence[Metric]:
    """The families of `tell`. Raises ValueError."""
    found = []
    for name, text, kind, samples in json.loads(told):
        family = Metric(name, text, kind)
        family.samples = [
            Sample(series, labels, value, exemplar=Exemplar(*shown) if shown else None)
            for series, labels, value, shown in samples
        ]
        found.append(family)
    return found
