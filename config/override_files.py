"""What suites and search spaces have in common: a JSON file that gives settings other values."""

from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from config.loading import COMMAND_LINE, read_object, show
from utils.errors import ConfigError


def read_as(model, path: Path, kind: str, instead: str):
    """The JSON object in a file as a pydantic type; `instead` says what to do where there is no such file.

    Raises ConfigError that names the place in the file.
    """
    content = read_object(path, "settings", kind, instead)
    try:
        return TypeAdapter(model).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg'].rstrip('.')}; got {show(first['input'])}.") from error


def resolve(where: str, overrides: dict, options) -> dict:
    """The settings of these RunOptions with the overrides that stand in a file, `where`.

    Raises ConfigError for overrides that the settings do not allow, and for a key that the command line sets too.
    """
    for key in overrides.keys() & options.config.keys():
        raise ConfigError(f"{where}: {key} is set on the command line too. Remove one of the two.")
    try:
        return replace(options, config=options.config | overrides).settings()
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from error
