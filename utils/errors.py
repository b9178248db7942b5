"""Errors that the user can fix, with one-line messages.

A message names the file or key, what is wrong, what was expected, and what to do.
"""


class DMDError(Exception):
    """A problem that the user can fix: one line, exit status 2."""


class ConfigError(DMDError):
    """A setting, a flag or the environment is invalid."""


class DataError(DMDError):
    """A feature file is missing, unreadable, or has another layout than expected."""


class CheckpointError(DMDError):
    """A checkpoint is missing, unreadable, or belongs to another model."""


class RunError(DMDError):
    """A run cannot start or continue: its folder is in use, or cannot be written."""


class NumericalError(DMDError):
    """A loss, gradient or prediction is not finite."""
