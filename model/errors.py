"""What this package raises on purpose.

ModelError
├── ConfigError        a network that cannot be built
├── CheckpointError    a file that is not one of our checkpoints, or does not fit its own config
└── PrecisionError     a number format that is not known, or that the device does not have
"""


class ModelError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(ModelError):
    """No network has this shape."""


class CheckpointError(ModelError):
    """This file cannot be loaded as a generator."""


class PrecisionError(ModelError):
    """This device does not compute in that."""
