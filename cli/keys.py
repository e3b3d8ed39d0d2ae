"""`sagan keys`: make, list and revoke the keys of a service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from cli.common import AsJson, add_row, fail, show, table, tell, warn

if TYPE_CHECKING:
    from jobs.key_stores import KeyStore

T = TypeVar("T")

KeysFile = Annotated[
    Path | None,
    typer.Option(
        "--file", help="File that holds the keys; unless told, Redis does", envvar="SAGAN_KEYS_FILE"
    ),
]


def create(
    owner: Annotated[str, typer.Option(help="Whose key; keys of one owner see the same jobs")],
    label: Annotated[str, typer.Option(help="What it is for, such as the machine that has it")] = "",
    scopes: Annotated[str, typer.Option(help="Some of generate, read, metrics, admin")] = "generate,read",
    expires: Annotated[
        str | None,
        typer.Option(help="30d (90m, 12h, 2w) from now, or a day or time in UTC; never, unless told"),
    ] = None,
    rate: Annotated[int | None, typer.Option(help="Units a minute, in place of SAGAN_RATE_LIMIT")] = None,
    quota: Annotated[int | None, typer.Option(help="Images a day (UTC); no limit, unless told")] = None,
    priority: Annotated[
        int | None, typer.Option(help="Highest priority, in place of SAGAN_MAX_PRIORITY", min=0, max=9)
    ] = None,
    file: KeysFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed once, alone on standard output, and kept nowhere."""
    from jobs.api_keys import make_key, read_expiry, read_scopes

    async def made(store: KeyStore) -> tuple[dict[str, Any], str]:
        now = (await store.look()).now
        end = None if expires is None else read_expiry(expires, now)
        record, key = make_key(
            owner,
            now,
            label=label,
            scopes=read_scopes(scopes),
            expires_at=end,
            rate=rate,
            quota=quota,
            max_priority=priority,
        )
        await store.add(record)
        return record.told(now), key

    told, key = _with_store(file, made)
    if as_json:
        typer.echo(json.dumps(told | {"key": key}, indent=2))
        return
    show(_table([told]), stderr=True)
    typer.echo("The key, which cannot be shown again:", err=True)
    typer.echo(key)


def list_keys(file: KeysFile = None, as_json: AsJson = False) -> None:
    """List all keys ever made, the newest last: the expired and the revoked as well."""

    async def found(store: KeyStore) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        reading = await store.look()
        records = sorted(reading.records.values(), key=lambda record: record.created_at)
        return [record.told(reading.now) for record in records], reading.unreadable

    told, unreadable = _with_store(file, found)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    elif told:
        show(_table(told))
    else:
        tell(
            "No key was made yet: the service is open to everybody, unless SAGAN_API_KEYS or another setting"
        )
        tell("closes it. `sagan keys create --owner NAME` makes one, and closes it.")
    for key_id in unreadable:
        warn(f"the record of key {key_id!a} cannot be read, and the key is refused.")


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `sagan keys list` tells it; not the key")],
    file: KeysFile = None,
    as_json: AsJson = False,
) -> None:
    """Refuse a key from now on, in every API process, within seconds. Its jobs go on."""
    from jobs.api_keys import WELL_FORMED

    if whole := WELL_FORMED.fullmatch(key_id):
        key_id = whole[1]  # no reason to send somebody away who has the key at hand

    async def revoked(store: KeyStore) -> dict[str, Any]:
        return (await store.revoke(key_id)).told(datetime.now(UTC))

    told = _with_store(file, revoked)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        tell(f"{told['id']} is revoked since {_short(told['revoked_at'])} UTC.")


def _with_store(file: Path | None, use: Callable[[KeyStore], Awaitable[T]]) -> T:
    """What `use` makes of the place where keys are. Ends with a sentence where that fails."""
    from jobs.errors import BrokerUnavailable, JobError
    from jobs.key_stores import FileKeys, RedisKeys
    from serve.running import queue_settings

    async def run() -> T:
        store: KeyStore = RedisKeys(queue_settings()) if file is None else FileKeys(file)
        try:
            return await use(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except BrokerUnavailable as error:
        because = str(error.__cause__ or "").rstrip(".") or "no answer in time"
        fail(
            f"The keys in Redis cannot be reached ({because}). Set SAGAN_REDIS_URL as the service has it, "
            "run this in the folder of `sagan serve`, or give --file."
        )
    except (JobError, ValueError) as error:
        said = str(error)
        fail(said if said.endswith(".") else f"{said}.")
    except OSError as error:
        fail(error)


def _table(told: Iterable[dict[str, Any]]) -> Table:
    shown = table("id", "state", "owner", "label", "scopes", "ends (UTC)", "limits")
    styles = {"expired": "yellow", "revoked": "red"}
    for each in told:
        cells = [*(each[name] for name in ("id", "state", "owner", "label")), " ".join(each["scopes"])]
        cells += ["never" if each["expires_at"] is None else _short(each["expires_at"]), _limits(each)]
        add_row(shown, *cells, style=styles.get(each["state"], ""))
    return shown


def _limits(told: Mapping[str, Any]) -> str:
    found = {"rate": "{}/min", "quota": "{} images/day", "max_priority": "priority {}"}
    return ", ".join(form.format(told[name]) for name, form in found.items() if told[name] is not None)


def _short(time: str) -> str:
    return time[:16].replace("T", " ")
