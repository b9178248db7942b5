"""What has to hold on a GPU: `python -m pytest -m gpu --device cuda`; with `--device cpu` the same
on the CPU.
"""

import re

import pandas as pd
import pytest
import torch

import test as test_command
from tests.commands import call, train
from tests.reference import Reference
from trainers.checkpoint import read_checkpoint
from trainers.trainer import Trainer

pytestmark = pytest.mark.gpu
PRECISIONS = {name: ["--precision", name] for name in ("fp32", "bf16", "tf32")}
WAYS = PRECISIONS | {"deterministic": ["--deterministic"]}


@pytest.mark.parametrize("way", WAYS)
def test_scores_of_a_checkpoint_match_training(way, folder, device, capsys):
    if way == "tf32" and device == "cpu":
        pytest.skip("tf32 is for CUDA")
    assert train("--device", device, *WAYS[way]) == 0
    capsys.readouterr()
    # bf16 and tf32 round more than the CPU does
    for where, close in ((device, 1e-3), ("cpu", 5e-2)):
        assert call(test_command, "pt/dmd-synthetic-1111/best.pth", "--device", where) == 0
        scored = dict(re.findall(r"(\w+): (-?[\d.]+)", capsys.readouterr().out))
        best = pd.read_json("result/dmd-synthetic-1111/metrics.json", typ="series")
        assert float(scored["MAE"]) == pytest.approx(
            best["MAE"], abs=close if way in ("bf16", "tf32") else 1e-3
        )


def test_resumed_run_equals_uninterrupted_run(folder, device):
    how = ["--device", device, "--deterministic"]
    assert train("--name", "whole", *how) == 0
    assert train("--name", "cut", "--epochs", "1", *how) == 0
    assert train("--name", "cut", "--epochs", "2", "--resume", *how) == 0
    whole, cut = (read_checkpoint(f"pt/{name}-synthetic-1111/2.pth") for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="only CUDA has operations that the host waits for"
)
def test_training_step_does_not_synchronize(device, tmp_path):
    # transformers looks at BERT's mask, which it has to wait for
    reference = Reference("mosi_aligned", tmp_path)
    trainer = Trainer(
        reference.args, *reference.build(), {"train": range(10)}, torch.device(device)
    )
    batch = reference.batch()
    trainer.training_step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.training_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
