"""A suite: trainings that differ in a few settings each, for one table."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from config.override_files import read_as
from utils.errors import ConfigError
from utils.metrics import METRICS

FOLDER = Path(__file__).parent / "suites"
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+_.-]{0,59}$")]  # it becomes part of a folder's name


class Published(BaseModel):
    """Numbers that somebody published for rows of the suite, in the units of metrics.json; they are shown where the
    run's settings have the values of `when`."""

    model_config = _STRICT
    source: str
    when: dict = {}
    rows: dict[RowName, dict[Literal[METRICS], float]]


class Suite(BaseModel):
    """The content of a suite's file."""

    model_config = _STRICT
    description: str = ""
    rows: Annotated[dict[RowName, dict], Field(min_length=1)]  # overrides; a row without any is the run as configured
    published: list[Published] = []
    heads: list[str] = []  # outputs of the model that are scored by themselves, for each row
    kept: list[Annotated[str, Field(pattern="^[lva]{1,3}$")]] = ["lva"]  # which modalities are there at that


def load_suite(name: str) -> Suite:
    """Read config/suites/<name>.json, or the JSON file of that name. Raises ConfigError for what is wrong in it."""
    shipped = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
    if name not in shipped and not name.endswith(".json"):
        raise ConfigError(f"--suite: no suite '{name}'. Name one of {', '.join(shipped)}, or a JSON file.")
    return read_as(Suite, shipped.get(name, Path(name)), "suite file", f"one of {', '.join(shipped)}")
