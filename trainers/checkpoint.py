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
    """Write a state_dict, or any nest of dicts and lists that holds tensors, numbers and strings. Raises OSError."""
    try:
        write_atomically(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # so torch.save reports a full disk
        raise OSError(errno.EIO, str(error).splitlines()[0]) from error


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict, ours or a published one; also as Lightning and DataParallel write it.

    Raises CheckpointError if the file is missing, unreadable, or something else than a state_dict.
    """
    state = read_state(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path}: not a state_dict (a mapping from parameter names to tensors).")
    consume_prefix_in_state_dict_if_present(state, "module.")
    state.pop(OBSOLETE, None)
    return state


def read_state(path: str | Path):
    """Read what `save_state` wrote, without running anything the file might contain. Raises CheckpointError."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way that zip, pickle and PyTorch know
        reason = f"{type(error).__name__}: {printable(str(error).partition(' In PyTorch')[0], 120)}"
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}).") from error


def load_weights(model: nn.Module, path: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Load a checkpoint strictly; state: what it holds, if it is read. Raises CheckpointError that says how another
    model differs."""
    try:
        model.load_state_dict(read_checkpoint(path) if state is None else state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of this model: {printable(str(error).partition(':')[2], 160)} Name the "
            "data set and settings that it was trained with (-d, -c, --set), or leave them out where config.json is "
            "beside it."
        ) from error


def sizes_of(state: dict[str, Tensor]) -> tuple[list[int], list[int]] | None:
    """Widths and steps of the text, audio and vision that a DMD was trained on, from the shapes of its weights alone.

    None where these are not the weights of a DMD.
    """
    try:
        convolutions = [state[f"proj_{m}.weight"].shape for m in "lav"]  # (d, width, kernel)
        after = [state[f"align_c_{m}.weight"].shape[1] // d for m, (d, _, _) in zip("lav", convolutions, strict=True)]
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None
    before = [n + (size - 1 if width != d else 0) for n, (d, width, size) in zip(after, convolutions, strict=True)]
    return [width for _, width, _ in convolutions], before
