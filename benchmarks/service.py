"""A service that a benchmark has started."""

from __future__ import annotations

import asyncio
import subprocess

from loadtest.client import Client


async def ready(service: subprocess.Popen[bytes], client: Client) -> None:
    """Wait until the service has a worker with its model."""
    asked = client.request("GET", "/health/ready", {})
    while True:
        try:
            if (await client.ask(asked, 5))[0] == 200:
                return
        except OSError:
            pass
        assert service.poll() is None, "the service has ended"
        await asyncio.sleep(0.1)
