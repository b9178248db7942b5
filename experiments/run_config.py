"""What an earlier run has left: which files are its own, and in which settings another one differs from it.

Imports neither PyTorch nor pandas, so that a command whose run is there already is answered at once.
"""

import functools
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

from config.schema import IGNORED_KEYS, PRESETS, DMDConfig
from experiments.options import RunOptions
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
        return read_description(self.checkpoints) or read_description(self.results)

    def epochs(self) -> dict[int, Path]:
        """The checkpoints by their epoch."""
        return {int(path.stem): path for path in self.checkpoints.glob("*.pth") if re.fullmatch(r"[1-9]\d*", path.stem)}

    def foreign(self) -> list[Path]:
        """Files that no run has written here, and that one might replace or remove: all that lie in a folder without
        a run's config.json, and checkpoints of later epochs than its history tells of."""
        folders = [folder for folder in {self.checkpoints, self.results} if read_description(folder) is None]
        found = [path for folder in folders for path in folder.glob("[!.]*")]
        if self.history_file.exists() or not self.state_file.exists():
            rows = self.history_file.read_bytes().count(b"\n") - 1 if self.history_file.exists() else 0
            # An epoch's checkpoint is there before its row.
            found += [path for epoch, path in self.epochs().items() if epoch > rows + 1]
        return sorted(set(found))


def read_description(folder: Path) -> dict | None:
    """The config.json of a run; None where the folder has none, or one of something else."""
    try:
        content = read_json(folder / "config.json")
        plain = re.fullmatch(r"[\w-]+", content["settings"]["dataset_name"])  # it names files
        return content if plain and isinstance(content["features"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_files(options: RunOptions, dataset: str) -> list[RunFiles]:
    """The runs of a command, one for each seed, whether they exist or not."""
    folders = (options.model_save_dir, options.res_save_dir)
    return [RunFiles(options.name, dataset, seed, *folders) for seed in options.seeds]


def similar_run(run: RunFiles) -> str:
    """The name of a run of the same data set and seed whose --name differs in two letters at most; "" for none."""
    suffix = run.name.removeprefix(run.prefix)
    for folder in sorted(run.results.parent.glob(f"*{glob.escape(suffix)}")):
        other = folder.name.removesuffix(suffix)
        if other != run.prefix and edit_distance(other, run.prefix) <= 2 and read_description(folder):
            return folder.name
    return ""


def edit_distance(a: str, b: str) -> int:
    """How many letters must be inserted, removed or replaced to turn one text into the other (Levenshtein)."""
    distances = list(range(len(b) + 1))  # of the empty beginning of a
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            replaced = distances[j - 1] + (letter != other)
            row.append(min(replaced, distances[j] + 1, row[j - 1] + 1))
        distances = row
    return distances[-1]


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
        if run.description and not (options.resume or options.overwrite):
            # The widths are those of the data, which are not read yet.
            different = list(different_settings(run.description, now, ("feature_dims",))) if now else []
            there = "; ".join(f"{key}: {old} -> {new}" for key, old, new in different[:5])
            may_continue = all(one[0] in CHANGE_NOTHING or is_longer(*one) for one in different)
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


def is_longer(key: str, there, here) -> bool:
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
