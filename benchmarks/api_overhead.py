"""CPU a request of the API alone, on a store in memory, beside the least that could answer the request.

    python -m benchmarks.api_overhead [--requests 4000] [--rounds 5] [--clients 8] [--only POST]

The floors answer the same requests with the same bytes: a bare ASGI function, and a bare FastAPI app whose
routes read the same path and body. Each row is a server of its own (uvicorn as `sagan api` starts it), and
the rows take turns. The figure is the CPU of the server's process, user and system, without the load
generator. Connections are kept alive.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import socket
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import uvicorn
from fastapi import FastAPI, Response

from app.main import create_app
from app.orders import GenerateIn
from app.schemas import JobOut
from app.settings import Settings
from jobs.client import JobClient
from jobs.job import AttentionSite, Job, JobSpec, ModelInfo
from jobs.key_stores import KeyStore, Reading
from serve.api import options

PNG = os.urandom(9_000)  # as long as a 64-pixel image
CLASSES = tuple(f"class_{number}" for number in range(120))
MODEL = ModelInfo("model", "0" * 64, "float32", 64, CLASSES, (AttentionSite("32x32", 32, 0.5),))
SPEC = JobSpec("model", "0" * 64, "float32", 3, CLASSES[3], 1, 7, 1.0)
NOW = datetime.now(UTC)
DONE = Job("AAAAAAAAAAAAAAAAAAAAAA", "everybody", SPEC, "succeeded", NOW, NOW, NOW, None, 1, None, 1)
JOB = JobOut.of(DONE, None, "").model_dump_json().encode()

BODY = b'{"seed": 7}'
QUESTIONS = {
    "POST, Prefer: wait, PNG": (
        b"POST /generate/3 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Prefer: wait=30\r\nAccept: image/png\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    ),
    "GET job": b"GET /jobs/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % DONE.id.encode(),
    "GET image": b"GET /jobs/%s/images/0 HTTP/1.1\r\nHost: localhost\r\n\r\n" % DONE.id.encode(),
}


class InMemory(JobClient):
    """A store of one job that has just ended."""

    def __init__(self) -> None:
        pass

    def stop_waiting(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def models(self) -> list[ModelInfo]:
        return [MODEL]

    async def create_and_wait(self, *_: Any, **__: Any) -> tuple[Job, bytes | None]:
        return DONE, PNG

    async def get(self, *_: Any, **__: Any) -> Job:
        return DONE

    async def image(self, *_: Any, **__: Any) -> bytes | None:
        return PNG


class NoKeys:
    """A store of keys in which none was ever made."""

    async def look(self, known: Reading | None = None) -> Reading:
        return Reading({}, (), NOW, False, 1)

    async def close(self) -> None:
        pass


def ours() -> Any:
    """The API as it ships."""
    JobClient.open = classmethod(lambda cls, *_: InMemory())  # type: ignore[assignment,method-assign]
    return create_app(Settings(), cast(KeyStore, NoKeys()))


def bare_fastapi() -> Any:
    """Routes that do nothing."""
    app = FastAPI(openapi_url=None)

    @app.post("/generate/{class_id}")
    async def generate(class_id: str, body: GenerateIn) -> Response:
        return Response(PNG, media_type="image/png")

    @app.get("/jobs/{job_id}")
    async def job(job_id: str) -> Response:
        return Response(JOB, media_type="application/json")

    @app.get("/jobs/{job_id}/images/{index}")
    async def image(job_id: str, index: int) -> Response:
        return Response(PNG, media_type="image/png")

    return app


def bare_asgi() -> Any:
    """uvicorn's own cost."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        png = scope["method"] == "POST" or scope["path"].endswith("0")
        body, kind = (PNG, b"image/png") if png else (JOB, b"application/json")
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


ROWS: dict[str, Callable[[], Any]] = {"bare ASGI": bare_asgi, "bare FastAPI": bare_fastapi, "ours": ours}


@dataclass(frozen=True)
class Server:
    """A row's process and where it listens."""

    process: multiprocessing.process.BaseProcess
    port: int

    def cpu(self) -> float:
        """Seconds of CPU it has used, user and system."""
        pid = self.process.pid
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(row: str, listener: socket.socket) -> None:
    given = {**options(), "app": ROWS[row](), "factory": False, "log_level": "warning"}
    if row != "ours":
        given["http"] = "httptools"  # uvicorn's own
    uvicorn.Server(uvicorn.Config(**given)).run(sockets=[listener])


def start(row: str) -> Server:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(row, listener), daemon=True)
    process.start()
    port = listener.getsockname()[1]
    listener.close()
    return Server(process, port)


async def _ask(port: int, question: bytes, times: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(times):
        writer.write(question)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    writer.close()


async def _all_ask(port: int, question: bytes, clients: int, requests: int) -> None:
    await asyncio.gather(*(_ask(port, question, requests // clients) for _ in range(clients)))


def main(
    requests: Annotated[int, typer.Option(help="Requests a row and round", min=100)] = 4000,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    clients: Annotated[int, typer.Option(help="Connections", min=1)] = 8,
    only: Annotated[str, typer.Option(help="Questions whose name has this")] = "",
) -> None:
    """Print µs of CPU a request, median and range of the rounds, and the ratio to bare FastAPI."""
    servers = {row: start(row) for row in ROWS}
    questions = {name: question for name, question in QUESTIONS.items() if only in name}
    for server in servers.values():
        for question in questions.values():  # warms up
            asyncio.run(_all_ask(server.port, question, clients, 400))
    typer.echo(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {clients} clients"
    )
    typer.echo(f"{'':26}{'':14}{'µs CPU a request':>18}{'range':>14}{'× bare FastAPI':>16}")
    for name, question in questions.items():
        spent: dict[str, list[float]] = {row: [] for row in servers}
        for _ in range(rounds):
            for row, server in servers.items():
                before = server.cpu()
                asyncio.run(_all_ask(server.port, question, clients, requests))
                spent[row].append((server.cpu() - before) / (requests // clients * clients) * 1e6)
        ratios = [ours / bare for ours, bare in zip(spent["ours"], spent["bare FastAPI"], strict=True)]
        for row, times in spent.items():
            span = f"{min(times):.0f} to {max(times):.0f}"
            ratio = f"{statistics.median(ratios):.2f}" if row == "ours" else ""
            typer.echo(f"{name:26}{row:14}{statistics.median(times):18.0f}{span:>14}{ratio:>16}")
    for server in servers.values():
        server.process.terminate()
        server.process.join()


if __name__ == "__main__":
    typer.run(main)
