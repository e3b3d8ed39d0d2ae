"""What ends a worker's waits."""


class Stopping(Exception):
    """The worker is being stopped: hand back the jobs in hand."""
