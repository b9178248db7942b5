"""Predictions and Loss of a split."""

import itertools

import pytest
import torch

from dataset.loaders import UtteranceDataset
from tests.reference import Reference, make_loader
from trainers.evaluate import predict


def test_evaluation_batch_size_does_not_change_results(tmp_path):
    """Loss follows valid_loss, whatever the batches of the loader are; predict() matches the full
    forward pass.
    """
    reference = Reference("mosei_aligned", tmp_path)
    model = reference.build()[0].eval()
    n = 13
    part = reference.split(slice(n))
    model.args.batch_size = 4
    with torch.no_grad():
        whole = model(
            *(torch.from_numpy(getattr(part, name)) for name in ("text", "audio", "vision"))
        ).output_logit
    errors = (whole[:, 0] - torch.from_numpy(part.labels)).abs()
    # the last of one utterance
    sums = [sum(errors[start : start + 4].tolist()) for start in range(0, n, 4)]
    expected = {
        "batch_mean": (sums[0] / 4 + sums[1] / 4 + sums[2] / 4 + sums[3]) / 4,
        "sample_mean": sum(sums) / n,
    }
    assert abs(expected["batch_mean"] - expected["sample_mean"]) > 1e-3
    for size, kind in itertools.product((1, 4, 5, 64), expected):
        model.args.valid_loss = kind
        scored = predict(model, make_loader(UtteranceDataset(part), size), torch.device("cpu"))
        assert scored.loss == pytest.approx(expected[kind], rel=1e-5)
        assert torch.allclose(torch.from_numpy(scored.predicted), whole[:, 0], atol=1e-5)
