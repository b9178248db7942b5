"""Several processes that train one model: real ones, on the CPU (gloo)."""

import json
import re
from pathlib import Path

import pytest
import torch

import test as test_command
from tests import share_of_a_step
from tests.commands import ROOT, SMALL, call, launch, rows_of, train, write_pickle

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
UNCOUPLED = ("gamma=0", "lambda_distillation=0")  # no margin, no orthogonality over the batch, no mean edges


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "tolerance"), [(UNCOUPLED, 1e-5), ((), 0.01)], ids=["uncoupled", "release"])
def test_two_ranks_have_the_gradients_of_one(settings, tolerance, tmp_path):
    """Accumulated over three batches and clipped after each, as one process does it. The losses that couple the
    utterances of a batch see a rank's share of it only, which changes the gradients by 0.15 %."""
    share_of_a_step.main(str(tmp_path), *settings)
    done = launch(*TORCHRUN, "-m", "tests.share_of_a_step", str(tmp_path), *settings, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    torch.testing.assert_close(two["predicted"], one["predicted"], rtol=1e-4, atol=1e-5)
    difference = (two["gradients"] - one["gradients"]).norm() / one["gradients"].norm()
    print(f"relative difference of the gradients: {difference:.2g}")
    assert difference <= tolerance


@pytest.mark.slow
def test_the_utterance_of_another_rank_that_spoils_a_batch_is_named(folder, corpus):
    """Each rank sees a part of the batch: what the log says must not be of the wrong part."""
    spoilt = {name: value.copy() if hasattr(value, "copy") else value for name, value in corpus["train"].items()}
    spoilt["audio"][3] = 3e38  # finite, and too large to be squared
    write_pickle(folder / "dataset/SYNTHETIC/aligned_50.pkl", corpus | {"train": spoilt})
    for command in ((), TORCHRUN):
        done = launch(*command, str(ROOT / "run.py"), "-d", "synthetic", *SMALL, "--overwrite")
        named = re.findall(r"NumericalError: .*? with the utterances (.*?)\. No step", done.stderr)
        assert named and all(ids == corpus["train"]["id"][3] for ids in named), done.stderr


@pytest.mark.slow
def test_two_ranks_train_one_run_which_another_number_of_them_continues(folder, capsys):
    settings = ["-d", "synthetic", *SMALL, "--name", "two", "--device", "cpu"]
    done = launch(*TORCHRUN, str(ROOT / "run.py"), *settings, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("Epoch: 1 TRAIN", done.stdout)) == 1  # the second rank says nothing
    run = Path("result/two-synthetic-1111")
    assert json.loads((run / "config.json").read_text())["ranks"] == 2
    metrics = json.loads((run / "metrics.json").read_text())
    assert call(test_command, "pt/two-synthetic-1111/best.pth") == 0
    scored = {name: float(value) for name, value in re.findall(r"(\w+): (-?[\d.]+)", capsys.readouterr().out)}
    assert {name: scored[name] for name in metrics.keys() & scored.keys()} == pytest.approx(
        {name: metrics[name] for name in metrics.keys() & scored.keys()}, abs=2e-4
    )
    assert "MAE" in scored
    assert train("--name", "two", "--epochs", "2", "--resume") == 0
    done = launch(*TORCHRUN, str(ROOT / "run.py"), *settings, "--epochs", "3", "--resume")
    assert done.returncode == 0 and "resumed after epoch 2" in done.stdout, done.stderr
    assert len(rows_of(run / "history.csv")) == 3
