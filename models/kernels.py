"""The operations in which a training step spends its time, each in the form that suits the device.

On the CPU in full precision they are built from oneDNN's matrix product and from memory layouts that keep the long
axis innermost; anywhere else (CUDA, autocast, torch.compile) they are PyTorch's own. Both forms compute the same
function to within rounding: the tests compare them. benchmarks/README.md has what each gains.

Legend: E encoders, N rows (steps of utterances) of all encoders together, D width, h heads, G sequences,
T_q and T_s steps of query and source.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

SCORES_AT_ONCE = 2**19  # attention scores held at a time (4 MiB)
SMALL_ATTENTION = 2**14  # scores of one head up to which they are computed as a whole
QUERIES_AT_ONCE = 64  # in a longer sequence, so that keys which the mask hides from all of them cost nothing
LOG2_E = math.log2(math.e)
LARGEST_EXPONENT = 64  # of 2, up to which nothing overflows or vanishes: float32 goes to 127
LARGE_WEIGHT = 20_000  # elements from which oneDNN's product also wins for a weight's gradient


def _eager_cpu(x: Tensor) -> bool:
    """Whether x is on the CPU and operations run one by one."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _plain_cpu(x: Tensor) -> bool:
    """The same in full precision, with oneDNN at hand."""
    full = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return full and _eager_cpu(x) and torch.backends.mkldnn.is_available()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """x @ weight.T + bias by oneDNN, which on some processors is twice as fast as the library behind F.linear."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """gradient.T @ x; gradient (N, D_out), x (N, D_in) -> (D_out, D_in)"""
    if gradient.size(1) * x.size(1) < LARGE_WEIGHT:
        return gradient.t() @ x
    return _product(x.t(), gradient.t()).t()


class _Linear(torch.autograd.Function):
    """x (N, D_in), weight (D_out, D_in), bias (D_out) -> (N, D_out)"""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if needs_x else None,
            _weight_gradient(gradient, x) if needs_weight else None,
            gradient.sum(dim=0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear; x (..., D_in) -> (..., D_out)."""
    if not _plain_cpu(x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.size(-1)), weight, bias).view(*x.shape[:-1], -1)


def stack(parameters: Sequence[Sequence[Tensor]]) -> Tensor:
    """Parameters of one shape as one tensor: L lists of E -> (L, E, ·).

    Where they and their gradients lie at regular distances in one buffer each (see trainers/flat.py), nothing is
    copied: the result is a view, and its gradient is added in place.
    """
    flat = [p for row in parameters for p in row]
    shape = (len(parameters), len(parameters[0]))
    if not torch.compiler.is_compiling():
        values = _regular_view(flat, shape)
        if values is not None and not (torch.is_grad_enabled() and flat[0].requires_grad):
            return values
        gradients = None if values is None else _regular_view([p.grad for p in flat], shape)
        if gradients is not None:
            return _StackedView.apply(flat[0], values, gradients)
    return torch.stack(flat).unflatten(0, shape)


def _regular_view(tensors: list[Tensor | None], shape: tuple[int, int]) -> Tensor | None:
    """A view of tensors at regular distances in one buffer, or None where they are not."""
    first = tensors[0]
    if any(t is None or not t.is_contiguous() for t in tensors):
        return None
    if len({t.untyped_storage().data_ptr() for t in tensors}) > 1:
        return None
    offsets, (rows, columns) = [t.storage_offset() for t in tensors], shape
    across = offsets[1] - offsets[0] if columns > 1 else 0
    down = offsets[columns] - offsets[0] if rows > 1 else 0
    if offsets != [offsets[0] + i * down + j * across for i in range(rows) for j in range(columns)]:
        return None
    return first.detach().as_strided((*shape, *first.shape), (down, across, *first.stride()))


class _StackedView(torch.autograd.Function):
    """Weights that are read as one view, and whose gradients are added to another."""

    @staticmethod
    def forward(ctx, parameter, values, gradients):
        ctx.gradients = gradients
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        ctx.gradients.add_(gradient)
        return None, None, None


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> Tensor:
    """A linear layer for each encoder, on its own rows.

    x (N, D_in), of which encoder e owns sizes[e] rows; weight (E, D_out, D_in), bias (E, D_out) -> (N, D_out)
    """
    if _plain_cpu(x) and weight[0].numel() >= LARGE_WEIGHT:
        return _GroupedLinear.apply(x, weight, bias, sizes)
    if len(set(sizes)) == 1:
        x = x.view(len(sizes), sizes[0], -1)
        product = x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
        return product.flatten(0, 1)
    biases = [None] * len(sizes) if bias is None else bias
    return torch.cat([linear(*operands) for operands in zip(x.split(sizes), weight, biases, strict=True)])


class _GroupedLinear(torch.autograd.Function):
    """See grouped_linear."""

    @staticmethod
    def forward(ctx, x, weight, bias, sizes):
        ctx.sizes = sizes
        ctx.save_for_backward(x, weight)
        biases = [None] * len(sizes) if bias is None else bias
        return torch.cat([_product(*operands) for operands in zip(x.split(sizes), weight, biases, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradients = gradient.contiguous().split(ctx.sizes)
        return (
            torch.cat([_product(g, w.t()) for g, w in zip(gradients, weight, strict=True)]),
            torch.stack([_weight_gradient(g, rows) for g, rows in zip(gradients, x.split(ctx.sizes), strict=True)]),
            torch.stack([g.sum(dim=0) for g in gradients]) if ctx.needs_input_grad[2] else None,
            None,
        )


def feed_forward(
    x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor, sizes: list[int], p: float
) -> Tensor:
    """linear, ReLU, dropout p, linear for each encoder, on its own rows.

    x (N, D); w_in (E, H, D), b_in (E, H), w_out (E, D, H), b_out (E, D) -> (N, D)
    """
    if _plain_cpu(x):
        return _FeedForward.apply(x, w_in, b_in, w_out, b_out, sizes, p)
    hidden = F.dropout(F.relu(grouped_linear(x, w_in, b_in, sizes)), p)
    return grouped_linear(hidden, w_out, b_out, sizes)


class _FeedForward(torch.autograd.Function):
    """One encoder after the other, so that its hidden rows, four times as wide as x, stay in the cache."""

    @staticmethod
    def forward(ctx, x, w_in, b_in, w_out, b_out, sizes, p):
        hidden, outputs = [], []
        for rows, w1, b1, w2, b2 in zip(x.split(sizes), w_in, b_in, w_out, b_out, strict=True):
            h = dropout(_product(rows, w1, b1, "relu"), p)
            hidden.append(h)
            outputs.append(_product(h, w2, b2))
        ctx.sizes, ctx.hidden, ctx.scale = sizes, hidden, 1 / _kept(p)
        ctx.save_for_backward(x, w_in, w_out)
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, w_in, w_out = ctx.saved_tensors
        of_x, of_w_in, of_b_in, of_w_out = [], [], [], []
        parts = gradient.contiguous().split(ctx.sizes)
        for g, rows, h, w1, w2 in zip(parts, x.split(ctx.sizes), ctx.hidden, w_in, w_out, strict=True):
            of_w_out.append(_weight_gradient(g, h))
            # h is 0 both where the ReLU and where the dropout let nothing through.
            of_hidden = torch.ops.aten.threshold_backward(_product(g, w2.t()), h, 0)
            if ctx.scale != 1:
                of_hidden.mul_(ctx.scale)
            of_w_in.append(_weight_gradient(of_hidden, rows))
            of_b_in.append(of_hidden.sum(dim=0))
            of_x.append(_product(of_hidden, w1.t()))
        of_b_out = torch.stack([g.sum(dim=0) for g in parts])
        return torch.cat(of_x), *map(torch.stack, (of_w_in, of_b_in, of_w_out)), of_b_out, None, None


def _kept(p: float) -> float:
    """The part that a dropout of probability p keeps."""
    return 1 - _dropped(p) / 2**16


def _dropped(p: float) -> int:
    """p rounded to what 16 bits can tell, in units of 2^-16; never everything."""
    return min(round(p * 2**16), 2**16 - 1)


def _random_bits(shape: tuple[int, ...]) -> Tensor:
    """Uniform int16. One 64-bit random number serves four, at a sixth of what as many Bernoulli draws cost."""
    n = math.prod(shape)
    return torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:n].view(shape)


def _keep_mask(x: Tensor, p: float) -> Tensor:
    """1 where a dropout of probability p keeps an element of x, else 0; written as numbers, as comparing to booleans
    and multiplying by them takes five times as long."""
    return torch.ge(_random_bits(x.shape), _dropped(p) - 2**15, out=torch.empty_like(x))


def dropout(x: Tensor, p: float) -> Tensor:
    """F.dropout in training; p = 0 leaves x as it is."""
    if p == 0:
        return x
    if not _eager_cpu(x):
        return F.dropout(x, p)
    return x * _keep_mask(x, p).mul_(1 / _kept(p))


def _causal_mask(t_q: int, t_s: int, device: torch.device) -> Tensor:
    """Query i sees key j where j <= i + |T_s - T_q|.  -> (T_q, T_s) bool"""
    return torch.ones(t_q, t_s, dtype=torch.bool, device=device).tril(abs(t_s - t_q))


def _heads_inside(x: Tensor, heads: int) -> Tensor:
    """(G, T, D) -> (G·h, D/h, T)"""
    g, t, d = x.shape
    return x.view(g, t, heads, d // heads).permute(0, 2, 3, 1).reshape(g * heads, d // heads, t)


def _heads_outside(x: Tensor, heads: int) -> Tensor:
    """(G·h, D/h, T) -> (G, T, D)"""
    _, width, t = x.shape
    return x.view(-1, heads, width, t).permute(0, 3, 1, 2).reshape(-1, t, heads * width)


class _Attention(torch.autograd.Function):
    """Attention in tiles of scores.

    Heads lie as (G·h, D/h, T), so that every product has a long inner axis: heads are a few elements wide, and matrix
    products with so short an inner axis run at a third of the speed. The softmax is left undone: powers of 2 (five
    times as fast as those of e) go into the product with the values, and the few results are divided by the sums.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, q, k, v, heads, causal, dropouts):
        t_q, t_s = q.size(1), k.size(1)
        q, k, v = (_heads_inside(x, heads) for x in (q, k, v))
        q = q * (scale := q.size(1) ** -0.5 * LOG2_E)
        small = _largest_norm(q) * _largest_norm(k) <= LARGEST_EXPONENT  # else, or with NaN: subtract the maximum
        v = torch.cat([v, v.new_ones(len(v), 1, t_s)], dim=1)  # so that the product with v sums the weights, too
        output, sums, tiles = torch.empty_like(q), q.new_empty(len(q), 1, t_q), []
        for part, block, keys, p in _tiles(len(q), t_q, t_s, causal, dropouts):
            weights, dropped = q[part, :, block].mT @ k[part, :, keys], None
            last = block.start + abs(t_s - t_q)  # the last key that the first query of the block sees
            if not small:
                if causal:
                    weights.masked_fill_(torch.ones_like(weights[0], dtype=torch.bool).triu(last + 1), -math.inf)
                weights.sub_(weights.amax(dim=-1, keepdim=True))
            weights.exp2_()
            if causal and last + 1 < keys.stop:
                weights.tril_(last)
            if p == 0:
                product = v[part, :, keys] @ weights.mT
                output[part, :, block], sums[part, :, block] = product[:, :-1], product[:, -1:]
            else:
                dropped = _keep_mask(weights, p).mul_(weights)
                output[part, :, block] = (v[part, :-1, keys] @ dropped.mT).div_(_kept(p))
                sums[part, :, block] = weights.sum(dim=-1).unsqueeze(1)
            if any(ctx.needs_input_grad):
                tiles.append((part, block, keys, p, weights, dropped))
        output.div_(sums)
        ctx.heads, ctx.scale, ctx.tiles = heads, scale, tiles
        ctx.save_for_backward(q, k, v, output, sums)
        return _heads_outside(output, heads)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        q, k, v, output, sums = ctx.saved_tensors
        gradient = _heads_inside(gradient.contiguous(), ctx.heads) / sums  # not in place: it may be a view of ours
        shift = -(gradient * output).sum(dim=1, keepdim=True)  # what the softmax's gradient adds in each row
        gradient = torch.cat([gradient, shift], dim=1)
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(k)
        for part, block, keys, p, weights, dropped in ctx.tiles:
            g = gradient[part, :-1, block]
            if dropped is None:
                of_scores = (gradient[part, :, block].mT @ v[part, :, keys]).mul_(weights)  # the ones meet the shift
            else:
                g = g / _kept(p)
                of_scores = (g.mT @ v[part, :-1, keys]).mul_(dropped).addcmul_(weights, shift[part, :, block].mT)
            of_v[part, :, keys] += g @ (weights if dropped is None else dropped)
            of_k[part, :, keys] += q[part, :, block] @ of_scores
            of_q[part, :, block] = k[part, :, keys] @ of_scores.mT
        of_q, of_k = of_q.mul_(ctx.scale / LOG2_E), of_k.mul_(1 / LOG2_E)
        return *(_heads_outside(x, ctx.heads) for x in (of_q, of_k, of_v)), None, None, None


def _tiles(
    groups: int, t_q: int, t_s: int, causal: bool, dropouts: tuple[float, ...]
) -> Iterator[tuple[slice, slice, slice, float]]:
    """Tiles of the scores (G·h, T_q, T_s) that fit into the cache: slices of the three axes, and their dropout."""
    queries = t_q if t_q * t_s <= SMALL_ATTENTION else QUERIES_AT_ONCE
    for first in range(0, t_q, queries):
        block = slice(first, min(t_q, first + queries))
        keys = slice(0, min(t_s, block.stop + abs(t_s - t_q)) if causal else t_s)
        at_once = max(1, SCORES_AT_ONCE // ((block.stop - first) * keys.stop))
        stop = 0
        for p, equal in groupby(dropouts):
            start, stop = stop, stop + len(list(equal)) * groups // len(dropouts)
            for position in range(start, stop, at_once):
                yield slice(position, min(stop, position + at_once)), block, keys, p


def _largest_norm(x: Tensor) -> Tensor:
    """The largest norm along the middle axis of x (·, D, T): a bound of products, as |q·k| <= |q| |k|."""
    return (x * x).sum(dim=1).max().sqrt()  # vector_norm over this axis takes ten times as long


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool, dropouts: tuple[float, ...]) -> Tensor:
    """Scaled dot-product attention of G sequences, with a dropout on the weights for each equal part of them.

    q (G, T_q, D), k and v (G, T_s, D) -> (G, T_q, D). With `causal`, query i sees key j where j <= i + |T_s - T_q|.
    """
    if _eager_cpu(q):
        return _Attention.apply(q, k, v, heads, causal, dropouts).to(q.dtype)
    mask = _causal_mask(q.size(1), k.size(1), q.device) if causal else None
    output: list[Tensor] = list(dropouts)
    parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2).chunk(len(dropouts)) for x in (q, k, v)]  # (·, h, T, D/h)
    for p in set(dropouts):
        members = [i for i, own in enumerate(dropouts) if own == p]
        qkv = (torch.cat([x[i] for i in members]) for x in parts)
        attended = F.scaled_dot_product_attention(*qkv, attn_mask=mask, dropout_p=p).transpose(1, 2).flatten(2)
        for i, part in zip(members, attended.chunk(len(members)), strict=True):
            output[i] = part
    return torch.cat(output)


class Substitutes(TorchFunctionMode):
    """While active, linear layers, dropout and attention of any model run in the forms of this file.

    For models from a library, BERT here. Off the CPU it changes nothing.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.SUBSTITUTES.get(function, function)(*args, **(kwargs or {}))

    @staticmethod
    def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return dropout(x, p) if training else x

    @staticmethod
    def _attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more
    ) -> Tensor:
        if not dropout_p or not _eager_cpu(q) or more.get("is_causal") or more.get("enable_gqa"):
            return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, **more)
        scores = (q * (more.get("scale") or q.size(-1) ** -0.5)) @ k.mT
        if attn_mask is not None:
            # The least number rather than -inf: an utterance without any token has no key at all.
            least = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~attn_mask, least) if attn_mask.dtype == torch.bool else scores + attn_mask
        return dropout(scores.softmax(dim=-1), dropout_p) @ v

    SUBSTITUTES = {F.linear: linear, F.dropout: _dropout, F.scaled_dot_product_attention: _attention}
