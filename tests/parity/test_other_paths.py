"""The paths that are not the CPU's default, against the same numbers of the released code.

Tolerances: as on the default path for PyTorch's own operations and for torch.compile; BF16 for autocast, and ten
times that for gradient norms.
"""

import pytest
import torch

from models.fast import cpu
from tests.reference import CASES, Reference, relative_difference
from trainers.trainer import Trainer

BF16 = 0.02  # bfloat16 has 8 bits: one rounding is up to 0.004 of a value; norms of small gradients collect many


def step(reference: Reference, **options):
    """One training step of a batch.  -> prediction, loss terms, gradients by name"""
    reference.args.grad_clip = -1
    model, objective = reference.build()
    trainer = Trainer(reference.args, model, objective, {"train": range(10)}, torch.device("cpu"), **options)
    step = trainer.training_step(reference.batch())
    named = dict(model.named_parameters()) | dict(objective.named_parameters())
    terms = dict(zip(step.names, step.losses, strict=True))
    return step.predicted, terms, {name: parameter.grad for name, parameter in named.items()}


def check_exact(reference: Reference, output, terms, gradients):
    assert relative_difference(output, reference.group("fwd")["output_logit"]) <= 1e-5
    for name, value in reference.group("loss").items():
        assert relative_difference(terms[name], value) <= 1e-5, name
    for name, value in reference.group("gradnorm").items():
        if value != -1:
            assert relative_difference(gradients[name].norm(), value) <= 1e-4, name


@pytest.mark.parametrize("case", CASES)
def test_the_operations_of_other_devices(case, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "eager", lambda x: False)
    reference = Reference(case, tmp_path)
    check_exact(reference, *step(reference))


@pytest.mark.slow
def test_compiled(tmp_path):
    reference = Reference("mosi_aligned_bert", tmp_path)
    check_exact(reference, *step(reference, compiled=True))


@pytest.mark.parametrize("case", CASES)
def test_bf16(case, tmp_path):
    reference = Reference(case, tmp_path)
    output, terms, gradients = step(reference, precision="bf16")
    assert output.dtype == terms["total"].dtype == torch.float32
    assert relative_difference(output, reference.group("fwd")["output_logit"]) <= BF16
    for name, value in reference.group("loss").items():
        assert relative_difference(terms[name], value) <= BF16, name
    for name, value in reference.group("gradnorm").items():
        if value > 1e-3:
            assert relative_difference(gradients[name].norm(), value) <= 10 * BF16, name
