"""Which settings a sweep varies, and between which values."""

import json
from pathlib import Path
from typing import Annotated, Literal

from optuna import Trial
from optuna.distributions import FloatDistribution, IntDistribution
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from config.override_files import read_as, resolve

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Range(BaseModel):
    """A number from low to high, both included; on a logarithmic scale with `log`."""

    model_config = _STRICT
    type: Literal["float", "int"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self):
        distribution = IntDistribution if self.type == "int" else FloatDistribution
        distribution(*self.bounds, log=self.log)  # raises ValueError
        return self

    @property
    def bounds(self) -> list:
        """The values that must be allowed for all others to be."""
        number = int if self.type == "int" else float
        return [number(self.low), number(self.high)]

    def suggest(self, trial: Trial, key: str):
        suggest = trial.suggest_int if self.type == "int" else trial.suggest_float
        return suggest(key, *self.bounds, log=self.log)


class Choice(BaseModel):
    """One of some values, of any JSON type. A study holds no lists, and takes true for 1: it gets JSON texts."""

    model_config = _STRICT
    type: Literal["categorical"]
    choices: Annotated[list, Field(min_length=1)]

    @property
    def bounds(self) -> list:
        return self.choices

    def suggest(self, trial: Trial, key: str):
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in self.choices]))


def _from_list(dimension):
    """A plain list of values is short for a choice of them."""
    return {"type": "categorical", "choices": dimension} if isinstance(dimension, list) else dimension


Dimension = Annotated[Annotated[Range | Choice, Field(discriminator="type")], BeforeValidator(_from_list)]


def load_search_space(path: str | Path, options) -> dict[str, Range | Choice]:
    """Read {key: [value, …] or {"type": "float" | "int", "low": …, "high": …, "log": …}}, for trials with RunOptions.

    Raises ConfigError for what is wrong in the file, and for bounds or choices which the settings do not allow.
    """
    model = Annotated[dict[str, Dimension], Field(min_length=1)]
    space = read_as(model, Path(path), "search space", "leave out --search for the default")
    for key, dimension in space.items():
        for value in dimension.bounds:
            resolve(str(path), {key: value}, options)
    return space
