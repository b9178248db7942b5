"""Values of the published configuration, precedence, and one clear line for each mistake."""

import copy
import functools
import json
import re
from pathlib import Path

import pytest

from config import config_from_resolved, load_config, parse_overrides
from config.loading import _warn_once
from config.schema import IGNORED_KEYS, PRESETS
from utils.errors import ConfigError

PUBLISHED = {  # key: (mosi, mosei), from the released configuration
    "feature_dims": ([768, 5, 20], [768, 74, 35]), "attn_dropout_a": (0.2, 0.0), "attn_dropout_v": (0.0, 0.0),
    "relu_dropout": (0.0, 0.0), "embed_dropout": (0.2, 0.0), "res_dropout": (0.0, 0.0),
    "dst_feature_dim_nheads": ([50, 10], [30, 6]), "batch_size": (16, 16), "learning_rate": (1e-4, 1e-4),
    "nlevels": (4, 4), "conv1d_kernel_size_l": (5, 5), "conv1d_kernel_size_a": (5, 1),
    "conv1d_kernel_size_v": (5, 3), "text_dropout": (0.5, 0.3), "attn_dropout": (0.3, 0.4),
    "output_dropout": (0.5, 0.5), "grad_clip": (0.6, 0.6), "patience": (5, 5), "weight_decay": (0.005, 0.001),
    "transformers": ("bert", "bert"), "pretrained": ("bert-base-uncased", "bert-base-uncased"),
    "featurePath": ("./dataset/MOSI/aligned_50.pkl", "./dataset/MOSEI/aligned_50.pkl"),
}  # fmt: skip
ALIKE = {"early_stop": 10, "update_epochs": 10, "use_bert": True, "use_finetune": True, "attn_mask": True,
         "need_data_aligned": True, "KeyEval": "Loss", "lambda_decoupling": 0.1, "lambda_distillation": 0.05,
         "gamma": 0.1, "margin_slope": 0.15, "homo_gd_size": 64, "hetero_gd_size": 32}  # fmt: skip
OLD_FILE = {  # the layout of this family before there was an objectiveParams section
    "datasetCommonParams": {
        "dataset_root_dir": "/data",
        "mosi": {
            "aligned": {"featurePath": "MOSI/aligned_50.pkl", "feature_dims": [768, 5, 20], "train_samples": 1284,
                        "num_classes": 3, "language": "en", "KeyEval": "Loss"},
        },
    },
    "dmd": {
        "commonParams": {"need_data_aligned": True, "need_model_aligned": True, "early_stop": 10, "use_bert": True,
                         "use_finetune": True, "attn_mask": True, "update_epochs": 10},
        "datasetParams": {"mosi": {"batch_size": 24, "nlevels": 3, "early_stop": 3}},
    },
}  # fmt: skip


def write(folder: Path, content) -> str:
    path = folder / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def edited(*path_and_value) -> dict:
    """OLD_FILE with the value at a path of keys replaced, or removed for None."""
    *path, key, value = path_and_value
    content = copy.deepcopy(OLD_FILE)
    section = functools.reduce(dict.__getitem__, path, content)
    section.pop(key, None) if value is None else section.update({key: value})
    return content


@pytest.mark.parametrize(("column", "dataset"), [(0, "mosi"), (1, "MOSEI")])
def test_published_values(column, dataset):
    args = load_config("DMD", dataset)
    published = {key: values[column] for key, values in PUBLISHED.items()} | ALIKE
    assert {key: args[key] for key in published} == published
    assert (args.model_name, args.dataset_name) == ("dmd", dataset.lower())


def test_an_old_file_loads_and_the_rest_is_the_release_s(tmp_path, caplog):
    _warn_once.cache_clear()
    for _ in range(2):
        args = load_config("dmd", "mosi", write(tmp_path, OLD_FILE | {"misa": {"commonParams": {"x": 1}}}))
    told = [record.getMessage() for record in caplog.records]  # once
    assert len(told) == 1 and all(key in told[0] for key in ("language", "train_samples", "need_model_aligned"))
    assert not set(args) & set(IGNORED_KEYS)
    # A data set's section beats the common one.
    assert (args.nlevels, args.early_stop, args.featurePath) == (3, 3, "/data/MOSI/aligned_50.pkl")
    assert args.hetero_gd_prior == [0, 0, 1, 0, 1, 1] and args.max_epochs is None
    assert load_config("dmd", "mosi", write(tmp_path, OLD_FILE), {"batch_size": 4}).batch_size == 4


def test_unaligned_features_and_absolute_paths(tmp_path):
    unaligned = load_config("dmd", "mosi", overrides={"need_data_aligned": False})
    assert unaligned.featurePath == "./dataset/MOSI/unaligned_50.pkl"
    assert load_config("dmd", "mosi", overrides={"featurePath": "/my/own.pkl"}).featurePath == "/my/own.pkl"
    only = edited("datasetCommonParams", "mosi", {"unaligned": {"featurePath": "u.pkl"}})
    args = load_config("dmd", "mosi", write(tmp_path, only))  # commonParams speak of data sets that have both
    assert (args.need_data_aligned, args.featurePath) == (False, "/data/u.pkl")


RELEASE, PAPER = PRESETS["release"], PRESETS["paper"]


def switches(*arguments) -> dict:
    args = load_config("dmd", "mosi", *arguments)
    return {key: args[key] for key in RELEASE}


def test_what_is_set_beats_the_objective_whichever_layer_names_it(tmp_path):
    assert switches() == switches(write(tmp_path, OLD_FILE)) == RELEASE
    assert switches("", {"objective": "paper", "ort": "feature"}) == PAPER | {"ort": "feature"}
    # Another objective over the file's: what that had chosen goes, what the file sets itself stays.
    own = write(tmp_path, edited("dmd", "objectiveParams", {"objective": "paper", "fusion": "gate"}))
    assert switches(own) == PAPER
    assert switches(own, {"objective": "release"}) == RELEASE | {"fusion": "gate"}
    assert switches(own, {"objective": "release", "fusion": None}) == RELEASE  # null: as the objective says


BAD_FILES = [
    ('{"dmd": [1\n 2]}', "line 2 column 2"),
    (edited("dmd", None) | {"dmdd": {}}, "dmd is missing"),
    (edited("dmd", "commonParams", "early_stopp", 3), "'early_stopp'.*early_stop"),
    (edited("dmd", "datasetParams", "mosi", "nlevels", "4"), 'own.json: nlevels is "4"; .*integer'),
    (edited("dmd", "commonParams", "need_data_aligned", False), "no 'unaligned' features"),
    (edited("dmd", "datasetParams", {"mosii": {}}), "'mosii'.*mosi"),
    (edited("datasetCommonParams", "dataset_rot_dir", "x"), "dataset_root_dir"),
    (edited("datasetCommonParams", "../x", {}), "../x"),
    (json.dumps(OLD_FILE).replace('"nlevels": 3', '"nlevels": 3, "nlevels": 4'), "nlevels.*twice"),
]
BAD_OVERRIDES = [
    ("batch_size", 0, "greater than or equal to 1"),
    ("grad_clip", -0.5, "-1 for no clipping"),
    ("dst_feature_dim_nheads", [50, 7], "divisible"),
    ("gamma", float("nan"), "finite"),
    ("ort", "width", "'batch', 'feature' or 'paper'"),
    ("batch_siz", 4, "did you mean batch_size"),
    ("a\nb", 1, "'a b'"),  # one line, whatever the key holds
]


def assert_refused(pattern: str, *arguments) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(*arguments)
    assert re.search(pattern, str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_what_is_wrong_is_one_line_that_says_where(tmp_path):
    for content, pattern in BAD_FILES:
        assert_refused(pattern, "dmd", "mosi", write(tmp_path, content))
    for key, value, pattern in BAD_OVERRIDES:
        assert_refused(f"--set.*{pattern}", "dmd", "mosi", "", {key: value})
    assert_refused("'mosii'.*mosi", "dmd", "mosii")
    assert_refused("'misa'", "misa", "mosi")
    assert_refused("none.json.*No such file", "dmd", "mosi", "none.json")
    assert_refused("directory|regular", "dmd", "mosi", str(tmp_path))
    with pytest.raises(ConfigError, match="key=value"):
        parse_overrides(["batch_size"])


def test_resolved_settings_come_back_as_they_were():
    args = load_config("dmd", "mosei", overrides={"objective": "paper", "ort": "feature"})
    stored = json.loads(json.dumps(dict(args, seq_lens=[50, 50, 50], num_classes=3, optimizer="adam")))
    assert config_from_resolved(stored) == args
    assert config_from_resolved(stored, {"batch_size": 2}).batch_size == 2
    assert config_from_resolved(stored, {"dataset_root_dir": "/d"}).featurePath == "/d/MOSEI/aligned_50.pkl"
    assert config_from_resolved(stored, {"featurePath": "x.pkl"}).featurePath == "./dataset/x.pkl"


def test_overrides_are_json_where_they_can_be():
    items = ["a=1", "b=[1, 2]", "c=true", "d=False", "e=bert-base", "f=1e-4", "g=x=y", "a=2", "h=null"]
    given = {"a": 2, "b": [1, 2], "c": True, "d": False, "e": "bert-base", "f": 1e-4, "g": "x=y", "h": None}
    assert parse_overrides(items) == given
