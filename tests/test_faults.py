"""Runs survive signals, kills and full disks without loss, and end with the same results.

Real signals, real processes, a real full disk. The long tests are marked slow.
"""

import contextlib
import errno
import fcntl
import json
import os
import random
import re
import resource
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import test as test_command
from dataset.synthetic import generate
from tests.commands import (
    ROOT,
    SMALL,
    call,
    files,
    launch,
    metrics_of,
    refused,
    rows_of,
    timeless,
    train,
    write_pickle,
)
from trainers.checkpoint import read_state
from utils.cli import run_command
from utils.device import M_MMAP_THRESHOLD, set_thresholds

EPOCHS = 3
LONGER = ["--epochs", str(EPOCHS)]


def start(*arguments: str) -> subprocess.Popen:
    """Start run.py in a new process."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "-d", "synthetic", *SMALL, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


def outcome(name: str) -> dict:
    """The results of a run that must not depend on interruptions."""
    weights = {
        path.name: path.read_bytes() for path in Path(f"pt/{name}-synthetic-1111").glob("*.pth")
    }
    metrics = Path(f"result/{name}-synthetic-1111/metrics.json").read_text()
    tables = [
        [
            row | {"Model": ""}
            for row in rows_of(f"result/normal/synthetic{table}.csv")
            if row["Model"] == name
        ]
        for table in ("", "-seeds")
    ]
    return {
        "history": timeless(f"{name}-synthetic-1111"),
        "weights": weights,
        "metrics": metrics,
        "tables": tables,
    }


def assert_readable(name: str) -> None:
    """Check that every file under its final name is complete."""
    for path in Path(f"pt/{name}-synthetic-1111").iterdir():
        if path.suffix in (".pth", ".pt"):
            read_state(path)
    for path in Path(f"result/{name}-synthetic-1111").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            assert not any(None in row or None in row.values() for row in rows_of(path))


@pytest.fixture(scope="module")
def uninterrupted(make_folder) -> dict:
    with contextlib.chdir(make_folder()):
        assert train("--name", "whole", *LONGER) == 0
        return outcome("whole")


def test_run_resumed_after_a_signal_equals_uninterrupted_run(uninterrupted, folder, capsys):
    def interrupt():
        while not Path("pt/cut-synthetic-1111/2.pth").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert train("--name", "cut", *LONGER) == 130
    thread.join()
    assert capsys.readouterr().err == "Stopped by SIGINT.\n"
    assert_readable("cut")
    assert not Path("result/cut-synthetic-1111/metrics.json").exists()
    assert train("--name", "cut", *LONGER, "--resume") == 0
    assert "resumed after epoch" in capsys.readouterr().out
    assert outcome("cut") == uninterrupted
    before = files()
    assert train("--name", "cut", *LONGER, "--resume") == 0
    assert "cut-synthetic-1111 is finished" in capsys.readouterr().out
    assert files() == before


@pytest.mark.slow
def test_last_line_of_an_interrupted_command_resumes_it(folder):
    """Interrupted in the first of two seeds; until then no other process can open the run."""
    many = ["--set", "early_stop=60", "--epochs", "60"]  # so that the second command comes in time
    process = start("--name", "cut", "-s", "1", "2", *many, "--overwrite")
    wait_for(Path("pt/cut-synthetic-1/1.pth"), process)
    for option in ("--resume", "--overwrite"):
        assert train("--name", "cut", "-s", "1", *many, option) == 2
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    printed = re.fullmatch(r"Stopped by SIGTERM\. To continue: python (.*run\.py .*)\n", error)
    assert (
        printed and printed[1].endswith("--epochs 60 --resume") and "--overwrite" not in printed[1]
    )
    assert launch(*shlex.split(printed[1])).returncode == 0
    for seed in (1, 2):
        assert len(rows_of(f"result/cut-synthetic-{seed}/history.csv")) == 60
    assert [row["seed"] for row in rows_of("result/normal/synthetic-seeds.csv")] == ["1", "2"]


def test_ctrl_c_while_pytorch_is_imported_gives_one_line(folder):
    arguments = [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "-d", "synthetic"]
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    lines = []
    for line in process.stderr:
        lines += [] if line.startswith("import time:") else [line]
        if "torch._C" in line:
            process.send_signal(signal.SIGINT)
            break
    lines += [line for line in process.stderr if not line.startswith("import time:")]
    assert (
        process.wait() == 130 and len(lines) == 1 and lines[0].endswith("-d synthetic --resume\n")
    ), lines


@pytest.mark.parametrize(
    "words",
    [["--search", "space.json", "--tune", "3"], ["--suite", "table3"]],
    ids=["sweep", "suite"],
)
def test_interrupted_sweep_or_suite_ends_with_one_line(folder, words):
    Path("space.json").write_text('{"learning_rate": [0.001, 0.01]}')
    process = start(*words, "--resume")
    wait_for(Path("log"), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.count("\n") == 1, error
    assert error.endswith(f"{' '.join(words)} --resume\n")


def test_open_files_do_not_grow_with_the_batches_of_loader_processes(tmp_path):
    """An epoch and its evaluations have 180 batches, and 128 files may be open."""
    corpus = {}
    for split, fields in generate().items():
        corpus[split] = {field: values[:120] for field, values in fields.items()}
    write_pickle(tmp_path / "dataset/SYNTHETIC/aligned_50.pkl", corpus)
    settings = ["batch_size=2", "eval_batch_size=2", "nlevels=1", "dst_feature_dim_nheads=[16,2]"]
    command = [str(ROOT / "run.py"), "-d", "synthetic", "-n", "1", "--no-figures", "--epochs", "1"]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, most[1]))
    try:
        done = launch(*command, "--set", *settings, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert (done.returncode, done.stderr) == (0, "")


class Old:
    """mallopt of glibc 2.31, which rejects thresholds above 32 MiB; keeps the accepted values."""

    def __init__(self):
        self.accepted = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == M_MMAP_THRESHOLD and value > 2**25:
            return 0
        self.accepted[parameter] = value
        return 1


def test_thresholds_of_an_older_glibc_are_not_changed():
    set_thresholds(libc := Old())
    assert not libc.accepted


def test_run_continues_if_folders_cannot_be_synced(folder, monkeypatch):
    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert train("--epochs", "1") == 0


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_file_system_without_locks_gives_at_most_one_line(folder, monkeypatch, capsys):
    """Some versions of filelock then raise NotImplementedError, others lock in another way."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    status, error = train("--epochs", "1"), capsys.readouterr().err
    assert status == 0 or (status == 2 and error.count("\n") == 1 and "file locks" in error), error


def test_only_the_given_number_of_checkpoints_is_kept(folder):
    assert train("--set", "keep_checkpoints=1", *LONGER) == 0
    best = metrics_of("dmd-synthetic-1111")["epoch"]
    kept = {path.name for path in Path("pt/dmd-synthetic-1111").glob("*.pth")}
    assert kept == {f"{best}.pth", f"{EPOCHS}.pth", "best.pth"}


def test_non_finite_loss_ends_training_with_one_line(folder, capsys):
    assert train("--set", "learning_rate=1e30", *LONGER) == 2
    assert re.fullmatch(r"NumericalError: .* not finite.*utterances.*\n", capsys.readouterr().err)
    log = Path("log/dmd-synthetic.log").read_text()
    assert "Traceback (most recent call last)" in log and "NumericalError" in log
    assert_readable("dmd")


def test_internal_error_keeps_its_traceback(capsys):
    assert run_command(lambda: 1 / 0) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_test_command_reports_changed_data_and_settings(trained, corpus, capsys):
    checkpoint = "pt/dmd-synthetic-1111/best.pth"
    assert call(test_command, checkpoint) == 0
    assert "WARNING" not in capsys.readouterr().out
    changed = {split: fields | {"audio": fields["audio"] + 1} for split, fields in corpus.items()}
    write_pickle(trained / "dataset/SYNTHETIC/aligned_50.pkl", changed)
    assert call(test_command, checkpoint, "--set", "batch_size=4") == 0
    out = capsys.readouterr().out
    assert "batch_size is 4 now, but was 8 in training" in out
    assert "data is {" in out


def test_checkpoint_that_cannot_be_written_ends_the_run(folder, capsys):
    """The operating system first rejects files of more than 1 MB, such as the checkpoint."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, most[1]))
    try:
        assert train() == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert re.fullmatch(
        r"RunError: pt/dmd-synthetic-1111: cannot be written .*\n", capsys.readouterr().err
    )
    assert sorted(p.name for p in (folder / "pt/dmd-synthetic-1111").iterdir()) == [
        ".lock",
        "run.json",
    ]
    assert train("--resume") == 0
    assert "--res-save-dir" in refused(
        capsys, train, "--name", "other", "--res-save-dir", "/proc/result"
    )


def test_full_disk_of_the_log_does_not_end_the_run(folder):
    Path("log").mkdir()
    Path("log/dmd-synthetic.log").symlink_to("/dev/full")
    assert train("--epochs", "1") == 0 and Path("result/dmd-synthetic-1111/metrics.json").exists()


@pytest.mark.slow
def test_run_killed_twenty_times_equals_uninterrupted_run(folder):
    """SIGKILL at random moments of training, every other one while a file is written; then the run
    is resumed.
    """
    epochs = ["--epochs", "12", "--set", "early_stop=12"]
    assert train("--name", "whole", *epochs) == 0
    chance, kills, runs, resumed_after = random.Random(5), 0, 0, []
    while kills < 20:
        runs += 1
        name, finished = f"killed{runs}", False
        log, checkpoints = Path(f"log/{name}-synthetic.log"), Path(f"pt/{name}-synthetic-1111")
        while not finished:
            starts = log.read_text().count("parameters, checkpoints in") if log.exists() else 0
            begun = Path(f"result/{name}-synthetic-1111/run.json").exists()
            process = start("--name", name, *epochs, *(["--resume"] if begun else ["--overwrite"]))
            if kills < 20:
                while process.poll() is None and (
                    not log.exists()
                    or log.read_text().count("parameters, checkpoints in") == starts
                ):
                    time.sleep(0.01)
                time.sleep(chance.uniform(0, 1))
                while (
                    kills % 2 and process.poll() is None and not list(checkpoints.glob(".*.pt*tmp"))
                ):
                    pass
                process.kill()
            _, error = process.communicate(timeout=120)
            finished = process.returncode == 0
            assert finished or process.returncode == -signal.SIGKILL, error
            kills += not finished
            assert_readable(name)
        resumed_after += re.findall(r"resumed after epoch (\d+)", log.read_text())
        assert outcome(name) == outcome("whole")
    print(f"{kills} kills in {runs} runs; resumed after the epochs {resumed_after}")
    assert len(set(resumed_after)) > 3


@pytest.mark.slow
def test_second_signal_ends_at_once(folder):
    process = start(*LONGER)
    wait_for(Path("pt/dmd-synthetic-1111/1.pth"), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert_readable("dmd")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 32 MB, which is enough for the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted without the rights for it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_run_resumes_after_a_full_disk(uninterrupted, folder, small_disk, capsys):
    where = ["--model-save-dir", str(small_disk), *LONGER]
    filler = small_disk / "filler"

    def fill():
        while not list(small_disk.glob("*/training-state.pt")) and running:
            time.sleep(0.001)
        with open(filler, "wb") as file:
            for _ in range(32):
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
    Path("pt").mkdir()
    Path("pt/full-synthetic-1111").symlink_to(small_disk / "full-synthetic-1111")
    assert outcome("full") == uninterrupted


def test_command_interrupted_before_it_replaces_a_run_is_printed_unchanged(trained):
    """The earlier run must not pass for the new one."""
    process = start("--overwrite", "--set", "conv1d_kernel_size_l=5")
    wait_for(Path("log/dmd-synthetic.log"), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    replaced = not Path("result/dmd-synthetic-1111/metrics.json").exists()
    assert process.returncode == 130
    assert ("--resume" in error) == replaced and ("--overwrite" in error) != replaced
