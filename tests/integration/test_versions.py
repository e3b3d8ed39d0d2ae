"""Models come, go and are replaced while they serve, and workers of several versions share one queue."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
import torch
from redis import Redis
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imaging.png import read_provenance
from jobs.client import JobClient
from jobs.errors import ShareFull
from jobs.job import JobSpec, WorkerInfo
from jobs.keys import Keys
from jobs.records import WORKER
from jobs.scripts import NewJob, Scripts
from jobs.wire import OLD_GENERATE_QUEUE, broker_priority, generate_message, message_list
from networks import random_checkpoint

if TYPE_CHECKING:
    from forked import WorkerProcess
    from jobs.job import Job, ModelInfo
    from jobs.settings import QueueSettings
    from serve.private_redis import PrivateRedis

from tests.integration.conftest import CLASSES, ODD, OWNER, Service


@pytest.fixture
async def service(
    redis: PrivateRedis, settings: QueueSettings, checkpoints: Path, tmp_path: Path
) -> AsyncIterator[Service]:
    """Redis and a store, with a folder of checkpoints that a test may change."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, folder)
    service = Service(redis, settings, folder)
    yield service
    await service.close()


def replaced(service: Service, seed: int) -> str:
    """Replace the model on disk, as a user does; its hash."""
    beside = service.checkpoints / ".next"
    model_hash = random_checkpoint(beside, CLASSES, seed=seed)
    beside.rename(service.checkpoints / "tiny.safetensors")
    return model_hash


async def served(service: Service, name: str = "tiny") -> ModelInfo | None:
    """The version that a new job of a model gets."""
    return next((model for model in await service.store.models() if model.name == name), None)


async def serves(service: Service, model_hash: str) -> None:
    async def so_it_does() -> bool:
        model = await served(service)
        return model is not None and model.hash == model_hash

    await service.until(so_it_does)


async def ask(service: Service, seed: int, name: str = "tiny") -> Job:
    """A job as the API makes it: for the version that is served."""
    model = await served(service, name)
    assert model is not None
    spec = await service.spec(model=name, model_hash=model.hash, seed=seed)
    job, _ = await service.store.create(spec, OWNER)
    return job


async def all_are_made_as_recorded(service: Service, jobs: list[Job]) -> set[str]:
    """Every job has succeeded, once, with images of the hash of its record; the hashes."""
    for job in await service.finished(jobs):
        assert job.state == "succeeded", job.error
        assert await service.ends(job) == 1
        for png in await service.store.images(job):
            assert png is not None
            assert read_provenance(png).model_hash == job.spec.model_hash
    return {job.spec.model_hash for job in jobs}


async def test_a_worker_gets_only_jobs_of_the_models_it_has(service: Service, tmp_path: Path) -> None:
    other = tmp_path / "others"
    other.mkdir()
    random_checkpoint(other / "second.safetensors", CLASSES, seed=2)
    random_checkpoint(other / "tiny.safetensors", CLASSES, seed=3)  # the same name, another network
    service.start_worker()
    service.start_worker(SAGAN_CHECKPOINTS=str(other))
    await service.ready(2)
    versions = {(model.name, model.hash) for info in await service.store.workers() for model in info.models}
    assert len(versions) == 3
    jobs = []
    for seed in range(20):
        for name, model_hash in versions:
            spec = await service.spec(model=name, model_hash=model_hash, seed=seed)
            jobs.append((await service.store.create(spec, OWNER))[0])
    assert len(await all_are_made_as_recorded(service, jobs)) == 3


async def test_a_rolling_update_under_load_fails_nothing(service: Service) -> None:
    before = service.model_hash
    workers = [service.start_worker(ODD, TEST_SLOW="0.02") for _ in range(3)]
    await service.ready(3)
    jobs: list[Job] = []
    done = anyio.Event()

    async def load() -> None:
        while not done.is_set():
            jobs.append(await ask(service, len(jobs)))
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as group:
        group.start_soon(load)
        await anyio.sleep(0.5)
        after = random_checkpoint(service.checkpoints.parent / "new" / "tiny.safetensors", CLASSES, seed=4)
        for worker in workers:
            service.start_worker(
                ODD, TEST_SLOW="0.02", SAGAN_CHECKPOINTS=str(service.checkpoints.parent / "new")
            )
            await serves(service, after)
            await anyio.to_thread.run_sync(worker.stop)
        done.set()
    assert await all_are_made_as_recorded(service, jobs) == {before, after}


async def test_the_last_worker_with_a_version_makes_what_waits_for_it_before_it_stops(
    service: Service,
) -> None:
    old = service.start_worker(ODD, TEST_SLOW="0.05")
    await service.ready()
    new = random_checkpoint(service.checkpoints.parent / "new" / "tiny.safetensors", CLASSES, seed=4)
    service.start_worker(SAGAN_CHECKPOINTS=str(service.checkpoints.parent / "new"))
    await serves(service, new)
    jobs = [await service.generate(seed=seed, count=4) for seed in range(100)]
    assert await service.store.depth() > 0, "all was made before the stop"
    await anyio.to_thread.run_sync(old.stop)
    for job in jobs:
        assert (await service.store.get(job.id, OWNER)).state == "succeeded"


async def test_a_replaced_file_is_taken_up_and_the_old_version_ends_its_jobs_first(service: Service) -> None:
    before, first = service.model_hash, (service.checkpoints / "tiny.safetensors").read_bytes()
    service.start_worker(ODD, TEST_SLOW="0.05")
    await service.ready()
    jobs = [await ask(service, seed) for seed in range(100)]
    after = replaced(service, seed=5)
    await serves(service, after)
    jobs += [await ask(service, 1000 + seed) for seed in range(20)]
    assert await all_are_made_as_recorded(service, jobs) == {before, after}

    async def only_the_new_one_is_loaded() -> bool:
        [worker] = await service.store.workers()
        return [model.hash for model in worker.models] == [after]

    await service.until(only_the_new_one_is_loaded)
    await all_are_made_as_recorded(service, [await ask(service, 2000)])
    (service.checkpoints / ".next").write_bytes(first)
    (service.checkpoints / ".next").rename(service.checkpoints / "tiny.safetensors")
    await serves(service, before)
    await all_are_made_as_recorded(service, [await ask(service, 2001)])


async def test_files_are_added_and_removed_and_a_bad_one_is_told_once(service: Service) -> None:
    worker = service.start_worker()
    await service.ready()
    (service.checkpoints / "bad.safetensors").write_bytes(b"no checkpoint")
    random_checkpoint(service.checkpoints / "second.safetensors", CLASSES, seed=6)

    async def second_is_served() -> bool:
        return await served(service, "second") is not None

    await service.until(second_is_served)
    await all_are_made_as_recorded(service, [await ask(service, 1, "second"), await ask(service, 1)])
    (service.checkpoints / "second.safetensors").unlink()

    async def it_is_not() -> bool:
        [info] = await service.store.workers()
        return [model.name for model in info.models] == ["tiny"]

    await service.until(it_is_not)
    [info] = await service.told()
    assert list(info.refused) == ["bad.safetensors"]
    assert worker.output.count("refused: ") == 1


async def test_a_job_whose_model_nobody_has_fails_in_the_end_and_not_before(service: Service) -> None:
    service.start_worker(SAGAN_MODEL_PATIENCE="3")
    await service.ready()
    lost = [await service.generate(model_hash="0" * 64), await service.generate(precision="bfloat16")]
    await service.finished([await service.generate(seed=8)])
    await anyio.sleep(1)
    assert not any([await service.has_ended(job) for job in lost])
    for job in await service.finished(lost):
        assert job.state == "failed"
        assert "No worker has had the version" in str(job.error)


async def test_a_job_waits_for_the_worker_that_has_its_model(service: Service, tmp_path: Path) -> None:
    model_hash = random_checkpoint(tmp_path / "later" / "tiny.safetensors", CLASSES, seed=7)
    service.start_worker()
    await service.ready()
    job = await service.generate(model_hash=model_hash)
    await anyio.sleep(1)
    service.start_worker(SAGAN_CHECKPOINTS=str(tmp_path / "later"))
    assert await all_are_made_as_recorded(service, [job]) == {model_hash}


# The format of jobs, messages and heartbeats before this one


def as_an_old_worker_beats(info: WorkerInfo) -> bytes:
    """The heartbeat of the worker old:1:a, of format 1."""
    beat = json.loads(WORKER.dump_json(info)) | {"id": "old:1:a"}
    for name in ("consuming", "stuck", "refused", "format"):
        del beat[name]
    for model in beat["models"]:
        del model["loaded_at"], model["draining"]
    return json.dumps(beat).encode()


async def test_jobs_for_a_worker_of_the_format_before_go_to_its_queue(service: Service) -> None:
    worker = service.start_worker()
    info = await service.ready()
    [beat] = await service.told()
    worker.stop()
    spec = await service.spec(model_hash=info.hash)
    keys = Keys("test")
    with Redis.from_url(service.settings.redis_url) as redis:
        redis.set(keys.worker("old:1:a"), as_an_old_worker_beats(beat), px=60_000)
        redis.zadd(keys.workers, {"old:1:a": 2e9})

        async def it_is_seen() -> bool:
            return [worker.id for worker in await service.store.workers()] == ["old:1:a"]

        await service.until(it_is_seen)
        job, _ = await service.store.create(spec, OWNER)
        message = redis.rpop(message_list("test", OLD_GENERATE_QUEUE, broker_priority(5)))
        assert json.loads(message)["headers"]["id"] == job.id
        redis.delete(keys.worker("old:1:a"))


async def test_a_job_and_a_message_of_the_format_before_are_made(service: Service, tmp_path: Path) -> None:
    model_hash = random_checkpoint(tmp_path / "later" / "second.safetensors", CLASSES, seed=7)
    jobs = []
    with Redis.from_url(service.settings.redis_url) as redis:
        for seed, wanted in enumerate([service.model_hash, model_hash] * 10):
            job = await service.generate(seed=seed, model_hash=wanted)
            service.lose_message(job)
            redis.hdel(Keys("test").job(job.id), "caller", "format")  # as the release before wrote it
            name = message_list("test", OLD_GENERATE_QUEUE, broker_priority(5))
            redis.lpush(name, generate_message(job.id, None, 5, OLD_GENERATE_QUEUE))
            jobs.append(job)
    service.start_worker()
    service.start_worker(SAGAN_CHECKPOINTS=str(tmp_path / "later"))
    await all_are_made_as_recorded(service, jobs)


async def test_the_sweeper_of_the_format_before_makes_room(service: Service) -> None:
    worker = service.start_worker()
    await service.ready()
    [beat] = await service.told()
    worker.stop()
    keys = Keys("test")
    with Redis.from_url(service.settings.redis_url) as redis:
        redis.set(keys.worker("old:1:a"), as_an_old_worker_beats(beat), px=60_000)
        redis.zadd(keys.workers, {"old:1:a": 2e9})
        redis.set(keys.sweeper, "old:1:a", px=600_000)  # it does not expire meanwhile
        service.start_worker()

        async def it_has() -> bool:
            new = [worker.id for worker in await service.store.workers() if worker.format > 1]
            return redis.get(keys.sweeper).decode() in new

        await service.until(it_has, seconds=30)
        assert redis.get(keys.worker("old:1:a"))  # the old one lives: it was not waited out


async def test_a_heartbeat_that_cannot_be_read_is_one_worker_s_matter(service: Service) -> None:
    service.start_worker()
    await service.ready()
    keys = Keys("test")
    with Redis.from_url(service.settings.redis_url) as redis:
        for number, beat in enumerate([b"", b"\xff", b"{}", b"null", b'{"id": null}', b"[" * 5000]):
            redis.set(keys.worker(f"odd:{number}"), beat)
            redis.zadd(keys.workers, {f"odd:{number}": 2e9})
        job = await service.generate()
        service.lose_message(job)  # the sweeper reads heartbeats, too
    assert len(await service.store.workers()) == 1
    await all_are_made_as_recorded(service, [job])


# One bad checkpoint


def spoilt(path: Path, how: str) -> None:
    """Make the checkpoint bad in one way."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    if how == "nan":
        tensors["to_rgb.weight"].view(-1)[0] = torch.nan
    elif how == "huge":
        tensors = {name: tensor * 1e30 for name, tensor in tensors.items()}
    elif how == "zero":
        tensors = {name: tensor * 0 for name, tensor in tensors.items()}
    elif how == "deep":
        header["metrics"] = f'{{"a": {"[" * 400}{"]" * 400}}}'
    elif how == "surrogate":
        header["class_names"] = json.dumps(["\udc80", *json.loads(header["class_names"])[1:]])
    else:
        header[how] = "[" * 5000
    save_file(tensors, path, header)


@pytest.mark.parametrize(
    "how",
    ["nan", "huge", "zero", "deep", "surrogate", "config", "class_names", "metrics", "metadata"],
)
async def test_a_bad_model_is_refused_by_name_and_the_others_are_served(service: Service, how: str) -> None:
    shutil.copy(service.checkpoints / "tiny.safetensors", service.checkpoints / "bad.safetensors")
    spoilt(service.checkpoints / "bad.safetensors", how)
    worker = service.start_worker()
    await service.ready()
    [info] = await service.told()
    assert [model.name for model in info.models] == ["tiny"]
    assert list(info.refused) == ["bad.safetensors"]
    assert "refused: " in worker.output
    assert "Traceback" not in worker.output
    await all_are_made_as_recorded(service, [await ask(service, 1)])


async def test_no_name_and_no_kind_of_file_takes_a_worker_out_of_service(service: Service) -> None:
    worker = service.start_worker()
    await service.ready()
    (service.checkpoints / os.fsdecode(b"b\xff.safetensors")).write_bytes(b"no checkpoint")
    os.mkfifo(service.checkpoints / "pipe.safetensors")
    (service.checkpoints / "folder.safetensors").mkdir()
    (service.checkpoints / "device.safetensors").symlink_to("/dev/zero")

    async def told() -> bool:
        return any(len(info.refused) == 4 for info in await service.store.workers())

    await service.until(told)
    await anyio.sleep(2 * service.settings.heartbeat_period)
    await all_are_made_as_recorded(service, [await ask(service, 1)])
    assert "Traceback" not in worker.output


# A forward that hangs, and a device that is lost


def jobs_of_a_fault(service: Service) -> WorkerProcess:
    return service.start_worker(ODD, SAGAN_FORWARD_TIMEOUT="2", TEST_HANG="13", TEST_LOST="14")


@pytest.mark.parametrize(
    ("seed", "code", "said"), [(13, 75, "has not returned"), (14, 69, "answers no more")]
)
async def test_a_worker_ends_when_its_device_does_and_another_makes_its_jobs(
    service: Service, seed: int, code: int, said: str
) -> None:
    worker = jobs_of_a_fault(service)
    await service.ready()
    jobs = [await service.generate(seed=seed) for seed in [1, seed, 2, 3]]
    assert await anyio.to_thread.run_sync(worker.wait, 30) == code
    assert said in worker.output
    service.start_worker()
    await all_are_made_as_recorded(service, jobs)


async def test_a_job_that_always_breaks_its_device_fails_in_the_end(service: Service) -> None:
    job = await service.generate(seed=14)
    for _ in range(3):
        worker = jobs_of_a_fault(service)
        assert await anyio.to_thread.run_sync(worker.wait, 30) == 69
    service.start_worker()
    [ended] = await service.finished([job])
    assert ended.state == "failed"
    assert "died 3 times" in str(ended.error)


async def test_a_stuck_worker_says_so(service: Service) -> None:
    service.start_worker(ODD, TEST_HANG="13", SAGAN_FORWARD_TIMEOUT="60")
    await service.ready()
    await service.generate(seed=13)

    async def it_does() -> bool:
        [worker] = await service.store.workers()
        return worker.stuck is not None and "a forward has been running" in worker.stuck

    await service.until(it_does)
    assert (await service.store.workers())[0].consuming  # it still listens: only its device hangs


# Shares and turns


async def test_one_caller_may_have_a_share_of_the_queue(service: Service) -> None:
    limits = {"max_queued": 10, "max_queued_images": 150}
    store = JobClient.open(service.settings.model_copy(update=limits))

    async def queued(caller: str, count: int = 1) -> int:
        for made in itertools.count():
            try:
                await store.create(await service.spec(count=count), OWNER, caller=caller)
            except ShareFull:
                return made
        raise AssertionError

    assert await queued("a") == 5
    assert await queued("b", count=20) == 3  # by its images
    assert await queued("c", count=64) == 1
    await store.close()


async def test_a_share_is_free_again_when_its_jobs_have_begun_or_ended(service: Service) -> None:
    store = JobClient.open(service.settings.model_copy(update={"max_queued": 10}))
    jobs = [(await store.create(await service.spec(seed=seed), OWNER, caller="a"))[0] for seed in range(5)]
    await store.cancel(jobs[0].id, OWNER)
    jobs[0], _ = await store.create(await service.spec(seed=9), OWNER, caller="a")
    service.start_worker()
    await service.finished(jobs)
    with Redis.from_url(service.settings.redis_url) as redis:
        left = redis.hgetall("test:shares")
    assert {int(count) for count in left.values()} == {0}
    assert not [name for name in left if name.endswith(b":a")]
    await store.close()


async def test_callers_take_turns(service: Service) -> None:
    async def queue(caller: str, many: int) -> list[Job]:
        specs = [await service.spec(seed=seed) for seed in range(many)]
        return [(await service.store.create(spec, OWNER, caller=caller))[0] for spec in specs]

    many = await queue("busy", 200)
    few = await queue("seldom", 3) + await queue("third", 3)
    service.start_worker(ODD, TEST_SLOW="0.02", SAGAN_CONCURRENCY="8")
    await service.finished(few)
    done = sum([await service.has_ended(job) for job in many])
    assert done < 100
    await service.finished(many)


async def test_what_waits_is_counted_anew_after_a_worker_that_did_not_count(service: Service) -> None:
    specs = [await service.spec(seed=seed) for seed in range(4)]
    jobs = [(await service.store.create(spec, OWNER, caller="a"))[0] for spec in specs]
    scripts = Scripts(service.settings)
    with Redis.from_url(service.settings.redis_url) as redis:
        redis.zrem("test:queued", jobs[0].id)  # as a worker of format 1 takes a job
        assert redis.hget("test:shares", "jobs:a") == b"4"
        scripts.recount().run(redis)
        assert redis.hmget("test:shares", "jobs:a", "images:a", "images") == [b"3", b"3", b"3"]
        assert redis.hget("test:shares", "turn:a") == b"1"


async def test_a_new_caller_gets_the_turn_that_fewest_have(service: Service) -> None:
    scripts = Scripts(service.settings)
    spec: JobSpec = await service.spec()
    with Redis.from_url(service.settings.redis_url) as redis:
        new = [NewJob(f"job-{number:05}", OWNER, spec, caller=f"c{number}") for number in range(10)]
        scripts.create(new).run(redis)
        turns = [int(redis.hget("test:shares", f"turn:c{number}")) for number in range(10)]
    assert turns == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
