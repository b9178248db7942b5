"""Each loss against a small case computed by hand or by a literal loop over the equation."""

import itertools
import math

import pytest
import torch

from trainers import losses
from trainers.losses import margin_loss, orthogonality_loss, triplet_margin_loss

ORT = {
    "feature": (24 / 25 + 0) / 2,  # the steps' cosines over the width are 24/25 and -1
    "paper": (24 / 25 - 1) / 2,
    # the channels' over the utterances: (12 - 1) / √(10·17), 12 / (4·3)
    "batch": (11 / math.sqrt(170) + 1) / 2,
}


@pytest.mark.parametrize("kind", ORT)
def test_orthogonality_matches_its_definition(kind):
    specific = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])  # one step, two utterances, two channels
    common = torch.tensor([[[4.0, 3.0]], [[-1.0, 0.0]]])
    assert orthogonality_loss(specific, common, kind).item() == pytest.approx(ORT[kind])
    twice = (torch.cat([x, x], dim=1) for x in (specific, common))
    # a mean over steps, no sum
    assert orthogonality_loss(*twice, kind).item() == pytest.approx(ORT[kind])


def cosine(x, y):
    norms = [math.sqrt(sum(v * v for v in z) + 1e-8) for z in (x, y)]
    return sum(a * b for a, b in zip(x, y, strict=True)) / (norms[0] * norms[1])


def margin_by_the_letter(vectors, labels, slope):
    anchors = []
    for i, y in enumerate(labels):
        positives = [j for j, other in enumerate(labels) if other == y and j != i]
        negatives = [j for j, other in enumerate(labels) if other != y]
        pairs = [
            max(
                0,
                slope * abs(y - labels[n])
                - cosine(vectors[i], vectors[p])
                + cosine(vectors[i], vectors[n]),
            )
            for p in positives
            for n in negatives
        ]
        if pairs:
            anchors.append(sum(pairs) / len(pairs))
    return sum(anchors) / len(anchors) if anchors else 0.0


@pytest.mark.parametrize(
    "labels",
    [[0.0, 0.0, 1.0, -2.0, 1.0, 1.0], [1.0, 2.0, 3.0, 1.0, 1.0, 1.0]],
    ids=["repeated labels", "labels without a positive"],
)
def test_margin_loss_matches_a_loop(labels):
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    got = margin_loss(vectors, torch.tensor(labels), 0.15).item()
    assert got == pytest.approx(margin_by_the_letter(vectors.tolist(), labels, 0.15), abs=1e-6)


def both_margins(vectors, labels):
    """The release's loss and the paper's, of as many vectors of each modality.  -> their sum"""
    modalities = torch.arange(3).repeat_interleave(len(vectors) // 3)
    return margin_loss(vectors, labels, 0.15) + triplet_margin_loss(
        vectors, labels, modalities, 0.1
    )


def test_margin_losses_pass_gradcheck():
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(24, 4, generator=generator, dtype=torch.double, requires_grad=True)
    labels = torch.randint(-2, 3, (8,), generator=generator).double().repeat(3)
    assert torch.autograd.gradcheck(both_margins, (vectors, labels))


def test_margin_losses_do_not_depend_on_chunk_size(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(24, 4, generator=generator, requires_grad=True)
    labels = torch.randint(-2, 3, (8,), generator=generator).float().repeat(3)
    results = []
    for triplets_at_once in (2**24, 5 * 24**2, 1):
        monkeypatch.setattr(losses, "TRIPLETS_AT_ONCE", triplets_at_once)
        value = both_margins(vectors, labels)
        results.append((value, *torch.autograd.grad(value, vectors)))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_triplet_loss_matches_a_loop():
    vectors = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    y, m = [0.0, 0.6, 0.0, -1.0] * 3, [0] * 4 + [1] * 4 + [2] * 4
    of = [[cosine(a, b) for b in vectors.tolist()] for a in vectors.tolist()]
    hinges = [
        max(0, 0.3 - of[i][j] + of[i][k])
        for i, j, k in itertools.product(range(12), repeat=3)
        if m[i] != m[j] and m[i] == m[k] and y[i] == y[j] and y[i] != y[k]
    ]
    got = triplet_margin_loss(vectors, torch.tensor(y), torch.tensor(m), 0.3).item()
    assert got == pytest.approx(sum(hinges) / len(hinges), abs=1e-6)


def orthogonality_to_zeros(kind):
    return lambda x: orthogonality_loss(x, torch.zeros(3, 2, 4), kind)


def margins_of(labels):
    return lambda x: both_margins(x[:, 0], torch.tensor(labels))


EMPTY = {f"orthogonality {kind}": orthogonality_to_zeros(kind) for kind in ORT}
EMPTY["margins, equal labels"] = margins_of([1.0, 1.0, 1.0])
EMPTY["margins, different labels"] = margins_of([1.0, 2.0, 3.0])


@pytest.mark.parametrize("loss", EMPTY.values(), ids=list(EMPTY))
def test_losses_are_zero_without_pairs(loss):
    x = torch.zeros(3, 2, 4, requires_grad=True)
    value = loss(x)
    value.backward()
    assert value.item() == 0 and torch.isfinite(x.grad).all()
