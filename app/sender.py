"""Sends webhooks: takes what is due from the outbox, signs it, tries it, and says what became of it.

Each API process sends. What one has in hand is leased (`jobs.hooks`), so nothing is lost with it.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic
from typing import Final, Literal

import httpx
from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel
from redis.exceptions import RedisError
from standardwebhooks import Webhook as Signer

from app.posting import Answer, Poster, Resolve
from app.receivers import NotAllowed, Receivers
from app.schemas import JobOut
from app.settings import Settings
from app.webhooks import AttemptOut
from jobs.errors import JobError
from jobs.hooks import Delivery, Hooks, Outcome
from jobs.pubsub import cancel

log = logging.getLogger("sagan.webhooks")

AT_ONCE: Final = 32  # tries of a process
OF_CALLER: Final = 16  # of these of the jobs of one caller
OF_RECEIVER: Final = 4  # of these to one receiver, of one caller: one that is slow holds up nobody else
LONGEST_RETRY_AFTER: Final = 3600.0  # seconds that a receiver may ask for
SPREAD: Final = 0.1  # of a pause that is added by chance, so that not all come back at once
LOOKS: Final = 2.0  # seconds between two looks at what is due, unless the bell rings
GRACE: Final = 2.0  # seconds for what is in hand when the process is to end
MARGIN: Final = 15.0  # seconds of a lease beyond the longest try

Said = Literal["delivered", "failed", "given up", "gone"]
_OUTCOMES: Final[Mapping[Said, Outcome]] = {
    "delivered": "done",
    "failed": "again",
    "given up": "done",
    "gone": "gone",
}


class EventOut(BaseModel):
    """The body of a webhook."""

    type: str  # job.started, job.progress, job.succeeded, job.failed or job.cancelled
    timestamp: datetime  # of the event
    data: JobOut  # as it was then


class Sender:
    """The deliveries of one API process."""

    def __init__(
        self, settings: Settings, hooks: Hooks, registry: CollectorRegistry, resolve: Resolve | None = None
    ) -> None:
        """resolve: as of Poster."""
        self._hooks = hooks
        self._receivers = Receivers(settings.webhook_allowed)
        self._signers = [Signer(secret.get_secret_value()) for secret in settings.webhook_secret]
        # certifi's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR
        tls = httpx.create_ssl_context()
        self._poster = Poster(self._receivers, settings.webhook_timeout, tls, resolve)
        self._lease = settings.webhook_timeout + MARGIN
        self._retries = settings.webhook_retries
        self._root = settings.root_path
        self._trying: dict[asyncio.Task[None], Delivery] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._attempts = Counter(
            "sagan_webhook_attempts",
            "Tries to deliver a webhook, by what came of them",
            ["outcome"],
            registry=registry,
        )
        for said in _OUTCOMES:
            self._attempts.labels(said.replace(" ", "_"))

    def start(self) -> None:
        """Deliver what is due from now on."""
        self._tasks = [
            asyncio.create_task(self._run(), name="webhooks"),
            asyncio.create_task(self._listen(), name="webhooks' bell"),
        ]

    async def stop(self) -> None:
        """End; what is in hand has a moment to be delivered, and goes back then."""
        await cancel(*self._tasks)
        if self._trying:
            await asyncio.wait(self._trying, timeout=GRACE)
        await cancel(*self._trying)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause = await self._take()
            except (JobError, RedisError, OSError):
                pause = LOOKS  # Redis is away; what is due stays so
            except Exception:
                log.exception("webhooks could not be taken from the outbox")
                pause = LOOKS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _listen(self) -> None:
        while True:
            try:
                await self._hooks.rings()
            except (RedisError, OSError):
                await asyncio.sleep(LOOKS)
            self._wake.set()

    async def _take(self) -> float:
        """Begin to deliver what is due, as far as there is room; how many seconds to wait then."""
        room = AT_ONCE - len(self._trying)
        if room == 0:
            return LOOKS
        trying = [delivery.lane for delivery in self._trying.values()]
        claimed = await self._hooks.claim(room, self._lease, OF_CALLER, OF_RECEIVER, trying)
        for delivery in claimed.deliveries:
            task = asyncio.create_task(
                self._deliver(delivery, claimed.now), name=f"webhook {delivery.event_id}"
            )
            self._trying[task] = delivery
            task.add_done_callback(self._end)
        return LOOKS if claimed.wait is None else min(LOOKS, claimed.wait)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._trying[task]
        self._wake.set()  # there is room

    async def _deliver(self, delivery: Delivery, now: datetime) -> None:
        """now: by Redis' clock."""
        began = monotonic()
        try:
            answer = await self._try(delivery, now)
            await self._settle(delivery, answer, now, monotonic() - began)
        except asyncio.CancelledError:
            with suppress(JobError, RedisError, OSError):
                await self._hooks.settle(delivery, "back")
            raise
        except (JobError, RedisError, OSError) as error:  # its lease ends, and it is tried again
            log.warning("Redis could not be told of a webhook: %s", error, extra=_fields(delivery))

    async def _try(self, delivery: Delivery, now: datetime) -> Answer:
        try:
            body = self._body(delivery)
            return await self._poster.post(delivery.url, self._headers(delivery, now, body), body.encode())
        except Exception:  # it counts as a try: one that breaks each time must come to its end
            log.exception("a webhook broke on our side", extra=_fields(delivery))
            return Answer(reason="it broke on our side; the server's log has it under the job's id")

    def _body(self, delivery: Delivery) -> str:
        state = {"start": "started", "progress": "progress", "end": delivery.job.state}[delivery.event]
        data = JobOut.of(delivery.job, None, self._root)
        return EventOut(type=f"job.{state}", timestamp=delivery.at, data=data).model_dump_json()

    def _headers(self, delivery: Delivery, now: datetime, body: str) -> dict[str, str]:
        signatures = [signer.sign(delivery.event_id, now, body) for signer in self._signers]
        return {
            "Content-Type": "application/json",
            "User-Agent": "sagan-webhooks",
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    async def _settle(self, delivery: Delivery, answer: Answer, now: datetime, seconds: float) -> None:
        said, pause = self._verdict(delivery, answer)
        attempt = AttemptOut(
            id=delivery.event_id,
            event=delivery.event,
            at=now,
            seconds=round(seconds, 3),
            status=answer.status,
            outcome=said,
            reason=answer.reason or None,
        )
        self._attempts.labels(said.replace(" ", "_")).inc()
        self._tell(delivery, attempt, pause)
        await self._hooks.settle(delivery, _OUTCOMES[said], pause, attempt.model_dump_json())

    def _verdict(self, delivery: Delivery, answer: Answer) -> tuple[Said, float]:
        """What came of a try, and seconds until the next."""
        if answer.delivered:
            return "delivered", 0.0
        if answer.status == 410:
            return "gone", 0.0
        if delivery.tries >= len(self._retries):
            return "given up", 0.0
        pause = self._retries[delivery.tries] * random.uniform(1, 1 + SPREAD)
        if answer.retry_after is not None and answer.status in (429, 503):
            pause = max(pause, min(answer.retry_after, LONGEST_RETRY_AFTER))
        return "failed", pause

    def _tell(self, delivery: Delivery, attempt: AttemptOut, pause: float) -> None:
        fields = _fields(delivery) | {"status": attempt.status, "seconds": attempt.seconds}
        try:
            receiver = self._receivers.read(delivery.url).origin  # the rest of a URL may hold a secret
        except NotAllowed:
            receiver = "its receiver"
        if attempt.outcome == "delivered":
            log.info("webhook delivered: %s of job %s", delivery.event, delivery.job.id, extra=fields)
            return
        following = (
            f"; tried again in {timedelta(seconds=round(pause))}" if attempt.outcome == "failed" else ""
        )
        log.warning(
            "webhook %s: %s of job %s to %s, try %d: %s%s",
            *(attempt.outcome, delivery.event, delivery.job.id, receiver, delivery.tries + 1),
            *(attempt.reason, following),
            extra=fields,
        )


def _fields(delivery: Delivery) -> dict[str, object]:
    context = delivery.job.context
    return {
        "job_id": delivery.job.id,
        "webhook_id": delivery.event_id,
        "request_id": context.request_id,
        "key": context.key,
    }
