"""Positions of padded steps, and the causal mask; parity compares the rest."""

import math

import pytest
import torch

from models.transformer import CrossModalEncoder, SinusoidalPositions, tensor_dropout


def test_positions_are_sine_half_then_cosine_half_and_zero_at_padding():
    x = torch.zeros(1, 3, 4)
    x[0, :, 0] = torch.tensor([0.0, 1.0, -2.0])
    positions = SinusoidalPositions(4)(x)[0]
    assert positions[0].tolist() == [0, 0, 0, 0]
    # the second of two frequencies: exp(-1 * ln(10^4) / (2 - 1))
    slow = math.exp(-math.log(10_000))
    expected = [math.sin(2), math.sin(2 * slow), math.cos(2), math.cos(2 * slow)]
    assert torch.allclose(positions[1], torch.tensor(expected))
    positions = SinusoidalPositions(8)(torch.ones(1, 300, 8, dtype=torch.bfloat16))[0]
    assert not torch.equal(positions[256], positions[257])  # which bfloat16 cannot count


def test_step_ignores_masked_steps():
    torch.manual_seed(0)
    model = CrossModalEncoder(8, 2, 2, 0.0, 0.0, 0.0, 0.0, True)
    query, source = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    changed = source.clone()
    changed[:, 4] += 1  # hidden from the queries 0 and 1: 4 > i + 2
    before, after = model(query, source), model(query, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


@pytest.mark.parametrize("attn_mask", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_last_step_equals_the_last_of_all_steps(attn_mask, fast):
    """With last_step, the last layer computes only this step."""
    torch.manual_seed(0)
    model = CrossModalEncoder(8, 2, 2, 0.0, 0.0, 0.0, 0.0, attn_mask, fast)
    query = torch.randn(2, 5, 8)
    for source in (None, torch.randn(2, 3, 8), torch.randn(2, 9, 8)):
        expected = model(query, source)[:, -1]
        torch.testing.assert_close(model(query, source, last_step=True), expected)


def test_attention_dropout_keeps_the_mean():
    torch.manual_seed(0)
    p, x = torch.tensor(0.3), torch.ones(400, 1000, requires_grad=True)
    dropped = tensor_dropout(x, p)
    assert dropped.count_nonzero().item() / x.numel() == pytest.approx(0.7, abs=0.003)
    assert dropped.max().item() == pytest.approx(1 / 0.7)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped)
