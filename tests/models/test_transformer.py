"""The encoder's oddities: positions of padded steps, the offset causal mask, dropout draws."""

import math

import torch

from models.transformer import CrossModalEncoder, SinusoidalPositions


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
    query, source = torch.zeros(2, 1, 8), torch.zeros(4, 1, 8)
    expected = [[True, True, True, False], [True, True, True, True]]
    assert CrossModalEncoder._causal_mask(query, source).tolist() == expected
    assert CrossModalEncoder._causal_mask(source, query).tolist()[0] == [True, True]


def test_a_step_ignores_what_the_mask_hides():
    model, generator = encoder(), torch.Generator().manual_seed(1)
    query, source = torch.randn(3, 2, 8, generator=generator), torch.randn(5, 2, 8, generator=generator)
    changed = source.clone()
    changed[4] += 1  # hidden from the queries 0 and 1: 4 > i + 2
    before, after = model(query, source), model(query, changed)
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_key_and_value_have_dropout_draws_of_their_own():
    model = encoder(embed_dropout=0.5).train()
    torch.manual_seed(0)
    x = torch.ones(3, 1, 8)
    first, second = model._embed(x), model._embed(x)
    assert not torch.equal(first, second)


def test_a_dead_source_gives_finite_numbers_and_gradients():
    model = encoder()
    source = torch.zeros(5, 2, 8, requires_grad=True)
    model(torch.randn(3, 2, 8), source).sum().backward()
    assert torch.isfinite(source.grad).all()
