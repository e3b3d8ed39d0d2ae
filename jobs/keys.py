"""The names of keys in Redis. The scripts in jobs/lua build the same ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """Every key of one namespace."""

    namespace: str

    @property
    def prefix(self) -> str:
        return f"{self.namespace}:"

    @property
    def queued(self) -> str:
        """Sorted set: jobs that wait, in the order in which they will run."""
        return f"{self.namespace}:queued"

    @property
    def open(self) -> str:
        """Set: jobs that have not ended."""
        return f"{self.namespace}:open"

    @property
    def held(self) -> str:
        """Hash: open job -> worker that has it in hand."""
        return f"{self.namespace}:held"

    @property
    def queues(self) -> str:
        """Set: the queues in which jobs may wait."""
        return f"{self.namespace}:queues"

    @property
    def unserved(self) -> str:
        """Hash: queue that no living worker takes from -> since when, seconds since 1970."""
        return f"{self.namespace}:unserved"

    @property
    def ended(self) -> str:
        """Hash: state -> number of jobs that have ever ended in it."""
        return f"{self.namespace}:ended"

    @property
    def workers(self) -> str:
        """Sorted set: workers by the time of their last heartbeat."""
        return f"{self.namespace}:workers"

    @property
    def sweeper(self) -> str:
        """Lock of the one worker that sweeps."""
        return f"{self.namespace}:sweeper"

    @property
    def exporter(self) -> str:
        """Lock of the one service whose /metrics has the queue's series."""
        return f"{self.namespace}:exporter"

    def job(self, job_id: str) -> str:
        """Hash: the record."""
        return f"{self.namespace}:job:{job_id}"

    def images(self, job_id: str) -> str:
        """Hash: index of the image -> PNG, or `in:` and the URL of the object store that has it."""
        return f"{self.namespace}:images:{job_id}"

    @property
    def expiring(self) -> str:
        """Sorted set: `JOB COUNT STORE` (images) or `NAME STORE` (a map) by when a worker deletes them."""
        return f"{self.namespace}:expiring"

    def maps(self, job_id: str) -> str:
        """Set: `IMAGE:LAYER` of the job's attention maps."""
        return f"{self.namespace}:maps:{job_id}"

    def events(self, job_id: str) -> str:
        """Stream: changes of state."""
        return f"{self.namespace}:events:{job_id}"

    def worker(self, worker_id: str) -> str:
        """The last heartbeat, as JSON; it expires with the worker."""
        return f"{self.namespace}:worker:{worker_id}"

    def recent(self, owner: str) -> str:
        """Sorted set: the owner's jobs, by their number."""
        return f"{self.namespace}:recent:{owner}"

    def idempotency(self, owner: str, key: str) -> str:
        """Hash: the job of this key, and the request."""
        return f"{self.namespace}:idempotency:{owner}:{key}"

    @property
    def api_keys(self) -> str:
        """Hash: id of an API key -> its record; and how often it has changed."""
        return f"{self.namespace}:keys"

    def quota(self, key_id: str) -> str:
        """Counters of the images asked for with a key, without their days since 1970."""
        return f"{self.namespace}:quota:{key_id}:"

    def rate(self, caller: str) -> str:
        """Counters of what the caller spends, without their minutes since 1970."""
        return f"{self.namespace}:rate:{caller}:"

    def attention(self, job_id: str, image: int, layer: str) -> str:
        """The map, or the reason why there is none."""
        return f"{self.namespace}:attention:{job_id}:{image}:{layer}"

    def attention_claim(self, job_id: str, image: int, layer: str) -> str:
        """Set while somebody may wait for a map that is being made."""
        return f"{self.namespace}:attention-claim:{job_id}:{image}:{layer}"

    @property
    def attention_asked(self) -> str:
        """Hash: claim of a map -> the caller who waits for it."""
        return f"{self.namespace}:attention-asked"

    @property
    def hooks(self) -> str:
        """Sorted set: CALLER:RECEIVER:JOB of each job with a webhook to deliver, by when it is due."""
        return f"{self.namespace}:hooks"

    @property
    def hook_callers(self) -> str:
        """Hash: caller, as in `hooks` -> its number of members there."""
        return f"{self.namespace}:hooks:callers"

    @property
    def hook_bell(self) -> str:
        """List: it has a member once a webhook has come due that no API process knows of."""
        return f"{self.namespace}:hooks:bell"

    def hook(self, job_id: str) -> str:
        """Hash: a job's events to deliver, and the tries of the first one."""
        return f"{self.namespace}:hook:{job_id}"

    def hook_log(self, job_id: str) -> str:
        """List: the attempts to deliver a job's events, as JSON, oldest first."""
        return f"{self.namespace}:hook-log:{job_id}"

    def previews(self, version: str) -> str:
        """One small picture of each class, as one sheet; empty while a worker makes it."""
        return f"{self.namespace}:previews-128:{version}"  # 128 px; without the number they had 64

    def channel(self, node: str) -> str:
        """Pub/sub channel of one API process."""
        return f"{self.namespace}:news:{node}"

    def watchers(self, key: str) -> str:
        """Set: API processes to tell of each change of a job or map."""
        return f"{self.namespace}:watchers:{key}"
