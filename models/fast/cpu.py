"""Dropout and attention in forms that are fast on the CPU. Elsewhere, and inside torch.compile, PyTorch's are used.

Legend: G sequences, T_q and T_s steps of query and source, D width, h heads.
"""

import math
from collections.abc import Iterator, Sequence
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
    return x * _keep_mask(x, p).mul_(1 / (1 - p))


def _keep_mask(x: Tensor, p: float) -> Tensor:
    """1 where a dropout of probability p <= LARGEST_DROPOUT keeps an element of x, else 0; as numbers, because
    comparing to booleans and multiplying by them takes five times as long."""
    n = x.numel()
    # A 64-bit number serves eight elements. NumPy's generator is twice as fast as PyTorch's, which seeds it.
    numbers = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw((n + 7) // 8)
    bits = torch.from_numpy(numbers.view(np.uint8))[:n].view(x.shape)
    # Where 256 p is no integer, each row draws the one below or above it, so that every element has probability p.
    limits = torch.rand(*x.shape[:-1], 1).add_(p * 256).floor_().to(torch.uint8)
    return torch.ge(bits, limits, out=torch.empty_like(x))


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
        t_q, t_s = q.size(1), k.size(1)
        scale = (q.size(2) // heads) ** -0.5
        q, k = _heads_inside(q, heads).mul_(scale * LOG2_E), _heads_inside(k, heads)
        v = _heads_inside(v, heads, more=1)  # with a row of ones, so that the product with v sums the weights, too
        output, sums, tiles = torch.empty_like(q), q.new_empty(len(q), 1, t_q), []
        for shifted in (False, True):  # by the largest score, which few inputs need
            tiles.clear()
            for part, block, keys, p in _tiles(len(q), t_q, t_s, causal, dropouts):
                weights = torch.bmm(q[part, :, block].mT, k[part, :, keys])
                last = block.start + abs(t_s - t_q)  # the last key that the first query of the block sees
                if shifted:
                    if causal:
                        weights.masked_fill_(torch.ones_like(weights[0], dtype=torch.bool).triu(last + 1), -math.inf)
                    weights.sub_(weights.amax(dim=-1, keepdim=True))
                weights.exp2_()
                if causal and last + 1 < keys.stop:
                    weights.tril_(last)
                dropped = _keep_mask(weights, p).mul_(weights) if p else weights
                product = torch.bmm(v[part, :, keys], dropped.mT)
                sums[part, :, block] = weights.sum(dim=-1).unsqueeze(1).mul_(1 - p) if p else product[:, -1:]
                output[part, :, block] = product[:, :-1]
                if any(ctx.needs_input_grad):
                    tiles.append((part, block, keys, p, weights, dropped))
            least, largest = sums.aminmax()
            if least >= 1 / LARGEST_SUM and largest <= LARGEST_SUM:
                break
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
            g, shift = gradient[part, :-1, block], gradient[part, -1:, block]
            if p == 0:
                of_scores = torch.bmm(gradient[part, :, block].mT, v[part, :, keys])  # the ones meet the shift
                of_scores.mul_(weights)
            else:
                of_scores = torch.bmm(g.mT, v[part, :-1, keys]).mul_(dropped)
                of_scores.addcmul_(weights, shift.mT, value=1 - p)
            of_v[part, :, keys].add_(torch.bmm(g, dropped))
            of_k[part, :, keys].add_(torch.bmm(q[part, :, block], of_scores))
            of_q[part, :, block] = torch.bmm(k[part, :, keys], of_scores.mT)
        gradients = (of_q.mul_(ctx.scale), of_k.div_(LOG2_E), of_v)
        return *(_heads_outside(x, ctx.heads) for x in gradients), None, None, None


def _tiles(groups: int, t_q: int, t_s: int, causal: bool, dropouts: Sequence[float]) -> Iterator[tuple]:
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


def _heads_inside(x: Tensor, heads: int, more: int = 0) -> Tensor:
    """(G, T, D) -> (G·h, D/h + more, T), with ones in the last rows"""
    g, t, d = x.shape
    inside = x.new_empty(g, heads, d // heads + more, t)
    inside[:, :, : d // heads] = x.view(g, t, heads, d // heads).permute(0, 2, 3, 1)
    inside[:, :, d // heads :] = 1
    return inside.flatten(0, 1)


def _heads_outside(x: Tensor, heads: int) -> Tensor:
    """(G·h, D/h, T) -> (G, T, D)"""
    _, width, t = x.shape
    return x.view(-1, heads, width, t).permute(0, 3, 1, 2).reshape(-1, t, heads * width)


class CpuForms(TorchFunctionMode):
    """While active, dropout of any model, BERT's for one, runs in the form of this file."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (dropout if function is F.dropout else function)(*args, **(kwargs or {}))
