"""The two commands end to end, on real files and, if necessary, in real processes."""

import argparse
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import run
import test as test_command
from experiments.options import RunOptions, add_flags
from experiments.restore import load_model
from tests.commands import (
    CONFIG,
    ROOT,
    TINY,
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
from utils.errors import ConfigError

BEST = "pt/dmd-synthetic-1111/best.pth"


def test_run_in_a_process_is_scored_by_the_test_command(folder, monkeypatch, capsys):
    """Without a display, which figures do not need."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    trained = launch(str(ROOT / "run.py"), "-d", "synthetic", *TINY, "--name", "tiny", "-s", "7")
    # no progress bars and no warnings if the output is not a terminal
    assert (trained.returncode, trained.stderr) == (0, "")
    scores = r"Acc_2: \S+ F1_score: \S+ Acc_7: \S+ MAE: \S+"
    assert re.search(
        r">> Epoch: 1 TRAIN-\(dmd\) \[1/1/1\] >> total_loss: \S+ " + scores + "\n", trained.stdout
    )
    assert Path("log/tiny-synthetic.log").read_text() == trained.stdout
    assert len(list(Path("result/tiny-synthetic-7/figures").iterdir())) == 10
    assert call(test_command, "pt/tiny-synthetic-7/best.pth", "--predictions", "out.csv") == 0
    tested = capsys.readouterr().out
    for line in (r"TEST-\(dmd\).*", r"TEST: Corr.*"):
        assert re.findall(line, tested) == re.findall(line, trained.stdout)[-1:]
    rows = rows_of("out.csv")
    assert list(rows[0]) == ["id", "raw_text", "label", "prediction"] and len(rows) == 10
    metrics = metrics_of("tiny-synthetic-7")
    errors = [abs(float(row["label"]) - float(row["prediction"])) for row in rows]
    assert round(float(np.mean(errors)), 4) == pytest.approx(metrics["MAE"], abs=1e-4)


def test_help_and_invalid_settings_respond_without_pytorch(trained):
    """Help, a wrong setting, data set or flag, and a checkpoint that does not exist. PyTorch takes
    seconds to load.
    """
    commands = (
        ["run", "-h"],
        ["run", "-d", "synthetic", "--set", "gama=1"],
        ["run", "-d", "mossi"],
        ["run", "--over"],
    )
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport run, test\n"
    program += "from utils.cli import run_command\n"
    for name, *arguments in (*commands, ["test", "-h"], ["test", "none.pth"]):
        program += f"try: print(run_command(lambda: {name}.main({arguments})) == 2)\n"
        program += "except SystemExit: pass\n"
    done = launch("-c", program + "print('torch' in sys.modules)", cwd=trained)
    assert [line for line in done.stdout.splitlines() if line in ("True", "False")] == [
        "True"
    ] * 4 + ["False"], done


def test_run_from_python_equals_run_from_command_line(trained):
    """Both write the same bytes."""
    assert train("--name", "b", "--deterministic") == 0
    for file in ("1.pth", "2.pth", "best.pth"):
        first, second = (
            Path(f"pt/{name}-synthetic-1111/{file}").read_bytes() for name in ("dmd", "b")
        )
        assert first == second, file
    assert timeless("dmd-synthetic-1111") == timeless("b-synthetic-1111")
    options = {"device": "cpu", "verbose_level": 0, "epochs": 2, "figures": False, "name": "c"}
    results = run.DMD_run("dmd", "synthetic", config=CONFIG, **options)
    assert metrics_of("dmd-synthetic-1111") == results[1111]


def test_model_loads_in_three_lines(trained):
    """Its predictions are those of the run; without run.json, the data set must be given."""
    model, settings = load_model(BEST)
    Path("alone.pth").write_bytes(Path(BEST).read_bytes())
    with pytest.raises(ConfigError, match="-d mosi"):
        load_model("alone.pth")
    alone, _ = load_model("alone.pth", "synthetic", config=CONFIG)
    assert not model.training and (settings.dataset_name, settings.seq_lens) == (
        "synthetic",
        [50, 50, 50],
    )
    test = np.load("dataset/SYNTHETIC/aligned_50.pkl", allow_pickle=True)["test"]
    inputs = [
        torch.from_numpy(np.asarray(test[key][:1], np.float32))
        for key in ("text_bert", "audio", "vision")
    ]
    with torch.inference_mode():
        output, same = model(*inputs), alone(*inputs)
    [predicted] = [
        row
        for row in rows_of("result/dmd-synthetic-1111/predictions.csv")
        if row["id"] == test["id"][0]
    ]
    assert output.output_logit.item() == pytest.approx(float(predicted["prediction"]), abs=1e-5)
    assert torch.equal(output.output_logit, same.output_logit)


def test_training_starts_from_weights_of_another_run(trained, corpus, capsys):
    """Matching weights are loaded: with wider audio, all but its projection."""
    wide = {
        split: fields | {"audio": np.repeat(fields["audio"], 2, axis=2)}
        for split, fields in corpus.items()
    }
    write_pickle(trained / "wide.pkl", wide)
    tiny_steps = (
        "--set",
        "learning_rate=1e-20",
        "--epochs",
        "1",
        "--name",
        "wide",
        "-Fa",
        "wide.pkl",
    )
    assert train("--init-from", BEST, *tiny_steps) == 0
    assert "proj_a." in re.findall("initialized from .*", capsys.readouterr().out)[0]
    before, after = torch.load(BEST), torch.load("pt/wide-synthetic-1111/best.pth")
    differing = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert "proj_a.weight" in differing and "out_layer.weight" not in differing
    assert after["proj_a.weight"].shape[1] == 10
    # finds the replaced features again
    assert call(test_command, "pt/wide-synthetic-1111/best.pth") == 0


def test_unaligned_data_with_a_dead_modality_train_in_bf16(folder, corpus):
    unaligned = {
        split: fields
        | {"audio": np.repeat(fields["audio"], 2, axis=1), "vision": 0 * fields["vision"][:, :30]}
        for split, fields in corpus.items()
    }
    path, width = (
        write_pickle(folder / "unaligned.pkl", unaligned),
        corpus["train"]["text"].shape[2],
    )
    config = json.loads((ROOT / "config/config.json").read_text())
    aligned = config["datasetCommonParams"]["synthetic"]["aligned"]
    config["datasetCommonParams"]["synthetic"]["unaligned"] = aligned | {"featurePath": str(path)}
    Path("own.json").write_text(json.dumps(config))
    without_bert = (
        "use_bert=false",
        f"feature_dims=[{width},5,20]",
        "need_data_aligned=false",
        "batch_size=4",
    )
    assert (
        train("-c", "own.json", "--precision", "bf16", "--epochs", "1", "--set", *without_bert) == 0
    )
    assert all(
        np.isfinite(float(row["loss/total"]))
        for row in rows_of("result/dmd-synthetic-1111/history.csv")
    )


BAD_RUNS = [
    (["-c", "broken.json"], "broken.json"),
    (["-d", "mosi"], "--dataset synthetic"),  # whose features are not there
    (["--device", "tpu"], "tpu"),
    (["--set", "pretrained=no-such/bert"], "pretrained"),
    (["--set", "feature_dims=[768,5,20]"], "feature_dims"),
    (["--set", "conv1d_kernel_size_a=51"], "conv1d_kernel_size_a"),
    (["--set", "feature_dims=[64,74,20]"], "aligned_50.pkl"),
    (["--name", "../x"], "--name"),
    (["--epochs", "0"], "max_epochs"),
    (["--res-save-dir", "broken.json/x"], "--res-save-dir"),
    (["-Fv", "broken.json"], "broken.json"),
    (["--init-from", "none.pth"], "none.pth"),
]


def test_bad_input_gives_one_line_and_changes_nothing(trained, capsys):
    Path("broken.json").write_text('{"datasetCommonParams": ')
    for arguments, word in BAD_RUNS:
        assert word in refused(
            capsys, run, "-d", "synthetic", "--overwrite", "--epochs", "1", *arguments
        )
    assert train("--over") == 2  # abbreviated: the command that resumes is made of whole words


def test_bad_checkpoints_give_one_line(trained, capsys):
    Path("cut.pth").write_bytes(Path(BEST).read_bytes()[:1000])
    Path("alone.pth").write_bytes(Path(BEST).read_bytes())
    for arguments, word in (
        (["cut.pth"], "cut.pth"),
        (["alone.pth"], "-d mosi"),
        # trained with nlevels 1, but the config has another value
        (["alone.pth", "-d", "synthetic"], "alone.pth"),
        ([BEST, "--predictions", "alone.pth/out.csv"], "alone.pth"),
        ([BEST, "--predictions", "alone.pth"], "--overwrite"),
    ):
        assert word in refused(capsys, test_command, *arguments)
    before = files()
    assert call(test_command, "alone.pth", "-d", "synthetic", *TINY) == 0
    assert files() == before
    assert (
        call(test_command, BEST, "--predictions", "cut.pth", "--overwrite") == 0
        and len(rows_of("cut.pth")) == 10
    )


def test_python_arguments_are_the_options_of_a_run():
    """`help(DMD_run)` shows each with its default."""
    arguments = inspect.signature(run.DMD_run).parameters
    defaults = {name: argument.default for name, argument in arguments.items()}
    assert defaults == {field.name: field.default for field in dataclasses.fields(RunOptions)}


def test_flags_are_options_of_a_run_and_have_no_defaults_of_their_own():
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    add_flags(parser)
    assert vars(parser.parse_args(["-d", "synthetic"])) == {"dataset_name": "synthetic"}
    options = {field.name for field in dataclasses.fields(RunOptions)}
    known = {action.dest for action in parser._actions if action.dest not in ("help", "init")}
    assert known == options - {"model_name", "after_epoch"}


def test_renamed_flag_reports_its_new_name(folder, capsys):
    assert "--init is now --init-from" in refused(capsys, train, "--init", "x.pth")


def test_scoring_ignores_a_world_size_without_a_launcher(trained, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert call(test_command, BEST) == 0
    assert "TEST-(dmd)" in capsys.readouterr().out
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert "torchrun" in refused(capsys, train, "--name", "other")


def test_reader_of_the_output_may_leave(trained):
    """As `python -m analysis.runs | head` does."""
    command = f"{sys.executable} -m analysis.runs {trained}/result | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
