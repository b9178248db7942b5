"""The yardstick of the benchmarks must measure up to the same reference numbers as the project's own path."""

import pytest
import torch

from benchmarks import plain
from tests.reference import CASES, Reference, relative_difference


@pytest.mark.parametrize("case", CASES)
def test_the_plain_step_gives_the_reference_numbers(case, tmp_path):
    reference = Reference(case, tmp_path)
    model, objective = reference.build()
    objective.__class__ = plain.PlainObjective
    batch = reference.batch()
    output = plain.forward(model, batch["text"], batch["audio"], batch["vision"])
    terms = objective(output, batch["labels"])
    terms["total"].backward()
    for name, value in output.items():
        assert relative_difference(value, reference.group("fwd")[name]) <= 1e-5, name
    for name, value in reference.group("loss").items():
        assert relative_difference(terms[name], value) <= 1e-5, name
    parameters = dict(model.named_parameters()) | dict(objective.named_parameters())
    for name, value in reference.group("gradnorm").items():
        if value != -1:
            assert relative_difference(parameters[name].grad.norm(), value) <= 1e-4, name


def test_clipping(tmp_path):
    layer = torch.nn.Linear(1, 1)
    layer.weight.grad, layer.bias.grad = torch.tensor([[2.0]]), torch.tensor([-0.1])
    plain.clip([layer], 0.6)
    assert layer.weight.grad.item() == pytest.approx(0.6)
    assert layer.bias.grad.item() == pytest.approx(-0.1)
