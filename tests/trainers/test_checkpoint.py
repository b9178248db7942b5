"""Checkpoints: strict, safe, exchangeable with published files."""

import pickle

import pytest
import torch
from transformers import BertConfig

from config import load_config
from models.dmd import DMD
from tests.reference import Reference
from trainers.checkpoint import OBSOLETE, load_weights, read_checkpoint, save_state
from utils.errors import CheckpointError


def build(dataset: str = "mosi", seq_lens=(50, 50, 50), **overrides) -> DMD:
    args = load_config("dmd", dataset, overrides={"use_bert": False, "nlevels": 1} | overrides)
    args.seq_lens = list(seq_lens)
    return DMD(args)


def test_round_trip(tmp_path):
    model, other = build(), build()
    save_state(model.state_dict(), tmp_path / "1.pth")
    load_weights(other, tmp_path / "1.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["1.pth"]


def test_an_old_position_ids_buffer_is_dropped(tmp_path):
    model = Reference("mosi_aligned_bert", tmp_path / "bert").build()[0]
    torch.save(model.state_dict() | {OBSOLETE: torch.arange(64)[None]}, tmp_path / "old.pth")
    load_weights(model, tmp_path / "old.pth")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: build("mosei"), ("of MOSEI's sizes, aligned", "ask for MOSI's sizes, aligned")),
        (lambda: build(seq_lens=(50, 375, 500), need_data_aligned=False),
         ("of MOSI's sizes, unaligned", "MOSI's sizes, aligned")),
        (lambda: build(feature_dims=[300, 5, 20]), ("300/5/20", "768/5/20")),
        (lambda: build(nlevels=2), ("unknown",)),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_model_is_described(tmp_path, other, words):
    save_state(other().state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        load_weights(build(), tmp_path / "other.pth")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def test_an_unsafe_file_is_refused_and_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"weight": Malicious(canary)}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malicious(canary)))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            read_checkpoint(tmp_path / name)
    assert not canary.exists()


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.pth")
    save_state(build().state_dict(), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="not a state_dict"):
        read_checkpoint(tmp_path / "list.pth")


@pytest.mark.slow
def test_size_with_bert_base_is_the_published_one(tmp_path):
    """The published MOSI checkpoints are 436.07 MiB each."""
    BertConfig().save_pretrained(tmp_path / "bert")  # BertConfig's defaults are bert-base-uncased's shape
    args = load_config("dmd", "mosi", overrides={"pretrained": str(tmp_path / "bert")})
    args.seq_lens = [50, 50, 50]
    save_state(DMD(args).state_dict(), tmp_path / "1.pth")
    assert (tmp_path / "1.pth").stat().st_size / 2**20 == pytest.approx(436.07, abs=0.1)
