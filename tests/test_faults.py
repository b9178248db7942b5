"""What a run promises when something goes wrong: nothing is lost, and it ends as if nothing had happened.

Real signals, real processes, a real full disk. The long tests are marked slow.
"""

import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import test as test_command
from tests.commands import ROOT, SMALL, call, files_below, train, write_pickle
from trainers.checkpoint import read_state
from utils.cli import run_command

EPOCHS = 4
LONGER = ["--epochs", str(EPOCHS)]


def start(*arguments: str) -> subprocess.Popen:
    """run.py in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "-d", "synthetic", *SMALL, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def outcome(name: str) -> dict:
    """All that a run of that name leaves and that must not depend on how it came about."""
    history = rows_of(f"result/{name}-synthetic-1111/history.csv")
    timeless = [{key: value for key, value in row.items() if "seconds" not in key} for row in history]
    weights = {path.name: path.read_bytes() for path in Path(f"pt/{name}-synthetic-1111").glob("*.pth")}
    metrics = Path(f"result/{name}-synthetic-1111/metrics.json").read_text()
    tables = [
        [row | {"Model": ""} for row in rows_of(f"result/normal/synthetic{table}.csv") if row["Model"] == name]
        for table in ("", "-seeds")
    ]
    return {"history": timeless, "weights": weights, "metrics": metrics, "tables": tables}


def assert_readable(name: str) -> None:
    """Every file under its final name is whole."""
    for path in Path(f"pt/{name}-synthetic-1111").iterdir():
        if path.suffix in (".pth", ".pt"):
            read_state(path)
    for path in Path(f"result/{name}-synthetic-1111").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(path.open())}) == 1


@pytest.fixture
def uninterrupted(folder) -> dict:
    assert train("--name", "whole", *LONGER) == 0
    return outcome("whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_order_and_it_resumes_to_the_same_end(uninterrupted, number, status, capsys):
    def interrupt():
        while not Path("pt/cut-synthetic-1111/2.pth").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert train("--name", "cut", *LONGER) == status
    thread.join()
    assert capsys.readouterr().err == f"Stopped by {number.name}.\n"
    assert_readable("cut")
    assert not Path("result/cut-synthetic-1111/metrics.json").exists()
    assert train("--name", "cut", *LONGER) == 2  # neither --resume nor --overwrite
    assert train("--name", "cut", *LONGER, "--resume") == 0
    assert "resumed behind epoch" in capsys.readouterr().out
    assert outcome("cut") == uninterrupted
    before = files_below(Path())
    assert train("--name", "cut", *LONGER, "--resume") == 0
    assert "cut-synthetic-1111 is finished" in capsys.readouterr().out
    assert files_below(Path()) == before


def test_the_last_word_of_an_interrupted_command_resumes_it(folder):
    process = start("--name", "cut", *LONGER, "--overwrite")
    wait_for(Path("pt/cut-synthetic-1111/1.pth"), process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    printed = re.fullmatch(r"Stopped by SIGTERM\. To go on: (python .*run\.py .*)\n", error)
    assert printed and printed[1].endswith("--epochs 4 --resume") and "--overwrite" not in printed[1]
    python, *words = shlex.split(printed[1])
    assert (
        subprocess.run(
            [sys.executable, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
        ).returncode
        == 0
    )
    assert json.loads(Path("result/cut-synthetic-1111/metrics.json").read_text())["epoch"] <= 4


def test_a_run_of_several_seeds_resumes_where_it_stopped(folder, capsys):
    assert train("--name", "whole", "-s", "1", "1111") == 0
    assert train("--name", "cut", "-s", "1") == 0
    Path("result/normal/synthetic.csv").unlink()
    Path("result/normal/synthetic-seeds.csv").unlink()  # as if it had stopped between the seeds
    capsys.readouterr()
    assert train("--name", "cut", "-s", "1", "1111", "--resume") == 0
    assert "cut-synthetic-1 is finished" in capsys.readouterr().out
    whole, cut = (Path(f"result/{name}-synthetic-1111/metrics.json").read_text() for name in ("whole", "cut"))
    assert whole == cut
    assert [row["seed"] for row in rows_of("result/normal/synthetic-seeds.csv")] == ["1", "1111"]


def test_what_cannot_be_resumed_is_refused(folder, corpus, capsys):
    assert train("--name", "a", "--epochs", "1") == 0
    assert train("--name", "a", "--resume", "--set", "learning_rate=0.5") == 2  # finished, and otherwise
    Path("result/a-synthetic-1111/metrics.json").unlink()
    before = files_below(folder)
    capsys.readouterr()
    refusals = [(["--set", "learning_rate=0.5"], "learning_rate"), (["--precision", "bf16"], "precision")]
    for arguments, word in [*refusals, (["--overwrite"], "--overwrite")]:
        assert train("--name", "a", "--resume", *arguments) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and word in message
    corpus = {split: fields | {"audio": fields["audio"] + 1} for split, fields in corpus.items()}
    write_pickle(Path("dataset/SYNTHETIC/aligned_50.pkl"), corpus)
    assert train("--name", "a", "--resume") == 2
    assert "data" in capsys.readouterr().err
    assert {path: content for path, content in files_below(folder).items() if "log" not in path} == before
    state = Path("pt/a-synthetic-1111/training-state.pt")
    state.write_bytes(state.read_bytes()[:1000])
    assert train("--name", "a", "--resume") == 2


def test_a_run_belongs_to_one_process(folder, capsys):
    process = start("--name", "one", *LONGER)
    wait_for(Path("pt/one-synthetic-1111/1.pth"), process)
    for option in ("--resume", "--overwrite"):
        assert train("--name", "one", *LONGER, option) == 2
        assert "another process is writing this run" in capsys.readouterr().err
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert_readable("one")


def test_number_of_checkpoints(folder):
    assert train("--set", "keep_checkpoints=1", *LONGER) == 0
    best = json.loads(Path("result/dmd-synthetic-1111/metrics.json").read_text())["epoch"]
    kept = {path.name for path in Path("pt/dmd-synthetic-1111").glob("*.pth")}
    assert kept == {f"{best}.pth", f"{EPOCHS}.pth", "best.pth"}


def test_one_utterance_at_a_time(folder):
    assert train("--set", "batch_size=1", "--set", "eval_batch_size=1") == 0
    history = rows_of("result/dmd-synthetic-1111/history.csv")
    assert all(np.isfinite(float(row["loss/total"])) for row in history)


def test_a_loss_that_is_not_finite(folder, capsys):
    assert train("--set", "learning_rate=1e30", *LONGER) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and re.match(r"NumericalError: .* not finite.*utterances", message), message
    log = Path("log/dmd-synthetic.log").read_text()
    assert "Traceback (most recent call last)" in log and "NumericalError" in log
    assert_readable("dmd")


def test_a_fault_of_the_program_leaves_its_traceback_in_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(lambda: 1 / 0) == 1
    message = capsys.readouterr().err
    assert message.startswith("ZeroDivisionError: division by zero") and message.count("\n") == 1
    assert "Traceback (most recent call last)" in Path("log/failure.log").read_text()


def test_the_test_command_tells_other_data_and_settings(folder, corpus, capsys):
    assert train() == 0
    capsys.readouterr()
    checkpoint = "pt/dmd-synthetic-1111/best.pth"
    assert call(test_command, checkpoint) == 0
    assert "WARNING" not in capsys.readouterr().out
    changed = {split: fields | {"audio": fields["audio"] + 1} for split, fields in corpus.items()}
    write_pickle(folder / "dataset/SYNTHETIC/aligned_50.pkl", changed)
    assert call(test_command, checkpoint, "--set", "batch_size=4") == 0
    out = capsys.readouterr().out
    assert "batch_size is 4 here, but was 8 in training" in out
    assert "featurePath is another file than in training" in out


@pytest.mark.slow
def test_twenty_kills_do_not_change_the_end(folder):
    """SIGKILL at random moments of training, every other while a file is being written; then the run goes on."""
    epochs = ["--epochs", "12", "--set", "early_stop=12"]
    assert train("--name", "whole", *epochs) == 0
    chance, kills, runs, resumed_behind = random.Random(5), 0, 0, []
    while kills < 20:
        runs += 1
        name, finished = f"killed{runs}", False
        log, checkpoints = Path(f"log/{name}-synthetic.log"), Path(f"pt/{name}-synthetic-1111")
        while not finished:
            starts = log.read_text().count("parameters, checkpoints in") if log.exists() else 0
            process = start("--name", name, *epochs, "--resume")
            if kills < 20:
                while process.poll() is None and (
                    not log.exists() or log.read_text().count("parameters, checkpoints in") == starts
                ):
                    time.sleep(0.01)
                time.sleep(chance.uniform(0, 1))
                while kills % 2 and process.poll() is None and not list(checkpoints.glob(".*.pt*.tmp")):
                    pass
                process.kill()
            _, error = process.communicate(timeout=120)
            finished = process.returncode == 0
            assert finished or process.returncode == -signal.SIGKILL, error
            kills += not finished
            assert_readable(name)
        resumed_behind += re.findall(r"resumed behind epoch (\d+)", log.read_text())
        assert outcome(name) == outcome("whole")
    print(f"{kills} kills in {runs} runs; resumed behind the epochs {resumed_behind}")
    assert len(set(resumed_behind)) > 3


@pytest.mark.slow
def test_a_second_signal_ends_at_once(folder):
    process = start(*LONGER)
    wait_for(Path("pt/dmd-synthetic-1111/1.pth"), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert_readable("dmd")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 MB: enough for four epochs of 6 MB, and the training state of 12 MB twice."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted without the rights for it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up(uninterrupted, small_disk, capsys):
    where = ["--model-save-dir", str(small_disk), *LONGER]
    filler = small_disk / "filler"

    def fill():
        while not list(small_disk.glob("*/1.pth")) and running:
            time.sleep(0.001)
        with open(filler, "wb") as file:
            for _ in range(64):
                try:
                    os.write(file.fileno(), bytes(2**20))
                except OSError:
                    return

    running = [True]
    thread = threading.Thread(target=fill)
    thread.start()
    status = train("--name", "full", *where)
    running.clear()
    thread.join()
    assert status == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--resume" in message, message
    filler.unlink()
    assert train("--name", "full", *where, "--resume") == 0
    Path("pt/full-synthetic-1111").symlink_to(small_disk / "full-synthetic-1111")
    assert outcome("full") == uninterrupted
    filler.write_bytes(bytes(10 * 2**20))
    capsys.readouterr()
    assert train("--name", "late", *where) == 2
    assert re.search(r"needs at least \d+ MiB .* MiB are free", capsys.readouterr().err)


def test_a_result_folder_that_cannot_be_written(folder, capsys):
    assert train("--res-save-dir", "/proc/result") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--res-save-dir" in message
