"""A receiver of webhooks: an HTTPS server that says what it was asked, and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import h11
from standardwebhooks import Webhook

SECRETS = ("whsec_" + 43 * "A" + "=", "whsec_" + 43 * "B" + "=")
NAMES = ("hooks.test", "other.test")
Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Told:
    """A request that came."""

    path: str
    headers: dict[str, str]  # lower case
    body: bytes
    name: str | None  # that TLS was asked for

    def verified(self, secret: str = SECRETS[0]) -> dict[str, Any]:
        """The body. Raises WebhookVerificationError."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


def answers(status: int, **headers: str) -> Behaviour:
    """Answer at once; retry_after="1" is a header Retry-After."""
    lines = [f"HTTP/1.1 {status} X", "Content-Length: 2"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(("\r\n".join(lines) + "\r\n\r\nok").encode())
        await writer.drain()

    return answer


class Receiver:
    """Answers as the next of `then` says, or with 204."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.then: list[Behaviour] = []
        self.connections = 0
        self.port = 0

    async def until(self, requests: int, seconds: float = 20) -> None:
        """Wait until so many requests have come."""
        with anyio.fail_after(seconds):
            while len(self.told) < requests:  # noqa: ASYNC110
                await anyio.sleep(0.01)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, ssl.SSLError, h11.ProtocolError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http, head, body = h11.Connection(h11.SERVER), None, b""
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return
        assert head is not None
        secured = writer.get_extra_info("ssl_object")
        headers = {name.decode(): value.decode() for name, value in head.headers}
        name = getattr(secured, "asked_for", None)
        self.told.append(Told(head.target.decode(), headers, body, name))
        await (self.then.pop(0) if self.then else answers(204))(writer)


@asynccontextmanager
async def receiving(
    certificate: Path | None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Receiver]:
    """A receiver that listens. certificate: folder of `certificate`; None: it speaks no TLS."""
    receiver, context = Receiver(), None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")

        def note(asked: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            asked.asked_for = name  # type: ignore[attr-defined]

        context.sni_callback = note
    server = await asyncio.start_server(receiver.serve, host, port, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


def certify(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """The folder, with a key and a certificate of the names that is its own authority."""
    described = ",".join(f"DNS:{name}" for name in names)
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={described}"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return folder
