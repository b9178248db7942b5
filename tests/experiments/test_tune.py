"""Sweeps: real studies in real databases, with real training or a formula in its place."""

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

import run
from experiments.options import RunOptions
from experiments.train import TrainedSeeds
from experiments.tune import tune
from tests.commands import ROOT, SMALL, call, metrics_of, refused, train, write_pickle
from utils.errors import NumericalError


@pytest.fixture
def space(folder) -> str:
    rate = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
    space = {
        "learning_rate": rate,
        "adam_betas": [[0.9, 0.999], [0.8, 0.99]],
        "fusion": ["gate", None],
    }
    Path("space.json").write_text(json.dumps(space))
    return "space.json"


def table(name: str = "dmd-synthetic") -> pd.DataFrame:
    return pd.read_csv(f"result/tune/{name}.csv")


def states() -> list[str]:
    return list(table()["state"])


def tune_with(monkeypatch, train_on, trials: int, **config) -> dict | None:
    """A sweep over gamma whose trainings are `train_on(gamma, after_epoch)`."""
    Path("gamma.json").write_text('{"gamma": {"type": "float", "low": 0, "high": 1}}')

    def train_seeds(options, settings, features):
        metrics = train_on(options.config["gamma"], options.after_epoch)
        return TrainedSeeds(settings, features, {}, {1111: metrics})

    monkeypatch.setattr("experiments.tune.train_seeds", train_seeds)
    return tune(RunOptions(dataset_name="synthetic", config=config), trials, "gamma.json")


def test_sweep_resumes_and_its_best_trial_can_be_trained_as_a_run(space, corpus, capsys):
    once = ("--search", space, "--epochs", "1")
    assert train("--tune", "1", *once) == 0
    assert train("--tune", "2", *once) == 0
    trials = table()
    assert list(trials["number"]) == [0, 1] and states() == ["COMPLETE"] * 2
    assert trials["params_learning_rate"].is_unique and set(trials["user_attrs_best_epoch"]) == {1}
    assert [path.name for path in [*Path("pt").iterdir(), *Path("result").iterdir()]] == ["tune"]

    output = capsys.readouterr().out
    _, _, *arguments = shlex.split(output[output.rindex("python ") :])
    assert call(run, *arguments) == 0
    metrics = metrics_of("dmd-best-synthetic-1111")
    best = trials.loc[trials["valid_Loss"].idxmin()]
    assert (metrics["valid_Loss"], metrics["epoch"]) == (
        best["valid_Loss"],
        best["user_attrs_best_epoch"],
    )

    assert train("--tune", "2", *once, "--name", "whole") == 0
    assert table("whole-synthetic").equals(trials)
    # there is nothing left to do
    assert train("--tune", "2", *once) == 0 and table().equals(trials)

    more = ("--tune", "4", *once)
    # trials could not be compared
    assert "max_epochs" in refused(capsys, train, *more, "--epochs", "9")
    changed = {split: fields | {"audio": fields["audio"] + 1} for split, fields in corpus.items()}
    write_pickle(Path("dataset/SYNTHETIC/aligned_50.pkl"), changed)
    assert "data" in refused(capsys, train, *more)


def test_signal_marks_the_trial_as_failed_and_the_sweep_continues(space):
    def interrupt():
        while not list(Path("pt").glob("tune-*/pt/*/1.pth")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    command = ["--tune", "1", "--search", space, "--epochs", "3"]
    assert train(*command) == 143
    assert states() == ["FAIL"] and not list(Path("pt").iterdir())
    assert train(*command, "--resume") == 0  # as the last line of the interrupted command suggests
    assert states() == ["FAIL", "COMPLETE"]


def test_trial_that_diverges_is_pruned_and_an_error_ends_the_sweep(folder, monkeypatch):
    errors = [NumericalError("loss"), ZeroDivisionError("error")]

    def train_on(gamma: float, after_epoch) -> dict:
        after_epoch({"epoch": 1, "best_epoch": 1, "valid/Loss": gamma})
        if errors:
            raise errors.pop(0)
        return {"valid_Loss": gamma}

    with pytest.raises(ZeroDivisionError):
        tune_with(monkeypatch, train_on, 2)
    best = tune_with(monkeypatch, train_on, 2)
    assert states() == ["PRUNED", "FAIL", "COMPLETE"] and best == {
        "gamma": table()["params_gamma"][2]
    }


@pytest.mark.slow
def test_study_of_two_processes_survives_a_kill(space):
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "-d",
        "synthetic",
        *SMALL,
        "--search",
        space,
        "--tune",
    ]

    def start(trials: int) -> subprocess.Popen:
        return subprocess.Popen([*command, str(trials)], stdout=subprocess.DEVNULL)

    assert [process.wait(100) for process in [start(5), start(5)]] == [0, 0]
    trials = table()
    assert (
        list(trials["number"]) == list(range(len(trials)))
        and trials["params_learning_rate"].is_unique
    )
    assert 5 <= len(trials) <= 6  # both may take the last one at the same moment

    killed, other = start(8), start(8)
    while not list(Path("pt").glob("tune-*")):
        time.sleep(0.01)
    killed.kill()
    assert (killed.wait(100), other.wait(100)) == (-signal.SIGKILL, 0)
    with sqlite3.connect("result/tune/dmd-synthetic.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    assert start(8).wait(100) == 0
    assert 8 <= sum(state != "FAIL" for state in states()) <= 9 and "RUNNING" not in states()


BAD = [
    ([], "--tune"),
    (["--tune", "1", "-s", "1", "2"], "--seeds"),
    (["--tune", "1", "--res-save-dir", "space.json/x"], "--res-save-dir"),
    (["--tune", "1", "--storage", "sqlite:///space.json"], "not a database"),
    (["--tune", "1", "--storage", "postgresql+pg8000://user:secret@127.0.0.1:1/s"], "--storage"),
    ({"learning_rat": [1e-3]}, "learning_rate"),
    ({"gamma": {"type": "float", "low": 2, "high": 1}}, "gamma"),
    ({"text_dropout": {"type": "float", "low": 0, "high": 1}}, "text_dropout is 1.0"),
    ({"batch_size": [4, 8]}, "command line too"),
]


def test_bad_input_gives_one_line_before_training(space, monkeypatch, capsys):
    for flags, word in BAD:
        if isinstance(flags, dict):
            Path(space).write_text(json.dumps(flags))
            flags = ["--tune", "1"]
        message = refused(capsys, train, "--search", space, *flags)
        assert word in message and "secret" not in message
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("--tune", "1") == 2 and not list(Path().rglob("*.pth"))
