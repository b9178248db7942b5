"""The encoder, step by step: positions of padded steps, the offset causal mask, attention, dropout draws."""

import math

import pytest
import torch

from models.transformer import CrossModalEncoder, MultiheadAttention, SinusoidalPositions, causal_mask


def encoder(attn_mask=True, embed_dropout=0.0) -> CrossModalEncoder:
    torch.manual_seed(0)
    return CrossModalEncoder(8, 2, 2, 0.0, 0.0, 0.0, embed_dropout, attn_mask)


def test_positions_are_sine_half_then_cosine_half_and_zero_where_padded():
    x = torch.zeros(1, 3, 4)
    x[0, :, 0] = torch.tensor([0.0, 1.0, -2.0])
    positions = SinusoidalPositions(4)(x)[0]
    assert positions[0].tolist() == [0, 0, 0, 0]
    slow = math.exp(-math.log(10_000))  # the second of two frequencies: exp(-1 * ln(10^4) / (2 - 1))
    expected = [math.sin(2), math.sin(2 * slow), math.cos(2), math.cos(2 * slow)]
    assert torch.allclose(positions[1], torch.tensor(expected))


def test_positions_beyond_256_stay_apart_in_bf16():
    positions = SinusoidalPositions(8)(torch.ones(1, 300, 8, dtype=torch.bfloat16))[0]
    assert not torch.equal(positions[256], positions[257])


def test_mask_is_offset_by_the_difference_of_the_lengths():
    expected = [[True, True, True, False], [True, True, True, True]]
    assert causal_mask(2, 4, torch.device("cpu")).tolist() == expected
    assert causal_mask(4, 2, torch.device("cpu")).tolist()[0] == [True, True]


def test_attention_by_the_letter():
    """Two heads of two, by loops over queries and keys."""
    torch.manual_seed(0)
    attention = MultiheadAttention(4, 2, dropout=0.0)
    torch.nn.init.normal_(attention.in_proj_bias)
    query, key, value = torch.randn(1, 2, 4), torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    mask = causal_mask(2, 3, torch.device("cpu"))
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (x[0] @ w.t() + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    heads = torch.zeros(2, 4)
    for head in (slice(0, 2), slice(2, 4)):
        for i in range(2):
            powers = [math.exp((q[i, head] @ k[j, head]).item() / math.sqrt(2)) * mask[i, j].item() for j in range(3)]
            heads[i, head] = sum(power * v[j, head] for j, power in enumerate(powers)) / sum(powers)
    torch.testing.assert_close(attention(query, key, value, mask)[0], attention.out_proj(heads))


def test_a_step_ignores_what_the_mask_hides():
    model, generator = encoder(), torch.Generator().manual_seed(1)
    query, source = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    changed = source.clone()
    changed[:, 4] += 1  # hidden from the queries 0 and 1: 4 > i + 2
    before, after = model(query, source), model(query, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_key_and_value_have_dropout_draws_of_their_own():
    """Query, key and value are each embedded, and dropped from, once."""
    model, drawn = encoder(embed_dropout=0.5).train(), []
    model.embed_dropout.register_forward_hook(lambda module, inputs, output: drawn.append(output))
    source = torch.ones(1, 3, 8)
    model(source, source)
    assert len(drawn) == 3 and not torch.equal(drawn[1], drawn[2])


def test_a_dead_source_gives_finite_numbers_and_gradients():
    model = encoder()
    source = torch.zeros(2, 5, 8, requires_grad=True)
    model(torch.randn(2, 3, 8), source).sum().backward()
    assert torch.isfinite(source.grad).all()


@pytest.mark.parametrize("length", [1, 7])
def test_self_attention_reads_the_current_stream(length):
    """Layer by layer: the second layer's keys are not the embedded inputs."""
    model, x = encoder(attn_mask=False), torch.randn(2, length, 8, generator=torch.Generator().manual_seed(2))
    first, second = model.layers
    stream = first(*[model.embed(x)] * 3)
    torch.testing.assert_close(model(x), model.layer_norm(second(stream, stream, stream)))
