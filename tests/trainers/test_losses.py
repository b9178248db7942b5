"""Each loss against a small case computed by hand or by a literal loop over the equation."""

import math

import pytest
import torch

from trainers.losses import graph_prior, margin_loss, orthogonality_loss


def test_orthogonality_runs_over_the_batch_axis():
    # One step, two utterances, two channels: channel 0 agrees over the batch, channel 1 is opposite (clamped to 0).
    specific = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])
    common = torch.tensor([[[2.0, -1.0], [4.0, -2.0]]])
    assert orthogonality_loss(specific, common).item() == pytest.approx(0.5)


def margin_by_the_letter(vectors, labels, slope):
    def cosine(x, y):
        norms = [math.sqrt(sum(v * v for v in z) + 1e-8) for z in (x, y)]
        return sum(a * b for a, b in zip(x, y, strict=True)) / (norms[0] * norms[1])

    anchors = []
    for i, y in enumerate(labels):
        positives = [j for j, other in enumerate(labels) if other == y and j != i]
        negatives = [j for j, other in enumerate(labels) if other != y]
        pairs = [
            max(0, slope * abs(y - labels[n]) - cosine(vectors[i], vectors[p]) + cosine(vectors[i], vectors[n]))
            for p in positives
            for n in negatives
        ]
        if pairs:
            anchors.append(sum(pairs) / len(pairs))
    return sum(anchors) / len(anchors) if anchors else 0.0


@pytest.mark.parametrize("labels", [[0.0, 0.0, 1.0, -2.0, 1.0, 1.0], [1.0, 2.0, 3.0, 1.0, 1.0, 1.0]])
def test_margin_equals_the_loop(labels):
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    got = margin_loss(vectors, torch.tensor(labels), 0.15).item()
    assert got == pytest.approx(margin_by_the_letter(vectors.tolist(), labels, 0.15), abs=1e-6)


@pytest.mark.parametrize("labels", [[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
def test_margin_without_a_pair_is_zero_and_has_a_gradient(labels):
    vectors = torch.zeros(3, 4, requires_grad=True)
    loss = margin_loss(vectors, torch.tensor(labels), 0.15)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(vectors.grad).all()


def test_prior():
    prior = graph_prior([0, 0, 1, 0, 1, 0], 0.25)
    e4 = math.exp(4)  # exp(1 / 0.25)
    total = 2 * e4 + 4
    assert prior.tolist() == pytest.approx([1 / total, 1 / total, e4 / total, 1 / total, e4 / total, 1 / total])
