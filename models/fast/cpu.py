"""Dropout and attention in forms that are fast on the CPU. Elsewhere, and inside torch.compile, PyTorch's are used.

Legend: G sequences, T_q and T_s steps of query and source, D width, h heads.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

SCORES_AT_ONCE = 2**19  # attention scores held at a time (2 MiB)
SMALL_ATTENTION = 2**14  # scores of one head up to which they are computed as a whole
QUERIES_AT_ONCE = 64  # in a longer sequence, so that keys which the mask hides from all of them cost nothing
LARGEST_DROPOUT = 254 / 256  # that draws of eight bits have
LOG2_E = math.log2(math.e)
LARGEST_SUM = 2.0**64  # of the powers of a query, up to which nothing overflows or vanishes: float32 goes to 2^127


def eager(x: Tensor) -> bool:
    """Whether x is on the CPU, and operations run one by one, without transforms of torch.func."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return x.device.type == "cpu" and not transformed


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout, never in place."""
    if not training or p == 0:
        return x
    if not eager(x) or p > LARGEST_DROPOUT:
        return torch.native_dropout(x, p, True)[0]
    # Kept elements are marked by ones, as comparing to booleans and multiplying by them takes five times as long.
    return x * torch.ge(*_draw(x.shape, p), out=torch.empty_like(x)).mul_(1 / (1 - p))


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p: float = 0.0, **options) -> Tensor:
    """F.scaled_dot_product_attention, with the dropout above on its weights, which are its output for the values I."""
    if dropout_p == 0 or not eager(query) or options.get("enable_gqa"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
    identity = torch.eye(key.size(-2), dtype=value.dtype).expand(*key.shape[:-1], -1)
    weights = F.scaled_dot_product_attention(query, key, identity, attn_mask, **options)
    return dropout(weights, dropout_p) @ value


def _draw(shape: Sequence[int], p: float) -> tuple[Tensor, Tensor]:
    """Random bytes, and the limit in each row from which on they keep an element."""
    n = math.prod(shape)
    # A 64-bit number serves eight elements. NumPy's generator is twice as fast as PyTorch's, which seeds it.
    numbers = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw((n + 7) // 8)
    # Where 256 p is no integer, each row draws the one below or above it, so that every element has probability p.
    limits = torch.rand(*shape[:-1], 1).add_(p * 256).floor_().to(torch.uint8)
    return torch.from_numpy(numbers.view(np.uint8))[:n].view(shape), limits


class Attention(torch.autograd.Function):
    """Attention of G sequences, with a dropout on the weights for each equal part of them, in tiles of scores.

    q (G, T_q, D), k and v (G, T_s, D) -> (G, T_q, D). With `causal`, query i sees key j where j <= i + |T_s - T_q|.

    Heads lie as (G·h, D/h, T), so that every product has a long inner axis: heads are a few elements wide, and matrix
    products with so short an inner axis run at a third of the speed. The softmax is left undone: powers of 2 (five
    times as fast as those of e) go into the product with the values, and the few results are divided by the sums.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, q, k, v, heads, causal, dropouts):
        scale = (q.size(2) // heads) ** -0.5
        q, k = _heads_inside(q, heads).mul_(scale * LOG2_E), _heads_inside(k, heads)
        v = _heads_inside(v, heads, more=1)  # with a row of ones, so that the product with v sums the weights, too
        output, sums, kept = torch.empty_like(q), q.new_empty(len(q), 1, q.size(2)), []
        for shifted in (False, True):  # by the largest score, which few inputs need
            kept.clear()
            tiles = _tiles((q, output, sums), (k, v), causal, dropouts, draw=True)
            for p, last, q_, output_, sums_, k_, v_, *drawn in tiles:
                weights = torch.bmm(q_.mT, k_)
                hides = last + 1 < k_.size(2)
                if shifted:
                    if hides:
                        weights.masked_fill_(torch.ones_like(weights[0], dtype=torch.bool).triu(last + 1), -math.inf)
                    weights.sub_(weights.amax(dim=-1, keepdim=True))
                weights.exp2_()
                if hides:
                    weights.tril_(last)
                dropped = torch.ge(*drawn, out=torch.empty_like(weights)).mul_(weights) if p else weights
                product = torch.bmm(v_, dropped.mT)
                output_.copy_(product[:, :-1])
                sums_.copy_(weights.sum(dim=-1).mul_(1 - p).unsqueeze(1) if p else product[:, -1:])
                kept.append((weights, dropped) if any(ctx.needs_input_grad) else None)
            least, largest = sums.aminmax()
            if least >= 1 / LARGEST_SUM and largest <= LARGEST_SUM:
                break
        output.div_(sums)
        ctx.heads, ctx.scale, ctx.options, ctx.kept = heads, scale, (causal, dropouts), kept
        ctx.save_for_backward(q, k, v, output, sums)
        return _heads_outside(output, heads)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        q, k, v, output, sums = ctx.saved_tensors
        gradient = _heads_inside(gradient, ctx.heads) / sums  # not in place: it may be a view of ours
        # The last row is the shift that the softmax's gradient adds to all scores of a query.
        gradient = torch.cat([gradient, -(gradient * output).sum(dim=1, keepdim=True)], dim=1)
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(k)
        tiles = _tiles((gradient, q, of_q), (k, v, of_k, of_v), *ctx.options)
        for (p, _, g, q_, of_q_, k_, v_, of_k_, of_v_), (weights, dropped) in zip(tiles, ctx.kept, strict=True):
            if p == 0:
                of_scores = torch.bmm(g.mT, v_).mul_(weights)  # the ones meet the shift
            else:
                of_scores = torch.bmm(g[:, :-1].mT, v_[:, :-1]).mul_(dropped)
                of_scores.addcmul_(weights, g[:, -1:].mT, value=1 - p)
            of_v_.add_(torch.bmm(g[:, :-1], dropped))
            of_k_.add_(torch.bmm(q_, of_scores))
            of_q_.copy_(torch.bmm(k_, of_scores.mT))
        gradients = (of_q.mul_(ctx.scale), of_k.div_(LOG2_E), of_v)
        return *(_heads_outside(x, ctx.heads) for x in gradients), None, None, None


def _tiles(of_q: Sequence[Tensor], of_s: Sequence[Tensor], causal: bool, dropouts: Sequence[float], draw=False):
    """Tiles of the scores (G·h, T_q, T_s) that fit into the cache: their dropout, the last key that their first query
    sees, and what belongs to them of of_q (G·h, ·, T_q), of of_s (G·h, ·, T_s), and, with `draw`, of _draw."""
    groups, t_q, t_s = len(of_q[0]), of_q[0].size(2), of_s[0].size(2)
    queries = t_q if t_q * t_s <= SMALL_ATTENTION else QUERIES_AT_ONCE
    for first in range(0, t_q, queries):
        last = first + abs(t_s - t_q) if causal else t_s
        n_q, n_s = min(queries, t_q - first), min(t_s, last + queries)
        stop = 0
        for p, equal in groupby(dropouts):
            start, stop = stop, stop + len(list(equal)) * groups // len(dropouts)
            part = [x[start:stop, :, first : first + n_q] for x in of_q] + [x[start:stop, :, :n_s] for x in of_s]
            if draw and p:
                part += _draw((stop - start, n_q, n_s), p)
            for pieces in zip(*(x.split(max(1, SCORES_AT_ONCE // (n_q * n_s))) for x in part), strict=True):
                yield p, last, *pieces


def _heads_inside(x: Tensor, heads: int, more: int = 0) -> Tensor:
    """(G, T, D) -> (G·h, D/h + more, T), with ones in the last rows"""
    g, t, d = x.shape
    inside = x.new_empty(g, heads, d // heads + more, t)
    inside[:, :, : d // heads] = x.unflatten(2, (heads, -1)).permute(0, 2, 3, 1)
    inside[:, :, d // heads :] = 1
    return inside.flatten(0, 1)


def _heads_outside(x: Tensor, heads: int) -> Tensor:
    """(G·h, D/h, T) -> (G, T, D)"""
    return x.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)


class CpuForms(TorchFunctionMode):
    """While active, dropout and attention of any model, BERT's for one, run in the forms of this file."""

    FORMS = {F.dropout: dropout, F.scaled_dot_product_attention: attention}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.FORMS.get(function, function)(*args, **(kwargs or {}))
