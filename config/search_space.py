"""Which settings a sweep varies, and between which values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from optuna import Trial
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from config.loading import COMMAND_LINE, check_names, read_object, show
from config.schema import IGNORED_KEYS, SETTING_NAMES
from utils.errors import ConfigError

UNSEARCHABLE = dict.fromkeys(
    ("KeyEval", "valid_loss", "featurePath", "dataset_root_dir", "need_data_aligned"), "trials could not be compared"
) | dict.fromkeys(("keep_checkpoints", "eval_batch_size", *IGNORED_KEYS), "it changes no result")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Interval(BaseModel):
    """A number from low to high, both included; on a logarithmic scale with `log`."""

    model_config = _STRICT
    type: Literal["float", "int"]
    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Interval":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is greater than high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be greater than 0 on a logarithmic scale")
        if self.type == "int" and not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise ValueError(f"low {self.low} and high {self.high} must be whole numbers")
        return self

    @property
    def extremes(self) -> list:
        """The values that must be allowed for all between them to be."""
        return [self.low, self.high] if self.type == "int" else [float(self.low), float(self.high)]

    def suggest(self, trial: Trial, key: str):
        suggest = trial.suggest_int if self.type == "int" else trial.suggest_float
        return suggest(key, self.low, self.high, log=self.log)


class Choice(BaseModel):
    """One of some values, of any JSON type."""

    model_config = _STRICT
    type: Literal["categorical"]
    choices: Annotated[list, Field(min_length=1)]

    @property
    def extremes(self) -> list:
        return self.choices

    def suggest(self, trial: Trial, key: str):
        # As JSON texts: a storage keeps no lists, and takes true for 1.
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in self.choices]))


Dimension = Annotated[Interval | Choice, Field(discriminator="type")]


def load_search_space(path: str | Path, fixed: dict, check: Callable[[dict], object]) -> dict[str, Interval | Choice]:
    """Read {key: {"type": "float" | "int", "low": …, "high": …, "log": …} or {"type": "categorical", "choices": […]}}.

    fixed: the overrides of the command line, which must not name a searched key
    check: resolves the settings with such overrides, and raises ConfigError where they are not allowed

    Raises ConfigError for what is wrong in the file, and for ends or choices which the settings do not allow.
    """
    path = Path(path)
    content = read_object(path, "settings to search", "search space", "leave out --search for the default")
    check_names(content, SETTING_NAMES, path)
    if not content:
        raise ConfigError(f"{path}: the search space is empty. Name at least one key of the config.")
    space = {key: _dimension(path, key, description) for key, description in content.items()}
    for key, dimension in space.items():
        if key in UNSEARCHABLE:
            raise ConfigError(f"{path}: {key} cannot be searched: {UNSEARCHABLE[key]}. Remove it.")
        if key in fixed:
            raise ConfigError(f"{path}: {key} is searched, and set on the command line too. Remove one of the two.")
        for value in dimension.extremes:
            try:
                check(fixed | {key: value})
            except ConfigError as error:
                raise ConfigError(f"{path}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from error
    return space


def _dimension(path: Path, key: str, description) -> Interval | Choice:
    try:
        return TypeAdapter(Dimension).validate_python(description)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, *(str(part) for part in first["loc"][1:])])
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {where}: {what}; got {show(description)}.") from error
