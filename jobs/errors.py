"""The errors of jobs, as one tree. Each message says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.job import Quota, Today

# JobError
# ├── UnknownJob            404: never known to this caller, or forgotten
# ├── ExpiredJob            410: its images are gone
# │   └── PurgedJob         its owner had them taken away
# ├── ResultGone            410: somebody deleted a file of the result store
# ├── StoreUnavailable      503: the result store does not answer, or is full
# ├── QueueFull             429
# │   └── ShareFull         one caller has the share of it that a caller may have
# ├── QuotaReached          429: the images of a key's day; 403: it never has so many
# ├── NewerFormat           503: a newer release wrote the record
# ├── OlderWorkers          503: the workers with this model are of a release that makes other images of it
# ├── MapsFull              429: too many attention maps are waited for
# ├── IdempotencyConflict   422: the same key with another request
# ├── AttentionFailed       the worker could not make this map
# └── BrokerUnavailable     503: Redis does not answer
#     └── Overloaded        503: more calls than it answers in time


class JobError(Exception):
    """Root of the errors about jobs."""


class UnknownJob(JobError):
    """No such job, or another caller's."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"There is no job {job_id!r}. It was never made, or it was forgotten long after its end."
        )


class ExpiredJob(JobError):
    """The job ended so long ago that its images are gone."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The images of job {job_id!r} have expired. The same spec makes the same images again."
        )


class PurgedJob(ExpiredJob):
    """The owner of the job had its images taken away."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.args = (
            f"The images of job {job_id!r} were purged, as somebody asked. The same spec makes the same "
            "images again.",
        )


class ResultGone(JobError):
    """A file of a job that has not expired is not in the result store."""

    def __init__(self) -> None:
        super().__init__(
            "This result was deleted from the store in which it was kept. "
            "The same spec makes the same images again."
        )


class StoreUnavailable(JobError):
    """The store of images and maps does not answer, or is full."""

    def __init__(self, reason: str = "The store of the results does not answer") -> None:
        super().__init__(f"{reason}. Nothing that was accepted is lost; try again in a few seconds.")


class QueueFull(JobError):
    """max_queued jobs wait already."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        super().__init__(f"{depth} jobs are waiting and no more are taken. Try again when some are done.")


class ShareFull(QueueFull):
    """The caller has as much in the queue as one caller may."""

    def __init__(self, own: int) -> None:
        super().__init__(own)
        self.args = (
            f"{own} of your jobs are waiting, which is the share of the queue that one caller may have. "
            "Try again when some are done.",
        )


class QuotaReached(JobError):
    """The images do not fit into the key's day."""

    def __init__(self, asked: int, quota: Quota, today: Today) -> None:
        self.quota, self.today = quota, today
        self.ever = asked <= quota.images  # it fits into another day
        left = max(0, quota.images - today.images)
        super().__init__(
            f"This key may ask for {quota.images} images a day (UTC), {left} are left, and this asks for "
            f"{asked}. " + ("Ask for fewer, or tomorrow." if self.ever else "Ask for fewer.")
        )


class NewerFormat(JobError):
    """A newer release wrote a record."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"Job {job_id!r} was recorded by a newer release than this one. Ask an API of that release."
        )


class OlderWorkers(JobError):
    """The living workers with a model would misread a job for it."""

    def __init__(self) -> None:
        super().__init__(
            "The workers with this model are of an older release, which makes whole jobs of one class alone. "
            "Update them, or ask without start, class_weights and ends."
        )


class MapsFull(JobError):
    """max_queued_maps are waited for already, or half of them by this caller."""

    def __init__(self, waiting: int, *, own: bool) -> None:
        """own: `waiting` are this caller's."""
        self.waiting = waiting
        super().__init__(
            f"{waiting} attention maps {'of yours ' if own else ''}are waiting and no more are taken. "
            "Try again when some are made."
        )


class IdempotencyConflict(JobError):
    """The key was used before, with another request."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Idempotency key {key!r} belongs to another request. Use a new key for a new request."
        )


class AttentionFailed(JobError):
    """The worker could not make an attention map; the message is its reason."""


class BrokerUnavailable(JobError):
    """Redis does not answer, or is full."""

    def __init__(self, reason: str = "Redis does not answer") -> None:
        super().__init__(f"{reason}. Nothing that was accepted is lost; try again in a few seconds.")


class Overloaded(BrokerUnavailable):
    """Redis answers, and more is asked of it than it can answer in time."""

    def __init__(self) -> None:
        super().__init__("More is asked here than can be answered in time")
