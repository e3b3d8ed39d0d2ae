"""results.jsonl -> tables.md: medians over the rounds, and shares of the floor of the same round."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
BATCHES = (
    "1",
    "2",
    "4",
    "8",
    "16",
)  # of the floor; a share is of the one with the best median of its round


def tables(about: Sequence[str], rows: Sequence[Row]) -> str:
    """Markdown of all rounds; about: lines on the machine and the run."""
    floors = [row for row in rows if row["contender"] == "floor"]
    best = {
        r: max(
            statistics.median(row["floor"][batch] for row in floors if row["round"] == r) for batch in BATCHES
        )
        for r in {row["round"] for row in floors}
    }
    measured = [row | {"floor": best[row["round"]]} for row in rows if "images_a_second" in row]
    failed = [row for row in rows if "failed" in row]
    parts = [*about, ""]
    if floors:
        parts += _floor(floors)
    for count in sorted({row["count"] for row in measured}):
        chosen = [row for row in measured if row["count"] == count]
        many = f"jobs of {count} images" if count > 1 else "single images"
        parts += ["", f"### {many.capitalize()}", "", *_table(chosen)]
    if failed:
        parts += ["", *(f"- {row['contender']}, round {row['round'] + 1}: {row['failed']}" for row in failed)]
    return "\n".join(parts) + "\n"


def _floor(rows: Sequence[Row]) -> list[str]:
    head = "| images a batch | " + " | ".join(BATCHES) + " |"
    cells = " | ".join(_spread([row["floor"][batch] for row in rows], "{:.0f}") for batch in BATCHES)
    return [
        "### The floor: one process, no HTTP, no queue",
        "",
        head,
        "|---|" + "---|" * len(BATCHES),
        f"| images/s | {cells} |",
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(row["contender"] for row in rows))
    clients = sorted({row["clients"] for row in rows})
    at = "/".join(map(str, clients))
    most = clients[-1]
    grouped: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["contender"], row["clients"]].append(row)

    def each(name: str, field: str, form: str) -> str:
        return " / ".join(_median(grouped[name, n], field, form) for n in clients)

    lines = [
        f"Clients: {at}. CPU, processes and memory at {most}.",
        "",
        "| | images/s | share of the floor (least..most) | p50 ms | p99 ms | errors | CPU ms/image (+ Redis) "
        "| processes | memory MB (+ Redis) | generator CPU ms/request | cores lost to others |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        shares = " / ".join(
            _spread([r["images_a_second"] / r["floor"] for r in grouped[name, n]], "{:.2f}") for n in clients
        )
        last = grouped[name, most]
        redis = any(row["redis_memory_mb"] for row in last)
        cpu, memory = _median(last, "cpu_ms", "{:.1f}"), _median(last, "memory_mb", "{:.0f}")
        if redis:
            cpu += f" + {_median(last, 'redis_cpu_ms', '{:.1f}')}"
            memory += f" + {_median(last, 'redis_memory_mb', '{:.0f}')}"
        errors = " / ".join(_errors(grouped[name, n]) for n in clients)
        everything = [row for n in clients for row in grouped[name, n]]
        lines.append(
            f"| {name} | {each(name, 'images_a_second', '{:.0f}')} | {shares} "
            f"| {each(name, 'p50_ms', '{:.0f}')} "
            f"| {each(name, 'p99_ms', '{:.0f}')} | {errors} | {cpu} | {_median(last, 'processes', '{:.0f}')} "
            f"| {memory} | {each(name, 'generator_ms', '{:.2f}')} "
            f"| {_median(everything, 'neighbours', '{:.2f}')}, {_median(everything, 'stolen', '{:.2f}')} |"
        )
    return lines


def _errors(rows: Sequence[Row]) -> str:
    asked = sum(row["requests"] for row in rows)
    return f"{100 * sum(row['errors'] for row in rows) / asked:.2g} %" if asked else "–"


def _median(rows: Sequence[Row], field: str, form: str) -> str:
    values = [row[field] for row in rows if row[field] is not None]
    return form.format(statistics.median(values)) if values else "–"


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    show: Callable[[float], str] = form.format
    middle = show(statistics.median(values))
    return f"{middle} ({show(min(values))}..{show(max(values))})" if len(values) > 1 else middle
