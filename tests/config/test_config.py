"""Published values, precedence of layers, and one-line messages for mistakes."""

import copy
import json
import re
from pathlib import Path

import pytest

from config import config_from_resolved, load_config, parse_overrides
from config.loading import _warn_once
from config.schema import IGNORED_KEYS, PRESETS, DMDConfig
from utils.errors import ConfigError

PUBLISHED = {  # key: (mosi, mosei), from the released configuration
    "feature_dims": ([768, 5, 20], [768, 74, 35]),
    "attn_dropout_a": (0.2, 0.0),
    "attn_dropout_v": (0.0, 0.0),
    "relu_dropout": (0.0, 0.0),
    "embed_dropout": (0.2, 0.0),
    "res_dropout": (0.0, 0.0),
    "dst_feature_dim_nheads": ([50, 10], [30, 6]),
    "batch_size": (16, 16),
    "learning_rate": (1e-4, 1e-4),
    "nlevels": (4, 4),
    "conv1d_kernel_size_l": (5, 5),
    "conv1d_kernel_size_a": (5, 1),
    "conv1d_kernel_size_v": (5, 3),
    "text_dropout": (0.5, 0.3),
    "attn_dropout": (0.3, 0.4),
    "output_dropout": (0.5, 0.5),
    "grad_clip": (0.6, 0.6),
    "patience": (5, 5),
    "weight_decay": (0.005, 0.001),
    "transformers": ("bert", "bert"),
    "pretrained": ("bert-base-uncased", "bert-base-uncased"),
    "featurePath": ("./dataset/MOSI/aligned_50.pkl", "./dataset/MOSEI/aligned_50.pkl"),
}
PUBLISHED_FOR_BOTH = {
    "early_stop": 10,
    "update_epochs": 10,
    "use_bert": True,
    "use_finetune": True,
    "attn_mask": True,
    "need_data_aligned": True,
    "KeyEval": "Loss",
    "lambda_decoupling": 0.1,
    "lambda_distillation": 0.05,
    "gamma": 0.1,
    "margin_slope": 0.15,
    "homo_gd_size": 64,
    "hetero_gd_size": 32,
}
OLD_FILE = {  # as released, before the section objectiveParams existed
    "datasetCommonParams": {
        "dataset_root_dir": "/data",
        "mosi": {
            "aligned": {
                "featurePath": "MOSI/aligned_50.pkl",
                "feature_dims": [768, 5, 20],
                "train_samples": 1284,
                "num_classes": 3,
                "language": "en",
                "KeyEval": "Loss",
            },
        },
    },
    "dmd": {
        "commonParams": {
            "need_data_aligned": True,
            "need_model_aligned": True,
            "early_stop": 10,
            "use_bert": True,
            "use_finetune": True,
            "attn_mask": True,
            "update_epochs": 10,
        },
        "datasetParams": {"mosi": {"batch_size": 24, "nlevels": 3, "early_stop": 3}},
    },
}
RELEASE = PRESETS["release"]
PAPER = PRESETS["paper"]


def write(folder: Path, content) -> str:
    """Write a config file; texts are written as they are."""
    path = folder / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def edited(*path_and_value) -> dict:
    """Copy OLD_FILE and replace the value at a path of keys, or remove it if the value is None."""
    *path, key, value = path_and_value
    content = copy.deepcopy(OLD_FILE)
    section = content
    for name in path:
        section = section[name]
    if value is None:
        del section[key]
    else:
        section[key] = value
    return content


def load_switches(*arguments) -> dict:
    """The switches that load_config resolves."""
    args = load_config("dmd", "mosi", *arguments)
    return {key: args[key] for key in RELEASE}


@pytest.mark.parametrize(("column", "dataset"), [(0, "mosi"), (1, "MOSEI")], ids=["mosi", "mosei"])
def test_default_config_has_the_published_values(column, dataset):
    args = load_config("DMD", dataset)
    for key, values in PUBLISHED.items():
        assert args[key] == values[column], key
    for key, value in PUBLISHED_FOR_BOTH.items():
        assert args[key] == value, key
    assert (args.model_name, args.dataset_name) == ("dmd", dataset.lower())


def test_defaults_have_the_types_of_validated_values():
    defaults = DMDConfig(featurePath="x").model_dump()
    assert repr(DMDConfig(**defaults).model_dump()) == repr(defaults)


def test_released_file_loads_with_one_warning_about_ignored_keys(tmp_path, caplog):
    _warn_once.cache_clear()
    file = write(tmp_path, OLD_FILE | {"misa": {"commonParams": {"x": 1}}})
    args = load_config("dmd", "mosi", file)
    load_config("dmd", "mosi", file)
    assert not set(args) & set(IGNORED_KEYS)
    (warning,) = [record.getMessage() for record in caplog.records]
    for key in ("language", "train_samples", "need_model_aligned"):
        assert key in warning


def test_overrides_replace_the_file_and_its_sections_replace_common_values(tmp_path):
    file = write(tmp_path, OLD_FILE)
    args = load_config("dmd", "mosi", file)
    assert (args.nlevels, args.early_stop, args.batch_size) == (3, 3, 24)
    assert args.featurePath == "/data/MOSI/aligned_50.pkl"
    assert args.hetero_gd_prior == [0, 0, 1, 0, 1, 1] and args.max_epochs is None
    assert load_config("dmd", "mosi", file, {"batch_size": 4}).batch_size == 4


def test_need_data_aligned_selects_the_feature_file():
    unaligned = load_config("dmd", "mosi", overrides={"need_data_aligned": False})
    assert unaligned.featurePath == "./dataset/MOSI/unaligned_50.pkl"


def test_data_set_with_unaligned_features_only_needs_no_flag(tmp_path):
    content = edited("datasetCommonParams", "mosi", {"unaligned": {"featurePath": "u.pkl"}})
    args = load_config("dmd", "mosi", write(tmp_path, content))
    assert (args.need_data_aligned, args.featurePath) == (False, "/data/u.pkl")


def test_absolute_feature_path_is_unchanged():
    args = load_config("dmd", "mosi", overrides={"featurePath": "/my/own.pkl"})
    assert args.featurePath == "/my/own.pkl"


def test_released_objective_is_the_default(tmp_path):
    assert load_switches() == RELEASE
    assert load_switches(write(tmp_path, OLD_FILE)) == RELEASE


def test_explicit_switches_win_over_the_objective_of_any_layer(tmp_path):
    assert load_switches("", {"objective": "paper", "ort": "feature"}) == PAPER | {"ort": "feature"}
    params = {"objective": "paper", "fusion": "gate"}
    file = write(tmp_path, edited("dmd", "objectiveParams", params))
    assert load_switches(file) == PAPER
    # The preset of the file's objective goes, the switch that the file sets stays.
    assert load_switches(file, {"objective": "release"}) == RELEASE | {"fusion": "gate"}
    # null means: as the objective defines.
    assert load_switches(file, {"objective": "release", "fusion": None}) == RELEASE


REPEATED = json.dumps(OLD_FILE).replace('"nlevels": 3', '"nlevels": 3, "nlevels": 4')
BAD_FILES = {
    "no JSON": ('{"dmd": [1\n 2]}', "line 2 column 2"),
    "missing section": (edited("dmd", None) | {"dmdd": {}}, "dmd is missing"),
    "missing key": (
        edited("datasetCommonParams", "mosi", "aligned", {"feature_dims": [1, 1, 1]}),
        "own.json: featurePath is missing",
    ),
    "unknown setting": (
        edited("dmd", "commonParams", "early_stopp", 3),
        "'early_stopp'.*early_stop",
    ),
    "text for a number": (
        edited("dmd", "datasetParams", "mosi", "nlevels", "4"),
        'own.json: nlevels is "4"; .*integer',
    ),
    "features that the file lacks": (
        edited("dmd", "commonParams", "need_data_aligned", False),
        "no 'unaligned' features",
    ),
    "misspelt data set": (edited("dmd", "datasetParams", {"mosii": {}}), "'mosii'.*mosi"),
    "misspelt root": (edited("datasetCommonParams", "dataset_rot_dir", "x"), "dataset_root_dir"),
    "path as a name": (edited("datasetCommonParams", "../x", {}), "../x"),
    "repeated key": (REPEATED, "nlevels.*twice"),
}
BAD_OVERRIDES = {
    "too small": ("batch_size", 0, "greater than or equal to 1"),
    "negative clipping": ("grad_clip", -0.5, "-1 for no clipping"),
    "indivisible width": ("dst_feature_dim_nheads", [50, 7], "divisible"),
    "decoupling loss without parts": (
        "feature_decoupling",
        False,
        "lambda_decoupling.*set it to 0",
    ),
    "element of a list": ("homo_gd_prior", [0, 0, "1", 0, 0, 0], r'is \[0, 0, "1".*number'),
    "NaN": ("gamma", float("nan"), "finite"),
    "unknown value": ("ort", "width", "'batch', 'feature' or 'paper'"),
    "unknown key": ("batch_siz", 4, "did you mean batch_size"),
    "key of two lines": ("a\nb", 1, "'a b'"),
    "key without effect": ("optimizer", "adam", "optimizer has no effect here"),
}


def assert_refused(pattern: str, *arguments) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(*arguments)
    assert re.search(pattern, str(error.value)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "pattern"), BAD_FILES.values(), ids=list(BAD_FILES))
def test_invalid_file_is_refused_in_one_line(content, pattern, tmp_path):
    assert_refused(pattern, "dmd", "mosi", write(tmp_path, content))


@pytest.mark.parametrize(
    ("key", "value", "pattern"), BAD_OVERRIDES.values(), ids=list(BAD_OVERRIDES)
)
def test_invalid_override_is_refused_in_one_line(key, value, pattern):
    source = "" if key == "feature_decoupling" else "--set.*"  # there, the key to change is another
    assert_refused(source + pattern, "dmd", "mosi", "", {key: value})


@pytest.mark.parametrize("key", IGNORED_KEYS)
def test_override_without_effect_is_refused_for_saved_settings_too(key):
    saved = dict(load_config("dmd", "mosei"), optimizer="adam")
    with pytest.raises(ConfigError, match=f"^--set: {key} has no effect here"):
        config_from_resolved(saved, {key: None})


def test_error_about_several_settings_names_the_source_of_the_one_to_change(tmp_path):
    file = write(tmp_path, edited("dmd", "commonParams", "feature_decoupling", False))
    assert_refused("^[^:]*own.json: lambda_decoupling is 0.1; set it", "dmd", "mosi", file)
    changed = {"lambda_decoupling": 0.5}
    assert_refused("^--set: lambda_decoupling is 0.5; set it", "dmd", "mosi", file, changed)


def test_unknown_names_and_unreadable_files_are_refused(tmp_path):
    assert_refused("'mosii'.*mosi", "dmd", "mosii")
    assert_refused("'misa'", "misa", "mosi")
    assert_refused("none.json.*No such file", "dmd", "mosi", "none.json")
    assert_refused("directory|regular", "dmd", "mosi", str(tmp_path))


def test_saved_settings_load_unchanged():
    args = load_config("dmd", "mosei", overrides={"objective": "paper", "ort": "feature"})
    saved = dict(args, seq_lens=[50, 50, 50], num_classes=3, optimizer="adam")
    saved = json.loads(json.dumps(saved))
    assert config_from_resolved(saved) == args
    assert saved["dataset_name"] == "mosei"  # not changed in place


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("dataset_root_dir", "/d", "/d/MOSEI/aligned_50.pkl"),
        ("featurePath", "x.pkl", "./dataset/x.pkl"),
        ("batch_size", 2, "./dataset/MOSEI/aligned_50.pkl"),
    ],
    ids=["root", "path", "other"],
)
def test_saved_settings_accept_overrides(key, value, path):
    args = config_from_resolved(dict(load_config("dmd", "mosei")), {key: value})
    assert args.featurePath == path
    assert key == "featurePath" or args[key] == value


def test_invalid_saved_settings_are_refused_as_run_json():
    saved = dict(load_config("dmd", "mosei"), gamma=-1)
    with pytest.raises(ConfigError, match="run.json: gamma is -1"):
        config_from_resolved(saved)


def test_overrides_are_parsed_as_json_where_possible():
    items = [
        "a=1",
        "b=[1, 2]",
        "c=true",
        "d=False",
        "e=bert-base",
        "f=1e-4",
        "g=x=y",
        "a=2",
        "h=null",
    ]
    expected = {"a": 2, "b": [1, 2], "c": True, "d": False, "e": "bert-base"}
    expected.update({"f": 1e-4, "g": "x=y", "h": None})
    assert parse_overrides(items) == expected


@pytest.mark.parametrize("item", ["batch_size", "=4"])
def test_override_without_key_or_value_is_refused(item):
    with pytest.raises(ConfigError, match="key=value"):
        parse_overrides([item])
