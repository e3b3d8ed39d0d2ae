"""How long a worker may take to stop, in seconds: whoever waits for a part waits longer than it may take.

A stop takes as long as the forward that runs. These bounds are for a forward that hangs and a Redis that is
away.
"""

from __future__ import annotations

from typing import Final

FORWARDS_END: Final = 30.0  # the forwards that run
RESULTS_STORED: Final = 10.0  # the images made
JOBS_RETURNED: Final = FORWARDS_END + RESULTS_STORED + 5.0  # after both, the rest goes back to Redis
HELPER_ENDS: Final = 2.0  # heartbeat and sweeper, each
WORKER_STOPS: Final = JOBS_RETURNED + 2 * HELPER_ENDS + 3.0  # the whole process; 3 s for Celery and Python
