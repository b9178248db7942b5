"""What a run that is there already is good for: nothing of it is lost, and nothing passes for what it is not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import run
from tests.commands import ROOT, TINY, files_below, train
from utils.errors import RunError

RUN = "dmd-synthetic-1111"
CONFIG = {"nlevels": 1, "batch_size": 8, "update_epochs": 2, "max_epochs": 1}
assert {item for item in TINY if "=" in item} == {f"{k}={v}" for k, v in (CONFIG | {"max_epochs": 2}).items()}


def metrics(name: str = RUN) -> dict:
    return json.loads(Path(f"result/{name}/metrics.json").read_text())


def without_seconds(name: str = RUN) -> pd.DataFrame:
    return pd.read_csv(f"result/{name}/history.csv").drop(columns=["seconds", "train_seconds"])


def test_files_of_an_epoch_that_was_not_completed_are_forgotten(folder):
    """The writing of epoch 2 stopped behind best.pth and history.csv, and epoch 2 is not trained again."""
    assert train("--epochs", "2", "--set", "learning_rate=0.01", "--name", "other") == 0
    assert train("--epochs", "1") == 0
    expected, rows = metrics(), without_seconds()
    Path(f"result/{RUN}/metrics.json").unlink()
    Path(f"pt/{RUN}/best.pth").unlink()  # a second name of 1.pth, which stays
    shutil.copy("pt/other-synthetic-1111/best.pth", f"pt/{RUN}/best.pth")
    history = pd.read_csv(f"result/{RUN}/history.csv")
    pd.concat([history, history.assign(epoch=2)]).to_csv(f"result/{RUN}/history.csv", index=False)
    assert train("--epochs", "1", "--resume") == 0
    assert metrics() == expected and without_seconds().equals(rows)
    assert Path(f"pt/{RUN}/best.pth").read_bytes() == Path(f"pt/{RUN}/1.pth").read_bytes()


def test_a_finished_run_goes_on_where_it_may_train_longer(folder):
    assert train("--name", "whole") == 0
    assert train("--epochs", "1") == 0
    assert train("--resume") == 0  # two epochs
    assert metrics() == metrics("whole-synthetic-1111")
    assert without_seconds().equals(without_seconds("whole-synthetic-1111"))
    assert Path(f"pt/{RUN}/2.pth").read_bytes() == Path("pt/whole-synthetic-1111/2.pth").read_bytes()


def test_a_run_that_is_not_there_begins_with_a_warning(folder, capsys):
    assert train("--epochs", "1", "--name", "mispelt", "--resume") == 0
    assert "there is no run mispelt-synthetic-1111 to resume; it begins here" in capsys.readouterr().out


def test_without_its_checkpoints_a_run_is_not_started_over(folder, capsys):
    assert train() == 0
    Path(f"result/{RUN}/metrics.json").unlink()
    before = files_below(folder / "result")
    assert train("--resume", "--model-save-dir", "elsewhere") == 2
    assert "the checkpoints of this run are not here" in capsys.readouterr().err
    assert files_below(folder / "result") == before and len(without_seconds()) == 2


class Stop(Exception):
    """Ends a training."""


def stop(row: dict) -> None:
    raise Stop


def test_a_finished_run_that_goes_on_is_not_finished_before_its_new_end(folder):
    assert train("--name", "whole") == 0
    assert train("--epochs", "1", "--name", "cut") == 0
    with pytest.raises(Stop):
        run.DMD_run(
            dataset_name="synthetic", config=CONFIG, epochs=2, name="cut", resume=True, after_epoch=stop, figures=False
        )
    assert not Path("result/cut-synthetic-1111/metrics.json").exists()
    assert train("--name", "cut", "--resume") == 0
    assert metrics("cut-synthetic-1111") == metrics("whole-synthetic-1111")


def test_a_run_is_not_resumed_to_an_end_that_it_has_passed(folder, capsys):
    assert train("--set", "early_stop=5") == 0
    before = files_below(folder)
    refusals = [
        ("max_epochs=1", "but the run has 2 epochs already"),
        ("early_stop=4", "but the run was started with 5"),
    ]
    for setting, words in refusals:
        assert train("--set", setting, "--resume") == 2
        assert words in capsys.readouterr().err
    assert files_below(folder) == before


def test_without_its_training_state_a_run_is_not_started_over(folder, capsys):
    assert train() == 0
    Path(f"pt/{RUN}/training-state.pt").unlink()
    for name in ("metrics.json", "predictions.csv"):  # finished, and not
        before = files_below(folder)
        assert train("--resume", "--epochs", "3") == 2
        assert "training-state.pt: no such file, and without it" in capsys.readouterr().err
        assert files_below(folder) == before
        Path(f"result/{RUN}/{name}").unlink()


def test_without_its_best_checkpoint_a_run_is_not_resumed(folder, capsys):
    assert train("--set", "min_improvement=100") == 0
    for name in (f"result/{RUN}/metrics.json", f"pt/{RUN}/1.pth"):
        Path(name).unlink()
    before = files_below(folder)
    assert train("--set", "min_improvement=100", "--resume") == 2
    assert "1.pth: no such file, and it is the best epoch so far" in capsys.readouterr().err
    assert files_below(folder) == before


def test_a_replacement_without_room_replaces_nothing(folder, capsys):
    assert train() == 0
    before = files_below(folder)
    assert train("--overwrite", "--epochs", "100000000", "--set", "early_stop=100000000") == 2
    assert "MiB are free" in capsys.readouterr().err
    assert files_below(folder) == before


@pytest.mark.parametrize(
    ("file", "content"),
    [("metrics.json", "{}"), ("metrics.json", "[]"), ("config.json", '{"settings": []}'), ("config.json", "[[[")],
)
def test_damaged_descriptions_of_a_run_are_one_line(folder, capsys, file, content):
    assert train("--epochs", "1") == 0
    Path(f"result/{RUN}/{file}").write_text(content)
    assert train("--epochs", "1", "--resume") == 2
    error = capsys.readouterr().err
    assert file in error and error.count("\n") == 1


def test_one_folder_for_checkpoints_and_results(folder):
    assert train("--epochs", "1", "--model-save-dir", str(folder / "both"), "--res-save-dir", "both") == 0
    assert {"1.pth", "history.csv", "metrics.json"} <= {path.name for path in (folder / "both" / RUN).iterdir()}


def test_an_interrupted_replacement_leaves_no_old_result(folder):
    """The second seed's old run must not count as part of the replacement."""
    assert train("-s", "1", "2", "--epochs", "1") == 0
    old = Path("pt/dmd-synthetic-2/1.pth").stat().st_ino

    with pytest.raises(Stop):
        run.DMD_run(dataset_name="synthetic", config=CONFIG, seeds=[1, 2], overwrite=True, after_epoch=stop)
    assert not Path("result/dmd-synthetic-2/metrics.json").exists()
    assert train("-s", "1", "2", "--epochs", "1", "--resume") == 0
    assert Path("pt/dmd-synthetic-2/1.pth").stat().st_ino != old


def test_a_replacement_that_cannot_begin_replaces_nothing(folder):
    assert train("-s", "1", "2", "--epochs", "1") == 0
    before = files_below(folder)
    assert train("-s", "1", "2", "--epochs", "1", "--overwrite", "--set", "conv1d_kernel_size_l=99") == 2
    assert files_below(folder) == before


def test_a_run_that_another_process_has_finished_meanwhile_stays(folder):
    finished = []

    def train_the_second_seed(row: dict) -> None:
        if not finished:
            finished.append(True)
            run.DMD_run(dataset_name="synthetic", config=CONFIG | {"gamma": 0.5}, seeds=[2], figures=False)

    with pytest.raises(RunError, match="dmd-synthetic-2: a run of this name is there"):
        run.DMD_run(
            dataset_name="synthetic", config=CONFIG, seeds=[1, 2], after_epoch=train_the_second_seed, figures=False
        )
    assert json.loads(Path("result/dmd-synthetic-2/config.json").read_text())["settings"]["gamma"] == 0.5


def test_a_log_that_cannot_be_written_ends_the_log_alone(folder, capsys):
    Path("log").mkdir()
    Path("log/dmd-synthetic.log").symlink_to("/dev/full")
    assert train("--epochs", "1") == 0
    output = capsys.readouterr()
    assert output.out.count("the log ends here") == 1 and "Traceback" not in output.err and metrics()


def test_a_terminal_that_cannot_be_written_to_ends_its_lines_alone(tmp_path):
    """A full disk, and a terminal that knows no accents."""
    program = (
        "from pathlib import Path; from utils.log import start_log, logger\n"
        "start_log(Path('log'), 1); logger.info('modèle'); logger.info('end')"
    )
    python = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    for output in ("/dev/full", "out"):
        with open(output if output[0] == "/" else tmp_path / output, "w") as file:
            done = subprocess.run(python, env=environment, cwd=tmp_path, stdout=file, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "log").read_text().count("modèle") == 2 and (tmp_path / "log").read_text().count("end") == 2
    assert "mod\\xe8le" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("content", [None, ""])
def test_tables_that_cannot_be_appended_to(folder, content, capsys):
    Path("result").mkdir()
    if content is None:
        Path("result/normal").write_text("")
    else:
        Path("result/normal").mkdir()
        Path("result/normal/synthetic.csv").write_text(content)
    assert train("--epochs", "1") == 2
    error = capsys.readouterr().err
    assert "the tables cannot be read or written" in error and error.count("\n") == 1 and metrics()


def test_a_name_that_no_folder_can_have(folder, capsys):
    assert train("--name", "n" * 300) == 2
    assert "too many for a folder" in capsys.readouterr().err and not Path("pt").exists()


def test_abbreviated_flags_are_refused(folder):
    with pytest.raises(SystemExit, match="2"):
        train("--over")
