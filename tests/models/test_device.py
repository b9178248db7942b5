"""A training step and an evaluation on the `meta` device, which has shapes but no values.

A tensor that was left on the CPU, or a value that the host waits for, is an error on this device;
on a GPU it would be wrong or slow.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from config import load_config
from models.dmd import DMD
from trainers.losses import Objective
from trainers.trainer import Trainer

META = torch.device("meta")


class CountOperations(TorchDispatchMode):
    """Counts the operations that are not views: on a GPU each is at least one launch."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        # _unsafe_view is a view by another name: it moves nothing.
        self.count += not (operation.is_view or operation is torch.ops.aten._unsafe_view.default)
        return operation(*args, **(kwargs or {}))


@pytest.fixture(params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "fast"])
def trainer(request, monkeypatch) -> Trainer:
    # A GPU clips the gradients of all parameters at once; PyTorch does not know that of the meta
    # device.
    monkeypatch.setattr(
        "torch.nn.utils.clip_grad._has_foreach_support", lambda tensors, device: True
    )
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: True)
    args = load_config("dmd", "mosi", overrides={"use_bert": False, "fast": request.param})
    args.seq_lens = [50, 50, 50]
    return Trainer(args, DMD(args), Objective(args), {"train": range(10)}, META)


@pytest.fixture
def batch(trainer) -> dict[str, torch.Tensor]:
    widths = zip(("text", "audio", "vision"), trainer.args.feature_dims, strict=True)
    features = {name: torch.empty(16, 50, width, device=META) for name, width in widths}
    return features | {"labels": torch.empty(16, 1, device=META), "rows": torch.arange(16)}


def test_step_and_evaluation_run_without_waiting_for_the_device(trainer, batch):
    counts = []
    for _ in range(2):  # the gradients of the second are added to those of the first
        with CountOperations() as operations:
            step = trainer.training_step(batch)
        assert all(p.grad.device == META for p in trainer.all_parameters if p.grad is not None)
        counts.append(operations.count)
    if trainer.args.fast:
        assert counts[0] <= 2700  # plain: 4,625
        assert counts[1] - counts[0] <= len(trainer.all_parameters)
    assert step.losses.device == step.predicted.device == META
    trainer.optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):  # what the host waits for is an error here
        step.losses[0].item()
    trainer.model.eval()
    with torch.inference_mode(), CountOperations() as operations:
        output = trainer.model(batch["text"], batch["audio"], batch["vision"])
    assert output.output_logit.device == META
    if trainer.args.fast:
        assert operations.count <= 840  # plain: 1,451
