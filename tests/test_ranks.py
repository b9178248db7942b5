"""Several real processes train one model, on the CPU (gloo)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import test as test_command
from tests import distributed_worker
from tests.commands import ROOT, SMALL, call, launch, rows_of, train, write_pickle
from tests.reference import relative_difference

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_match_one_process(processes, tmp_path):
    """All losses on; gradients of three accumulated batches, each clipped."""
    distributed_worker.main(str(tmp_path))
    done = launch(
        *TORCHRUN[:-1], str(processes), "-m", "tests.distributed_worker", str(tmp_path), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    one, several = (
        torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in (1, processes)
    )
    for (gradients, *expected), (got_gradients, *got) in zip(one, several, strict=True):
        for gradient, ours in zip(gradients, got_gradients, strict=True):
            assert (gradient is None) == (ours is None)
            assert gradient is None or relative_difference(ours, gradient.numpy()) <= 1e-5
        for epoch, our_epoch in zip(expected[:2], got[:2], strict=True):  # before and after a step
            assert our_epoch.losses == pytest.approx(epoch.losses, rel=1e-3, abs=1e-6)
            assert our_epoch.edges == pytest.approx(epoch.edges, rel=1e-3)
            np.testing.assert_allclose(
                our_epoch.predictions.predicted, epoch.predictions.predicted, atol=1e-3
            )
        np.testing.assert_allclose(got[2].predicted, expected[2].predicted, atol=1e-3)
        assert got[2].loss == pytest.approx(expected[2].loss, rel=1e-3)


@pytest.mark.slow
def test_error_names_the_non_finite_utterance_of_another_rank(folder, corpus):
    """Each rank has a part of the batch; the error must not name an utterance of another part."""
    spoilt = {
        name: value.copy() if hasattr(value, "copy") else value
        for name, value in corpus["train"].items()
    }
    spoilt["audio"][3] = 3e38  # finite, and too large to be squared
    write_pickle(folder / "dataset/SYNTHETIC/aligned_50.pkl", corpus | {"train": spoilt})
    for command in ((), TORCHRUN):
        done = launch(*command, str(ROOT / "run.py"), "-d", "synthetic", *SMALL, "--overwrite")
        named = re.findall(r"NumericalError: .*? with the utterances (.*?)\. No step", done.stderr)
        assert named and all(ids == corpus["train"]["id"][3] for ids in named), done.stderr


@pytest.mark.slow
def test_only_the_first_rank_hashes_the_feature_file(folder):
    """The other ranks open it once, to read it."""
    arguments = ["-d", "synthetic", *SMALL, "--epochs", "1", "--device", "cpu"]
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
import run
from utils.cli import run_command
assert run_command(lambda: run.main({arguments})) == 0
count = sum(str(name).endswith("aligned_50.pkl") for name in opened)
open("opened" + os.environ["RANK"], "w").write(str(count))
"""
    Path("program.py").write_text(program)
    done = launch(*TORCHRUN, "program.py")
    assert done.returncode == 0, done.stderr
    assert [Path(f"opened{rank}").read_text() for rank in (0, 1)] == ["2", "1"]


@pytest.mark.slow
def test_run_of_two_ranks_resumes_with_another_number_of_ranks(folder, capsys):
    settings = ["-d", "synthetic", *SMALL, "--name", "two", "--device", "cpu"]
    done = launch(*TORCHRUN, str(ROOT / "run.py"), *settings, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("Epoch: 1 TRAIN", done.stdout)) == 1  # the second rank does not log
    run = Path("result/two-synthetic-1111")
    assert json.loads((run / "run.json").read_text())["world_size"] == 2
    metrics = json.loads((run / "metrics.json").read_text())
    assert call(test_command, "pt/two-synthetic-1111/best.pth") == 0
    scored = {
        name: float(value)
        for name, value in re.findall(r"(\w+): (-?[\d.]+)", capsys.readouterr().out)
    }
    assert {name: scored[name] for name in metrics.keys() & scored.keys()} == pytest.approx(
        {name: metrics[name] for name in metrics.keys() & scored.keys()}, abs=2e-4
    )
    assert "MAE" in scored
    assert train("--name", "two", "--epochs", "2", "--resume") == 0
    done = launch(*TORCHRUN, str(ROOT / "run.py"), *settings, "--epochs", "3", "--resume")
    assert done.returncode == 0 and "resumed after epoch 2" in done.stdout, done.stderr
    assert len(rows_of(run / "history.csv")) == 3
