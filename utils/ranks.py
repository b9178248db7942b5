"""The number of this process among those that a launcher started to train one model.

`torchrun` and `accelerate launch` set the environment variables that are read here.
"""

import os


def world_size() -> int:
    """Number of processes that train one model."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def rank() -> int:
    """Number of this process, from 0."""
    if world_size() == 1:
        return 0
    return int(os.environ.get("RANK", "0"))


def is_first_rank() -> bool:
    """Whether this process is the one that logs and writes files."""
    return rank() == 0
