"""A suite: trainings that differ in a few settings each, for one table."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.loading import COMMAND_LINE, check_names, read_object, show
from config.schema import SETTING_NAMES
from utils.errors import ConfigError
from utils.metrics import METRICS

FOLDER = Path(__file__).parent / "suites"
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+_.-]{0,59}$")]  # it becomes part of a folder's name


class Published(BaseModel):
    """Numbers that somebody published for rows of the suite, in the units of metrics.json.

    They stand in the table where the run's settings have the values of `when`.
    """

    model_config = _STRICT
    source: str
    when: dict = {}
    rows: dict[RowName, dict[str, float]]


class Suite(BaseModel):
    """rows: overrides of the config by the row's name; one that is empty is the run as configured.

    heads  outputs of the model that are scored by themselves, for each row
    kept   which modalities are there when they are scored, such as "lv" for text and vision
    """

    model_config = _STRICT
    description: str = ""
    rows: Annotated[dict[RowName, dict], Field(min_length=1)]
    published: list[Published] = []
    heads: list[str] = []
    kept: Annotated[list[str], Field(min_length=1)] = ["lva"]


def load_suite(name: str, fixed: dict, heads: tuple[str, ...], check: Callable[[dict], object]) -> Suite:
    """Read config/suites/<name>.json, or the JSON file of that name.

    fixed: the overrides of the command line, which must not name a key of a row
    heads: the outputs that the model has
    check: resolves the settings with such overrides, and raises ConfigError where they are not allowed

    Raises ConfigError for what is wrong in the file, and for rows that the settings do not allow.
    """
    path = _find(name)
    try:
        suite = Suite(**read_object(path, "'rows' of settings", "suite file", f"one of {_shipped()}"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ConfigError(f"{path}: {where}: {first['msg']}; got {show(first['input'])}.") from error
    for row, overrides in suite.rows.items():
        check_names(overrides, SETTING_NAMES, f"rows.{row} of {path}", "key")
        for key in overrides:
            if key in fixed:
                raise ConfigError(f"{path}: rows.{row} sets {key}, and the command line too. Remove one of the two.")
        try:
            check(fixed | overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: rows.{row}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from error
    for published in suite.published:
        check_names(published.rows, tuple(suite.rows), f"published of {path}", "row")
        for row, numbers in published.rows.items():
            check_names(numbers, METRICS, f"published.{row} of {path}", "metric")
        check_names(published.when, (*SETTING_NAMES, "dataset_name"), f"published.when of {path}", "key")
    check_names(dict.fromkeys(suite.heads), heads, f"heads of {path}", "head")
    if "kept" in suite.model_fields_set and not suite.heads:
        raise ConfigError(
            f"{path}: kept says with which modalities heads are scored, but no heads are named. Name some."
        )
    for kept in suite.kept:
        if not kept or set(kept) - set("lva") or len(set(kept)) < len(kept):
            raise ConfigError(
                f"{path}: kept: {show(kept)} is no set of modalities; name some of l (text), v (vision), a (audio), "
                "such as 'lv'."
            )
    return suite


def _find(name: str) -> Path:
    if name.endswith(".json"):
        return Path(name)
    path = FOLDER / f"{name}.json"
    if Path(name).name != name or not path.is_file():
        raise ConfigError(f"--suite: there is no suite '{name}'. Name one of {_shipped()}, or a JSON file.")
    return path


def _shipped() -> str:
    return ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
