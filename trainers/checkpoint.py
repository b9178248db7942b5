"""Checkpoints: bare state_dicts, exchangeable with the released code in both directions."""

import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import CheckpointError
from utils.files import write_atomically
from utils.reading import printable, read_json

# A buffer of older BERT versions; its values are 0, 1, 2, … in every file.
OBSOLETE = "text_model.model.embeddings.position_ids"


def save_state(state: dict, path: Path) -> None:
    """Write a state_dict, or any nest of dicts and lists that holds tensors, numbers and strings."""
    write_atomically(path, lambda file: torch.save(state, file))


def snapshot(state):
    """A copy of such a nest that later changes do not reach; all tensors are on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(snapshot(value) for value in state)
    return state


class BackgroundWriter:
    """Runs writing work in a thread, one piece at a time. All methods raise the error of work that failed."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Future | None = None

    def submit(self, work: Callable[[], None]) -> None:
        self.finish()
        self._pending = self._pool.submit(work)

    def finish(self) -> None:
        """Wait for the work under way."""
        if self._pending is not None:
            try:
                self._pending.result()
            finally:
                if self._pending.done():  # else a signal has ended the waiting, and the work goes on
                    self._pending = None


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict, ours or a published one; also one that Lightning or DataParallel has wrapped.

    Raises CheckpointError if the file is missing, unreadable, or something else than a state_dict.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint. run.py writes them to pt/<name>-<dataset>-<seed>/.")
    state = read_state(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(_is_weight(*item) for item in state.items()):
        raise CheckpointError(f"{path}: not a state_dict (a mapping from parameter names to tensors).")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    names = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in names.items() if name != OBSOLETE}


def _is_weight(name, value) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def read_state(path: str | Path):
    """Read what `save_state` wrote, without running anything the file might contain. Raises CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way that zip, pickle and PyTorch know
        reason = f"{type(error).__name__}: {printable(str(error).partition(' In PyTorch')[0], 120)}"
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}): damaged, or not weights.") from error


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a checkpoint and load it strictly. Raises as read_checkpoint and load_state do."""
    load_state(model, read_checkpoint(path), path)


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load a state_dict (read from `path`) strictly. Raises CheckpointError that says how another model differs."""
    expected = model.state_dict()
    shapes, wanted = ({name: value.shape for name, value in weights.items()} for weights in (state, expected))
    if shapes == wanted:
        model.load_state_dict(state)
        return
    theirs, ours = _describe(state), _describe(expected)
    details = [f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if theirs.get(key, ours[key]) != ours[key]]
    names = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    raise CheckpointError(
        f"{path}: not a checkpoint of this model: it has {', '.join([*details, ''])}{len(names)} parameters missing, "
        f"unknown or of another shape ({printable(names[0])}, …). Name data set and settings that it was trained with "
        "(-d, -c, --set), or leave them out where config.json is beside it."
    )


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


def _describe(state: dict[str, Tensor]) -> dict[str, object]:
    """The settings and data that show in names and shapes of weights; {} where these are not the weights of a DMD."""
    sizes = sizes_of(state)
    if sizes is None:
        return {}
    return {
        "use_bert": any(name.startswith("text_model.") for name in state),
        "feature_dims": sizes[0],
        "steps": sizes[1],
        "nlevels": len({match[1] for name in state if (match := re.match(r"trans_l_with_a\.layers\.(\d+)\.", name))}),
        "width (of dst_feature_dim_nheads)": state["proj_l.weight"].shape[0],
    }


def settings_beside(checkpoint: str | Path) -> dict | None:
    """The config.json that run.py leaves beside its checkpoints, or None (a published file stands alone).

    Raises CheckpointError where it is something else.
    """
    path = Path(checkpoint).parent / "config.json"
    if not path.exists():
        return None
    try:
        content = read_json(path)
        check_description(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a run's config.json ({printable(error)}). Use -d and -c.") from error
    return content


def check_description(content) -> None:
    """Raise ValueError, KeyError or TypeError where a run's config.json has not the names that run.py writes: the data
    set's, which names files, and those of the feature files. (Settings are checked where they are used.)"""
    features, data = dict(content["features"]), dict(content.get("data", {}))
    plain = re.fullmatch(r"[\w-]+", content["settings"]["dataset_name"])
    known = {"feature_T", "feature_A", "feature_V"}.issuperset(features)
    if not plain or not known or not all(isinstance(value, str) for value in (features | data).values()):
        raise ValueError("its dataset_name, features or data are not as run.py writes them")
