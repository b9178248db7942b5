"""Suites and search spaces: what they mean, and one-line messages for mistakes."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from config import load_config
from config.variations import (
    DEFAULT_SPACE,
    SUITES,
    extreme_values,
    load_search_space,
    load_suite,
    suggest,
)
from utils.errors import ConfigError

CHOICES = [[0.9, 0.999], [0.8, 0.99], None, "gate", 1, True]


def write(folder: Path, content) -> Path:
    path = folder / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load_one(folder: Path, entry) -> optuna.distributions.BaseDistribution:
    """The distribution of a search space with this entry alone."""
    return load_search_space(write(folder, {"key": entry}))["key"]


def test_ranges_and_choices_become_optuna_distributions(tmp_path):
    path = write(
        tmp_path,
        {
            "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "nlevels": {"type": "int", "low": 2, "high": 5.0},
            "fusion": ["gate", None],
        },
    )
    space = load_search_space(path)
    assert list(space) == ["learning_rate", "nlevels", "fusion"]
    assert space["learning_rate"] == FloatDistribution(1e-4, 1e-2, log=True)
    assert space["nlevels"] == IntDistribution(2, 5)
    assert space["fusion"] == CategoricalDistribution(['"gate"', "null"])


def test_extreme_values_are_both_bounds_or_every_choice(tmp_path):
    assert extreme_values(load_one(tmp_path, {"type": "float", "low": 0, "high": 1})) == [0.0, 1.0]
    bounds = extreme_values(load_one(tmp_path, {"type": "int", "low": 1, "high": 4, "log": True}))
    assert repr(bounds) == "[1, 4]"
    assert repr(extreme_values(load_one(tmp_path, CHOICES))) == repr(CHOICES)


def test_suggested_values_have_the_types_of_the_file(tmp_path):
    path = write(
        tmp_path,
        {
            "rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "layers": {"type": "int", "low": 2, "high": 3},
            "any": CHOICES,
        },
    )
    space = load_search_space(path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = {name: [] for name in space}
    for _ in range(50):
        trial = study.ask()
        for name, distribution in space.items():
            drawn[name].append(suggest(trial, name, distribution))
        assert trial.distributions == space
    assert all(1e-4 <= rate <= 1e-2 for rate in drawn["rate"])
    assert {repr(layers) for layers in drawn["layers"]} == {"2", "3"}
    assert {repr(value) for value in drawn["any"]} == {repr(value) for value in CHOICES}


GOOD = {"type": "float", "low": 1, "high": 2}
BAD_ENTRIES = {
    "empty list": ([], "at least one"),
    "neither list nor range": (3, " is 3; expected a list or a range"),
    "misspelt key": ({**GOOD, "hihg": 3}, "unknown key 'hihg'; did you mean high"),
    "missing bound": ({"type": "float", "low": 1}, "high is missing"),
    "missing type": ({"low": 1, "high": 2}, "type is missing"),
    "unknown type": ({**GOOD, "type": "double"}, 'type is "double"'),
    "list as type": ({**GOOD, "type": ["int"]}, 'type is \\["int"\\]'),
    "low above high": ({**GOOD, "low": 3}, "low .3. is greater than high .2."),
    "text as bound": ({**GOOD, "low": "1"}, 'low is "1"; expected a number'),
    "flag as bound": ({**GOOD, "high": True}, "high is true; expected a number"),
    "number as flag": ({**GOOD, "log": 1}, "log is 1; expected true or false"),
    "infinite bound": ({**GOOD, "high": float("inf")}, "high is Infinity; expected a finite"),
    "NaN as bound": ({**GOOD, "low": float("nan")}, "low is NaN; expected a finite"),
    "bound beyond floats": ({**GOOD, "high": 10**400}, "high is 1000.*finite"),
    "logarithm of zero": ({**GOOD, "low": 0, "log": True}, "low is 0; expected more than 0"),
    "fractions of an int": ({"type": "int", "low": 0.5, "high": 2}, "low is 0.5; .*whole number"),
}


@pytest.mark.parametrize(("entry", "pattern"), BAD_ENTRIES.values(), ids=list(BAD_ENTRIES))
def test_invalid_search_space_is_refused_in_one_line(entry, pattern, tmp_path):
    with pytest.raises(ConfigError, match=f"own.json: key.*{pattern}") as error:
        load_one(tmp_path, entry)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [({}, "empty"), ([1], "dictionary"), ("[1", "not a readable JSON search space")],
    ids=["empty", "list", "no JSON"],
)
def test_file_without_search_space_is_refused(content, pattern, tmp_path):
    with pytest.raises(ConfigError, match=f"own.json: .*{pattern}"):
        load_search_space(write(tmp_path, content))


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "synthetic"])
def test_settings_allow_every_value_of_the_default_search_space(dataset):
    for key, distribution in load_search_space(DEFAULT_SPACE).items():
        for value in extreme_values(distribution):
            load_config("dmd", dataset, overrides={key: value})


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "synthetic"])
@pytest.mark.parametrize("name", SUITES)
def test_settings_allow_every_row_of_the_built_in_suites(name, dataset):
    suite = load_suite(name)
    for overrides in suite.rows.values():
        load_config("dmd", dataset, overrides=overrides)
    assert suite.description
    assert list(suite.rows.values()).count({}) == 1


def test_suite_has_defaults(tmp_path):
    suite = load_suite(str(write(tmp_path, {"rows": {"a": {}}})))
    assert suite.modalities == ["lva"]
    assert suite.heads == [] and suite.published == [] and suite.description == ""


BAD_SUITES = {
    "unknown key": ({"rows": {"a": {}}, "masks": []}, "masks"),
    "removed key": ({"rows": {"a": {}}, "kept": ["l"]}, "kept has been renamed; use modalities"),
    "unknown modality": ({"rows": {"a": {}}, "modalities": ["x"]}, 'modalities.0 is "x"'),
    "no rows": ({"rows": {}}, "rows is {}"),
    "row that names no folder": ({"rows": {"../a": {}}}, r"\.\./a"),
    "unknown metric": (
        {"rows": {"a": {}}, "published": [{"source": "s", "rows": {"a": {"Acc": 1.0}}}]}, "Acc",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "pattern"), BAD_SUITES.values(), ids=list(BAD_SUITES))
def test_invalid_suite_is_refused_in_one_line(content, pattern, tmp_path):
    with pytest.raises(ConfigError, match=f"own.json: .*{pattern}") as error:
        load_suite(str(write(tmp_path, content)))
    assert "\n" not in str(error.value)


def test_unknown_suite_is_refused_with_the_built_in_ones():
    with pytest.raises(ConfigError, match="tabel3: .*heads, losses, table3"):
        load_suite("tabel3")
