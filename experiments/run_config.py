"""run.json: the settings, data and versions of a run, and how two runs differ."""

import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from config.schema import IGNORED_KEYS, PRESETS, DMDConfig
from dataset.features import FeatureSet
from experiments.options import RunOptions
from utils.files import sha256_of
from utils.reading import read_json

FILE_NAME = "run.json"
LIMITS = ("max_epochs", "early_stop")  # a resumed run may have larger ones
# Settings that do not affect results (`fast`: only rounding and random draws). The path of the
# feature file is one of them, because its SHA-256 is compared instead.
NEUTRAL = ("keep_checkpoints", "eval_batch_size", "fast", "featurePath", "dataset_root_dir")
NOT_COMPARED = (*NEUTRAL, "feature_T", "feature_A", "feature_V", *IGNORED_KEYS)


@dataclass(frozen=True)
class Difference:
    """A setting in which two runs differ."""

    key: str
    first: object
    second: object

    def is_longer(self) -> bool:
        """Whether the second run only trains longer than the first, by one of LIMITS."""
        if self.key not in LIMITS:
            return False
        if self.second is None:
            return True
        return self.first is not None and self.second >= self.first


def make_run_config(options: RunOptions, settings: dict) -> dict:
    """Describe a run as far as possible before data are read.

    Args:
        options: The options of the command.
        settings: The resolved hyper-parameters.

    Returns:
        The first part of run.json; `experiments.train` adds data, versions, device and seed.
    """
    return {
        "settings": dict(settings),
        "features": options.feature_overrides,
        "seeds": list(options.seeds),
        "precision": options.precision,
        "init_from": str(options.init_from),
        "compile": options.compile,
        "deterministic": options.deterministic,
    }


def describe_features(features: FeatureSet) -> dict:
    """Describe the data that were read, for run.json: widths, steps, how the file was built."""
    return {
        "feature_dims": features.feature_dims,
        "seq_lens": features.seq_lens,
        "provenance": features.provenance,
    }


def read_run_config(folder: Path) -> dict | None:
    """Read the run.json of a folder.

    Returns:
        Its content; None if the file is missing, or not from this program.
    """
    try:
        content = read_json(folder / FILE_NAME)
        dataset_name = content["settings"]["dataset_name"]
        feature_overrides = content["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    names_files = isinstance(dataset_name, str) and re.fullmatch(r"[\w-]+", dataset_name)
    if names_files and isinstance(feature_overrides, dict):
        return content
    return None


def describe_differences(
    first: dict, second: dict, ignore: tuple[str, ...] = ()
) -> list[Difference]:
    """Compare the contents of two run.json.

    A missing setting has its default value. Precision, initial weights, feature files and the
    SHA-256 of the data are compared if both have them.

    Args:
        first, second: Contents of run.json.
        ignore: Keys to leave out.

    Returns:
        The differences in alphabetical order of their keys.
    """
    first_values, second_values = _all_values(first), _all_values(second)
    differences = []
    for key in sorted(first_values.keys() & second_values.keys()):
        if key not in ignore and first_values[key] != second_values[key]:
            differences.append(Difference(key, first_values[key], second_values[key]))
    return differences


def _all_values(run_config: dict) -> dict:
    """All compared values in one dict, with defaults for missing settings."""
    settings = run_config.get("settings", {})
    values = {}
    for key, field in DMDConfig.model_fields.items():
        if not field.is_required():
            values[key] = field.default
    objective = settings.get("objective", values["objective"])
    values.update(PRESETS.get(objective, {}))
    values.update(settings)
    values.update(run_config.get("features", {}))
    for key in ("precision", "init_from", "data"):
        if key in run_config:
            values[key] = run_config[key]
    return json.loads(json.dumps(values))  # as read from a file: tuples become lists


def hash_features(settings, feature_overrides: dict[str, str]) -> dict[str, str]:
    """Hash the feature files of a run.

    Args:
        settings: Settings with `featurePath`.
        feature_overrides: Files that replace a modality, "" for none.

    Returns:
        SHA-256 by role: featurePath, and feature_T, feature_A, feature_V if given.
    """
    files = {"featurePath": settings.featurePath, **feature_overrides}
    hashes = {}
    for role, path in files.items():
        if path:
            hashes[role] = _sha256_of(path, os.stat(path).st_mtime_ns)
    return hashes


@functools.cache  # rows of a suite and trials of a sweep train on the same, large files
def _sha256_of(path: str, modified_ns: int) -> str:
    return sha256_of(path)
