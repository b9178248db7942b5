"""Checkpoints: strict, safe, exchangeable with published files."""

import io
import json
import os
import pickle

import pytest
import torch
from torch import nn

from experiments.run_config import read_run_config
from tests.dataset.hostile import SHELL, Call
from tests.models.test_dmd import build
from tests.reference import Reference
from trainers.checkpoint import OBSOLETE, load_weights, read_checkpoint, save_state
from utils.errors import CheckpointError


def test_checkpoint_round_trip_with_an_old_position_ids_buffer(tmp_path):
    model = Reference("mosi_aligned_bert", tmp_path / "bert").build()[0]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_state(state | {OBSOLETE: torch.arange(64)[None]}, tmp_path / "1.pth")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, tmp_path / "1.pth")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: build(dataset="mosei")[0], "size mismatch"),
        (lambda: build(seq_lens=(50, 375, 500), need_data_aligned=False)[0], "size mismatch"),
        (lambda: build(nlevels=2)[0], "layers.1"),
        (lambda: torch.nn.Linear(2, 3), "Missing"),
    ],
    ids=["other widths", "other steps", "fewer layers", "other model"],
)
def test_error_about_another_model_gives_the_first_difference(tmp_path, other, words):
    save_state(other().state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        load_weights(build()[0], tmp_path / "other.pth")
    assert words in str(error.value) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize("zipped", [True, False])
def test_wrapped_state_dicts_are_read(zipped, tmp_path):
    """In several types; and in the format before PyTorch 1.6, of Lightning and DataParallel."""
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        str(dtype): base.to(dtype)
        for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool)
    } | {
        "parameter": nn.Parameter(base.clone()),
        "transposed": base.T,
        "part": base[1:, 2:],
        "scalar": torch.tensor(2.0),
    }
    written = (
        state
        if zipped
        else {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    )
    torch.save(written, tmp_path / "1.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "1.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())


def truncated() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(99)}, buffer)
    return buffer.getvalue()[:-300]


BAD = {  # content of the file, a word of the error
    "a call": ({"weight": Call(os.system, SHELL)}, "not a readable checkpoint"),
    "a pickle that calls": (pickle.dumps(Call(os.system, SHELL)), "not a readable checkpoint"),
    "cut short": (truncated(), "not a readable checkpoint"),
    "a list": ([1, 2], "not a state_dict"),
    "numbers": ({"weight": 1.0}, "not a state_dict"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_files_are_rejected_and_execute_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, words = BAD[case]
    with open("bad.pth", "wb") as file:
        file.write(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(CheckpointError, match="FileNotFoundError"):
        read_checkpoint("none.pth")
    with pytest.raises(CheckpointError, match=words) as error:
        read_checkpoint("bad.pth")
    assert "\n" not in str(error.value) and os.listdir() == ["bad.pth"]


GOOD = {
    "settings": {"dataset_name": "mosi"},
    "features": {"feature_T": "", "feature_A": "", "feature_V": ""},
}


@pytest.mark.parametrize(
    "content",
    ["no JSON", {"features": {}}, GOOD | {"settings": {"dataset_name": "../../x"}}],
    ids=["not JSON", "without settings", "path as data set"],
)
def test_config_of_another_program_is_not_a_run_config(content, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(GOOD))
    assert read_run_config(tmp_path) == GOOD
    (tmp_path / "run.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert read_run_config(tmp_path) is None
