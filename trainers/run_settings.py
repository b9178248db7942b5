"""In which settings two runs differ, and whether one may be gone on with by the other's."""

import json
from collections.abc import Iterator, Sequence

from utils.errors import RunError

LIMITS = ("max_epochs", "early_stop")  # settings that a resumed run may have otherwise, to train longer or less long
# Settings that change no number of a run, `fast` but for rounding and random draws; the data's SHA-256 counts.
INCONSEQUENTIAL = ("keep_checkpoints", "eval_batch_size", "fast", "featurePath", "dataset_root_dir")
CHANGEABLE = (*LIMITS, *INCONSEQUENTIAL)


def check_limits(name: str, started: dict, now: dict, epoch: int) -> None:
    """Raise RunError where a run of so many epochs would have ended earlier by its new settings."""
    if now["max_epochs"] is not None and now["max_epochs"] < epoch:
        raise RunError(f"{name}: --resume with max_epochs {now['max_epochs']}, but the run has {epoch} epochs already.")
    patience = started.get("early_stop")
    if isinstance(patience, int) and now["early_stop"] < patience:
        raise RunError(
            f"{name}: --resume with early_stop {now['early_stop']}, but the run was started with {patience}, and might "
            "have ended before. Give it the same or more."
        )


def check_same_run(name: str, started: dict, description: dict) -> None:
    """Raise RunError where a run is to go on with other settings or data than it was started with."""
    now = json.loads(json.dumps(description))  # as it would be read back
    for key, ours, theirs in different_settings(now, started, CHANGEABLE):
        raise RunError(
            f"{name}: --resume with {key} {ours!r}, but the run was started with {theirs!r}. "
            "Give it the same settings and data, or choose another --name."
        )


def different_settings(one: dict, other: dict, but: Sequence[str] = ()) -> Iterator[tuple[str, object, object]]:
    """(key, value, other value) of each setting in which two runs' config.json differ, leaving out the keys in `but`.

    Precision and data, by their SHA-256, are settings too.
    """
    ours, theirs = (d.get("settings", {}) | {k: d.get(k) for k in ("precision", "data")} for d in (one, other))
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in but and ours.get(key) != theirs.get(key):
            yield key, ours.get(key), theirs.get(key)
