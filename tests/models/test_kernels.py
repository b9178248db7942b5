"""The CPU's forms of the operations against PyTorch's own, in values, gradients and dropout statistics."""

import pytest
import torch
import torch.nn.functional as F

from models import kernels


def both_forms(monkeypatch, compute, *tensors):
    """Values and gradients of `compute(*tensors)` in the CPU's form and in PyTorch's."""
    results = []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(kernels, "_eager_cpu", lambda x: False)
            leaves = [x.clone().requires_grad_() for x in tensors]
            output = compute(*leaves)
            output.square().sum().backward()
            results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    return zip(*results, strict=True)


def assert_close(pairs, tolerance=2e-5):
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("t_q", "t_s"), [(7, 7), (5, 9), (9, 5), (200, 150), (150, 300), (1, 8)])
@pytest.mark.parametrize("size", [1, 10])  # 10: scores of hundreds, whose exponentials overflow unless shifted
def test_attention(monkeypatch, causal, t_q, t_s, size):
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, t, 8) * scale for t, scale in ((t_q, size), (t_s, size), (t_s, 1)))
    pairs = both_forms(monkeypatch, lambda *qkv: kernels.attention(*qkv, 2, causal, (0.0, 0.0)), q, k, v)
    assert_close(pairs, 2e-5 * size)  # a score's rounding error, relative to 1, is that of its exponential


@pytest.mark.parametrize("sizes", [[6, 6], [5, 9]])
@pytest.mark.parametrize("width", [8, 200])
def test_linear_layers_of_several_encoders(monkeypatch, sizes, width):
    torch.manual_seed(0)
    x, w, b = torch.randn(sum(sizes), width), torch.randn(2, width, width), torch.randn(2, width)
    assert_close(both_forms(monkeypatch, lambda *xwb: kernels.grouped_linear(*xwb, sizes), x, w, b))
    assert_close(both_forms(monkeypatch, kernels.linear, x, w[0], b[0]))
    feed = (x, w, b, torch.randn(2, width, width), b)
    assert_close(both_forms(monkeypatch, lambda *xwb: kernels.feed_forward(*xwb, sizes, 0.0), *feed))


@pytest.mark.parametrize(
    ("compute", "shapes"),
    [
        (lambda *qkv: kernels.attention(*qkv, 2, True, (0.3, 0.0)), [(4, 6, 8), (4, 9, 8), (4, 9, 8)]),
        (lambda *xwb: kernels.feed_forward(*xwb, [30, 50], 0.3), [(80, 8), (2, 16, 8), (2, 16), (2, 8, 16), (2, 8)]),
    ],
    ids=["attention", "feed_forward"],
)
def test_gradients_under_dropout_are_those_of_the_same_draw(compute, shapes):
    """Against differences: the draws are equal where the seed is."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    seen_by = torch.randn(shapes[0])

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return (compute(*tensors) * seen_by).double().sum()

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
        assert slope.item() == pytest.approx((tensor.grad * direction).sum().item(), rel=0.02, abs=0.05)


def test_backward_leaves_the_gradient_it_is_given():
    """With one head, or one query, heads are a view of what comes in."""
    torch.manual_seed(0)
    for heads, t_q in ((1, 5), (2, 1)):
        q, k, given = torch.randn(3, t_q, 8, requires_grad=True), torch.randn(3, 6, 8), torch.randn(3, t_q, 8)
        before = given.clone()
        kernels.attention(q, k, k, heads, False, (0.0,)).backward(given)
        assert torch.equal(given, before)


def test_an_utterance_without_any_key_is_finite_in_training():
    q, mask = torch.randn(2, 2, 4, 8), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[0] = False
    with kernels.Substitutes():
        attended = F.scaled_dot_product_attention(q, q, q, mask, 0.1)
    assert attended.isfinite().all()


def test_a_dropout_of_nearly_everything():
    assert kernels.dropout(torch.ones(100), 0.999999).isfinite().all()


def test_dropout_keeps_the_stated_part_and_the_mean():
    torch.manual_seed(0)
    for p in (0.1, 0.3, 0.5):
        x = torch.ones(400, 1000, requires_grad=True)
        dropped = kernels.dropout(x, p)
        assert dropped.count_nonzero().item() / x.numel() == pytest.approx(
            1 - p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5
        )
        assert dropped.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
        dropped.sum().backward()
        assert torch.equal(x.grad, dropped)
    assert kernels.dropout(x, 0) is x


def test_neighbouring_dropout_draws_are_independent():
    torch.manual_seed(0)
    kept = kernels.dropout(torch.ones(2**20), 0.5).ne(0).double()
    for lag in (1, 2, 3, 4):  # four draws share a random number
        agreement = (kept[lag:] == kept[:-lag]).double().mean().item()
        assert agreement == pytest.approx(0.5, abs=4 * 0.5 / 2**10)


def test_attention_dropout_differs_between_encoders_and_keeps_the_mean():
    """With equal weights the output is the mean of the kept values: 1 on average, and exactly 1 without dropout."""
    torch.manual_seed(0)
    q, v = torch.zeros(200, 10, 4), torch.ones(200, 10, 4)
    dropped, whole = kernels.attention(q, q, v, 2, False, (0.3, 0.0)).chunk(2)
    assert torch.allclose(whole, torch.ones(()))
    spread = (0.3 / 0.7 / 10) ** 0.5  # of a mean over 10 keys, each kept with probability 0.7 and scaled by 1 / 0.7
    assert dropped.mean().item() == pytest.approx(1, abs=4 * spread / (100 * 10 * 2) ** 0.5)
    assert dropped.std().item() == pytest.approx(spread, rel=0.1)


def test_gradients_pass_through_attention_with_dropout():
    """Same draws, numerical derivative: the gradient belongs to the value."""
    torch.manual_seed(1)
    leaves = [torch.randn(2, 6, 4, requires_grad=True) for _ in range(3)]
    direction = [torch.randn_like(x) for x in leaves]

    def value(step: float) -> torch.Tensor:
        torch.manual_seed(7)
        moved = [x + step * d for x, d in zip(leaves, direction, strict=True)]
        return kernels.attention(*moved, 2, True, (0.4, 0.0)).square().sum()

    value(0.0).backward()
    analytic = sum((x.grad * d).sum() for x, d in zip(leaves, direction, strict=True)).item()
    with torch.no_grad():
        numerical = (value(1e-2) - value(-1e-2)).item() / 2e-2
    assert analytic == pytest.approx(numerical, rel=1e-2)


def test_substitutes_reach_a_librarys_modules(monkeypatch):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 8), torch.randn(3, 8)
    expected = layer(x)
    called = []
    product = kernels._product
    monkeypatch.setattr(kernels, "_product", lambda *operands: called.append(1) or product(*operands))
    with kernels.Substitutes():
        assert torch.allclose(layer(x), expected, atol=1e-6)
        assert F.dropout(x, 0.5, training=False) is x
    assert called
