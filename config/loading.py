"""From a JSON file of this family, and overrides, to the checked settings of one data set."""

import difflib
import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from easydict import EasyDict
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from config.schema import IGNORED_KEYS, DMDConfig
from utils.errors import ConfigError
from utils.log import is_first_rank, logger
from utils.reading import printable, read_json

COMMAND_LINE = "--set"
_warn_once = functools.cache(logger.warning)  # a command resolves its settings several times

DataSetName = Annotated[str, Field(pattern=r"^[\w-]+$")]  # it becomes part of a folder's name


class ModelSections(BaseModel, extra="forbid"):
    commonParams: dict
    objectiveParams: dict = {}
    datasetParams: dict[str, dict] = {}


class ConfigFile(BaseModel):
    """The layout of config.json; sections of other models are passed over."""

    datasetCommonParams: dict[DataSetName, dict[Literal["aligned", "unaligned"], dict] | str]
    dmd: ModelSections


def load_config(
    model_name: str, dataset_name: str, config_file: str | Path = "", overrides: dict | None = None
) -> EasyDict:
    """Settings of one model on one data set: defaults < file (default config/config.json) < overrides.

    Switches that are set nowhere, or to null, follow `objective`, whichever layer named it.

    -> EasyDict of every setting, with model_name and dataset_name; featurePath is joined to dataset_root_dir.
    Raises ConfigError in one line that names file, key, value and what is allowed.
    """
    path, overrides = Path(config_file or Path(__file__).with_name("config.json")), overrides or {}
    content = read_model(ConfigFile, path, "config file (leave out -c for the default)")
    check_names([model_name.lower()], ["dmd"], path, "model")
    datasets, sections, common = content.datasetCommonParams, content.dmd.datasetParams, content.dmd.commonParams
    root = {key: value for key, value in datasets.items() if isinstance(value, str)}
    known = [key for key in datasets if key not in root]
    dataset_name = dataset_name if dataset_name in known else dataset_name.lower()
    check_names([dataset_name], known, path, "data set")
    if dataset_name not in sections:  # because it is misspelt?
        check_names(sections, known, f"dmd.datasetParams of {path}", "section")

    variants, section = datasets[dataset_name], sections.get(dataset_name, {})
    aligned = (section | overrides).get("need_data_aligned")
    if aligned is None:  # commonParams speak of data sets that have both
        aligned = "aligned" in variants and common.get("need_data_aligned", True)
    variant = "unaligned" if aligned is False else "aligned"  # what is no flag is refused below
    if variant not in variants:
        raise ConfigError(f"{path}: no '{variant}' features of {dataset_name}. Set need_data_aligned accordingly.")
    of_file = variants[variant] | root | common | {"need_data_aligned": aligned} | content.dmd.objectiveParams | section
    return _checked(of_file, path, overrides, dataset_name)


def config_from_resolved(settings: dict, overrides: dict | None = None) -> EasyDict:
    """Check settings that were resolved before (a run's config.json), with overrides on top; featurePath is relative
    to dataset_root_dir, as in `load_config`, whichever of the two is overridden."""
    dataset_name = settings.get("dataset_name", "")
    unused = ("model_name", "dataset_name", *IGNORED_KEYS)
    settings = {key: value for key, value in settings.items() if key not in unused}
    path, root = (str(settings.get(key, "")) for key in ("featurePath", "dataset_root_dir"))
    if root and Path(path).is_relative_to(root):
        settings["featurePath"] = str(Path(path).relative_to(root))
    return _checked(settings, "the run's config.json", overrides or {}, dataset_name)


def parse_overrides(items: Iterable[str]) -> dict:
    """['batch_size=32', 'pretrained=bert-base-cased'] -> {key: value}, values as JSON where they are JSON."""
    overrides = {}
    for item in items:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise ConfigError(f"{COMMAND_LINE}: '{item}' is not of the form key=value.")
        text = {"True": "true", "False": "false", "None": "null"}.get(text, text)  # Python's words for JSON's
        try:
            overrides[key] = json.loads(text)
        except ValueError:
            overrides[key] = text
    return overrides


def read_model(model, path: str | Path, kind: str):
    """A JSON file as a pydantic model; kind: what it should be. Raises ConfigError."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable JSON {kind}: {printable(error, 200)}.") from error
    return _validated(model, content, lambda key: path)


def check_names(names: Iterable[str], known: Sequence[str], where: str | Path, kind: str) -> None:
    """Raise ConfigError for a name that is not known, with the one that was probably meant."""
    for name in (name for name in names if name not in known):
        close = difflib.get_close_matches(printable(name), known, n=1)
        there = "config/schema.py describes all of them." if kind == "setting" else f"known: {', '.join(known)}."
        hint = f"did you mean {close[0]}?" if close else there
        raise ConfigError(f"{where}: unknown {kind} '{printable(name)}'; {hint}")


def _checked(settings: dict, where: str | Path, overrides: dict, dataset_name: str) -> EasyDict:
    """The settings that stand in `where`, with overrides on top."""
    for place, names in ((where, settings), (COMMAND_LINE, overrides)):
        check_names(names, (*DMDConfig.model_fields, *IGNORED_KEYS), place, "setting")
    settings = settings | overrides
    ignored = sorted(settings.keys() & IGNORED_KEYS)
    if ignored and is_first_rank():
        _warn_once(f"Settings that have no effect here: {', '.join(ignored)}.")
    used = {key: value for key, value in settings.items() if key not in IGNORED_KEYS}
    checked = _validated(DMDConfig, used, lambda key: COMMAND_LINE if key in overrides else where)
    checked.featurePath = os.path.join(checked.dataset_root_dir, checked.featurePath)
    return EasyDict(checked.model_dump(), model_name="dmd", dataset_name=dataset_name)


def _validated(model, values: object, where: Callable[[str], str | Path]):
    """The values as a pydantic model. Raises ConfigError for the first that is wrong; where: does a key stand."""
    try:
        return TypeAdapter(model).validate_python(values)
    except ValidationError as error:
        first, flat = error.errors()[0], model is DMDConfig
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        place = ".".join(map(str, first["loc"][: 1 if flat else None]))
        key = place or message.split()[0]  # a condition on several settings begins with the first of them
        if first["type"] == "missing":
            message = f"{place}: {message}"
        elif place:
            given = printable(json.dumps(values[key] if flat else first["input"], ensure_ascii=False, default=str))
            message = f"{place} is {given}; {message[0].lower()}{message[1:]}"
        raise ConfigError(f"{where(key)}: {printable(message, 400)}.") from error
