"""Webhooks as requests meet them: whether a job may have one, and what became of it (see app.sender)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, Field

from app.errors import Invalid, TooManyRequests
from app.receivers import NotAllowed, Receivers
from app.settings import Settings
from jobs.hooks import EVENTS, HookLog, Hooks
from jobs.job import HookEvent, Job, Webhook


class AttemptOut(BaseModel):
    """One try to deliver an event."""

    id: str = Field(description="Of the event, as the header `webhook-id` has it: the same at each try.")
    event: HookEvent
    at: datetime
    seconds: float = Field(description="How long it took.")
    status: int | None = Field(description="That the receiver answered; null: no answer came.")
    outcome: Literal["delivered", "failed", "given up", "gone"] = Field(
        description="failed: it is tried again; gone: the receiver answered 410, and is told no more."
    )
    reason: str | None = Field(description="Why it was not delivered.")


class WebhookOut(BaseModel):
    """A job's webhook, and its deliveries."""

    webhook: str | None = Field(description="Without its query; null: there is none.")
    events: list[HookEvent]
    attempts: list[AttemptOut] = Field(description="The last hundred, oldest first.")
    waiting: list[HookEvent] = Field(description="Events to deliver, in this order.")
    next_try: datetime | None = Field(description="Of the first of them; null: none waits.")

    @classmethod
    def of(cls, log: HookLog) -> Self:
        return cls(
            webhook=None if log.url is None else log.url.partition("?")[0],
            events=log.events,  # type: ignore[arg-type]  # validated
            attempts=[AttemptOut.model_validate_json(attempt) for attempt in log.attempts],
            waiting=log.waiting,  # type: ignore[arg-type]
            next_try=log.due,
        )


class Webhooks:
    """The rules for orders with a webhook."""

    def __init__(self, settings: Settings) -> None:
        self.hooks = Hooks(settings)
        self._on = bool(settings.webhook_secret)
        self._receivers = Receivers(settings.webhook_allowed)
        self._most = settings.max_webhooks

    def read(self, url: str, events: Sequence[HookEvent] | None) -> Webhook:
        """What the body of a request asks for. Raises Invalid."""
        if not self._on:
            raise _wrong(
                "Webhooks are off here: the operator sets SAGAN_WEBHOOK_SECRET to turn them on. Leave it "
                "out, and follow /jobs/{id}/events"
            )
        try:
            receiver = self._receivers.read(url)
        except NotAllowed as error:
            raise _wrong(f"A webhook cannot go there: {error}") from error
        wanted = tuple(event for event in EVENTS if event in (events or ("end",)))
        return Webhook(receiver.url, receiver.origin, wanted)

    async def admit(self, caller: str) -> None:
        """Raises TooManyRequests while too many webhooks wait to be delivered, half of them of one caller."""
        every, own = await self.hooks.waiting(caller)
        is_share = own >= max(1, self._most // 2)
        if is_share or every >= self._most:
            whose = f"{own} webhooks of your jobs" if is_share else f"{every} webhooks"
            raise TooManyRequests(
                f"{whose} wait to be delivered, and no more are taken. GET /jobs/{{id}}/webhooks says why "
                "one is not delivered. Leave webhook out, or try again later.",
                retry_after=30,
            )

    async def log_of(self, job: Job) -> WebhookOut:
        """What became of its webhook."""
        return WebhookOut.of(await self.hooks.log(job.id))


def _wrong(message: str) -> Invalid:
    return Invalid(f"body.webhook: {message}.", errors=[{"at": "body.webhook", "message": f"{message}."}])
