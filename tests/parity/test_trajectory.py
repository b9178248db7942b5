"""Three epochs of the project's own trainer against three epochs of the released training loop."""

import re

import pytest
import torch

from dataset.loaders import UtteranceDataset
from tests.reference import CASES, Reference, make_loader, relative_difference
from trainers.evaluate import predict
from trainers.trainer import EpochResult, Trainer
from utils.log import start_log
from utils.metrics import CORE_METRICS

NUMBER = re.compile(r"(total_loss|Acc_2|F1_score|Acc_7|MAE|Loss): (-?[\d.]+)")


@pytest.mark.parametrize(
    "fast", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fast", "plain"]
)
@pytest.mark.parametrize("case", CASES)
def test_three_epochs_match_reference(case, fast, tmp_path):
    reference = Reference(case, tmp_path / "bert", fast=fast)
    info = reference.case
    size, n = info["batch_size"], info["n_samples"] // info["batch_size"] * info["batch_size"]
    held_out = info["n_valid_batches"] * size
    rows = {"train": slice(n - 2 * held_out), "valid": slice(n - 2 * held_out, n - held_out),
            "test": slice(n - held_out, n)}  # fmt: skip
    loaders = {
        name: make_loader(
            UtteranceDataset(reference.split(of_split)), size, generator=torch.Generator()
        )
        for name, of_split in rows.items()
    }
    reference.args.max_epochs = info["epochs"]
    model, objective = reference.build()
    trainer = Trainer(reference.args, model, objective, loaders, torch.device(reference.device))
    norms, last = {}, {}

    def record(result: EpochResult) -> None:
        for name, parameter in model.named_parameters():
            norms[f"{result.epoch}/{name}"] = parameter.detach().norm()
        for name, value in model.state_dict().items():
            last[name] = value.clone()

    start_log(tmp_path / "run.log", verbose_level=0)
    trainer.fit(on_epoch_end=record)

    published = NUMBER.findall("\n".join(str(line) for line in reference.numbers["log"]))
    lines = [line for line in (tmp_path / "run.log").read_text().splitlines() if ">>" in line][
        : 3 * info["epochs"]
    ]
    logged = NUMBER.findall("\n".join(lines))
    assert [name for name, _ in logged] == [name for name, _ in published]
    assert len(logged) == info["epochs"] * (3 * len(CORE_METRICS) + 3)
    for (name, got), (_, expected) in zip(logged, published, strict=True):
        assert abs(float(got) - float(expected)) <= 2e-4, name
    brackets = re.compile(r"\[\d+/\d+/\d+\]")
    assert brackets.findall("\n".join(lines)) == brackets.findall(str(reference.numbers["log"]))

    expected_norms = reference.group("traj")
    final_logits = expected_norms.pop("final_logits")
    assert set(norms) == set(expected_norms)
    for name, value in expected_norms.items():
        # The true gradient of an attention key's bias is zero, so that it drifts on rounding.
        tolerance = 1e-2 if name.endswith(("in_proj_bias", "key.bias")) else 1e-3
        assert relative_difference(norms[name], value) <= tolerance, name

    model.load_state_dict(last)
    everything = make_loader(UtteranceDataset(reference.split(slice(n))), size)
    predicted = predict(model, everything, torch.device(reference.device)).predicted[:, None]
    assert relative_difference(predicted, final_logits) <= 1e-3
