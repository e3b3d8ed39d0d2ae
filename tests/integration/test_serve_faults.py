"""Whatever goes wrong beside the service, `sagan serve` says it, tries again, and can be stopped."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

import anyio
import httpx
import pytest

from embedded import Sagan, are_gone
from serve.private_redis import server_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# stands before the real server: ends at once while the file `broken` is there, and waits while `slow` is
SHIM = """\
#!/bin/sh
if [ -e {folder}/broken ]; then echo "1:M 01 Jan 2026 # no luck today" >> redis.log; exit 1; fi
while [ -e {folder}/slow ]; do sleep 0.1; done
exec {real} "$@"
"""


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """A folder for PATH with a redis-server that may be told to fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "redis-server"
    script.write_text(SHIM.format(folder=folder, real=server_command()))
    script.chmod(0o755)
    return folder


@contextlib.contextmanager
def serving(*args: object, **named: object) -> Iterator[Sagan]:
    sagan = Sagan(*args, **named)  # type: ignore[arg-type]
    yield sagan
    if sagan.process.poll() is None:
        sagan.process.kill()
        sagan.process.wait()


@contextlib.asynccontextmanager
async def asking(sagan: Sagan) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{sagan.port}", timeout=20) as client:
        yield client


async def is_alive(client: httpx.AsyncClient, seconds: float) -> None:
    """The event loop is free all the time: each answer comes within a second."""
    until = monotonic() + seconds
    while monotonic() < until:
        began = monotonic()
        assert (await client.get("/health/live")).status_code == 200
        assert monotonic() - began < 1.5
        await anyio.sleep(0.1)


async def ready_again(client: httpx.AsyncClient, seconds: float = 60) -> None:
    with anyio.fail_after(seconds):
        while (await client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
            await anyio.sleep(0.1)


async def test_a_redis_that_does_not_start_again_is_tried_with_growing_pauses(
    tmp_path: Path, checkpoints: Path, shim: Path
) -> None:
    path = f"{shim}:{os.environ['PATH']}"
    with serving(tmp_path, checkpoints, PATH=path) as sagan:
        await sagan.says("ready with tiny")
        (shim / "broken").touch()
        os.kill(sagan.parts()["redis"], signal.SIGKILL)
        async with asking(sagan) as client:
            await sagan.says("Redis died (SIGKILL); it starts again on its data")
            await is_alive(client, 5)
            await sagan.says("it starts again on its data in 2 s")
            assert "no luck today" in sagan.output
            assert (await client.get("/health/ready")).status_code == 503
            (shim / "broken").unlink()
            await ready_again(client)
            status, _ = await sagan.generate()
            assert status == 200
        assert await sagan.stop(signal.SIGTERM) == 0


async def test_while_redis_loads_the_api_answers_and_ctrl_c_is_heard(
    tmp_path: Path, checkpoints: Path, shim: Path
) -> None:
    path = f"{shim}:{os.environ['PATH']}"
    with serving(tmp_path, checkpoints, PATH=path) as sagan:
        await sagan.says("ready with tiny")
        (shim / "slow").touch()
        os.kill(sagan.parts()["redis"], signal.SIGKILL)
        async with asking(sagan) as client:
            await sagan.says("Redis is still loading its data")
            await is_alive(client, 3)
        pids = list(sagan.parts().values())
        began = monotonic()
        assert await sagan.stop(signal.SIGINT) == 0
        assert monotonic() - began < 20  # the worker and the shim end in order
        await are_gone(pids)
    with serving(tmp_path, checkpoints, PATH=path) as sagan:  # at the first start as well
        await sagan.says("Redis is still loading its data")
        assert await sagan.stop(signal.SIGINT) == 0


async def test_it_lives_without_file_descriptors_until_there_are_some(
    tmp_path: Path, checkpoints: Path
) -> None:
    with serving(tmp_path, checkpoints) as sagan:
        await sagan.says("ready with tiny")
        pid = sagan.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        taken = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken, before[1]))
        for part in sagan.parts().values():
            os.kill(part, signal.SIGKILL)
        await sagan.says("Too many open files")
        await anyio.sleep(2)
        assert sagan.process.poll() is None, sagan.output
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        async with asking(sagan) as client:
            await ready_again(client)
        assert (await sagan.generate())[0] == 200
        assert await sagan.stop(signal.SIGTERM) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_full_disk_is_told_and_waited_for(
    tmp_path: Path, checkpoints: Path, small_disk: Path
) -> None:
    with serving(tmp_path, checkpoints, state=small_disk / "state") as sagan:
        await sagan.says("ready with tiny")
        status, job = await sagan.generate(seed=1)
        assert status == 200
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        async with asking(sagan) as client:
            await sagan.says("is full)")
            await is_alive(client, 3)
            assert sagan.process.poll() is None, sagan.output
            filler.unlink()
            await ready_again(client)
            assert (await client.get(f"/jobs/{job['id']}")).json()["state"] == "succeeded"
        assert (await sagan.generate(seed=2))[0] == 200
        assert await sagan.stop(signal.SIGTERM) == 0


async def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, checkpoints: Path) -> None:
    with serving(tmp_path, checkpoints, log=Path("/dev/full")) as sagan, anyio.fail_after(90):
        async with asking(sagan) as client:
            status = 0
            while status != 200:
                assert sagan.process.poll() is None
                with contextlib.suppress(httpx.TransportError):
                    status = (await client.get("/health/ready")).status_code
                await anyio.sleep(0.1)
            for part in ("worker", "redis"):
                os.kill(sagan.parts()[part], signal.SIGKILL)
            await anyio.sleep(1)
            await ready_again(client)
        assert (await sagan.generate())[0] == 200
        assert await sagan.stop(signal.SIGTERM) == 0


def listens(pid: int) -> bool:
    """Whether a process listens on a TCP port."""
    sockets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return bool(sockets & {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"})


async def test_the_private_redis_listens_on_no_port_and_its_folder_is_for_its_user_alone(
    tmp_path: Path, checkpoints: Path
) -> None:
    with serving(tmp_path, checkpoints) as sagan:
        await sagan.says("ready with tiny")
        assert (await sagan.generate())[0] == 200
        assert not listens(sagan.parts()["redis"])
        for path in (sagan.state, *sagan.state.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
        assert await sagan.stop(signal.SIGTERM) == 0
