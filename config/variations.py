"""Read JSON files that vary settings: the rows of a suite, and the search space of a sweep."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, model_validator

from config.loading import check_names, read_json_as
from config.schema import Strict
from utils.errors import ConfigError
from utils.metrics import METRICS
from utils.reading import printable

FOLDER = Path(__file__).parent
SUITES = {path.stem: path for path in sorted(FOLDER.glob("suites/*.json"))}
DEFAULT_SPACE = FOLDER / "search" / "default.json"
LARGEST_FLOAT = sys.float_info.max
RANGE_KEYS = ("type", "low", "high", "log")

RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+_.-]{0,59}$")]  # in folder names
Modalities = Annotated[str, Field(pattern="^[lva]{1,3}$")]


class Published(Strict):
    """Published metrics of some rows, in the units of metrics.json.

    They are shown if the settings of a row have all values of `when`.
    """

    source: str
    when: dict = {}
    rows: dict[RowName, dict[Literal[METRICS], float]]


class Suite(Strict):
    """Runs that differ in a few settings each, for one table."""

    description: str = ""
    rows: Annotated[dict[RowName, dict], Field(min_length=1)]  # overrides of each row
    published: list[Published] = []
    heads: list[str] = []  # model outputs to score separately, for each row
    modalities: list[Modalities] = ["lva"]  # inputs to score them with; the others are zeros

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_names(cls, content: object) -> object:
        if isinstance(content, dict) and "kept" in content:
            raise ValueError("kept has been renamed; use modalities")
        return content


def load_suite(name: str) -> Suite:
    """Read a suite.

    Args:
        name: A built-in suite (config/suites/<name>.json), or the path of a JSON file.

    Returns:
        The suite. The settings of its rows are not checked yet.

    Raises:
        ConfigError: The file is unreadable or invalid.
    """
    path = SUITES.get(name, name)
    return read_json_as(Suite, path, f"suite (built in: {', '.join(SUITES)})")


def load_search_space(path: str | Path) -> dict[str, BaseDistribution]:
    """Read a search space: {key: [value, ...] or {"type", "low", "high", "log"}}.

    A range has the type "float" or "int" and includes `low` and `high`; `log` (default false)
    samples it on a logarithmic scale. Choices may have any JSON type. Since Optuna stores no lists
    and does not distinguish 1 from true, they become JSON texts, which `suggest` decodes.

    Args:
        path: The JSON file.

    Returns:
        A distribution for each setting. The values are not checked yet; the settings must allow
        those that `extreme_values` returns.

    Raises:
        ConfigError: The file is unreadable or invalid.
    """
    entries = read_json_as(dict[str, object], path, "search space")
    if not entries:
        raise ConfigError(f"{path}: the search space is empty; add at least one setting.")
    space = {}
    for key, entry in entries.items():
        where = f"{path}: {printable(key)}"
        if isinstance(entry, list):
            space[key] = _read_choices(entry, where)
        elif isinstance(entry, dict):
            space[key] = _read_range(entry, where)
        else:
            raise ConfigError(f"{where} is {_quoted(entry)}; expected a list or a range.")
    return space


def extreme_values(distribution: BaseDistribution) -> list:
    """Return the values that must be valid for all values of a distribution to be valid.

    Args:
        distribution: A distribution of `load_search_space`.

    Returns:
        Both bounds of a range; every choice, decoded.
    """
    if isinstance(distribution, CategoricalDistribution):
        return [json.loads(choice) for choice in distribution.choices]
    return [distribution.low, distribution.high]


def suggest(trial: Trial, name: str, distribution: BaseDistribution):
    """Draw a value.

    Args:
        trial: The trial that records the value.
        name: The setting.
        distribution: A distribution of `load_search_space`.

    Returns:
        A float, an int, or the decoded choice.
    """
    if isinstance(distribution, CategoricalDistribution):
        return json.loads(trial.suggest_categorical(name, distribution.choices))
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


def _read_choices(choices: list, where: str) -> CategoricalDistribution:
    if not choices:
        raise ConfigError(f"{where}: the list is empty; expected at least one value.")
    return CategoricalDistribution([json.dumps(choice) for choice in choices])


def _read_range(entry: dict, where: str) -> FloatDistribution | IntDistribution:
    check_names(entry, RANGE_KEYS, where, "key")
    for key in ("type", "low", "high"):
        if key not in entry:
            raise ConfigError(f"{where}: {key} is missing; a range needs type, low and high.")
    kind = entry["type"]
    if kind not in ("float", "int"):
        raise ConfigError(f"""{where}: type is {_quoted(kind)}; expected "float" or "int".""")
    low = _read_bound(entry, "low", where)
    high = _read_bound(entry, "high", where)
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log is {_quoted(log)}; expected true or false.")
    if low > high:
        raise ConfigError(f"{where}: low ({low}) is greater than high ({high}). Swap them.")
    if log and low <= 0:
        raise ConfigError(f"{where}: low is {low}; expected more than 0 on a logarithmic scale.")
    if kind == "int":
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _read_bound(entry: dict, name: str, where: str) -> float:
    bound = entry[name]
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise ConfigError(f"{where}: {name} is {_quoted(bound)}; expected a number.")
    if not abs(bound) <= LARGEST_FLOAT:  # also NaN
        raise ConfigError(f"{where}: {name} is {_quoted(bound)}; expected a finite number.")
    if entry["type"] == "int" and bound != int(bound):
        raise ConfigError(f"{where}: {name} is {bound}; expected a whole number for type int.")
    return bound


def _quoted(value: object) -> str:
    """Format a value as in the JSON file."""
    return printable(json.dumps(value, ensure_ascii=False))
