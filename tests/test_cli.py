"""The two commands end to end, on real files and, where it matters, in real processes."""

import csv
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

import run
import test as test_command
from tests.commands import ROOT, SMALL, call, files_below, train, write_pickle
from utils.errors import ConfigError


def test_train_then_test_in_processes_of_their_own(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    trained = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-d", "synthetic", *SMALL, "--name", "tiny", "-s", "7"],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""  # no bars, no warnings where the output is no terminal
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - MMSA \[INFO\] - "
    scores = r"Acc_2: \S+ F1_score: \S+ Acc_7: \S+ MAE: \S+"
    assert re.search(stamp + r"train samples: \(24,\)\n", trained.stdout)
    train_line = stamp + r">> Epoch: 1 TRAIN-\(dmd\) \[1/1/1\] >> total_loss: \S+ " + scores + "\n"
    assert re.search(train_line, trained.stdout), trained.stdout
    assert re.search(stamp + r"VAL-\(dmd\) >> " + scores + r" Loss: \S+\n", trained.stdout)
    assert re.search(stamp + r"Results saved to result/normal/synthetic.csv\.\n", trained.stdout)
    assert (folder / "log/tiny-synthetic.log").read_text() == trained.stdout

    tested = subprocess.run(
        [sys.executable, str(ROOT / "test.py"), "pt/tiny-synthetic-7/best.pth", "--predictions", "out.csv"],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stderr
    last_test_line = re.findall(r"TEST-\(dmd\).*", trained.stdout)[-1]
    assert re.findall(r"TEST-\(dmd\).*", tested.stdout) == [last_test_line]
    rows = list(csv.DictReader((folder / "out.csv").open()))
    assert list(rows[0]) == ["id", "raw_text", "label", "prediction"] and len(rows) == 10
    metrics = json.loads((folder / "result/tiny-synthetic-7/metrics.json").read_text())
    errors = [abs(float(row["label"]) - float(row["prediction"])) for row in rows]
    assert round(float(np.mean(errors)), 4) == pytest.approx(metrics["MAE"], abs=1e-4)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(folder):
    """The operating system refuses files of more than 1 MB; the checkpoint is larger."""
    failed = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-d", "synthetic", *SMALL],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )  # fmt: skip
    assert failed.returncode == 2
    assert re.fullmatch(r"RunError: pt/dmd-synthetic-1111: cannot be written .*\n", failed.stderr)
    assert sorted(p.name for p in (folder / "pt/dmd-synthetic-1111").iterdir()) == [".lock", "config.json"]


def test_bf16_trains_and_is_recorded(folder):
    assert train("--precision", "bf16", "--epochs", "1") == 0
    config = json.loads((folder / "result/dmd-synthetic-1111/config.json").read_text())
    assert (config["precision"], config["compile"]) == ("bf16", False)
    with pytest.raises(ConfigError, match="--precision: 'fp8'"):
        run.DMD_run(dataset_name="synthetic", precision="fp8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"verbose_level": 3}, "--verbose: 3 is not one of 0, 1, 2"),
        ({"gpu_ids": [0, 1]}, r"gpu_ids: \[0, 1\] are several GPUs"),
        ({"seeds": -1}, "--seeds: -1 is not between"),
    ],
)
def test_arguments_that_no_run_can_have(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run.DMD_run(dataset_name="synthetic", **arguments)


def test_files_of_a_run_over_two_seeds(folder):
    assert train("-s", "1", "2") == 0
    for seed in (1, 2):
        assert sorted(p.name for p in (folder / f"pt/dmd-synthetic-{seed}").iterdir()) == [
            ".lock", "1.pth", "2.pth", "best.pth", "config.json", "training-state.pt",
        ]  # fmt: skip
        rows = list(csv.DictReader((folder / f"result/dmd-synthetic-{seed}/history.csv").open()))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        edges = [name for name in rows[0] if name.startswith("edge/")]
        assert len(edges) == 12
        for graph in ("homo", "hetero"):
            values = [float(rows[0][name]) for name in edges if name.startswith(f"edge/{graph}_")]
            assert len(values) == 6 and sum(values) == pytest.approx(1, abs=1e-5)
        assert {"loss/total", "loss/margin", "loss/hetero/repr", "valid/Loss", "test/Corr", "train/MAE",
                "learning_rate", "seconds"} <= set(rows[0])  # fmt: skip
        config = json.loads((folder / f"result/dmd-synthetic-{seed}/config.json").read_text())
        assert config["settings"]["nlevels"] == 1 and config["seed"] == seed and "torch" in config["versions"]
    seeds = list(csv.DictReader((folder / "result/normal/synthetic-seeds.csv").open()))
    assert [row["seed"] for row in seeds] == ["1", "2"]
    table = list(csv.reader((folder / "result/normal/synthetic.csv").open()))
    assert table[0] == ["Model", "Acc_2", "F1_score", "Acc_7", "MAE", "Loss"]
    values = [float(row["MAE"]) for row in seeds]
    assert table[1][4] == str((round(float(np.mean(values)) * 100, 2), round(float(np.std(values)) * 100, 2)))
    assert train("-s", "1") == 2  # the run is there
    assert train("-s", "1", "--overwrite") == 0
    assert len(list(csv.reader((folder / "result/normal/synthetic.csv").open()))) == 3


def test_the_same_command_gives_the_same_bytes(folder):
    assert train("--name", "a") == 0 and train("--name", "b", "--deterministic") == 0
    for file in ("1.pth", "2.pth", "best.pth"):
        first, second = (Path(f"pt/{name}-synthetic-1111/{file}").read_bytes() for name in "ab")
        assert first == second, file
    first, second = (list(csv.DictReader(open(f"result/{name}-synthetic-1111/history.csv"))) for name in "ab")  # noqa: SIM115
    for one, other in zip(first, second, strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }


def test_the_python_call_is_the_command(folder):
    settings = {"nlevels": 1, "batch_size": 8, "update_epochs": 2}
    options = {"gpu_ids": [-1], "verbose_level": 0, "epochs": 2, "figures": False}
    results = run.DMD_run("dmd", "synthetic", config=settings, seeds=3, **options)
    assert train("-s", "3", "--overwrite") == 0
    from_command = json.loads((folder / "result/dmd-synthetic-3/metrics.json").read_text())
    assert from_command == results[3]


def test_replaced_audio_and_text_features(folder, corpus):
    wide = {split: fields | {"audio": np.repeat(fields["audio"], 2, axis=2)} for split, fields in corpus.items()}
    write_pickle(folder / "wide.pkl", wide)
    assert train("-Fa", "wide.pkl") == 0
    assert torch.load("pt/dmd-synthetic-1111/best.pth")["proj_a.weight"].shape[1] == 10
    assert call(test_command, "pt/dmd-synthetic-1111/best.pth") == 0  # finds the replaced features again
    width = corpus["train"]["text"].shape[2]
    assert train("--overwrite", "--set", "use_bert=false", "--set", f"feature_dims=[{width},5,20]") == 0


def test_unaligned_lengths_and_a_dead_modality(folder, corpus):
    unaligned = {
        split: fields | {"audio": np.repeat(fields["audio"], 2, axis=1), "vision": 0 * fields["vision"][:, :30]}
        for split, fields in corpus.items()
    }
    path = write_pickle(folder / "unaligned.pkl", unaligned)
    config = json.loads((ROOT / "config/config.json").read_text())
    aligned = config["datasetCommonParams"]["synthetic"]["aligned"]
    config["datasetCommonParams"]["synthetic"]["unaligned"] = aligned | {"featurePath": str(path)}
    (folder / "own.json").write_text(json.dumps(config))
    assert train("-c", "own.json", "--set", "need_data_aligned=false") == 0
    history = list(csv.DictReader((folder / "result/dmd-synthetic-1111/history.csv").open()))
    assert all(np.isfinite(float(row["loss/total"])) for row in history)


def test_fewer_batches_than_update_epochs_warns_and_steps(folder, capsys):
    assert train("--set", "update_epochs=10") == 0
    assert "fewer than update_epochs 10" in capsys.readouterr().out
    first, second = (torch.load(f"pt/dmd-synthetic-1111/{epoch}.pth") for epoch in (1, 2))
    assert not torch.equal(first["out_layer.weight"], second["out_layer.weight"])


def test_local_weights_are_used_and_frozen_bert_stays(folder):
    torch.manual_seed(5)
    bert = BertModel(BertConfig.from_pretrained(ROOT / "dataset/synthetic_bert"))
    bert.save_pretrained(folder / "weights")
    assert train("--set", "pretrained=weights", "--set", "use_finetune=false") == 0
    state = torch.load("pt/dmd-synthetic-1111/2.pth")
    for name, value in bert.state_dict().items():
        assert torch.equal(state[f"text_model.model.{name}"], value), name


BAD_RUNS = {
    "no such data set": (["-d", "mossi"], "mossi"),
    "no such config": (["-d", "synthetic", "-c", "none.json"], "none.json"),
    "broken JSON": (["-d", "synthetic", "-c", "broken.json"], "broken.json"),
    "unknown key": (["-d", "synthetic", "--set", "learning_rat=1"], "learning_rate"),
    "wrong type": (["-d", "synthetic", "--set", "batch_size=many"], "batch_size"),
    "override without a value": (["-d", "synthetic", "--set", "batch_size"], "batch_size"),
    "missing data": (["-d", "mosi"], "--dataset synthetic"),
    "no such device": (["-d", "synthetic", "--device", "tpu"], "tpu"),
    "heads do not divide": (["-d", "synthetic", "--set", "dst_feature_dim_nheads=[50,7]"], "dst_feature_dim_nheads"),
    "no such BERT": (["-d", "synthetic", "--set", "pretrained=no-such/bert"], "pretrained"),
    "folder without a BERT": (["-d", "synthetic", "--set", "pretrained=dataset/SYNTHETIC"], "config.json"),
    "BERT of another width": (["-d", "synthetic", "--set", "feature_dims=[768,5,20]"], "feature_dims"),
    "kernel longer than the data": (["-d", "synthetic", "--set", "conv1d_kernel_size_a=51"], "conv1d_kernel_size_a"),
    "other audio width": (["-d", "synthetic", "--set", "feature_dims=[64,74,20]"], "aligned_50.pkl"),
    "same seed twice": (["-d", "synthetic", "-s", "1", "1"], "--seeds"),
    "negative seed": (["-d", "synthetic", "-s", "-1"], "--seeds"),
    "name with a path": (["-d", "synthetic", "--name", "../x"], "--name"),
    "zero epochs": (["-d", "synthetic", "--epochs", "0"], "max_epochs"),
    "negative workers": (["-d", "synthetic", "-n", "-1"], "--num-workers"),
    "own feature file that is missing": (["-d", "synthetic", "--set", "featurePath=own.pkl"], "own.pkl"),
    "no folder for results": (["-d", "synthetic", "--res-save-dir", "broken.json/x"], "--res-save-dir"),
    "no folder for the log": (["-d", "synthetic", "--log-dir", "broken.json/x"], "--log-dir"),
    "damaged features": (["-d", "synthetic", "-Fv", "broken.json"], "broken.json"),
}


@pytest.fixture
def earlier_run(folder) -> dict[str, bytes]:
    assert train() == 0
    (folder / "broken.json").write_text('{"datasetCommonParams": ')
    return files_below(folder)


def assert_one_line(capsys, word: str) -> None:
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and word in message, message


def test_bad_input_is_one_line_and_leaves_everything_as_it_was(folder, earlier_run, capsys):
    capsys.readouterr()
    for case, (arguments, word) in BAD_RUNS.items():
        assert call(run, *arguments, "--overwrite", *([] if "zero" in case else ["--epochs", "1"])) == 2, case
        assert_one_line(capsys, word)
        assert files_below(folder) == earlier_run, case


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_asked_for_and_absent(folder, capsys):
    assert train("--device", "cuda") == 2
    assert_one_line(capsys, "cuda")


def test_bad_checkpoints(folder, earlier_run, capsys):
    checkpoint = Path("pt/dmd-synthetic-1111/best.pth")
    Path("cut.pth").write_bytes(checkpoint.read_bytes()[:1000])
    Path("alone.pth").write_bytes(checkpoint.read_bytes())
    capsys.readouterr()
    for arguments, word in (
        (["none.pth"], "none.pth"),
        (["cut.pth"], "cut.pth"),
        (["alone.pth"], "-d mosi"),
        (["alone.pth", "-d", "synthetic"], "alone.pth"),  # trained with nlevels 1, the config says another
        ([str(checkpoint), "--predictions", "alone.pth/out.csv"], "--predictions"),
        ([str(checkpoint), "--predictions", "none/out.csv"], "--predictions"),
        ([str(checkpoint), "--predictions", "pt"], "--predictions"),
        ([str(checkpoint.parent)], "a folder. Name a checkpoint in it"),
    ):
        assert call(test_command, *arguments) == 2, arguments
        assert_one_line(capsys, word)
    assert call(test_command, "alone.pth", "-d", "synthetic", "--set", "nlevels=1") == 0
    assert files_below(folder) == earlier_run


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu(folder):
    assert train("--device", "cuda") == 0
    assert call(test_command, "pt/dmd-synthetic-1111/best.pth", "--device", "cuda") == 0
