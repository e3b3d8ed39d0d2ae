"""The service behind nginx and Caddy as docker/ configures them: TLS, a prefix, events as they come."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serve.private_redis import free_port
from served import ROOT, Api, until_it_listens

if TYPE_CHECKING:
    from tests.integration.entrance.conftest import Start

Run = Callable[[Path, Api], contextlib.AbstractContextManager[int]]  # its port


def executable(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    return found


@contextlib.contextmanager
def running(command: list[str], port: int, folder: Path, **env: str) -> Iterator[int]:
    log = folder / "proxy.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env})
    try:
        until_it_listens(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def nginx(folder: Path, api: Api) -> Iterator[int]:
    """docker/nginx.conf with other ports, and a certificate made here."""
    command, openssl = executable("nginx"), executable("openssl")
    key, certificate, port = folder / "key.pem", folder / "certificate.pem", free_port()
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    text = (ROOT / "docker" / "nginx.conf").read_text()
    changes = {
        "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        "listen 80;": f"listen 127.0.0.1:{free_port()};",
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{api.port};",
        "/etc/nginx/tls/fullchain.pem": str(certificate),
        "/etc/nginx/tls/privkey.pem": str(key),
        "http {": "http {\n    access_log off;\n"
        + "".join(
            f"    {kind}_temp_path {folder / kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config = folder / "nginx.conf"
    config.write_text(text)
    rest = f"daemon off; pid {folder / 'pid'}; error_log stderr;"
    if os.geteuid() == 0:
        rest += "user root;"  # the folder of a test belongs to who runs it
    with running([command, "-p", str(folder), "-c", str(config), "-g", rest], port, folder):
        yield port


@contextlib.contextmanager
def caddy(folder: Path, api: Api) -> Iterator[int]:
    """docker/Caddyfile with a certificate of Caddy's own authority, which no system has to trust."""
    command, port = executable("caddy"), free_port()
    text = (ROOT / "docker" / "Caddyfile").read_text()
    config = folder / "Caddyfile"
    quiet = "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n"
    config.write_text(re.sub(r"^\{\n", quiet, text, count=1, flags=re.MULTILINE))
    env = {
        "SAGAN_SITE": f"https://localhost:{port}",
        "SAGAN_UPSTREAM": f"127.0.0.1:{api.port}",
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "HOME": str(folder),
    }
    with running([command, "run", "--config", str(config), "--adapter", "caddyfile"], port, folder, **env):
        yield port


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest) -> Run:
    run: Run = request.param
    return run


class Browser:
    """Requests over TLS that a certificate of ours is good enough for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    @contextlib.contextmanager
    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        client = http.client.HTTPSConnection("localhost", self.port, timeout=20, context=self._context)
        given: Mapping[str, str] = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method, path, body, dict(given))
        try:
            yield client.getresponse()
        finally:
            client.close()


def test_the_whole_service_is_at_its_prefix(proxy: Run, start: Start, tmp_path: Path) -> None:
    api = start(trusted_proxies="127.0.0.1")
    with proxy(tmp_path, api) as port:
        browser = Browser(port)
        for path in ("/sagan/", "/sagan/docs", "/sagan/static/app.js", "/sagan/health/ready"):
            with browser.ask(path) as reply:
                assert reply.status == 200
        with browser.ask("/sagan") as reply:
            assert reply.status in (301, 308)
            assert reply.headers["location"] == "/sagan/"
        with browser.ask("/sagan/openapi.json") as reply:
            assert json.loads(reply.read())["servers"][0]["url"] == "/sagan"
        with browser.ask("/sagan/static/app.js", "HEAD") as reply:
            assert (reply.status, reply.read()) == (200, b"")
        own = f"https://localhost:{port}"
        with browser.ask("/sagan/generate/cat", "POST", Origin=own) as reply:
            assert reply.status == 202
            job = json.loads(reply.read())
            assert reply.headers["location"] == job["links"]["self"] == f"/sagan/jobs/{job['id']}"
        with browser.ask("/sagan/generate/cat", "POST", Origin="https://evil.example") as reply:
            assert reply.status == 403
        with browser.ask(job["links"]["self"]) as reply:
            assert json.loads(reply.read())["state"] == "queued"
        with browser.ask(job["links"]["events"]) as reply:
            assert reply.status == 200
            # the job never ends: what is read here has come while the stream is open
            assert b"retry:" in reply.readline()
            assert any(b'"queued"' in reply.readline() for _ in range(8))
        with browser.ask(job["links"]["cancel"], "DELETE") as reply:
            assert json.loads(reply.read())["state"] == "cancelled"
        with browser.ask("/sagan/generate/cat", "POST", "x" * 200_000) as reply:
            assert reply.status == 413
            assert reply.headers["content-type"] == "application/problem+json"


def test_a_client_cannot_write_its_own_address(proxy: Run, start: Start, tmp_path: Path) -> None:
    api = start(trusted_proxies="127.0.0.1", api_keys="right-key", wrong_keys=3)
    with proxy(tmp_path, api) as port:
        browser = Browser(port)
        told = []
        for number in range(12):  # the minute may turn once
            spoofed = {"X_Forwarded_For": f"198.51.100.{number}", "X_API_Key": "wrong"}
            with browser.ask("/sagan/jobs", **spoofed) as reply:
                told.append(reply.status)
        assert 429 in told
        with browser.ask("/sagan/jobs", X_API_Key="right-key") as reply:
            assert reply.status == 200


def test_a_prefix_works_without_trust(start: Start) -> None:
    """A proxy that takes the prefix off, or leaves it, and says nothing."""
    api = start("--root-path", "/sagan")
    for path in ("/generate/cat", "/sagan/generate/cat"):
        client = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
        client.request("POST", path)
        reply = client.getresponse()
        job = json.loads(reply.read())
        assert reply.headers["location"] == job["links"]["self"] == f"/sagan/jobs/{job['id']}"
        client.close()


def test_nobody_is_believed_by_default(start: Start) -> None:
    api = start(api_keys="right-key", wrong_keys=3)
    told = [
        api.get("/jobs", **{"X-API-Key": "wrong", "X-Forwarded-For": f"198.51.100.{number}"})[0]
        for number in range(12)
    ]
    assert 429 in told
