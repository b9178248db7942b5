"""The encoder's oddities: positions of padded steps, the offset causal mask, dropout draws."""

import math

import pytest
import torch

from models import kernels
from models.transformer import CrossModalEncoder, SinusoidalPositions, encode
from trainers.flat import FlatParameters


def encoder(attn_mask=True, embed_dropout=0.0) -> CrossModalEncoder:
    torch.manual_seed(0)
    return CrossModalEncoder(8, 2, 2, 0.0, 0.0, 0.0, embed_dropout, attn_mask)


def test_positions_are_sine_half_then_cosine_half_and_zero_where_padded():
    positions = SinusoidalPositions(4)(torch.tensor([[0.0, 1.0, -2.0]]))[0]
    assert positions[0].tolist() == [0, 0, 0, 0]
    slow = math.exp(-math.log(10_000))  # the second of two frequencies: exp(-1 * ln(10^4) / (2 - 1))
    expected = [math.sin(2), math.sin(2 * slow), math.cos(2), math.cos(2 * slow)]
    assert torch.allclose(positions[1], torch.tensor(expected))


def test_positions_beyond_256_stay_apart_in_bf16():
    positions = SinusoidalPositions(8)(torch.ones(1, 300, dtype=torch.bfloat16))[0]
    assert not torch.equal(positions[256], positions[257])


def test_mask_is_offset_by_the_difference_of_the_lengths():
    expected = [[True, True, True, False], [True, True, True, True]]
    assert kernels._causal_mask(2, 4, torch.device("cpu")).tolist() == expected
    assert kernels._causal_mask(4, 2, torch.device("cpu")).tolist()[0] == [True, True]


def test_a_step_ignores_what_the_mask_hides():
    model, generator = encoder(), torch.Generator().manual_seed(1)
    query, source = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    changed = source.clone()
    changed[:, 4] += 1  # hidden from the queries 0 and 1: 4 > i + 2
    before, after = model(query, source), model(query, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_key_and_value_have_dropout_draws_of_their_own(monkeypatch):
    """Query, key and value are each embedded, and dropped from, once."""
    model, drawn, dropout = encoder(embed_dropout=0.5).train(), [], kernels.dropout
    monkeypatch.setattr(kernels, "dropout", lambda x, p: drawn.append(p) or dropout(x, p))
    model(torch.ones(1, 3, 8), torch.ones(1, 3, 8))
    assert drawn.count(0.5) == 3


def test_a_dead_source_gives_finite_numbers_and_gradients():
    model = encoder()
    source = torch.zeros(2, 5, 8, requires_grad=True)
    model(torch.randn(2, 3, 8), source).sum().backward()
    assert torch.isfinite(source.grad).all()


@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 9, 7)])
def test_encoders_together_give_what_each_gives_alone(lengths):
    """Same outputs and gradients, whether weights are copied into a stack or read from flat parameters as one view."""
    torch.manual_seed(1)
    encoders = [CrossModalEncoder(8, 2, 2, 0.0, 0.0, 0.0, 0.0, attn_mask=True) for _ in range(3)]
    for parameter in (p for e in encoders for p in e.parameters()):
        torch.nn.init.normal_(parameter)
    sequences = [torch.randn(2, t, 8) for t in lengths]
    sources = sequences[1:] + sequences[:1]

    def gradients(outputs):
        for parameter in (p for e in encoders for p in e.parameters()):
            parameter.grad = None if parameter.grad is None else parameter.grad.zero_()
        sum(x.square().sum() for x in outputs).backward()
        return [p.grad.clone() for e in encoders for p in e.parameters()]

    alone = [encoder(*pair) for encoder, pair in zip(encoders, zip(sequences, sources, strict=True), strict=True)]
    of_alone = gradients(alone)
    for lay_out in (list, FlatParameters):
        lay_out([p for e in encoders for p in e.parameters()])
        together = encode(encoders, sequences, sources)
        for x, y in zip(alone, together, strict=True):
            assert torch.allclose(x, y, atol=1e-5)
        for x, y in zip(of_alone, gradients(together), strict=True):
            assert torch.allclose(x, y, atol=1e-4 * x.abs().max().item())


def test_the_last_step_alone_is_the_last_step():
    model, x = encoder(), torch.randn(2, 5, 8)
    assert torch.allclose(encode([model], [x], last_step=True)[0], model(x)[:, -1:], atol=1e-6)
