"""Predictions and Loss of a split."""

import pytest
import torch

from dataset.features import Split
from dataset.loaders import UtteranceDataset, make_loader
from tests.reference import Reference
from trainers.evaluate import predict


def test_the_batches_of_evaluation_change_nothing(tmp_path):
    """Loss is over batches of batch_size, whatever the loader's are; and predict() leaves out nothing that counts."""
    reference = Reference("mosei_aligned", tmp_path)
    model = reference.build()[0].eval()
    n = 13
    part = Split(**{name: a[:n] for name, a in reference.utterances.items()}, ids=[""] * n, raw_text=[""] * n)
    model.args.batch_size = 4
    with torch.no_grad():
        whole = model(*(torch.from_numpy(getattr(part, name)) for name in ("text", "audio", "vision"))).output_logit
    errors = (whole[:, 0] - torch.from_numpy(part.labels)).abs()
    expected = torch.stack([errors[start : start + 4].mean() for start in range(0, n, 4)]).mean().item()
    for size in (1, 4, 5, 64):
        scored = predict(model, make_loader(UtteranceDataset(part), size), torch.device("cpu"))
        assert scored.loss == pytest.approx(expected, rel=1e-5)
        assert torch.allclose(torch.from_numpy(scored.predicted), whole[:, 0], atol=1e-5)
