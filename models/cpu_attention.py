"""Attention on the CPU, faster than separate operations if heads are narrow or sequences long.

`models.transformer.MultiheadAttention` calls `cpu_attention` if `can_use_cpu_attention` allows it,
and otherwise computes the same in plain operations, which are the specification.

Legend: B batch, T_q and T_s steps of query and source, D width, h heads, G = B·h.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores of a tile: 2 MiB, which fits into the cache.
SCORES_PER_TILE = 2**19
# A head with more scores than this is split into tiles of QUERIES_PER_TILE queries, so that keys
# hidden from all queries of a tile are skipped.
SCORES_PER_HEAD = 2**14
QUERIES_PER_TILE = 64
# The sum of a query's weights up to which nothing overflows: float32 ends at 2^127.
LARGEST_SUM = 2.0**64
# The largest probability for which bytes are drawn.
LARGEST_BYTE_DROPOUT = 254 / 256
LOG2_E = math.log2(math.e)


def can_use_cpu_attention(x: Tensor) -> bool:
    """Whether `cpu_attention` supports x: on the CPU, outside torch.compile and torch.func."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # No public function reports this; autograd.Function.apply calls the same one.
    return not torch._C._are_functorch_transforms_active()


def cpu_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(Q Kᵀ / √(D/h)) V in each of h heads (Eq. 10).

    Gradients are of first order and reverse mode only: no double backward, forward mode or batched
    gradients.

    Args:
        q: Projected queries (B, T_q, D).
        k: Projected keys (B, T_s, D).
        v: Projected values (B, T_s, D).
        heads: Number of heads h, a divisor of D.
        causal: Query i attends to key j only if j <= i + |T_s - T_q|.
        dropout: Probability with which a weight of the softmax is dropped.

    Returns:
        The attended values (B, T_q, D), of q's type.
    """
    return _Attention.apply(q, k, v, heads, causal, dropout).to(q.dtype)


@dataclass(frozen=True)
class _Tile:
    """A part of the scores (G, T_q, T_s) that is computed at once."""

    heads: slice
    queries: slice
    keys: slice  # those that at least one of the queries attends to
    last_key: int  # the last one that the first query attends to

    @property
    def hides_keys(self) -> bool:
        """Whether some of its queries must not attend to some of its keys."""
        return self.last_key + 1 < self.keys.stop

    def of_query(self, x: Tensor) -> Tensor:
        """(G, ·, T_q) -> the tile's part"""
        return x[self.heads, :, self.queries]

    def of_source(self, x: Tensor) -> Tensor:
        """(G, ·, T_s) -> the tile's part"""
        return x[self.heads, :, self.keys]


def _split_into_tiles(total_heads: int, t_q: int, t_s: int, causal: bool) -> Iterator[_Tile]:
    """Cover the scores (G, T_q, T_s) with tiles, except those that the mask hides."""
    n_queries = t_q if t_q * t_s <= SCORES_PER_HEAD else QUERIES_PER_TILE
    for first in range(0, t_q, n_queries):
        stop = min(first + n_queries, t_q)
        last_key, n_keys = t_s - 1, t_s
        if causal:
            last_key = first + abs(t_s - t_q)
            n_keys = min(stop + abs(t_s - t_q), t_s)
        n_heads = max(1, SCORES_PER_TILE // ((stop - first) * n_keys))
        for head in range(0, total_heads, n_heads):
            heads = slice(head, head + n_heads)
            yield _Tile(heads, slice(first, stop), slice(0, n_keys), last_key)


class _Attention(torch.autograd.Function):
    """The computation, tile by tile.

    Heads are kept as (G, D/h, T), so that every matrix product has a long inner axis: heads are a
    few elements wide, and products with so short an inner axis run at a third of the speed.

    The weights of the softmax are not divided by their sums, only the few results. They are powers
    of 2, five times as fast as those of e; log2(e) is part of the scale.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, q, k, v, heads, causal, dropout):
        ctx.heads, ctx.dropout = heads, dropout
        ctx.scale = (q.size(2) // heads) ** -0.5
        q = _split_heads(q, heads) * (ctx.scale * LOG2_E)
        k = _split_heads(k, heads)
        v = _split_heads(v, heads)
        ctx.tiles = list(_split_into_tiles(len(q), q.size(2), k.size(2), causal))
        output, sums = _attend_in_tiles(ctx, q, k, v, shifted=False)
        smallest, largest = sums.aminmax()
        is_in_range = smallest >= 1 / LARGEST_SUM and largest <= LARGEST_SUM
        if not is_in_range:  # rare inputs, or NaN
            output, sums = _attend_in_tiles(ctx, q, k, v, shifted=True)
        sums.mul_(1 - dropout)  # so that the weights that dropout keeps are scaled up
        output.div_(sums)
        ctx.save_for_backward(q, k, v, output, sums)
        return _merge_heads(output, heads)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        q, k, v, output, sums = ctx.saved_tensors
        gradient = _split_heads(gradient, ctx.heads) / sums
        # Softmax: gradients are shifted by their weighted mean, which the output gives.
        shift = (gradient * output).sum(dim=1, keepdim=True)  # (G, 1, T_q)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for tile, (weights, dropped) in zip(ctx.tiles, ctx.kept, strict=True):
            grad_output = tile.of_query(gradient)
            grad_scores = torch.bmm(grad_output.mT, tile.of_source(v)).mul_(dropped)
            grad_scores.addcmul_(weights, tile.of_query(shift).mT, value=ctx.dropout - 1)
            tile.of_query(grad_q).copy_(torch.bmm(tile.of_source(k), grad_scores.mT))
            tile.of_source(grad_k).add_(torch.bmm(tile.of_query(q), grad_scores))
            tile.of_source(grad_v).add_(torch.bmm(grad_output, dropped))
        grad_q = _merge_heads(grad_q.mul_(ctx.scale), ctx.heads)
        grad_k = _merge_heads(grad_k.div_(LOG2_E), ctx.heads)
        grad_v = _merge_heads(grad_v, ctx.heads)
        return grad_q, grad_k, grad_v, None, None, None


def _attend_in_tiles(ctx, q: Tensor, k: Tensor, v: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Values weighted by an unnormalized softmax (G, D/h, T_q), and its sums (G, 1, T_q).

    Keeps the weights of each tile in `ctx.kept`, for the backward pass.
    """
    output = torch.empty_like(q)
    sums = q.new_empty(len(q), 1, q.size(2))
    ctx.kept = []
    for tile in ctx.tiles:
        weights = _unnormalized_softmax(q, k, tile, shifted)
        dropped = weights
        if ctx.dropout > 0:
            dropped = _draw_kept(weights, ctx.dropout).mul_(weights)
        tile.of_query(output).copy_(torch.bmm(tile.of_source(v), dropped.mT))
        tile.of_query(sums).copy_(weights.sum(dim=2).unsqueeze(1))
        if any(ctx.needs_input_grad):
            ctx.kept.append((weights, dropped))
    return output, sums


def _unnormalized_softmax(q: Tensor, k: Tensor, tile: _Tile, shifted: bool) -> Tensor:
    """2 to the power of a tile's scores, 0 for hidden keys.  -> (g, t_q, t_s)

    shifted: of scores relative to the largest of each query, so that nothing overflows
    """
    scores = torch.bmm(tile.of_query(q).mT, tile.of_source(k))
    if shifted:
        if tile.hides_keys:
            hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(tile.last_key + 1)
            scores.masked_fill_(hidden, -math.inf)
        scores.sub_(scores.amax(dim=2, keepdim=True))
    weights = scores.exp2_()
    return weights.tril_(tile.last_key) if tile.hides_keys else weights


def _draw_kept(x: Tensor, p: float) -> Tensor:
    """1 with probability 1 - p and else 0, in x's shape and type."""
    # Numbers, because a product with booleans takes five times as long.
    kept = torch.empty_like(x)
    if p > LARGEST_BYTE_DROPOUT:
        return torch.ge(torch.rand_like(x), p, out=kept)
    # A 64-bit number gives eight bytes. NumPy's generator, which PyTorch's seeds, is twice as fast.
    seed = int(torch.randint(2**63 - 1, ()))
    numbers = np.random.SFC64(seed).random_raw((x.numel() + 7) // 8)
    random_bytes = torch.from_numpy(numbers.view(np.uint8))[: x.numel()].view(x.shape)
    # Bytes from the limit on are kept. If 256 p is not an integer, each row draws the integer below
    # or above it, so that every element is dropped with probability p.
    limits = torch.rand(*x.shape[:-1], 1).add_(256 * p).floor_().to(torch.uint8)
    return torch.ge(random_bytes, limits, out=kept)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, D) -> (G, D/h, T), contiguous"""
    return x.unflatten(2, (heads, -1)).permute(0, 2, 3, 1).contiguous().flatten(0, 1)


def _merge_heads(x: Tensor, heads: int) -> Tensor:
    """(G, D/h, T) -> (B, T, D)"""
    return x.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)
