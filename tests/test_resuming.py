"""Existing runs: they are resumed or replaced only on request, and never mixed with other runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run
from experiments.options import RunOptions
from tests.commands import CONFIG, metrics_of, refused, timeless, train, write_pickle
from utils.errors import ConfigError

RUN = "dmd-synthetic-1111"
BASE = CONFIG | {"max_epochs": 1}


class Stop(Exception):
    """Ends a training."""


def stop(row: dict) -> None:
    raise Stop


@pytest.mark.parametrize("flag", [[], ["--overwrite"], ["--resume"]], ids=str)
def test_foreign_files_are_never_changed(folder, trained_once, capsys, flag):
    """A published checkpoint in an empty folder, and one among those of a run that has fewer
    epochs.
    """
    Path(f"pt/{RUN}").mkdir(parents=True)
    Path(f"pt/{RUN}/38.pth").write_bytes(b"published")
    if flag != ["--resume"]:  # this folder has no run to resume
        assert "38.pth" in refused(capsys, train, *flag)
    shutil.rmtree("pt")
    for name in ("pt", "result"):
        shutil.copytree(trained_once / name, name)
    Path(f"pt/{RUN}/38.pth").write_bytes(b"published")
    assert "38.pth" in refused(capsys, train, *flag)
    # a run that was stopped in epoch 1
    for path in (f"result/{RUN}/history.csv", f"pt/{RUN}/training-state.pt"):
        Path(path).unlink()
    assert "38.pth" in refused(capsys, train, *flag)
    Path(f"pt/{RUN}/38.pth").unlink()
    Path(f"result/{RUN}/run.json").write_text('{"hidden_size": 768}')  # of something else
    assert "run.json" in refused(capsys, train, *flag)


def test_overwrite_deletes_only_files_of_the_run(trained):
    foreign = {
        Path(f"{where}/{RUN}/{name}")
        for where in ("pt", "result")
        for name in ("notes.txt", "figures/mine.png")
    }
    foreign |= {Path(f"result/{RUN}/tensorboard/mine.txt"), Path(f"pt/{RUN}/other.pth")}
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    old = Path(f"pt/{RUN}/1.pth").stat().st_mtime_ns
    assert train("--overwrite", "--epochs", "1") == 0
    assert all(path.read_text() == "mine" for path in foreign)
    assert (
        not Path(f"pt/{RUN}/2.pth").exists() and Path(f"pt/{RUN}/1.pth").stat().st_mtime_ns != old
    )


def test_error_about_an_existing_run_shows_differing_settings(trained, capsys):
    message = refused(
        capsys, train, "--set", "learning_rate=2e-4", "ort=feature", "--precision", "bf16"
    )
    for word in (
        "learning_rate: 0.001 -> 0.0002",
        "ort: batch -> feature",
        "--name dmd-lr0.0002-ortfeature-",
    ):
        assert word in message
    message = refused(capsys, train)
    assert "--resume" in message and "->" not in message
    message = refused(capsys, train, "--epochs", "3")  # which it may be continued with
    assert "max_epochs: 2 -> 3" in message and "--resume" in message


def test_run_of_a_version_without_a_setting_resumes(trained, capsys):
    for where in ("pt", "result"):
        path = Path(f"{where}/{RUN}/run.json")
        config = json.loads(path.read_text())
        del (
            config["settings"]["gamma"],
            config["settings"]["ort"],
            config["settings"]["adam_eps"],
            config["init_from"],
        )
        path.write_text(json.dumps(config | {"settings": config["settings"] | {"retired": 1}}))
    assert "->" not in refused(capsys, train)
    assert "gamma" in refused(capsys, train, "--resume", "--set", "gamma=0.5")
    assert train("--resume", "--epochs", "3") == 0 and len(timeless(RUN)) == 3


def test_resume_starts_a_run_that_does_not_exist(trained, capsys):
    assert train("--name", "other", "--epochs", "1", "--resume") == 0
    out = capsys.readouterr().out
    assert "no run other-synthetic-1111 exists" in out and "dmd-synthetic" not in out
    assert metrics_of("other-synthetic-1111")
    assert train("-s", "1111", "2", "--epochs", "2", "--resume") == 0  # the second seed begins
    assert metrics_of("dmd-synthetic-2")


def test_resume_with_a_misspelled_name_suggests_a_similar_run(trained, capsys):
    assert train("--name", "dms", "--epochs", "1", "--resume") == 0
    [line] = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "no run dms-synthetic-1111 exists" in line
    ]
    assert f"{RUN} exists" in line


def test_run_resumes_without_the_file_of_its_initial_weights(trained, trained_once):
    shutil.copy(f"pt/{RUN}/best.pth", "initial.pth")
    options = {
        "dataset_name": "synthetic",
        "config": CONFIG,
        "figures": False,
        "init_from": "initial.pth",
        "epochs": 2,
    }
    run.DMD_run(**options, name="whole")
    with pytest.raises(Stop):
        run.DMD_run(**options, name="cut", after_epoch=stop)
    Path("initial.pth").unlink()
    run.DMD_run(**options, name="cut", resume=True)
    assert timeless("cut-synthetic-1111") == timeless("whole-synthetic-1111")


def test_error_of_other_files_is_not_converted(folder):
    def read_missing_file(row: dict) -> None:
        Path("missing.txt").read_text()

    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        run.DMD_run(
            dataset_name="synthetic", config=BASE, figures=False, after_epoch=read_missing_file
        )


def test_figures_use_features_in_memory(folder, capsys):
    """The pickle is deleted before training ends, and is not read again."""
    pickle = Path("dataset/SYNTHETIC/aligned_50.pkl").rename("own.pkl").resolve()
    config = BASE | {"featurePath": str(pickle)}
    run.DMD_run(dataset_name="synthetic", config=config, after_epoch=lambda row: pickle.unlink())
    assert Path(f"result/{RUN}/figures/heads.svg").exists()
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        ({"seeds": np.arange(2)}, (0, 1)),
        ({"seeds": np.int64(3)}, (3,)),
        ({"seeds": 4}, (4,)),
        ({"seeds": [5]}, (5,)),
    ],
    ids=["array", "numpy number", "number", "list"],
)
def test_seeds_may_be_a_number_or_any_sequence(options, seeds):
    assert RunOptions(**options).seeds == seeds


def test_options_of_a_wrong_type_are_rejected():
    assert RunOptions(track="tensorboard").track == ("tensorboard",)
    with pytest.raises(ConfigError, match="--track: 'wandbb'"):
        RunOptions(track=["tensorboard", "wandbb"])
    with pytest.raises(ConfigError, match="--seeds"):
        RunOptions(seeds=[0.5])


def test_incompatible_resume_is_rejected(trained, corpus, capsys):
    refusals = [
        (["--set", "learning_rate=0.5"], "learning_rate"),
        (["--precision", "bf16"], "precision"),
    ]
    refusals += [(["--overwrite"], "--overwrite"), (["--epochs", "1"], "max_epochs")]
    refusals += [(["--model-save-dir", "elsewhere", "--epochs", "3"], "--model-save-dir")]
    for _ in ("finished", "not finished"):
        for arguments, word in refusals:
            assert word in refused(capsys, train, "--resume", *arguments)
        Path(f"result/{RUN}/metrics.json").unlink(missing_ok=True)
    changed = {split: fields | {"audio": fields["audio"] + 1} for split, fields in corpus.items()}
    write_pickle(Path("dataset/SYNTHETIC/aligned_50.pkl"), changed)
    assert "data" in refused(capsys, train, "--resume")


@pytest.mark.parametrize(
    ("file", "content"),
    [("result/metrics.json", b"{}"), ("result/run.json", b"[[["), ("pt/training-state.pt", b"cut"),
     ("pt/training-state.pt", None), ("pt/2.pth", None)],
    ids=["damaged metrics.json", "damaged run.json", "damaged state", "missing state",
         "missing checkpoint"],
)  # fmt: skip
def test_damaged_and_missing_run_files_give_one_line(trained, file, content, capsys):
    where, name = file.split("/")
    path = Path(where, RUN, name)
    path.write_bytes(content) if content is not None else path.unlink()
    further = [] if name == "metrics.json" else ["--epochs", "3"]
    assert name in refused(capsys, train, "--resume", *further)


def test_files_of_an_incomplete_epoch_are_ignored(trained):
    """The writing of epoch 2 stopped after best.pth and history.csv, and epoch 2 is not trained
    again.
    """
    assert train("--epochs", "1", "--name", "cut") == 0
    cut = "cut-synthetic-1111"
    expected, rows = metrics_of(cut), timeless(cut)
    Path(f"result/{cut}/metrics.json").unlink()
    Path(f"pt/{cut}/best.pth").unlink()  # a second name of 1.pth, which stays
    shutil.copy(f"pt/{RUN}/2.pth", f"pt/{cut}/best.pth")
    history = pd.read_csv(f"result/{cut}/history.csv")
    pd.concat([history, history.assign(epoch=2)]).to_csv(f"result/{cut}/history.csv", index=False)
    assert train("--epochs", "1", "--name", "cut", "--resume") == 0
    assert (metrics_of(cut), timeless(cut)) == (expected, rows)
    assert Path(f"pt/{cut}/best.pth").read_bytes() == Path(f"pt/{cut}/1.pth").read_bytes()
    # It trains longer, and is not finished before its new end.
    options = {
        "dataset_name": "synthetic",
        "config": CONFIG,
        "epochs": 2,
        "name": "cut",
        "figures": False,
    }
    with pytest.raises(Stop):
        run.DMD_run(**options, resume=True, after_epoch=stop)
    assert not Path(f"result/{cut}/metrics.json").exists()
    assert train("--name", "cut", "--resume") == 0
    assert (metrics_of(cut), timeless(cut)) == (metrics_of(RUN), timeless(RUN))
    assert Path(f"pt/{RUN}/2.pth").read_bytes() == Path(f"pt/{cut}/2.pth").read_bytes()


def test_interrupted_replacement_leaves_no_old_result(folder, capsys):
    """The old run of the second seed must not count as part of the replacement. A replacement that
    cannot start changes nothing.
    """
    assert train("-s", "1", "2", "--epochs", "1") == 0
    old = Path("pt/dmd-synthetic-2/1.pth").stat().st_mtime_ns
    refused(
        capsys,
        train,
        "-s",
        "1",
        "2",
        "--epochs",
        "1",
        "--overwrite",
        "--set",
        "conv1d_kernel_size_l=99",
    )
    with pytest.raises(Stop):
        run.DMD_run(
            dataset_name="synthetic", config=BASE, seeds=[1, 2], overwrite=True, after_epoch=stop
        )
    assert not Path("result/dmd-synthetic-2/metrics.json").exists()
    assert train("-s", "1", "2", "--epochs", "1", "--resume") == 0
    assert Path("pt/dmd-synthetic-2/1.pth").stat().st_mtime_ns != old


def test_resuming_with_changed_code_gives_a_warning(trained, capsys):
    for where in ("pt", "result"):
        path = Path(f"{where}/{RUN}/run.json")
        run_config = json.loads(path.read_text())
        run_config["versions"]["code"] = "00000000"
        path.write_text(json.dumps(run_config))
    assert train("--resume", "--epochs", "3") == 0
    assert "The code has changed since the run was started (00000000 -> " in capsys.readouterr().out


def test_interrupted_replacement_with_other_settings_is_resumed(folder):
    """The second seed's run was discarded, and its run.json is that of the earlier command."""
    assert train("-s", "1", "2", "--epochs", "1") == 0
    changed = {"dataset_name": "synthetic", "config": BASE | {"gamma": 0.2}, "seeds": [1, 2]}
    with pytest.raises(Stop):
        run.DMD_run(**changed, figures=False, overwrite=True, after_epoch=stop)
    run.DMD_run(**changed, figures=False, resume=True)
    assert len(timeless("dmd-synthetic-2")) == 1


WRONG_TYPES = {
    "name": {"name": 5},
    "dataset_name": {"dataset_name": None},
    "config": {"config": "nlevels=1"},
    "config_file": {"config_file": 5},
    "--num-workers": {"num_workers": -1},
    "--verbose": {"verbose_level": 7},
}


@pytest.mark.parametrize("option", WRONG_TYPES)
def test_options_of_a_wrong_type_are_refused_by_name(option):
    with pytest.raises(ConfigError, match=f"^{option}"):
        RunOptions(**WRONG_TYPES[option])
