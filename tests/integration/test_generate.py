"""What a client gets from a running worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.conftest import Service


async def test_a_job_is_made(service: Service) -> None:
    service.start_worker()
    await service.ready()
    [job] = await service.finished([await service.generate(count=5)])
    assert job.state == "succeeded", job.error
    assert job.done == 5
    images = await service.store.images(job)
    assert all(image is not None and image.startswith(b"\x89PNG") for image in images)
