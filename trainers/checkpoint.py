"""Checkpoints: bare state_dicts, exchangeable with the released code in both directions."""

import errno
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from utils.errors import CheckpointError
from utils.files import write_atomically
from utils.reading import printable

# A buffer of older BERT versions; its values are 0, 1, 2, … in every file.
OBSOLETE = "text_model.model.embeddings.position_ids"


def save_state(state: dict, path: Path) -> None:
    """Write nested dicts and lists of tensors, numbers and strings atomically. Raises OSError."""
    try:
        write_atomically(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # torch.save reports a full disk in this way
        raise OSError(errno.EIO, str(error).splitlines()[0]) from error


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict of this program or a published one.

    State_dicts that Lightning or DataParallel saved are supported too.

    Raises:
        CheckpointError: The file is missing, unreadable, or not a state_dict.
    """
    state = read_state(path)
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not _is_state_dict(state):
        raise CheckpointError(
            f"{path}: not a state_dict (a mapping from parameter names to tensors)."
        )
    consume_prefix_in_state_dict_if_present(state, "module.")
    state.pop(OBSOLETE, None)
    return state


def _is_state_dict(state: object) -> bool:
    if not isinstance(state, dict):
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())


def read_state(path: str | Path):
    """Read a file of `save_state` without executing code in it. Raises CheckpointError."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can raise any error of zip, pickle and PyTorch.
    except Exception as error:
        message = str(error).partition(" In PyTorch")[0]
        reason = f"{type(error).__name__}: {printable(message, 120)}"
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}).") from error


def load_weights(
    model: nn.Module, path: str | Path, state: dict[str, Tensor] | None = None
) -> None:
    """Load a checkpoint strictly.

    Args:
        model: The model.
        path: The file.
        state: Its content, if it has been read.

    Raises:
        CheckpointError: The file is unreadable, or belongs to another model; the message gives the
            first difference.
    """
    if state is None:
        state = read_checkpoint(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        difference = printable(str(error).partition(":")[2], 160)
        raise CheckpointError(
            f"{path}: not a checkpoint of this model: {difference} Give the data set and settings "
            "that it was trained with (-d, -c, --set); with run.json next to it, give none of "
            "these."
        ) from error
