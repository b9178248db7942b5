"""The mistakes a user can make, as exceptions with one-line messages.

Every message says what is wrong, where, what was expected and what to do next.
"""


class DMDError(Exception):
    """A problem the user can solve: one line, exit status 2."""


class ConfigError(DMDError):
    """The configuration, a flag or the environment they describe does not hold together."""


class DataError(DMDError):
    """A feature pickle is missing, unreadable, or not of the layout it should have."""


class CheckpointError(DMDError):
    """A checkpoint is missing, unreadable, or belongs to another model."""


class RunError(DMDError):
    """A run cannot start or be continued: its folder is taken, or cannot be written to."""


class NumericalError(DMDError):
    """A loss, gradient or prediction that is not a finite number."""
