"""The CPU's attention against plain operations: values, gradients, draws, and when it is used."""

import re

import pytest
import torch

from config import load_config
from models import cpu_attention, transformer
from models.cpu_attention import LARGEST_BYTE_DROPOUT
from models.dmd import DMD
from models.transformer import MultiheadAttention
from tests.models.paths import relative, use_path
from tests.reference import DROPOUTS


def attend(q, k, v, heads=2, causal=True, dropout=0.0) -> torch.Tensor:
    return cpu_attention.cpu_attention(q, k, v, heads, causal, dropout)


def attend_plainly(q, k, v, heads=2, causal=True) -> torch.Tensor:
    """PyTorch's own attention."""
    mask = None
    if causal:
        mask = ~transformer.causal_mask(q.size(1), k.size(1), q.device)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return attended.transpose(1, 2).flatten(2)


def value_and_gradients(function, tensors) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize(
    ("t_q", "t_s"), [(6, 6), (1, 9), (9, 4), (200, 150), (150, 300), (400, 700)]
)
def test_values_and_gradients_match_plain_operations(t_q, t_s, heads, causal):
    torch.manual_seed(0)
    tensors = [torch.randn(2, t, 8, dtype=torch.double) for t in (t_q, t_s, t_s)]
    ours = value_and_gradients(lambda *qkv: attend(*qkv, heads, causal), tensors)
    plain = value_and_gradients(lambda *qkv: attend_plainly(*qkv, heads, causal), tensors)
    assert max(relative(x, y) for x, y in zip(ours, plain, strict=True)) <= 1e-10


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(("t_q", "t_s"), [(5, 9), (9, 5), (200, 150)])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_module_matches_pytorch(t_q, t_s, causal, fast):
    """With the weights of nn.MultiheadAttention, whose attn_mask is True if a query must not
    attend.
    """
    torch.manual_seed(0)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    ours = MultiheadAttention(8, 2, dropout=0.0, fast=fast)
    ours.load_state_dict(reference.state_dict(), strict=True)
    query, key, value = torch.randn(2, t_q, 8), torch.randn(2, t_s, 8), torch.randn(2, t_s, 8)
    mask = transformer.causal_mask(t_q, t_s, query.device) if causal else None
    expected, _ = reference(query, key, value, attn_mask=mask)
    torch.testing.assert_close(ours(query, key, value, causal), expected)


@pytest.mark.parametrize(("t_q", "t_s"), [(5, 9), (200, 150)])
def test_scores_of_hundreds_do_not_overflow(t_q, t_s):
    """Their exponentials do, unless they are shifted."""
    torch.manual_seed(0)
    tensors = [torch.randn(4, t_q, 8) * 10, torch.randn(4, t_s, 8) * 10, torch.randn(4, t_s, 8)]
    ours = value_and_gradients(attend, tensors)
    plain = value_and_gradients(attend_plainly, tensors)
    for x, y in zip(ours, plain, strict=True):
        # A score's rounding error, relative to 1, is that of its exponential.
        assert (x - y).abs().max() <= 2e-4 * y.abs().max()


def test_gradients_under_dropout_are_those_of_the_same_draw():
    """Gradients match finite differences, because equal seeds give equal draws."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(shape, requires_grad=True) for shape in [(4, 6, 8), (4, 9, 8), (4, 9, 8)]
    ]
    seen_by = torch.randn(4, 6, 8)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return (attend(*tensors, dropout=0.3) * seen_by).double().sum()

    loss().backward()
    for tensor in tensors:
        direction = torch.randn(tensor.shape)
        with torch.no_grad():
            values = []
            for step in (1e-3, -2e-3):
                tensor += step * direction
                values.append(loss())
            tensor += 1e-3 * direction
        slope = (values[0] - values[1]) / 2e-3
        expected = (tensor.grad * direction).sum().item()
        assert slope.item() == pytest.approx(expected, rel=0.02, abs=0.05)


def test_backward_does_not_change_its_gradient():
    """With one head, or one query, heads are a view of the incoming gradient."""
    for heads, t_q in ((1, 5), (2, 1)):
        q, k = torch.ones(3, t_q, 8, requires_grad=True), torch.ones(3, 6, 8)
        given = torch.ones(3, t_q, 8)
        attend(q, k, k, heads, causal=False).backward(given)
        assert (given == 1).all()


def test_forward_does_not_change_its_inputs():
    """One step and one head: heads are a view of the inputs."""
    q, k = torch.ones(3, 1, 8), torch.ones(3, 1, 8)
    attend(q, k, k, heads=1, causal=False)
    assert (q == 1).all() and (k == 1).all()


def test_nan_is_propagated():
    q, k = torch.full((3, 5, 8), torch.nan), torch.ones(3, 6, 8)
    assert attend(q, k, k).isnan().any()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.99, 0.999])
def test_dropout_keeps_the_given_share(p):
    torch.manual_seed(0)
    kept = cpu_attention._draw_kept(torch.empty(400, 1000), p)
    assert ((kept == 0) | (kept == 1)).all()
    assert kept.mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / kept.numel()) ** 0.5)


def test_neighboring_dropout_draws_are_independent():
    torch.manual_seed(0)
    kept = cpu_attention._draw_kept(torch.empty(2**10, 2**10), 0.3).flatten().double()
    for lag in range(1, 9):  # eight draws share a random number
        agreement = (kept[lag:] * kept[:-lag]).mean().item()
        assert agreement == pytest.approx(0.7**2, abs=4 * 0.5 / 2**10)


@pytest.mark.parametrize("p", [0.3, 0.999], ids=["bytes", "floats"])
def test_dropout_preserves_the_mean(p):
    """With equal values, dropping weights changes an output only through their sum."""
    assert 0.3 <= LARGEST_BYTE_DROPOUT < 0.999
    torch.manual_seed(0)
    q, v = torch.randn(500, 50, 8), torch.ones(500, 50, 8)
    output = attend(q, q, v, causal=False, dropout=p).double()
    rows = output[..., ::4].flatten()  # one channel of each head
    assert rows.mean().item() == pytest.approx(1, abs=5 * rows.std().item() / len(rows) ** 0.5)


def test_model_uses_cpu_attention_unless_fast_is_false(monkeypatch):
    used = []

    def spy(*arguments):
        used.append(1)
        return cpu_attention.cpu_attention(*arguments)

    monkeypatch.setattr(transformer, "cpu_attention", spy)
    q = torch.randn(2, 3, 8)
    for fast in (True, False):
        used.clear()
        MultiheadAttention(8, 2, 0.0, fast=fast)(q, q, q)
        assert bool(used) == fast


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_transforms_of_torch_func_work(fast):
    """Including transforms that the CPU's attention does not support."""
    torch.manual_seed(0)
    attention, x = MultiheadAttention(8, 2, 0.0, fast=fast), torch.randn(2, 3, 8)

    def loss(x):
        return attention(x, x, x, causal=True).square().sum()

    leaf = x.clone().requires_grad_()
    [expected] = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(loss)(x), expected)
    _, slope = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, expected.sum())
    each = torch.func.vmap(lambda row: attention(row, row, row), randomness="different")(x[:, None])
    torch.testing.assert_close(each.squeeze(1), attention(x, x, x))


def test_second_order_gradients_need_fast_to_be_false():
    for fast in (False, True):
        attention, x = (
            MultiheadAttention(8, 2, 0.0, fast=fast),
            torch.randn(2, 3, 8, requires_grad=True),
        )
        output = attention(x, x, x).square().sum()
        [gradient] = torch.autograd.grad(output, x, create_graph=True)
        if fast:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                gradient.sum().backward()
        else:
            gradient.sum().backward()
            assert x.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["fast", "together"])
@pytest.mark.parametrize("steps", [[12, 12, 12], [8, 12, 16]], ids=["aligned", "unaligned"])
def test_dropout_draws_have_the_same_means_and_spreads(steps, path, monkeypatch):
    """Each of the 38 outputs over many draws of every dropout: z of its mean, and its spread."""
    dropouts = {name: (1 + number % 3) / 10 for number, name in enumerate(DROPOUTS)}
    sizes = {"use_bert": False, "need_data_aligned": False, "dst_feature_dim_nheads": [8, 2]}
    args = load_config("dmd", "mosi", overrides=sizes | dropouts)
    args.seq_lens = steps
    torch.manual_seed(0)
    model = DMD(args).train()
    # Every draw is an utterance: the same one, over and over. A fixed projection makes a number of
    # each output.
    widths = zip(steps, args.feature_dims, strict=True)
    draws = [torch.randn(1, t, d).expand(6000, -1, -1) for t, d in widths]
    outputs = []
    for each in ("plain", path):
        use_path(model, each, monkeypatch)
        with torch.no_grad():
            outputs.append(model(*draws).flat())
    assert len(outputs[0]) == 38
    for name in outputs[0]:
        of_time = re.fullmatch("[sc]_[lav]", name)  # (T', B, d)
        rows = [
            (output[name].movedim(1, 0) if of_time else output[name]).flatten(1)
            for output in outputs
        ]
        weights = torch.randn(rows[0].size(1), generator=torch.Generator().manual_seed(1))
        x, y = ((row @ weights).double() for row in rows)
        if x.std() < 1e-6 * x.abs().max():  # no dropout on the way to it: audio and vision features
            torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-6)
            continue
        assert abs(x.mean() - y.mean()) <= 5 * ((x.var() + y.var()) / len(x)).sqrt(), name
        assert abs(x.std() / y.std() - 1) <= 0.05, (name, x.std(), y.std())
