"""What an earlier run has left: which files are its own, and in which settings another one differs from it.

Imports neither PyTorch nor pandas, so that a command whose run is there already is answered at once.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

from config.schema import IGNORED_KEYS, PRESETS, DMDConfig
from trainers.options import RunOptions
from utils.errors import RunError
from utils.files import sha256_of
from utils.reading import read_json

LIMITS = ("max_epochs", "early_stop")  # settings that a resumed run may have larger
# Settings that change no number of a run, `fast` but for rounding and random draws; the data's SHA-256 counts.
CHANGE_NOTHING = ("keep_checkpoints", "eval_batch_size", "fast", "featurePath", "dataset_root_dir")
INCONSEQUENTIAL = (*CHANGE_NOTHING, "feature_T", "feature_A", "feature_V", *IGNORED_KEYS)
DEFAULTS = {key: field.default for key, field in DMDConfig.model_fields.items() if not field.is_required()}


class RunFiles:
    """The files of one seed: weights in `pt/<name>-<dataset>-<seed>/`, numbers in `result/<name>-<dataset>-<seed>/`."""

    def __init__(self, name: str, dataset: str, seed: int, model_save_dir: str | Path, res_save_dir: str | Path):
        self.prefix, self.dataset, self.name = name, dataset, f"{name}-{dataset}-{seed}"
        self.checkpoints = Path(model_save_dir) / self.name
        self.results = Path(res_save_dir) / self.name
        self.best = self.checkpoints / "best.pth"
        self.state_file = self.checkpoints / "training-state.pt"
        self.history_file = self.results / "history.csv"
        self.metrics_file = self.results / "metrics.json"

    @property
    def description(self) -> dict | None:
        """The config.json of an earlier run; None where there is none."""
        return _read_description(self.checkpoints) or _read_description(self.results)

    @property
    def exists(self) -> bool:
        return self.description is not None

    def epochs(self) -> dict[int, Path]:
        """The checkpoints by their epoch."""
        return {int(path.stem): path for path in self.checkpoints.glob("*.pth") if path.stem.isdecimal()}

    def foreign(self) -> list[Path]:
        """Files that no run has written here, and that one might replace or remove: all that lie in a folder without
        a run's config.json, and checkpoints of later epochs than its history tells of."""
        folders = [folder for folder in {self.checkpoints, self.results} if _read_description(folder) is None]
        found = [path for folder in folders for path in folder.glob("[!.]*")]
        if self.history_file.exists():
            rows = len(self.history_file.read_bytes().splitlines()) - 1  # an epoch's checkpoint is there before its row
            found += [path for epoch, path in self.epochs().items() if epoch > rows + 1]
        return sorted(found)


def _read_description(folder: Path) -> dict | None:
    try:
        content = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("settings"), dict) else None


def earlier_runs(options: RunOptions, dataset: str) -> list[RunFiles]:
    """What is there of the runs of a command. Raises RunError where --resume finds none of them; of several seeds,
    those that have not begun will."""
    folders = (options.model_save_dir, options.res_save_dir)
    runs = [RunFiles(options.name, dataset, seed, *folders) for seed in options.seeds]
    if options.resume and not any(run.exists for run in runs):
        raise RunError(f"--resume: there is no run {runs[0].name} in {folders[0]} or {folders[1]}. See analysis.runs.")
    return runs


def check_earlier_runs(runs: Iterable[RunFiles], options: RunOptions, now: dict | None = None) -> None:
    """Raise RunError where files are in the way that no run has written, or a run is there already and the options
    do not say what to do with it.

    now: what the run's config.json would say, as far as it is known, to tell what is different
    """
    for run in runs:
        foreign = run.foreign()
        if foreign:
            names = ", ".join(path.name for path in foreign[:5])
            raise RunError(
                f"{foreign[0].parent}: holds what no run has written here ({names}), and a run might replace it. Move "
                "it to another folder, or choose another --name."
            )
        if run.exists and not (options.resume or options.overwrite):
            # The widths are those of the data, which are not read yet.
            different = list(different_settings(run.description, now, ("feature_dims",))) if now else []
            there = "; ".join(f"{key}: {old} -> {new}" for key, old, new in different[:5])
            may_continue = all(one[0] in CHANGE_NOTHING or _is_longer(*one) for one in different)
            raise RunError(
                f"{run.results}: a run {f'with other settings ({there})' if there else 'of this name'} is there. "
                f"Replace it with --overwrite, {'continue it with --resume, ' if may_continue else ''}or keep both "
                f"with --name {_name_for(run.prefix, different)}."
            )


def _name_for(prefix: str, different: list[tuple]) -> str:
    """A name that tells a run from one with other settings; short, as it becomes part of folders' names."""
    words = [prefix]
    for key, _, new in different:
        value = Path(new).stem if isinstance(new, str) else new  # of a path its file's name
        words.append(f"{key.replace('learning_rate', 'lr')}{value}")
    name = re.sub(r"[^\w.+-]+", "_", "-".join(words)) if different else "…"
    return name if len(name) <= 40 else f"{name[:31].rpartition('-')[0] or prefix}-{crc32(name.encode()):08x}"


def check_same_run(name: str, started: dict, now: dict) -> None:
    """Raise RunError where a run is to be continued with other settings or data than it was started with."""
    for key, there, here in different_settings(started, now, INCONSEQUENTIAL):
        if not _is_longer(key, there, here):
            raise RunError(
                f"{name}: --resume with {key} {here!r}, but the run was started with {there!r}. Give it the same "
                f"settings and data ({' and '.join(LIMITS)} may be larger), or choose another --name."
            )


def _is_longer(key: str, there, here) -> bool:
    """Whether a setting lets a run train as long as before, or longer."""
    return key in LIMITS and (here is None or (there is not None and here >= there))


def different_settings(one: dict, other: dict, but: Sequence[str] = ()) -> Iterator[tuple[str, object, object]]:
    """(key, value, other value) of each setting in which two runs' config.json differ, leaving out the keys in `but`.
    One that is lacking has its default; precision, feature files and the data's SHA-256 are settings, where both tell.
    """
    first, second = _all_settings(one), _all_settings(other)
    for key in sorted(first.keys() & second.keys()):
        if key not in but and first[key] != second[key]:
            yield key, first[key], second[key]


def _all_settings(description: dict) -> dict:
    settings = description.get("settings", {})
    switches = PRESETS.get(settings.get("objective", DEFAULTS["objective"]), {})
    others = {key: description[key] for key in ("precision", "init", "data") if key in description}
    complete = DEFAULTS | switches | settings | description.get("features", {}) | others
    return json.loads(json.dumps(complete))  # as config.json has it


def data_sha256(args, replaced: dict[str, str]) -> dict[str, str]:
    """The SHA-256 of the feature files by their role: featurePath, and feature_T/A/V where one replaces a modality."""
    files = {"featurePath": args.featurePath} | replaced
    return {role: _sha256_of(path, os.stat(path).st_mtime_ns) for role, path in files.items() if path}


@functools.cache  # rows of a suite and trials of a sweep train on the same files, which are large
def _sha256_of(path: str, changed: int) -> str:
    return sha256_of(path)
