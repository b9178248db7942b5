"""Values of the published configuration, precedence, and one clear line for each mistake."""

import json
import re
from pathlib import Path

import pytest

from config import config_from_resolved, load_config, parse_overrides
from config.schema import IGNORED_KEYS, PRESETS, SETTING_NAMES, DMDConfig
from utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {  # key: (mosi, mosei), from the released configuration
    "feature_dims": ([768, 5, 20], [768, 74, 35]), "attn_dropout_a": (0.2, 0.0), "attn_dropout_v": (0.0, 0.0),
    "relu_dropout": (0.0, 0.0), "embed_dropout": (0.2, 0.0), "res_dropout": (0.0, 0.0),
    "dst_feature_dim_nheads": ([50, 10], [30, 6]), "batch_size": (16, 16), "learning_rate": (1e-4, 1e-4),
    "nlevels": (4, 4), "conv1d_kernel_size_l": (5, 5), "conv1d_kernel_size_a": (5, 1),
    "conv1d_kernel_size_v": (5, 3), "text_dropout": (0.5, 0.3), "attn_dropout": (0.3, 0.4),
    "output_dropout": (0.5, 0.5), "grad_clip": (0.6, 0.6), "patience": (5, 5), "weight_decay": (0.005, 0.001),
    "transformers": ("bert", "bert"), "pretrained": ("bert-base-uncased", "bert-base-uncased"),
    "early_stop": (10, 10), "update_epochs": (10, 10), "use_bert": (True, True), "use_finetune": (True, True),
    "attn_mask": (True, True), "need_data_aligned": (True, True), "KeyEval": ("Loss", "Loss"),
    "train_samples": (1284, 16326), "lambda_decoupling": (0.1, 0.1), "lambda_distillation": (0.05, 0.05),
    "gamma": (0.1, 0.1), "margin_slope": (0.15, 0.15), "homo_gd_size": (64, 64), "hetero_gd_size": (32, 32),
    "featurePath": ("./dataset/MOSI/aligned_50.pkl", "./dataset/MOSEI/aligned_50.pkl"),
}  # fmt: skip
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
        "datasetParams": {"mosi": {"batch_size": 24, "nlevels": 3, "dst_feature_dim_nheads": [50, 10]}},
    },
}  # fmt: skip


def write(folder: Path, content) -> str:
    path = folder / "own.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(("column", "dataset"), [(0, "mosi"), (1, "MOSEI")])
def test_published_values(column, dataset):
    args = load_config("DMD", dataset)
    assert {key: args[key] for key in PUBLISHED} == {key: values[column] for key, values in PUBLISHED.items()}
    assert (args.model_name, args.dataset_name) == ("dmd", dataset.lower())


def test_an_old_file_loads_and_the_rest_is_the_release_s(tmp_path):
    args = load_config("dmd", "mosi", write(tmp_path, OLD_FILE))
    assert (args.batch_size, args.nlevels, args.featurePath) == (24, 3, "/data/MOSI/aligned_50.pkl")
    assert args.hetero_gd_prior == [0, 0, 1, 0, 1, 1] and args.max_epochs is None


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path):
    path = write(tmp_path, OLD_FILE)
    assert load_config("dmd", "mosi", path, {"batch_size": 4}).batch_size == 4
    own = json.loads(json.dumps(OLD_FILE))
    own["dmd"]["datasetParams"]["mosi"]["update_epochs"] = 3  # a data set's section beats the common one
    assert load_config("dmd", "mosi", write(tmp_path, own)).update_epochs == 3


def test_unaligned_features_and_absolute_paths():
    unaligned = load_config("dmd", "mosi", overrides={"need_data_aligned": False})
    assert unaligned.featurePath == "./dataset/MOSI/unaligned_50.pkl"
    assert load_config("dmd", "mosi", overrides={"featurePath": "/my/own.pkl"}).featurePath == "/my/own.pkl"


def test_resolved_settings_come_back_as_they_were():
    args = load_config("dmd", "mosei", overrides={"learning_rate": 0.5})
    stored = json.loads(json.dumps(dict(args, seq_lens=[50, 50, 50])))
    assert config_from_resolved(stored) == args
    assert config_from_resolved(stored, {"batch_size": 2}).batch_size == 2


RELEASE = {"ort": "batch", "margin": "release", "homo_repr": "off", "hetero_repr": "cosine_apart",
           "gd_prior": "release", "fusion": "sigmoid", "leftover_batches": "drop", "weight_decay_applied": False,
           "valid_loss": "batch_mean"}  # fmt: skip
PAPER = RELEASE | {"ort": "paper", "margin": "paper", "hetero_repr": "off", "gd_prior": "none", "fusion": "gate"}


def switches(*arguments) -> dict:
    args = load_config("dmd", "mosi", *arguments)
    return {key: args[key] for key in RELEASE}


def file_with(folder: Path, **objective) -> str:
    return write(folder, OLD_FILE | {"dmd": OLD_FILE["dmd"] | {"objectiveParams": objective}})


def test_objective_chooses_the_switches(tmp_path):
    assert switches() == switches(write(tmp_path, OLD_FILE)) == RELEASE
    assert switches("", {"objective": "paper"}) == switches(file_with(tmp_path, objective="paper")) == PAPER
    assert load_config("dmd", "mosi", "", {"objective": "paper"}).margin_alpha == 0.1


def test_what_is_set_beats_the_objective_whichever_layer_names_it(tmp_path):
    assert switches("", {"objective": "paper", "ort": "feature"}) == PAPER | {"ort": "feature"}
    own = file_with(tmp_path, objective="paper", margin="release")
    assert switches(own) == PAPER | {"margin": "release"}
    # Another objective over the file's: what that had chosen goes, what the file sets itself stays.
    assert switches(own, {"objective": "release"}) == RELEASE
    own = file_with(tmp_path, objective="paper", fusion="gate")
    assert switches(own, {"objective": "release"}) == RELEASE | {"fusion": "gate"}
    assert switches(own, {"objective": "release", "fusion": None}) == RELEASE  # null: as the objective says
    own = file_with(tmp_path, fusion="gate")
    assert switches(own, {"objective": "paper", "fusion": "sigmoid"}) == PAPER | {"fusion": "sigmoid"}


def test_objective_over_resolved_settings():
    stored = json.loads(json.dumps(load_config("dmd", "mosi", "", {"objective": "paper", "ort": "feature"})))
    assert stored["fusion"] == "gate"  # resolved, not null
    again = config_from_resolved(stored, {"objective": "release"})
    assert {key: again[key] for key in RELEASE} == RELEASE | {"ort": "feature"}
    older = {key: value for key, value in stored.items() if key not in RELEASE and key != "objective"}
    assert {key: value for key, value in config_from_resolved(older).items() if key in RELEASE} == RELEASE


def test_overrides_are_json_where_they_can_be():
    items = ["a=1", "b=[1, 2]", "c=true", "d=False", "e=bert-base", "f=1e-4", "g=x=y", "a=2", "h=null"]
    assert parse_overrides(items) == {"a": 2, "b": [1, 2], "c": True, "d": False, "e": "bert-base", "f": 1e-4,
                                      "g": "x=y", "h": None}  # fmt: skip


def edited(*path_and_value):
    *path, key, value = path_and_value
    content = json.loads(json.dumps(OLD_FILE))
    section = content
    for name in path:
        section = section[name]
    if value is None:
        del section[key]
    else:
        section[key] = value
    return content


BAD_FILES = {
    "broken JSON": ('{"dmd": [1\n 2]}', "broken JSON at line 2, column 2"),
    "a list": ([], "expected an object"),
    "no data sets": (edited("datasetCommonParams", None), "'datasetCommonParams' is missing"),
    "no model": (edited("dmd", None), "'dmd'"),
    "no common parameters": (edited("dmd", "commonParams", None), "'commonParams' is missing"),
    "unknown section": (edited("dmd", "datasetParms", {}), "unknown section 'datasetParms'.*'datasetParams'"),
    "unknown key": (edited("dmd", "commonParams", "early_stopp", 3), "unknown key 'early_stopp'.*'early_stop'"),
    "unknown key of a data set": (edited("dmd", "datasetParams", "mosi", "nlevel", 3), "'nlevel'.*'nlevels'"),
    "wrong type": (edited("dmd", "datasetParams", "mosi", "nlevels", "4"), 'own.json: nlevels is "4"; .*integer'),
    "a section that is none": (edited("dmd", "datasetParams", "mosi", 3), "expected an object"),
    "no such variant": (edited("dmd", "commonParams", "need_data_aligned", False), "no 'unaligned' features"),
    "a data set's section misspelt": (
        edited("dmd", "datasetParams", {"mosii": {"nlevels": 3}}),
        "unknown section \"mosii\".*'mosi'",
    ),
    "data sets' sections in a list": (edited("dmd", "datasetParams", []), "datasetParams.*expected an object"),
    "root folder misspelt": (edited("datasetCommonParams", "dataset_rot_dir", "x"), "'dataset_root_dir'"),
    "variant misspelt": (edited("datasetCommonParams", "mosi", "alined", {}), "'alined'.*'aligned'"),
    "model misspelt": (edited("dmd", None) | {"dmdd": {}}, "'dmd' is missing.*'dmdd'"),
    "a key twice": (json.dumps(OLD_FILE).replace('"nlevels": 3', '"nlevels": 3, "nlevels": 4'), '"nlevels".*twice'),
    "a number of 5000 digits": ('{"dmd": ' + "9" * 5000 + "}", "not a readable JSON"),
    "not a number": (edited("dmd", "datasetParams", "mosi", "grad_clip", float("nan")), "own.json: grad_clip is NaN"),
    "no feature path": (edited("datasetCommonParams", "mosi", "aligned", "featurePath", None), "'featurePath'"),
}
BAD_OVERRIDES = {
    "batch_size": (0, "greater than or equal to 1"),
    "text_dropout": (1.0, "less than 1"),
    "learning_rate": (-1, "greater than 0"),
    "use_bert": ("yes", "boolean"),
    "grad_clip": (-0.5, "-1 for no clipping"),
    "dst_feature_dim_nheads": ([50, 7], "divisible"),
    "feature_dims": ([768, 5], "at least 3"),
    "KeyEval": ("Loos", "'Loss', 'MAE'"),
    "gamma": (float("nan"), "finite"),
    "batch_siz": (4, "'batch_size'"),
    "need_data_aligned": (0, "boolean"),
    "nlevels": (1.5, "integer"),
    "patience": (True, "integer"),
    "max_epochs": (0, "greater than or equal to 1"),
    "homo_gd_prior": ([0, 0, 1], "at least 6"),
    "objective": ("papers", "'release' or 'paper'"),
    "ort": ("width", "'batch', 'feature' or 'paper'"),
    "margin": ("triplet", "'release' or 'paper'"),
    "margin_alpha": (-0.1, "greater than or equal to 0"),
    "homo_repr": ("l2", "'off', 'l1' or 'cosine_apart'"),
    "hetero_repr": (True, "'off', 'l1' or 'cosine_apart'"),
    "gd_prior": ("off", "'release' or 'none'"),
    "fusion": ("concat", "'sigmoid' or 'gate'"),
    "leftover_batches": (1, "'drop' or 'step'"),
    "weight_decay_applied": ("yes", "boolean"),
    "valid_loss": ("mean", "'batch_mean' or 'sample_mean'"),
}


def assert_refused(pattern: str, *arguments) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(*arguments)
    assert re.search(pattern, str(error.value)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tmp_path):
    content, pattern = BAD_FILES[case]
    assert_refused(pattern, "dmd", "mosi", write(tmp_path, content))


@pytest.mark.parametrize("key", BAD_OVERRIDES)
def test_bad_overrides_name_key_value_and_what_is_allowed(key):
    value, pattern = BAD_OVERRIDES[key]
    assert_refused(f"--set.*{key}.*{pattern}", "dmd", "mosi", "", {key: value})


def test_unknown_data_set_model_and_file(tmp_path):
    assert_refused("'mosii'.*mosi, mosei, synthetic", "dmd", "mosii")
    assert_refused("'misa'", "misa", "mosi")
    assert_refused("no such config file", "dmd", "mosi", str(tmp_path / "none.json"))
    assert_refused("a folder", "dmd", "mosi", str(tmp_path))
    assert_refused(r"a\\nb", "dmd", "mosi", "", {"a\nb": 1})  # one line, whatever the key holds
    with pytest.raises(ConfigError, match="key=value"):
        parse_overrides(["batch_size"])


def test_every_key_is_described():
    assert [key for key, field in DMDConfig.model_fields.items() if not field.description] == []


def test_every_key_has_a_reader_or_is_listed_as_ignored():
    folders = ("dataset", "models", "trainers", "config/loading.py", "run.py", "test.py")
    files = [p for name in folders for p in ([ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"))]
    code = "\n".join(path.read_text() for path in files)
    kernels = {f"conv1d_kernel_size_{m}" for m in "lav"}  # read by a name template
    single_choice = {"optimizer", "scheduler", "transformers"}  # one value allowed: checked, and nothing to choose
    unread = {key for key in SETTING_NAMES if not re.search(rf"\b(args|settings|checked|self\.args)\.{key}\b", code)}
    choosing = {"objective"}  # read where the switches are resolved
    assert unread - kernels - single_choice - choosing == set(IGNORED_KEYS)
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{key}`" in readme for key in (*IGNORED_KEYS, "objective", *PRESETS["paper"], "margin_alpha"))
