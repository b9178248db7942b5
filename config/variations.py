"""JSON files that give settings other values: the rows of a suite, and the search space of a sweep."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from optuna import Trial
from optuna.distributions import FloatDistribution
from pydantic import Field, RootModel, model_validator

from config.loading import COMMAND_LINE, read_model
from config.schema import Strict
from utils.errors import ConfigError
from utils.metrics import METRICS

SUITES = {path.stem: path for path in sorted(Path(__file__).parent.glob("suites/*.json"))}
DEFAULT_SPACE = Path(__file__).parent / "search" / "default.json"

RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+_.-]{0,59}$")]  # it becomes part of a folder's name


class Published(Strict):
    """Published numbers of rows, in the units of metrics.json; for runs whose settings have the values of `when`."""

    source: str
    when: dict = {}
    rows: dict[RowName, dict[Literal[METRICS], float]]


class Suite(Strict):
    """Trainings that differ in a few settings each, for one table."""

    description: str = ""
    rows: Annotated[dict[RowName, dict], Field(min_length=1)]  # overrides; a row without any is the run as configured
    published: list[Published] = []
    heads: list[str] = []  # outputs of the model that are scored by themselves, for each row
    kept: list[Annotated[str, Field(pattern="^[lva]{1,3}$")]] = ["lva"]  # which modalities are there at that


class Range(Strict):
    """A number from low to high, both included; on a logarithmic scale with `log`."""

    type: Literal["float", "int"]
    low: float
    high: float
    log: bool = False

    @property
    def extremes(self) -> list:
        """The values that must be allowed for all others to be."""
        return [self.low, self.high] if self.type == "float" else [int(self.low), int(self.high)]

    @model_validator(mode="after")
    def _check(self):
        FloatDistribution(*self.extremes, log=self.log)  # or ValueError
        return self

    def suggest(self, trial: Trial, key: str) -> float:
        suggest = trial.suggest_float if self.type == "float" else trial.suggest_int
        return suggest(key, *self.extremes, log=self.log)


class Choice(RootModel[Annotated[list, Field(min_length=1)]]):
    """One of some values, of any JSON type. A study holds no lists, and takes true for 1: it gets JSON texts."""

    @property
    def extremes(self) -> list:
        return self.root

    def suggest(self, trial: Trial, key: str):
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in self.root]))


def load_suite(name: str) -> Suite:
    """Read config/suites/<name>.json, or the JSON file of that name. Raises ConfigError for what is wrong in it."""
    return read_model(Suite, SUITES.get(name, name), f"suite (built in: {', '.join(SUITES)})")


def load_search_space(path: str | Path, options) -> dict[str, Range | Choice]:
    """Read {key: [value, …] or {"type": "float" | "int", "low": …, "high": …, "log": …}}, for trials with RunOptions.

    Raises ConfigError for what is wrong in the file, and for bounds or choices which the settings do not allow.
    """
    space = read_model(Annotated[dict[str, Range | Choice], Field(min_length=1)], path, "search space")
    for key, dimension in space.items():
        for value in dimension.extremes:
            resolve(str(path), {key: value}, options)
    return space


def resolve(where: str, overrides: dict, options) -> dict:
    """The settings of these RunOptions with the overrides that stand in a file, `where`.

    Raises ConfigError for overrides that the settings do not allow, and for a key that the command line sets too.
    """
    if both := ", ".join(overrides.keys() & options.config.keys()):
        raise ConfigError(f"{where}: {both} is set on the command line too. Remove one of the two.")
    try:
        return replace(options, config=options.config | overrides).settings()
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from error
