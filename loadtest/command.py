"""`sagan bench`: load on a running service, and its results as a table, JSON and a picture."""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np
import uvloop
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from imaging.files import write_whole
from loadtest.client import Address, BenchError, Broken, Client, reason
from loadtest.load import GOOD, Clients, Floats, Load, Rate, Result, Target, measure, percentile
from loadtest.picture import draw

PNG: Final = b"\x89PNG\r\n\x1a\n"
WAIT: Final = 60  # seconds that the service is asked to hold a request; it holds none for longer
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


@dataclass(frozen=True)
class Question:
    """The images that every request asks for."""

    class_id: str = "0"  # number or name
    model: str | None = None  # None: the service's default
    count: int = 1  # images a job; the answer to more than one is their grid
    seed: int = 0  # of the first request; the n-th after it has seed + n
    api_key: str | None = None  # None: no key is sent

    def target(self, url: str) -> Target:
        """The request to the service at `url`. Raises BenchError if that is not a URL."""
        options = {"count": self.count} | ({"model": self.model} if self.model else {})
        headers = {
            "Content-Type": "application/json",
            "Accept": "image/png",
            "Prefer": f"wait={WAIT}",
            "User-Agent": "sagan-bench",
        }
        if self.api_key:
            if not self.api_key.isascii() or not self.api_key.isprintable():
                raise BenchError("An API key is made of visible ASCII characters.")
            headers["X-API-Key"] = self.api_key
        return Target(
            address=Address.of(url),
            path=f"/generate/{quote(self.class_id, safe='')}",
            headers=headers,
            body=lambda n: json.dumps({"seed": self.seed + n, **options}).encode(),
            good=lambda body: body.startswith(PNG),
            images=self.count,
            timeout=WAIT + 5.0,
        )


def loads(clients: str, rate: float | None, *, even: bool = False, seed: int = 0) -> list[Load]:
    """The loads of the options: `clients` ("1,8,32") one after the other, or a rate. Raises BenchError."""
    if rate is not None:
        if not 0 < rate <= 1e5:
            raise BenchError(f"--rate is {rate:g}; it must be above 0 and at most 100,000 requests a second.")
        return [Rate(rate, even=even, seed=seed)]
    counts = [word.strip() for word in clients.split(",")]
    if not all(word.isascii() and word.isdecimal() and 1 <= int(word) <= 10_000 for word in counts):
        raise BenchError(f"--clients is {clients!r}; write a number from 1 to 10000, or several as 1,8,32.")
    return [Clients(int(word)) for word in counts]


def run(
    url: str,
    question: Question,
    wanted: Sequence[Load],
    seconds: float,
    warm_up: float,
    out: Path | None,
    console: Console,
    command: str,
) -> list[Result]:
    """Measure each load in turn, print the results, and write bench.json and bench.svg into `out`, if any.

    Raises BenchError, before anything is written, if the service is not there or refuses the request.
    """
    target = question.target(url)
    _allow_connections()
    began = datetime.now(UTC)
    results = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_try_once(target, url))
        shown = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        with Progress(*shown, console=console, transient=True) as progress:
            for load in wanted:
                task = progress.add_task(f"{load}: {warm_up:g} s to warm up, {seconds:g} s measured")
                results.append(runner.run(measure(target, load, seconds, warm_up)))
                progress.remove_task(task)
    console.print(table(results))
    for line in remarks(results):
        _tell(console, line)
    if out is not None:
        about = {"command": command, "url": url, "time": began.isoformat(timespec="seconds")}
        about |= {"generator": machine(), "warm_up_seconds": f"{warm_up:g}"}
        title = f"{url}, class {question.class_id}, {question.count} image{'s' * (question.count > 1)} a job"
        write(out, about, title, results)
        console.print(
            f"{out / 'bench.json'}, {out / 'bench.svg'}", highlight=False, markup=False, soft_wrap=True
        )
    return results


def figures(result: Result) -> dict[str, object]:
    """All figures of a result, as JSON holds them; times in ms unless their name says otherwise."""
    return {
        "load": str(result.load),
        "loop": "closed" if isinstance(result.load, Clients) else "open",
        "seconds": result.seconds,
        "requests": result.counts.total(),
        "images_a_request": result.images,
        "images_a_second": round(result.throughput, 3),
        "latency": _percentiles(result.latencies),
        "latency_corrected": _percentiles(result.corrected),
        "counts": dict(result.counts.most_common()),
        "generator_cpu_a_request": _ms(result.cpu_per_request),
        "generator_late": _percentiles(_lags(result)),
        "over_time": [[round(x, 3), round(y, 3)] for x, y in result.over_time(1.0)],
        "latencies": [_ms(latency) for latency in result.latencies],
    }


def table(results: Sequence[Result]) -> Table:
    """A row a load."""
    shown = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title="latency in ms, from when a request should have been sent",
    )
    for head in ("load", "images/s", *SHARES, "requests", "errors"):
        shown.add_column(head, justify="left" if head == "load" else "right", no_wrap=True)
    for result in results:
        told = _percentiles(result.latencies)
        shown.add_row(
            str(result.load),
            f"{result.throughput:.1f}",
            *(_shown(told[name]) for name in SHARES),
            f"{result.counts.total()}",
            f"{result.errors}",
        )
    return shown


def remarks(results: Sequence[Result]) -> list[str]:
    """The errors by kind, and reasons to doubt a figure."""
    lines = []
    for result in results:
        wrong = [f"{count} × {kind}" for kind, count in result.counts.most_common() if kind != GOOD]
        if wrong:
            lines.append(f"{result.load}: {', '.join(wrong)}.")
        told, again = percentile(result.latencies, 0.99), percentile(result.corrected, 0.99)
        if again > 1.5 * told:
            lines.append(
                f"{result.load}: answers stalled. If each client had gone on asking once in every p50 while "
                f"it waited, p99 would be {_shown(_ms(again))} ms."
            )
        late = percentile(_lags(result), 0.99)
        if isinstance(result.load, Rate) and late > 0.01:
            lines.append(
                f"{result.load}: the generator itself sent 1 % of requests {1e3 * late:.0f} ms late or later."
            )
    costs = ", ".join(_shown(_ms(result.cpu_per_request)) for result in results)
    lines.append(f"The generator took {costs} ms of CPU a request.")
    return lines


def write(out: Path, about: dict[str, str], title: str, results: Sequence[Result]) -> None:
    """Write bench.json and bench.svg, each whole. Raises BenchError if they cannot be written."""
    told = {**about, "results": [figures(result) for result in results]}
    try:
        write_whole(out / "bench.json", json.dumps(told, indent=1).encode() + b"\n")
        write_whole(out / "bench.svg", draw(title, results))
    except OSError as wrong:
        raise BenchError(f"{out} cannot be written to ({reason(wrong)}).") from None


def machine() -> str:
    """The machine of the generator, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.machine())
    return f"{processor}, {os.cpu_count()} cores; {platform.system()}, Python {platform.python_version()}"


async def _try_once(target: Target, url: str) -> None:
    """One request before the load. Raises BenchError, with the service's words, unless its answer is good."""
    client = Client(target.address)
    try:
        request = client.request(target.method, target.path, target.headers, target.body(0))
        status, body = await client.ask(request, target.timeout)
    except TimeoutError:
        raise BenchError(f"{url} did not answer within {target.timeout:g} s.") from None
    except Broken as wrong:
        raise BenchError(f"{url} does not speak HTTP: {wrong}.") from None
    except OSError as wrong:
        raise BenchError(f"There is no service at {url} ({reason(wrong)}).") from None
    finally:
        client.close()
    if target.kind(status, body) != GOOD:
        raise BenchError(f"{url} refuses the request: {_said(status, body)}")


def _said(status: int, body: bytes) -> str:
    if status in (200, 202):
        return f"no image came within {WAIT} s (HTTP {status})." if status == 202 else "the answer is no PNG."
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}."


def _allow_connections() -> None:
    """Allow more open files: each request in flight is a connection, and the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))


def _lags(result: Result) -> Floats:
    """Sorted seconds by which the generator sent requests later than they were due."""
    return np.sort((result.sent - result.due)[result.measured])


def _percentiles(seconds: Floats) -> dict[str, float | None]:
    """Name -> ms; None: there are no latencies."""
    return {name: _ms(percentile(seconds, share)) for name, share in SHARES.items()}


def _tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(1e3 * seconds, 3)


def _shown(ms: float | None) -> str:
    return "–" if ms is None else f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"
