"""From a JSON file of this family, and overrides, to the checked settings of one data set."""

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from easydict import EasyDict
from pydantic import ValidationError

from config.schema import PRESETS, SETTING_NAMES, DMDConfig
from utils.errors import ConfigError
from utils.reading import NAME_CHARACTERS, printable, read_json

DEFAULT_FILE = Path(__file__).parent / "config.json"
MODEL_SECTIONS = ("commonParams", "objectiveParams", "datasetParams")
VARIANTS = ("aligned", "unaligned")
COMMAND_LINE = "--set"
RUN_FILE = "the run's config.json"


def load_config(
    model_name: str, dataset_name: str, config_file: str | Path = "", overrides: dict | None = None
) -> EasyDict:
    """Settings of one model on one data set: defaults < file (default config/config.json) < overrides.

    Switches that are set nowhere, or to null, follow `objective`, whichever layer named it.

    -> EasyDict of every setting, with model_name and dataset_name; featurePath is joined to dataset_root_dir.
    Raises ConfigError in one line that names file, key, value and what is allowed.
    """
    path = Path(config_file) if str(config_file) else DEFAULT_FILE
    content = read_object(path)
    overrides = dict(overrides or {})
    check_names(overrides, SETTING_NAMES, COMMAND_LINE, path, "key")
    model_name = model_name.lower()
    if model_name != "dmd":
        raise ConfigError(f"{path}: no model '{model_name}' here; expected a section 'dmd', the only model there is.")
    check_names(content, None, path, path, "section", required=("datasetCommonParams", model_name))

    datasets, model = content["datasetCommonParams"], content[model_name]
    check_names(model, MODEL_SECTIONS, f"{model_name} of {path}", path, "section", required=("commonParams",))
    known = _data_sets(datasets, path)
    dataset_name = _find(dataset_name, known, path)
    layers = {
        f"{model_name}.commonParams": model["commonParams"],
        f"{model_name}.objectiveParams": model.get("objectiveParams", {}),
        f"{model_name}.datasetParams.{dataset_name}": _own_section(
            model.get("datasetParams", {}), dataset_name, known, f"{model_name}.datasetParams of {path}"
        ),
    }
    root = {key: value for key, value in datasets.items() if key == "dataset_root_dir"}
    merged, origin = _merge({"datasetCommonParams": root} | layers, path)
    variants = datasets[dataset_name]
    check_names(variants, VARIANTS, f"datasetCommonParams.{dataset_name} of {path}", path, "section")
    asked = overrides | layers[f"{model_name}.datasetParams.{dataset_name}"]
    if list(variants) == ["unaligned"] and "need_data_aligned" not in asked and merged.get("need_data_aligned") is True:
        merged["need_data_aligned"] = False  # the commonParams speak of data sets that have both
    # Only `false` means unaligned; a value of another type gets its own error below.
    variant = "unaligned" if (merged | overrides).get("need_data_aligned", True) is False else "aligned"
    if variant not in variants:
        raise ConfigError(
            f"{path}: datasetCommonParams.{dataset_name} has no '{variant}' features. Add them, or set "
            f"need_data_aligned to {str(variant == 'unaligned').lower()}."
        )
    # The model's sections are the stronger ones, so that a data set's own section there may override anything.
    files = {f"datasetCommonParams.{dataset_name}.{variant}": variants[variant]}
    base, base_origin = _merge(files, path)
    origin = base_origin | origin | dict.fromkeys(overrides, COMMAND_LINE)
    settings = _validate(base | merged | overrides, origin)
    settings.featurePath = os.path.join(settings.dataset_root_dir, settings.featurePath)
    return EasyDict(settings, model_name=model_name, dataset_name=dataset_name)


def config_from_resolved(settings: dict, overrides: dict | None = None) -> EasyDict:
    """Check settings that were resolved before (a run's config.json), with overrides on top.

    An overriding featurePath is relative to dataset_root_dir, as in `load_config`. An overriding objective replaces
    the switches that have the value which the stored objective chooses; one set to another value stays.
    """
    check_names(settings, None, RUN_FILE, "", "key")
    settings, overrides = dict(settings), dict(overrides or {})
    names = {key: settings.pop(key, "") for key in ("model_name", "dataset_name")}
    settings.pop("seq_lens", None)  # what the data had, not a setting
    for layer in (settings, overrides):
        check_names(layer, SETTING_NAMES, COMMAND_LINE if layer is overrides else RUN_FILE, "", "key")
    if "objective" in overrides:
        chosen = PRESETS.get(str(settings.get("objective")), {})
        settings = {key: value for key, value in settings.items() if key not in chosen or value != chosen[key]}
    origin = dict.fromkeys(settings, RUN_FILE) | dict.fromkeys(overrides, COMMAND_LINE)
    checked = _validate(settings | overrides, origin)
    if "dataset_root_dir" in overrides and "featurePath" not in overrides:
        raise ConfigError(
            f"{COMMAND_LINE}: dataset_root_dir says where a relative featurePath starts, and the run's is "
            f"{show(checked.featurePath)}. Set featurePath too."
        )
    if "featurePath" in overrides:
        checked.featurePath = os.path.join(checked.dataset_root_dir, checked.featurePath)
    elif names["dataset_name"] == "synthetic" and _elsewhere(checked.featurePath):
        # The embedded data set would be made there: wherever a stranger's file says.
        raise ConfigError(
            f"{RUN_FILE}: featurePath is {show(checked.featurePath)}, where no file is. Name the features with "
            "--set featurePath=FILE."
        )
    return EasyDict(checked, **names)


def _elsewhere(path: str) -> bool:
    return not os.path.exists(path) and (os.path.isabs(path) or ".." in Path(path).parts)


def parse_overrides(items: Iterable[str]) -> dict:
    """['batch_size=32', 'pretrained=bert-base-cased'] -> {key: value}, values as JSON where they are JSON.

    Raises ConfigError for an item without '='.
    """
    overrides = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{COMMAND_LINE}: '{item}' is not of the form key=value.")
        try:
            overrides[key.strip()] = json.loads(text)
        except (ValueError, RecursionError):
            words = {"True": True, "False": False, "None": None}  # Python's spelling of JSON's words
            overrides[key.strip()] = words.get(text.strip(), text)
    return overrides


def read_object(
    path: Path,
    expected: str = "'datasetCommonParams' and 'dmd'",
    kind: str = "config file",
    instead: str = "leave out -c for the default",
) -> dict:
    """The JSON object in a file; `expected` says what it should hold, `instead` what to do where there is none."""
    if os.path.isdir(path):
        raise ConfigError(f"{path}: a folder, not a {kind}. Name the JSON file in it.")
    if not os.path.exists(path):
        raise ConfigError(f"{path}: no such {kind}. Name another, or {instead}.")
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or printable(error, 160)
        raise ConfigError(f"{path}: not a readable JSON text file: {reason}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object with {expected}, got {show(content)}.")
    return content


def _data_sets(datasets: dict, path: Path) -> list[str]:
    """Names of the data sets; anything that is no section there can only be dataset_root_dir."""
    for name, section in datasets.items():
        if name != "dataset_root_dir" and not isinstance(section, dict):
            where = f"datasetCommonParams.{name} of {path}"
            raise ConfigError(f"{where}: expected an object, got {show(section)}; the only plain key beside the "
                              "data sets is 'dataset_root_dir'.")  # fmt: skip
    return [name for name in datasets if name != "dataset_root_dir"]


def _find(dataset_name: str, known: list[str], path: Path) -> str:
    """The data set as the file spells it: capitals do not matter unless they tell two of them apart."""
    found = [name for name in known if name == dataset_name] or [n for n in known if n.lower() == dataset_name.lower()]
    if len(found) != 1:
        listed = printable(", ".join(known), 200)
        raise ConfigError(f"data set '{printable(dataset_name)}' is not in {path}; it has {listed}. Use one of them.")
    if not re.fullmatch(r"[\w-]+", found[0]):
        raise ConfigError(
            f"{path}: the data set {show(found[0])} gives files their name: use letters, digits, - and _."
        )
    return found[0]


def _own_section(sections, dataset_name: str, known: list[str], where: str) -> dict:
    """The data set's section, or {} without one; a misspelt one must not pass for none."""
    check_names(sections, None, where, "", "section")
    if dataset_name not in sections:
        strangers = [name for name in sections if name not in known]
        for name in difflib.get_close_matches(dataset_name, strangers, n=1, cutoff=0.8):
            raise ConfigError(f"{where}: unknown section {show(name)}; did you mean '{dataset_name}'?")
    return sections.get(dataset_name, {})


def check_names(names, known, where, path, kind: str, required: tuple[str, ...] = ()) -> None:
    """Refuse a section that is no object, an unknown name in it (naming the nearest known one), a missing one."""
    if not isinstance(names, dict):
        raise ConfigError(f"{where}: expected an object, got {show(names)}.")
    for name in names:
        if known is not None and name not in known:
            nearest = difflib.get_close_matches(str(name)[:NAME_CHARACTERS], known, n=1, cutoff=0.0)
            shown = show(str(name))[1:-1]  # escaped: a name may hold a line break
            raise ConfigError(f"{where}: unknown {kind} '{shown}'; the nearest known one is '{nearest[0]}'.")
    for name in required:
        if not isinstance(names.get(name), dict):
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f"; is '{nearest[0]}' meant to be it?" if nearest and nearest[0] != name else "."
            raise ConfigError(f"{path}: the section '{name}' is missing or no object{hint}")


def _merge(layers: dict[str, dict], path: Path) -> tuple[dict, dict[str, str]]:
    """Later layers win.  -> (settings, where each comes from)"""
    settings, origin = {}, {}
    for section, layer in layers.items():
        where = f"{section} of {path}"
        check_names(layer, SETTING_NAMES, where, path, "key")
        settings |= layer
        origin |= dict.fromkeys(layer, where)
    return settings, origin


def _validate(settings: dict, origin: dict[str, str]) -> EasyDict:
    try:
        return EasyDict(DMDConfig(**settings).model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # a condition on several settings
            key = first["msg"].removeprefix("Value error, ").split()[0]
            raise ConfigError(f"{origin.get(key, 'config')}: {first['msg'].removeprefix('Value error, ')}.") from error
        key = first["loc"][0]
        if first["type"] == "missing":
            raise ConfigError(f"config: '{key}' is missing.") from error
        where, allowed = origin.get(key, "config"), first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"{where}: {key} is {show(settings[key])}; {allowed}.") from error


def show(value) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = f"a {type(value).__name__} nested deeply"
    return text if len(text) <= 80 else text[:77] + "..."
