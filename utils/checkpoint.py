"""Checkpoints: bare state_dicts, exchangeable with the released code in both directions."""

import os
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import CheckpointError
from utils.files import write_atomically
from utils.reading import printable, read_json
from utils.weights import NoStateDict, check_weights

# A buffer of older BERT versions; its values are 0, 1, 2, … in every file.
OBSOLETE = "text_model.model.embeddings.position_ids"
PUBLISHED_WIDTHS = {(5, 20): "MOSI", (74, 35): "MOSEI"}  # (audio, vision)


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """Write the model's state_dict."""
    writer = CheckpointWriter()
    writer.save(model, path)
    writer.finish()


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, at most one at a time, from snapshots of the weights."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(self, model: nn.Module, path: Path, *copies: Path) -> None:
        """Take a snapshot and start writing it to `path` and `copies`; waits for the write before, if it still runs.

        Raises the error of that write, if it failed.
        """
        self.finish()
        # Cloned, as training goes on in place. On the CPU the clone is the snapshot; from a GPU it comes over here.
        snapshot = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
        self._pending = self._pool.submit(_write, snapshot, path, copies)

    def check(self) -> None:
        """Raise the error of a write that has failed; never waits."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the write under way. Raises its error, if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _write(state: dict[str, Tensor], path: Path, copies: tuple[Path, ...]) -> None:
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    for copy in copies:
        write_atomically(copy, lambda temporary: _link(path, temporary))


def _link(path: Path, to: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such thing."""
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict, ours or a published one, without running anything the file might contain.

    Raises CheckpointError if the file is missing, unreadable, or something else than a state_dict.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint. run.py writes them to pt/<name>-<dataset>-<seed>/.")
    try:
        check_weights(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except NoStateDict as error:
        raise CheckpointError(f"{path}: not a state_dict (a mapping from parameter names to tensors).") from error
    except Exception as error:  # a damaged file can fail in any way that zip, pickle and PyTorch know
        reason = f"{type(error).__name__}: {printable(error, 120)}"
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason}); expected a state_dict saved by torch.save. "
            "The file is damaged, or holds more than weights."
        ) from error
    state = dict(state)
    state.pop(OBSOLETE, None)
    return state


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read a checkpoint and load it strictly. Raises as read_checkpoint and load_state do."""
    load_state(model, read_checkpoint(path), path)


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load a state_dict strictly; `path` is where it came from, for the message.

    Raises CheckpointError that says what the checkpoint was made for where it does not fit the model.
    """
    expected = model.state_dict()
    theirs, ours = _describe(state), _describe(expected)
    wrong = [name for name, value in state.items() if name in expected and value.shape != expected[name].shape]
    missing, surplus = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if wrong or missing or surplus:
        details = [f"{n} is {tuple(state[n].shape)}, expected {tuple(expected[n].shape)}" for n in wrong[:1]]
        details += [f"{len(names)} parameters {kind} ({printable(names[0])}, …)" for kind, names in
                    (("missing", missing), ("unknown", surplus)) if names]  # fmt: skip
        raise CheckpointError(
            f"{path}: the checkpoint is of {theirs}, but config and data ask for {ours}: {'; '.join(details)}. "
            "Name the data set it was trained on with -d, and its settings with -c or --set."
        )
    model.load_state_dict(state, strict=True)


def _describe(state: dict[str, Tensor]) -> str:
    """'MOSI, aligned (widths 768/5/20, steps 46/46/46 after convolution, with BERT)' from the shapes alone."""
    try:
        widths = {m: state[f"proj_{m}.weight"].shape[1] for m in "lav"}
        d = state["proj_l.weight"].shape[0]
        steps = {m: state[f"align_c_{m}.weight"].shape[1] // d for m in "lav"}
        kernels = {m: state[f"proj_{m}.weight"].shape[2] for m in "lav"}
    except (KeyError, IndexError, ZeroDivisionError):
        return "no DMD model"
    lengths = {steps[m] + (kernels[m] - 1 if widths[m] != d else 0) for m in "lav"}
    dataset = PUBLISHED_WIDTHS.get((widths["a"], widths["v"]), "another data set")
    bert = "with BERT" if any(name.startswith("text_model.") for name in state) else "without BERT"
    return (
        f"{dataset}, {'aligned' if len(lengths) == 1 else 'unaligned'}, {bert} (text/audio/vision widths "
        f"{widths['l']}/{widths['a']}/{widths['v']}, steps {steps['l']}/{steps['a']}/{steps['v']} after convolution)"
    )


def settings_beside(checkpoint: str | Path) -> dict | None:
    """The config.json that run.py leaves beside its checkpoints, or None (a published file stands alone).

    Raises CheckpointError if it is there and something else.
    """
    path = Path(checkpoint).parent / "config.json"
    if not os.path.exists(path):
        return None
    try:
        content = read_json(path)
        _check_description(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Use -d and -c.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a run's config.json ({printable(error)}). Use -d and -c.") from error
    return content


def _check_description(content) -> None:
    """What is not checked as settings: the name of the data set, which names files, and the feature files."""
    name, features = content["settings"]["dataset_name"], content["features"]
    if type(name) is not str or not re.fullmatch(r"[\w-]+", name):
        raise ValueError("its dataset_name is no plain name")
    if not isinstance(features, dict) or not set(features) <= {"feature_T", "feature_A", "feature_V"}:
        raise ValueError("its features are no feature_T, feature_A, feature_V")
    if not all(type(file) is str for file in features.values()):
        raise ValueError("its features are no names of files")
