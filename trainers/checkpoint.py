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
from utils.weights import NoStateDict, check_sizes, check_weights

# A buffer of older BERT versions; its values are 0, 1, 2, … in every file.
OBSOLETE = "text_model.model.embeddings.position_ids"
PUBLISHED_WIDTHS = {(768, 5, 20): "MOSI's", (768, 74, 35): "MOSEI's"}  # (text, audio, vision)


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
    """Runs writing work in a thread of its own, one piece at a time."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Future | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Start a piece of work; waits for the one before, if it still runs, and raises its error, if it failed."""
        self.finish()
        self._pending = self._pool.submit(work)

    def check(self) -> None:
        """Raise the error of work that has failed; never waits."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the work under way. Raises its error, if it failed."""
        if self._pending is not None:
            try:
                self._pending.result()
            finally:
                if self._pending.done():  # else a signal has ended the waiting, and the work goes on
                    self._pending = None


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict, ours or a published one, without running anything the file might contain.

    Raises CheckpointError if the file is missing, unreadable, or something else than a state_dict.
    """
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: a folder. Name a checkpoint in it, such as best.pth.")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint. run.py writes them to pt/<name>-<dataset>-<seed>/.")
    state = dict(read_state(path, check_weights))
    state.pop(OBSOLETE, None)
    return state


def read_state(path: str | Path, check: Callable[[str | Path], object] = check_sizes):
    """Read what `save_state` wrote, without running anything the file might contain, once `check` has passed it.

    Raises CheckpointError if that cannot be done.
    """
    try:
        check(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except NoStateDict as error:
        raise CheckpointError(f"{path}: not a state_dict (a mapping from parameter names to tensors).") from error
    except Exception as error:  # a damaged file can fail in any way that zip, pickle and PyTorch know
        reason = f"{type(error).__name__}: {printable(error, 120)}"
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason}); expected a state_dict saved by torch.save. "
            "The file is damaged, or holds more than weights: take another epoch's, or a fresh copy."
        ) from error


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
            f"{_how_to_match(path)}"
        )
    model.load_state_dict(state, strict=True)


def _how_to_match(path: str | Path) -> str:
    if (Path(path).parent / "config.json").exists():
        return (
            "The config.json beside it says what it was trained on: leave out -d, -c and --set, and give it those data."
        )
    return "Name the data set it was trained on with -d, and its settings with -c or --set."


def sizes_of(state: dict[str, Tensor]) -> tuple[dict[str, int], dict[str, int]] | None:
    """Widths and steps of the data that a DMD was trained on, by l, a, v, from the shapes of its weights alone.

    The steps are those before the convolution. None where these are not the weights of a DMD.
    """
    try:
        widths = {m: state[f"proj_{m}.weight"].shape[1] for m in "lav"}
        d = state["proj_l.weight"].shape[0]
        kernels = {m: state[f"proj_{m}.weight"].shape[2] for m in "lav"}
        steps = {m: state[f"align_c_{m}.weight"].shape[1] // d for m in "lav"}
    except (KeyError, IndexError, ZeroDivisionError):
        return None
    return widths, {m: steps[m] + (kernels[m] - 1 if widths[m] != d else 0) for m in "lav"}


def _describe(state: dict[str, Tensor]) -> str:
    """'MOSI's sizes, aligned, with BERT (text/audio/vision widths 768/5/20, steps 50/50/50)' from the shapes alone."""
    sizes = sizes_of(state)
    if sizes is None:
        return "no DMD model"
    widths, steps = sizes
    whose = PUBLISHED_WIDTHS.get((widths["l"], widths["a"], widths["v"]), "other")
    bert = "with BERT" if any(name.startswith("text_model.") for name in state) else "without BERT"
    return (
        f"{whose} sizes, {'aligned' if len(set(steps.values())) == 1 else 'unaligned'}, {bert} (text/audio/vision "
        f"widths {widths['l']}/{widths['a']}/{widths['v']}, steps {steps['l']}/{steps['a']}/{steps['v']})"
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
        check_description(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Use -d and -c.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a run's config.json ({printable(error)}). Use -d and -c.") from error
    return content


def check_description(content) -> None:
    """Raise ValueError, KeyError or TypeError where a run's config.json is not as run.py writes it, in what is not
    checked as settings: the name of the data set, which names files, the feature files, and their SHA-256."""
    name, features, data = content["settings"]["dataset_name"], content["features"], content.get("data", {})
    if type(name) is not str or not re.fullmatch(r"[\w-]+", name):
        raise ValueError("its dataset_name is no plain name")
    if not isinstance(features, dict) or not set(features) <= {"feature_T", "feature_A", "feature_V"}:
        raise ValueError("its features are no feature_T, feature_A, feature_V")
    if not all(type(file) is str for file in features.values()):
        raise ValueError("its features are no names of files")
    if not isinstance(data, dict):
        raise ValueError("its data are no SHA-256 of files")
