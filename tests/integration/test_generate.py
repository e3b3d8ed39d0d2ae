"""Jobs and attention maps from a running worker, as a client sees them."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest
from PIL import Image
from redis import Redis

from imaging.png import read_provenance
from imaging.spec import ImageSpec, Provenance
from jobs.client import JobClient
from jobs.errors import AttentionFailed, ExpiredJob, IdempotencyConflict, QueueFull, UnknownJob
from jobs.settings import QueueSettings

if TYPE_CHECKING:
    from jobs.job import Job
    from tests.integration.conftest import Service


async def images(service: Service, job: Job) -> list[bytes]:
    [ended] = await service.finished([job])
    assert ended.state == "succeeded", ended.error
    found = await service.store.images(ended)
    return [png for png in found if png is not None]


async def test_a_job_becomes_images_that_carry_their_spec(running: Service) -> None:
    job = await running.generate(count=3, seed=11, class_id=2, class_name="ship", truncation=0.5)
    assert job.state == "queued"
    made = await images(running, job)
    assert len(set(made)) == 3
    for index, png in enumerate(made):
        picture = Image.open(io.BytesIO(png))
        assert picture.size == (32, 32)
        assert picture.mode == "RGB"
        assert np.ptp(np.asarray(picture)) > 20
        assert read_provenance(png) == Provenance(
            "tiny", running.model_hash, "float32", "ship", ImageSpec(2, 11, index, 0.5)
        )
    [job] = await running.finished([job])
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.created_at <= job.started_at <= job.finished_at
    assert job.done == 3
    assert await running.store.position(job) == 0


async def test_events_tell_the_whole_story_once_and_replay_it(running: Service) -> None:
    job = await running.generate(count=20)
    told = [event async for event in running.store.follow(job) if event is not None]
    states = [event["state"] for _, event in told]
    assert states[:2] == ["queued", "running"]
    assert states[-1] == "succeeded"
    assert states.count("succeeded") == 1
    done = [event["done"] for _, event in told]
    assert done == sorted(done)  # type: ignore[type-var]
    assert done[-1] == 20
    again = [event async for event in running.store.follow(job, told[1][0]) if event is not None]
    assert again == told[2:]
    assert [event async for event in running.store.follow(job, told[-1][0]) if event is not None] == []


async def test_the_same_spec_gives_the_same_bytes_alone_in_company_and_after_a_restart(
    service: Service,
) -> None:
    worker = service.start_worker()
    await service.ready()
    alone = [(await images(service, await service.generate(seed=seed)))[0] for seed in range(6)]
    # everything at once: these share forwards with 60 others, at positions that chance decides
    others = [await service.generate(seed=seed, class_id=seed % 3) for seed in range(100, 131)]
    same = [await service.generate(seed=seed) for seed in range(6)]
    others += [await service.generate(seed=seed, class_id=seed % 3) for seed in range(131, 160)]
    assert [(await images(service, job))[0] for job in same] == alone
    long = await service.generate(seed=3, count=64)
    assert (await images(service, long))[0] == alone[3]
    await service.finished(others)
    worker.stop()
    service.start_worker()
    await service.ready()
    assert [(await images(service, await service.generate(seed=seed)))[0] for seed in range(6)] == alone


async def test_a_long_job_does_not_hold_up_short_ones(running: Service) -> None:
    began = monotonic()
    counts = [64] * 4 + [1] * 6  # 16 forwards of 50 ms; asked for at once, or a busy machine is too late
    asked = await asyncio.gather(*(running.generate(count=n, seed=seed) for seed, n in enumerate(counts)))
    long, short = asked[:4], asked[4:]
    await running.finished(short)
    took = monotonic() - began
    assert not any([await running.has_ended(job) for job in long]), f"the short ones took {took:.2f} s"
    await running.finished(long)


async def test_urgent_jobs_run_first(running: Service) -> None:
    lazy = [await running.generate(count=64, priority=2) for _ in range(3)]
    urgent = await running.generate(count=32, priority=9)
    await running.finished([urgent])
    assert not any([await running.has_ended(job) for job in lazy])
    await running.finished(lazy)


async def test_priorities_order_what_waits_in_redis(service: Service) -> None:
    """No worker takes the jobs yet, so the order is that of the lists in Redis."""
    wanted = [0, 9, 5, 3, 9, 0, 7]
    jobs = [await service.generate(priority=priority, seed=index) for index, priority in enumerate(wanted)]
    positions = [await service.store.position(job) for job in jobs]
    assert positions == [5, 0, 3, 4, 1, 6, 2]
    with Redis.from_url(service.settings.redis_url) as redis:
        assert all(key.startswith(b"test:") for key in redis.scan_iter())
    service.start_worker(SAGAN_CONCURRENCY="1")
    ended = await service.finished(jobs)
    order = sorted(ended, key=lambda job: job.finished_at)  # type: ignore[arg-type, return-value]
    assert [job.spec.priority for job in order] == [9, 9, 7, 5, 3, 0, 0]
    assert [job.spec.seed for job in order] == [1, 4, 6, 2, 3, 0, 5]


async def test_a_job_cancelled_before_it_runs_never_runs(service: Service) -> None:
    job = await service.generate()
    cancelled = await service.store.cancel(job.id, service.owner)
    assert cancelled.state == "cancelled"
    assert await service.store.depth() == 0
    service.start_worker()
    other = await service.generate(seed=8)
    await service.finished([other])
    after = await service.store.get(job.id, service.owner)
    assert (after.state, after.done, after.started_at) == ("cancelled", 0, None)
    assert await service.store.images(after) == [None]
    assert await service.ends(job) == 1


async def test_a_long_job_that_is_cancelled_stops_soon(running: Service) -> None:
    job = await running.generate(count=64)  # four forwards if alone; company makes it longer
    company = [await running.generate(count=64, seed=seed) for seed in range(3)]

    async def has_begun() -> bool:
        return await running.made(job) > 0

    await running.until(has_begun)
    cancelled = await running.store.cancel(job.id, running.owner)
    assert cancelled.state == "cancelled"
    assert 0 < cancelled.done < 64
    await running.finished(company)
    assert (await running.store.get(job.id, running.owner)).done == cancelled.done
    assert await running.ends(job) == 1
    assert (await running.store.cancel(job.id, running.owner)).finished_at == cancelled.finished_at
    [worker] = await running.told()
    assert job.id not in worker.in_hand


async def test_images_expire_then_the_record_does(service: Service) -> None:
    settings = service.settings.model_copy(update={"result_ttl": 2, "record_ttl": 2})
    service.settings = settings
    store, service.store = service.store, JobClient.open(settings)
    await store.close()
    service.start_worker()
    await service.ready()
    [job] = await service.finished([await service.generate()])
    assert (await service.store.images(job))[0] is not None
    await anyio.sleep(2.1)
    with pytest.raises(ExpiredJob):
        await service.store.get(job.id, service.owner)
    with pytest.raises(ExpiredJob):
        await service.store.images(job)
    with pytest.raises(ExpiredJob):
        await service.store.image(job, 0)
    assert await service.store.recent(service.owner) == ([], None)
    await anyio.sleep(2.1)
    with pytest.raises(UnknownJob):
        await service.store.get(job.id, service.owner)


async def test_a_job_is_its_owner_s_alone(running: Service) -> None:
    job = await running.generate()
    with pytest.raises(UnknownJob):
        await running.store.get(job.id, "somebody else")
    with pytest.raises(UnknownJob):
        await running.store.cancel(job.id, "somebody else")
    with pytest.raises(UnknownJob):
        await running.store.get("no-such-job", running.owner)


async def test_an_idempotency_key_makes_one_job(running: Service) -> None:
    store, spec = running.store, await running.spec()
    first, new = await store.create(spec, running.owner, "key-1", request="body")
    assert new
    again, new = await store.create(replace(spec, seed=99), running.owner, "key-1", request="body")
    assert not new
    assert again.id == first.id
    with pytest.raises(IdempotencyConflict):
        await store.create(spec, running.owner, "key-1", request="another body")
    _, new = await store.create(spec, "somebody else", "key-1", request="another body")
    assert new


async def test_a_full_queue_takes_no_more(service: Service) -> None:
    store = JobClient.open(service.settings.model_copy(update={"max_queued": 3, "caller_share": 1.0}))
    spec = await service.spec()
    for _ in range(3):
        await store.create(spec, service.owner)
    with pytest.raises(QueueFull):
        await store.create(spec, service.owner)
    await store.close()


async def test_recent_jobs_are_paged_newest_first(service: Service) -> None:
    jobs = [await service.generate(seed=seed) for seed in range(5)]
    page, cursor = await service.store.recent(service.owner, limit=2)
    assert [job.id for job in page] == [jobs[4].id, jobs[3].id]
    page, cursor = await service.store.recent(service.owner, limit=2, cursor=cursor)
    assert [job.id for job in page] == [jobs[2].id, jobs[1].id]
    page, cursor = await service.store.recent(service.owner, limit=2, cursor=cursor)
    assert [job.id for job in page] == [jobs[0].id]
    assert cursor is None


async def maps_made(service: Service) -> int:
    [worker] = await service.store.workers()
    return worker.stats["tiny"].attention_maps


async def test_an_attention_map_is_made_once_and_kept(running: Service) -> None:
    store = running.store
    [job] = await running.finished([await running.generate(count=2)])
    assert await store.attention(job, 1, "16x16") is None
    await running.told()
    before = await maps_made(running)
    for _ in range(3):
        await store.ask_for_attention(job, 1, "16x16", "anybody", 10)
    assert await store.attention_made(job, 1, "16x16", 10)
    found = await store.attention(job, 1, "16x16")
    assert found is not None
    assert (found.layer, found.query_grid, found.key_grid) == ("16x16", (16, 16), (8, 8))
    assert found.map.shape == (256, 64)
    np.testing.assert_allclose(found.map.astype(np.float64).sum(axis=1), 1, atol=5e-3)
    assert found.gamma == pytest.approx(0.7)
    assert found.share > 0
    again = await store.attention(job, 1, "16x16")
    assert again is not None
    np.testing.assert_array_equal(again.map, found.map)
    await running.told()
    assert await maps_made(running) == before + 1


async def test_a_layer_that_is_not_there_is_told(running: Service) -> None:
    [job] = await running.finished([await running.generate()])
    await running.store.ask_for_attention(job, 0, "64x64", "anybody", 10)
    assert await running.store.attention_made(job, 0, "64x64", 10)
    with pytest.raises(AttentionFailed, match="it has: 16x16"):
        await running.store.attention(job, 0, "64x64")


async def test_attention_does_not_wait_for_long_jobs(running: Service) -> None:
    [job] = await running.finished([await running.generate()])
    crowd = [await running.generate(count=64, seed=seed) for seed in range(100)]  # 20 s of work
    await anyio.sleep(0.5)
    began = monotonic()
    await running.store.ask_for_attention(job, 0, "16x16", "anybody", 20)
    assert await running.store.attention_made(job, 0, "16x16", 20)
    took = monotonic() - began
    urgent = await running.generate(priority=9)
    began = monotonic()
    await running.finished([urgent])
    assert took < 2
    assert monotonic() - began < 12
    assert await running.store.depth() > 20, "there was no crowd to wait behind"
    for one in crowd:
        await running.store.cancel(one.id, running.owner)


async def test_a_worker_tells_what_it_has(running: Service) -> None:
    await running.finished([await running.generate(count=8)])
    [worker] = await running.told()
    [model] = await running.store.models()
    assert worker.models == (model,)
    assert (model.name, model.hash, model.resolution) == ("tiny", running.model_hash, 32)
    assert model.classes == ("cat", "dog", "ship")
    assert [(site.name, site.resolution) for site in model.attention] == [("16x16", 16)]


async def test_a_bad_checkpoint_is_refused_in_one_line_and_others_are_served(
    service: Service, settings: QueueSettings
) -> None:
    folder = service.checkpoints.parent / "mixed"
    folder.mkdir(exist_ok=True)
    (folder / "bad.safetensors").write_bytes(b"not a checkpoint")
    (folder / "tiny.safetensors").write_bytes((service.checkpoints / "tiny.safetensors").read_bytes())
    service.checkpoints = folder
    worker = service.start_worker()
    assert (await service.ready()).name == "tiny"
    [line] = [line for line in worker.output.splitlines() if "refused" in line]
    assert "bad.safetensors" in line


async def test_a_worker_without_a_model_says_what_to_do(service: Service) -> None:
    service.checkpoints = service.checkpoints.parent / "empty"
    worker = service.start_worker()
    assert await anyio.to_thread.run_sync(worker.wait, 30.0) == 1
    assert "sagan train" in worker.output
    assert "Traceback" not in worker.output
