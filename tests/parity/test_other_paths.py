"""The paths that are not the CPU's default, against the same numbers of the released code.

Tolerances: as on the default path for PyTorch's own operations and for torch.compile; BF16 for
    autocast, and ten times that for gradient norms.
"""

import pytest
import torch

from tests.models.paths import use_path
from tests.reference import CASES, Reference, relative_difference
from trainers.trainer import Trainer

# bfloat16 has 8 bits: one rounding is up to 0.004 of a value; norms of small gradients collect many
BF16 = 0.02


def check(
    reference: Reference,
    tolerance: float,
    of_gradients: float,
    least: float = -1,
    prepare=None,
    **options,
):
    """Compare one training step of a batch with the recorded numbers; `prepare` is called with the
    model.
    """
    reference.args.grad_clip = -1
    model, objective = reference.build()
    if prepare is not None:
        prepare(model)
    trainer = Trainer(
        reference.args,
        model,
        objective,
        {"train": range(10)},
        torch.device(reference.device),
        **options,
    )
    step = trainer.training_step(reference.batch())
    assert step.predicted.dtype == step.losses.dtype == torch.float32
    assert relative_difference(step.predicted, reference.group("fwd")["output_logit"]) <= tolerance
    reference.compare("loss", dict(zip(step.loss_names, step.losses, strict=True)), tolerance)
    named = [*model.named_parameters(), *objective.named_parameters()]
    reference.compare("gradnorm", {name: p.grad for name, p in named}, of_gradients, least)


@pytest.mark.parametrize("case", CASES)
def test_encoders_run_together_match_reference(case, tmp_path, monkeypatch):
    check(
        Reference(case, tmp_path),
        1e-5,
        1e-4,
        prepare=lambda model: use_path(model, "together", monkeypatch),
    )


@pytest.mark.slow
@pytest.mark.gpu
def test_compiled_step_matches_reference(tmp_path):
    check(Reference("mosi_aligned_bert", tmp_path), 1e-5, 1e-4, compile=True)


@pytest.mark.parametrize("case", CASES[1:])
def test_bf16_step_matches_reference(case, tmp_path):
    check(Reference(case, tmp_path), BF16, 10 * BF16, least=1e-3, precision="bf16")
