"""Sweeps: real studies in real databases; trainings where what a training does matters, sums where it does not."""

import csv
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

import numpy as np
import optuna
import pytest

import run
from config import load_config
from config.search_space import Choice, Interval, load_search_space
from tests.commands import ROOT, SMALL, call, files_below, train, write_pickle
from trainers.sweep import Sweep
from utils.errors import ConfigError, NumericalError, RunError
from utils.interrupts import Interrupted, orderly_interrupts

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "dst_feature_dim_nheads": {"type": "categorical", "choices": [[16, 2], [24, 4]]},
    "fusion": {"type": "categorical", "choices": ["gate", None]},
}
TABLE = "result/tune/dmd-synthetic.csv"


@pytest.fixture
def space(folder) -> str:
    Path("space.json").write_text(json.dumps(SPACE))
    return "space.json"


def table(path: str = TABLE) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_nothing_left(folder: str = "pt") -> None:
    assert [path.name for path in Path(folder).iterdir()] == [".tune.lock"]


def test_a_sweep_goes_on_and_its_best_trial_is_an_ordinary_run(space, capsys):
    assert train("--tune", "1", "--search", space) == 0
    assert train("--tune", "3", "--search", space) == 0
    rows = table()
    assert [row["trial"] for row in rows] == ["0", "1", "2"] and {row["state"] for row in rows} == {"complete"}
    assert len({row["learning_rate"] for row in rows}) == 3 and {row["seed"] for row in rows} == {"1111"}
    assert all(row["best_epoch"] in "12" and float(row["seconds"]) > 0 for row in rows)
    assert_nothing_left()
    assert [path.name for path in Path("result").iterdir()] == ["tune"]  # no test metrics of a trial in any table

    printed = [line for line in capsys.readouterr().out.splitlines() if "To train it as an ordinary run" in line][-1]
    python, program, *arguments = shlex.split(printed.split("run: ")[1])
    assert (python, program) == ("python", str(ROOT / "run.py"))  # called from another folder
    assert call(run, *arguments) == 0
    metrics = json.loads(Path("result/dmd-best-synthetic-1111/metrics.json").read_text())
    best = min(rows, key=lambda row: float(row["valid_Loss"]))
    assert (metrics["valid_Loss"], metrics["epoch"]) == (float(best["valid_Loss"]), int(best["best_epoch"]))

    before = files_below(Path())
    assert train("--tune", "3", "--search", space) == 0
    assert "3 trials: 3 complete" in capsys.readouterr().out
    assert {path: content for path, content in files_below(Path()).items() if not path.endswith(".db")} == {
        path: content for path, content in before.items() if not path.endswith(".db")
    }
    assert train("--tune", "3", "--search", space, "--name", "whole") == 0
    assert timeless(table("result/tune/whole-synthetic.csv")) == timeless(rows)


def test_a_signal_marks_the_trial_as_failed_and_the_sweep_goes_on(space, capsys):
    def interrupt():
        while not list(Path("pt").glob(".tune-*/trial/pt/*/1.pth")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    command = ["--tune", "2", "--search", space, "--epochs", "6"]
    assert train(*command) == 143
    thread.join()
    assert [row["state"] for row in table()] == ["fail"]
    assert_nothing_left()
    assert train("--tune", "2", "--search", space) == 2  # with other epochs the trials could not be compared
    assert "max_epochs 6, not 2" in capsys.readouterr().err
    assert train(*command, "--resume") == 0  # as the interrupted command's last word says
    assert [row["state"] for row in table()] == ["fail", "complete", "complete"]


def test_a_signal_in_the_middle_of_a_transaction_leaves_the_storage_usable(tmp_path, monkeypatch):
    """Almost all the time of these trials goes into the storage, so that most of the signals come while it is used."""
    monkeypatch.chdir(tmp_path)

    def train_on(settings: dict, folder: Path, after_epoch) -> dict:
        for epoch in range(10_000):
            after_epoch({"epoch": epoch, "best_epoch": 0, "valid/Loss": 1.0})

    sweep = sweep_of("Loss")
    random = np.random.default_rng(1)
    for attempt in range(1, 13):
        timer = threading.Timer(random.uniform(0.05, 0.15), os.kill, (os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted), orderly_interrupts():
            timer.start()
            sweep.run(1, train_on, "pt")
        assert sweep.summary() == f"{attempt} trials: {attempt} fail"
    assert_nothing_left()


@pytest.mark.slow
def test_two_processes_share_a_study_and_one_is_interrupted(space):
    """Together they do the trials that were asked for: none is lost, none is done twice."""
    command = [sys.executable, str(ROOT / "run.py"), "-d", "synthetic", *SMALL, "--search", space, "--tune"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(trials: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, str(trials)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    processes = [start(8), start(8)]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    rows = table()
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert len({row["learning_rate"] for row in rows}) == 8
    assert [row["trial"] for row in rows] == [str(number) for number in range(8)]

    processes = [start(20), start(20)]
    while len(table()) < 12:
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGTERM)
    statuses = []
    for process in processes:
        _, error = process.communicate(timeout=200)
        statuses.append(process.returncode)
        assert error.count("\n") == (process.returncode == 143), error
    assert statuses == [143, 0]
    finished = start(20)
    assert finished.wait(timeout=200) == 0
    states = [row["state"] for row in table()]
    assert states.count("complete") + states.count("pruned") == 20 and states.count("fail") == len(states) - 20 <= 1
    assert_nothing_left()


@pytest.mark.slow
def test_a_killed_process_leaves_a_study_that_goes_on(space, capsys):
    command = [sys.executable, str(ROOT / "run.py"), "-d", "synthetic", *SMALL, "--search", space, "--tune", "3"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not list(Path("pt").glob(".tune-*/trial/pt/*/1.pth")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert train("--tune", "3", "--search", space) == 0
    assert sorted(row["state"] for row in table()) == ["complete", "complete", "running"]  # no sign of life missed yet
    assert "1 of them still run in other processes, or their processes were killed" in capsys.readouterr().out
    assert_nothing_left()
    with sqlite3.connect("result/tune/dmd-synthetic.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    assert train("--tune", "3", "--search", space) == 0
    assert sorted(row["state"] for row in table()) == ["complete"] * 3 + ["fail"]


def sweep_of(key_eval: str, name: str = "s", storage: str = "", **description) -> Sweep:
    space = {"gamma": Interval(type="float", low=0, high=1), "fusion": Choice(type="categorical", choices=["gate"])}
    return Sweep(name, space, key_eval, 1, description, "result", storage)


@pytest.mark.parametrize(("key_eval", "sign"), [("Loss", 1), ("Acc_2", -1)])
def test_trials_beyond_the_median_are_pruned(tmp_path, monkeypatch, key_eval, sign):
    monkeypatch.chdir(tmp_path)

    def train_on(settings: dict, folder: Path, after_epoch) -> dict:
        folder.mkdir()
        (folder / "weights").write_bytes(b"many")
        for epoch in (1, 2, 3):
            after_epoch({"epoch": epoch, "best_epoch": 1, f"valid/{key_eval}": settings["gamma"]})
        return {"epoch": 1, f"valid_{key_eval}": settings["gamma"]}

    sweep = sweep_of(key_eval)
    sweep.run(20, train_on, "pt")
    complete: list[float] = []
    for row in table("result/tune/s.csv"):
        value = float(row[f"valid_{key_eval}"])
        assert value == float(row["gamma"]) and row["fusion"] == "gate" and row["best_epoch"] == "1"
        better = sum(sign * other < sign * value for other in complete)
        pruned = len(complete) >= 5 and better > len(complete) / 2
        assert row["state"] == ("pruned" if pruned else "complete"), row
        complete += [] if pruned else [value]
    assert 5 < len(complete) < 20
    assert sweep.best().value == sign * min(sign * value for value in complete)
    assert_nothing_left()
    with pytest.raises(RunError, match="does not .* its value"):
        sweep_of("Acc_2" if key_eval == "Loss" else "Loss")


def test_a_trial_that_diverges_is_pruned_and_a_fault_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = [NumericalError("loss"), {"epoch": 1, "valid_Loss": 0.5}, ZeroDivisionError("fault")]

    def train_on(settings: dict, folder: Path, after_epoch) -> dict:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(ZeroDivisionError, match="fault"):
        sweep_of("Loss").run(4, train_on, "pt")
    assert [row["state"] for row in table("result/tune/s.csv")] == ["pruned", "complete", "fail"]
    assert_nothing_left()
    outcomes += [{"epoch": 1, "valid_Loss": 0.4}, {"epoch": 1, "valid_Loss": 0.6}]
    sweep = sweep_of("Loss")
    sweep.run(4, train_on, "pt")
    assert outcomes == [] and sweep.best().number == 3


def test_studies_that_are_not_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep_of("Loss", data={"featurePath": "abc"}, settings={"nlevels": 2})
    sweep_of("Loss", data={"featurePath": "abc"}, settings={"nlevels": 2})
    for other, word in (
        ({"data": {"featurePath": "xyz"}, "settings": {"nlevels": 2}}, "data"),
        ({"data": {"featurePath": "abc"}, "settings": {"nlevels": 3}}, "nlevels 2, not 3"),
    ):
        with pytest.raises(RunError, match=word):
            sweep_of("Loss", **other)
    url = "sqlite:///foreign.db"
    optuna.create_study(storage=url, study_name="s").optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(RunError, match="not made by this program"):
        sweep_of("Loss", storage=url)
    sweep_of("Loss", name="another", storage=url)


def test_storages_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("noise.db").write_bytes(b"no database" * 1000)
    with sqlite3.connect("other.db") as database:
        database.execute("CREATE TABLE birds (name TEXT)")
    database.close()
    other = Path("other.db").read_bytes()
    for storage, word in (
        ("sqlite:///noise.db", "not a database"),
        ("sqlite:///other.db", "something else .birds."),
        ("sqlite:///no/such/folder/s.db", "unable to open"),
        ("postgresql+pg8000://user:secret@127.0.0.1:1/s", "user:\\*\\*\\*@.* needs a driver"),
        ("postgres-at-home", "not the URL"),
        ("nosql://127.0.0.1/s", "not the URL"),
    ):
        with pytest.raises(ConfigError, match=word) as caught:
            sweep_of("Loss", storage=storage)
        assert "secret" not in str(caught.value) and str(caught.value).startswith("--storage")
    assert Path("other.db").read_bytes() == other


BAD_SPACES = {
    "learning_rat": ({"learning_rat": SPACE["learning_rate"]}, "'learning_rate'"),
    "low above high": ({"gamma": {"type": "float", "low": 2, "high": 1}}, "greater than high 1"),
    "empty space": ({}, "empty"),
    "no choices": ({"fusion": {"type": "categorical", "choices": []}}, "fusion.choices"),
    "unknown type": ({"gamma": {"type": "real", "low": 0, "high": 1}}, "'real'"),
    "no description": ({"gamma": 3}, "gamma"),
    "low not allowed": ({"patience": {"type": "int", "low": -1, "high": 3}}, "patience is -1"),
    "high not allowed": ({"text_dropout": {"type": "float", "low": 0, "high": 1.0}}, "text_dropout is 1.0"),
    "choice not allowed": ({"dst_feature_dim_nheads": {"type": "categorical", "choices": [[50, 7]]}}, "divisible"),
    "float for a count": ({"patience": {"type": "float", "low": 1, "high": 3}}, "patience is 1.0"),
    "parts of an int": ({"patience": {"type": "int", "low": 1.5, "high": 3}}, "whole numbers"),
    "logarithm of zero": ({"gamma": {"type": "float", "low": 0, "high": 1, "log": True}}, "greater than 0"),
    "fixed too": ({"batch_size": {"type": "int", "low": 4, "high": 8}}, "command line too"),
    "what is compared": ({"KeyEval": {"type": "categorical", "choices": ["Loss", "MAE"]}}, "cannot be searched"),
    "a list": ([], "settings to search"),
}
BAD_FLAGS = {
    "no trials": (["--tune", "0"], "--tune"),
    "search alone": (["--search", "space.json"], "--tune"),
    "storage alone": (["--storage", "sqlite:///x.db"], "--tune"),
    "no such file": (["--tune", "1", "--search", "none.json"], "none.json"),
    "several seeds": (["--tune", "1", "-s", "1", "2"], "--seeds"),
    "overwrite": (["--tune", "1", "--overwrite"], "--overwrite"),
    "track": (["--tune", "1", "--track", "tensorboard"], "--track"),
    "path as a name": (["--tune", "1", "--name", "a/b"], "--name"),
    "no folder": (["--tune", "1", "--search", "space.json", "--res-save-dir", "space.json/x"], "--res-save-dir"),
    "no folder for trials": (["--tune", "1", "--search", "space.json", "--model-save-dir", "space.json/x"],
                             "--model-save-dir"),
}  # fmt: skip


def test_bad_input_is_one_line_before_anything_is_trained(space, capsys):
    cases = dict(BAD_FLAGS)
    for case, (content, word) in BAD_SPACES.items():
        Path(f"{case}.json").write_text(json.dumps(content))
        cases[case] = (["--tune", "1", "--search", f"{case}.json"], word)
    for case, (arguments, word) in cases.items():
        assert train(*arguments) == 2, case
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and word in message, (case, message)
    assert not Path("pt").exists()


def test_data_that_changed(space, corpus, capsys):
    assert train("--tune", "1", "--search", space) == 0
    changed = {split: fields | {"audio": fields["audio"] + 1} for split, fields in corpus.items()}
    write_pickle(Path("dataset/SYNTHETIC/aligned_50.pkl"), changed)
    assert train("--tune", "2", "--search", space) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "started with data" in message, message


def test_the_space_that_is_there_fits_every_data_set(folder):
    path = ROOT / "config/search/default.json"
    for dataset in ("mosi", "mosei", "synthetic"):
        assert load_search_space(path, {}, lambda overrides, name=dataset: load_config("dmd", name, "", overrides))


def test_ranks_do_not_share_a_trial(folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("--tune", "1") == 2
    assert "several ranks cannot train one trial" in capsys.readouterr().err and not Path("pt").exists()
