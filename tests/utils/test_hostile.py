"""Hostile checkpoints run nothing, are refused in one line, and cost little; what PyTorch writes is read."""

import json
import os
from collections import OrderedDict

import pytest
import torch
from torch import nn

from config import config_from_resolved, load_config
from tests.dataset.hostile import CANARY
from tests.dataset.test_hostile import assert_refused, run_limited
from tests.utils.hostile import HOSTILE
from trainers.checkpoint import read_checkpoint, settings_beside
from utils.errors import CheckpointError, ConfigError


def test_hostile_checkpoints_are_refused_cheaply(tmp_path):
    assert_refused(run_limited("checkpoint", HOSTILE, tmp_path), "CheckpointError")
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_writes_is_read(zipped, tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    state = {str(dtype): base.to(dtype) for dtype in types} | {
        "parameter": nn.Parameter(base.clone()), "transposed": base.T, "part": base[1:, 2:], "shared": base,
        "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 5),
    }  # fmt: skip
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    for number, content in enumerate((state, OrderedDict(state), module)):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        read = read_checkpoint(path)
        assert read.keys() == content.keys()
        assert all(torch.equal(read[name], value) for name, value in content.items())


GOOD = {"settings": {"dataset_name": "mosi"}, "features": {"feature_T": "", "feature_A": "", "feature_V": ""}}
BAD_DESCRIPTIONS = {
    "nested deeply": b"[" * 10**6,
    "not UTF-8": b"\xff\xfe{}",
    "no object": b"[1]",
    "a number": b"7",
    "many digits": b"9" * 5000,
    "no settings": b'{"features": {}}',
    "settings are a list": b'{"settings": [], "features": {}}',
    "a key twice": b'{"settings": {}, "settings": {}, "features": {}}',
    "data set with a path": json.dumps(GOOD | {"settings": {"dataset_name": "../../x"}}).encode(),
    "data set is a list": json.dumps(GOOD | {"settings": {"dataset_name": ["mosi"]}}).encode(),
    "features of another kind": json.dumps(GOOD | {"features": {"splits": ["train"]}}).encode(),
    "features without a path": json.dumps(GOOD | {"features": {"feature_T": 1}}).encode(),
    "too large": b" " * (2**22 + 1),
}


@pytest.mark.parametrize("case", BAD_DESCRIPTIONS)
def test_a_config_beside_the_checkpoint_is_checked(case, tmp_path):
    (tmp_path / "config.json").write_bytes(BAD_DESCRIPTIONS[case])
    with pytest.raises(CheckpointError, match="config.json") as error:
        settings_beside(tmp_path / "1.pth")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_pipe_or_folder_in_place_of_a_config_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        settings_beside(tmp_path / "1.pth")
    for path in (tmp_path / "config.json", "/dev/zero"):
        with pytest.raises(ConfigError, match="not a readable JSON"):
            load_config("dmd", "mosi", path)
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            read_checkpoint(path)


def test_the_embedded_data_set_is_not_made_where_a_stranger_s_file_says(tmp_path):
    settings = dict(load_config("dmd", "synthetic"), featurePath=str(tmp_path / "SYNTHETIC/aligned_50.pkl"))
    with pytest.raises(ConfigError, match="where no file is"):
        config_from_resolved(settings)
