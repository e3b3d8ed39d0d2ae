"""Redis behind TLS: the API's store, a worker's heartbeats and its consumer speak it, and all verify."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from jobs.errors import BrokerUnavailable
from jobs.settings import QueueSettings
from serve.private_redis import PrivateRedis
from tests.integration.conftest import Service

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on PATH")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with the key and the certificate of 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
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
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
async def tls(redis: PrivateRedis, certificate: Path) -> AsyncIterator[str]:
    """`rediss://` of a Redis whose TLS is ended before it."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    open_writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain_reader, plain_writer = await asyncio.open_unix_connection(redis.socket)
        open_writers.extend((writer, plain_writer))
        await asyncio.gather(copy(reader, plain_writer), copy(plain_reader, writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    yield redis.url.replace("redis://", "rediss://").replace(redis.url.rpartition(":")[2], f"{port}/0")
    server.close()
    for writer in open_writers:
        writer.close()
    await anyio.sleep(0.1)


def over(url: str) -> QueueSettings:
    return QueueSettings(redis_url=url, namespace="test", heartbeat_period=0.4, worker_ttl=2.0)


@pytest.mark.parametrize("how", ["by the system's authorities", "by ssl_ca_certs", "by nothing"])
async def test_api_and_worker_serve_over_tls(
    tls: str,
    certificate: Path,
    redis: PrivateRedis,
    checkpoints: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authorities = certificate / "certificate.pem"
    options = {"by ssl_ca_certs": f"?ssl_ca_certs={authorities}", "by nothing": "?ssl_cert_reqs=none"}
    if how == "by the system's authorities":
        monkeypatch.setenv("SSL_CERT_FILE", str(authorities))  # OpenSSL's name for the file of the system's
    service = Service(redis, over(tls + options.get(how, "")), checkpoints)
    worker = service.start_worker()
    await service.ready()
    [job] = await service.finished([await service.generate()], seconds=30)
    assert job.state == "succeeded"
    assert await asyncio.to_thread(worker.stop) < 10  # this thread ends the TLS
    await service.close()


async def test_an_unknown_certificate_is_refused_by_all_and_told(
    tls: str, redis: PrivateRedis, checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(redis, over(tls), checkpoints)
    with pytest.raises(BrokerUnavailable):
        await service.generate()
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    worker = service.start_worker()

    async def both_say_so() -> bool:
        told = [line for line in worker.output.splitlines() if "CERTIFICATE_VERIFY_FAILED" in line]
        return any("jobs.connections" in line for line in told) and any("celery" in line for line in told)

    await service.until(both_say_so, seconds=40)
    assert worker.returncode is None
    password = redis.url.split("@")[0].rpartition(":")[2]
    assert password not in worker.output + caplog.text
    worker.kill()
    await service.close()
