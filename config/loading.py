"""Merge defaults, a JSON config file and overrides into the checked settings of one data set."""

import difflib
import functools
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from easydict import EasyDict
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from config.schema import IGNORED_KEYS, DMDConfig
from utils.errors import ConfigError
from utils.log import logger
from utils.ranks import is_first_rank
from utils.reading import printable, read_json

DEFAULT_FILE = Path(__file__).with_name("config.json")
COMMAND_LINE = "--set"
MODEL_NAME = "dmd"
PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}

DataSetName = Annotated[str, Field(pattern=r"^[\w-]+$")]  # becomes part of a folder's name
FeatureVariants = dict[Literal["aligned", "unaligned"], dict]


class ModelSections(BaseModel, extra="forbid"):
    """The section of one model in the config file."""

    commonParams: dict
    objectiveParams: dict = {}
    datasetParams: dict[str, dict] = {}


class ConfigFile(BaseModel):
    """The layout of config.json; sections of other models are ignored."""

    datasetCommonParams: dict[DataSetName, FeatureVariants | str]
    dmd: ModelSections


def load_config(
    model_name: str, dataset_name: str, config_file: str | Path = "", overrides: dict | None = None
) -> EasyDict:
    """Load the settings of one model on one data set: defaults < config file < overrides.

    Switches that no layer sets, or that are null, follow `objective`, whichever layer sets it.

    Args:
        model_name: "dmd", in any case.
        dataset_name: A data set of the config file.
        config_file: JSON file in the layout of config/config.json, which is the default.
        overrides: Settings by key, as given to `--set`. Unlike a config file, they must not contain
            IGNORED_KEYS.

    Returns:
        Every setting of `DMDConfig`, with `model_name` and `dataset_name`. `featurePath` is joined
        to `dataset_root_dir`. The caller may change the dictionary.

    Raises:
        ConfigError: A name, key or value is invalid.
    """
    path = Path(config_file or DEFAULT_FILE)
    overrides = overrides or {}
    content = read_json_as(ConfigFile, path, "config file (leave out -c for the default)")
    check_names([model_name.lower()], [MODEL_NAME], path, "model")
    dataset_name = _find_dataset(content, dataset_name, path)
    file_settings = _merge_sections(content, dataset_name, overrides, path)
    return _check_settings(file_settings, path, overrides, dataset_name)


def config_from_resolved(settings: dict, overrides: dict | None = None) -> EasyDict:
    """Check settings that a run has saved in run.json, with overrides on top.

    As in `load_config`, `featurePath` is relative to `dataset_root_dir`, whichever is overridden.

    Args:
        settings: The settings that `load_config` returned for the run.
        overrides: Settings by key, as given to `--set`.

    Returns:
        The same as `load_config`.

    Raises:
        ConfigError: A key or value is invalid.
    """
    saved = dict(settings)
    saved.pop("model_name", None)
    dataset_name = saved.pop("dataset_name", "")
    for key in IGNORED_KEYS:
        saved.pop(key, None)
    _remove_root(saved)
    return _check_settings(saved, "run.json", overrides or {}, dataset_name)


def parse_overrides(items: Iterable[str]) -> dict:
    """Parse the arguments of `--set`.

    Args:
        items: Strings such as "batch_size=32" or "pretrained=bert-base-cased".

    Returns:
        Settings by key. Values that are not valid JSON are strings.

    Raises:
        ConfigError: An item is not of the form key=value.
    """
    overrides = {}
    for item in items:
        key, equals_sign, text = item.partition("=")
        key = key.strip()
        text = text.strip()
        if not key or not equals_sign:
            raise ConfigError(f"{COMMAND_LINE}: '{item}' is invalid; expected key=value.")
        text = PYTHON_LITERALS.get(text, text)
        try:
            overrides[key] = json.loads(text)
        except ValueError:
            overrides[key] = text
    return overrides


def format_overrides(settings: dict) -> str:
    """Format settings as command-line arguments; the inverse of `parse_overrides`.

    Args:
        settings: Settings by key.

    Returns:
        `--set` and `key=value` for each setting, quoted for a shell.
    """
    words = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        words += [COMMAND_LINE, f"{key}={text}"]
    return shlex.join(words)


def read_json_as(schema: type, path: str | Path, kind: str):
    """Read a JSON file and check it against a type.

    Args:
        schema: A pydantic model, or another type that pydantic can check.
        path: The file.
        kind: Kind of file, for the error message.

    Returns:
        The content, as an instance of `schema`.

    Raises:
        ConfigError: The file is unreadable, or its content does not match.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        reason = printable(error, 200)
        raise ConfigError(f"{path}: not a readable JSON {kind}: {reason}.") from error
    try:
        return TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_describe_first_problem(error)}") from error


def check_names(names: Iterable[str], known: Sequence[str], where: str | Path, kind: str) -> None:
    """Check that names are known.

    Args:
        names: The names to check.
        known: All valid names.
        where: File, section or flag that contains the names, for the error message.
        kind: Kind of the names, for the error message: "setting", "data set", ...

    Raises:
        ConfigError: A name is unknown; the message suggests a similar one.
    """
    for name in names:
        if name in known:
            continue
        similar = difflib.get_close_matches(printable(name), known, n=1)
        if similar:
            hint = f"did you mean {similar[0]}?"
        elif kind == "setting":
            hint = "config/schema.py describes all settings."
        else:
            hint = f"known: {', '.join(known)}."
        raise ConfigError(f"{where}: unknown {kind} '{printable(name)}'; {hint}")


def _find_dataset(content: ConfigFile, dataset_name: str, path: Path) -> str:
    """The data set's name as the config file spells it."""
    known = []
    for key, value in content.datasetCommonParams.items():
        if not isinstance(value, str):
            known.append(key)
    if dataset_name not in known:
        dataset_name = dataset_name.lower()
    check_names([dataset_name], known, path, "data set")
    sections = content.dmd.datasetParams
    if dataset_name not in sections:  # its section may be misspelt
        check_names(sections, known, f"dmd.datasetParams of {path}", "section")
    return dataset_name


def _merge_sections(content: ConfigFile, dataset_name: str, overrides: dict, path: Path) -> dict:
    """The settings of a config file for one data set; later sections replace earlier ones."""
    common = content.dmd.commonParams
    section = content.dmd.datasetParams.get(dataset_name, {})
    variants = content.datasetCommonParams[dataset_name]

    if "need_data_aligned" in overrides:
        aligned = overrides["need_data_aligned"]
    elif "need_data_aligned" in section:
        aligned = section["need_data_aligned"]
    elif "aligned" in variants:
        aligned = common.get("need_data_aligned", True)
    else:
        aligned = False
    variant = "unaligned" if aligned is False else "aligned"  # other types are rejected later
    if variant not in variants:
        raise ConfigError(
            f"{path}: no '{variant}' features of {dataset_name}. Set need_data_aligned accordingly."
        )

    merged = dict(variants[variant])
    for key, value in content.datasetCommonParams.items():
        if isinstance(value, str):  # dataset_root_dir
            merged[key] = value
    merged.update(common)
    merged["need_data_aligned"] = aligned
    merged.update(content.dmd.objectiveParams)
    merged.update(section)
    return merged


def _check_settings(
    settings: dict, where: str | Path, overrides: dict, dataset_name: str
) -> EasyDict:
    """Check the settings that `where` contains, with overrides on top."""
    known = (*DMDConfig.model_fields, *IGNORED_KEYS)
    check_names(settings, known, where, "setting")
    check_names(overrides, known, COMMAND_LINE, "setting")
    for key in overrides:
        if key in IGNORED_KEYS:
            raise ConfigError(f"{COMMAND_LINE}: {key} has no effect here; leave it out.")

    merged = {**settings, **overrides}
    ignored = []
    for key in IGNORED_KEYS:
        if key in merged:
            ignored.append(key)
            del merged[key]
    if ignored and is_first_rank():
        _warn_once(f"Settings that have no effect here: {', '.join(sorted(ignored))}.")

    try:
        checked = DMDConfig.model_validate(merged)
    except ValidationError as error:
        key, problem = _find_first_invalid_setting(error, merged)
        source = COMMAND_LINE if key in overrides else where
        raise ConfigError(f"{source}: {problem}") from error
    _add_root(checked)
    return EasyDict(checked.model_dump(), model_name=MODEL_NAME, dataset_name=dataset_name)


def _add_root(checked: DMDConfig) -> None:
    """Join featurePath to dataset_root_dir."""
    checked.featurePath = os.path.join(checked.dataset_root_dir, checked.featurePath)


def _remove_root(saved: dict) -> None:
    """Undo `_add_root`, so that an override of dataset_root_dir applies to featurePath."""
    feature_path = Path(str(saved.get("featurePath", "")))
    root = str(saved.get("dataset_root_dir", ""))
    if root and feature_path.is_relative_to(root):
        saved["featurePath"] = str(feature_path.relative_to(root))


def _find_first_invalid_setting(error: ValidationError, settings: dict) -> tuple[str, str]:
    """The key and the problem of the first invalid setting; a list is shown as a whole."""
    first = error.errors()[0]
    if first["type"] == "invalid_setting":
        key = first["ctx"]["key"]
        value = first["ctx"]["value"]
    else:
        key = str(first["loc"][0])
        value = settings.get(key)
    if first["type"] == "missing":
        return key, f"{key} is missing."
    return key, _describe_problem(key, value, first["msg"])


def _describe_first_problem(error: ValidationError) -> str:
    """The first invalid value of a JSON file, with the path of keys that leads to it."""
    first = error.errors()[0]
    place = ".".join(str(key) for key in first["loc"])
    if first["type"] == "missing":
        return f"{printable(place)} is missing."
    message = first["msg"].removeprefix("Value error, ")  # of a validator
    if not place:  # the whole content
        return f"{printable(message.rstrip('.'), 400)}."
    return _describe_problem(place, first["input"], message)


def _describe_problem(place: str, value: object, expected: str) -> str:
    """A sentence about an invalid value, in one line."""
    given = printable(json.dumps(value, ensure_ascii=False, default=str))
    expected = expected[0].lower() + expected[1:].rstrip(".")
    return f"{printable(f'{place} is {given}; {expected}', 400)}."


@functools.cache  # a command resolves its settings several times
def _warn_once(message: str) -> None:
    logger.warning(message)
