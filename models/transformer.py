"""The cross-modal transformer encoder (MulT's, as the release uses it), many at a time.

Each encoder is a module that holds its parameters under their published names; `encode` runs several of one shape
as a single computation on stacked weights.

Legend: E encoders, L layers, T_q and T_s steps of the query and the source, B batch, D width, N rows: the steps of
all utterances of all encoders, encoder by encoder and utterance by utterance.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import kernels


class SinusoidalPositions(nn.Module):
    """Position vectors of the steps that are not padding.

    first_channel (B, T)  the first channel of the sequence; exactly 0 marks a padded step
    ->            (B, T, D)  sine half then cosine half; zero where padded
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        # Parity: a buffer that nothing reads; published checkpoints contain one for each encoder.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, first_channel: Tensor) -> Tensor:
        half = self.dim // 2
        device = first_channel.device
        frequencies = torch.exp(torch.arange(half, device=device) * -(math.log(10_000) / max(half - 1, 1)))
        # Steps are counted from 1, in float32 whatever the precision of the sequence: bf16 cannot count past 256.
        steps = torch.arange(1, first_channel.size(1) + 1, device=device, dtype=torch.float32)
        angles = steps[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos()], dim=1)  # (T, D)
        if self.dim % 2:
            table = F.pad(table, (0, 1))
        return table * first_channel.ne(0).unsqueeze(-1)  # (B, T, D)


class AttentionParameters(nn.Module):
    """Multi-head attention with one packed input projection."""

    def __init__(self, dim: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)


class LayerParameters(nn.Module):
    """One pre-norm layer: attention, then a feed-forward network four times as wide."""

    def __init__(self, dim: int):
        super().__init__()
        self.self_attn = AttentionParameters(dim)
        self.fc1 = self._linear(dim, 4 * dim)
        self.fc2 = self._linear(4 * dim, dim)
        self.layer_norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])

    @staticmethod
    def _linear(d_in: int, d_out: int) -> nn.Linear:
        layer = nn.Linear(d_in, d_out)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer


class CrossModalEncoder(nn.Module):
    """Transformer through which one modality reads another.

    query  (B, T_q, D)  the modality being enriched
    source (B, T_s, D)  the modality it reads; leave it out for self-attention
    ->     (B, T_q, D)
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        attn_dropout: float,
        relu_dropout: float,
        res_dropout: float,
        embed_dropout: float,
        attn_mask: bool,
    ):
        super().__init__()
        self.dim, self.num_heads, self.attn_mask = dim, num_heads, attn_mask
        self.attn_dropout, self.relu_dropout = attn_dropout, relu_dropout
        self.res_dropout, self.embed_dropout = res_dropout, embed_dropout
        self.embed_positions = SinusoidalPositions(dim)
        self.layers = nn.ModuleList([LayerParameters(dim) for _ in range(num_layers)])
        # Parity: nothing reads this buffer; published checkpoints contain it.
        self.register_buffer("version", torch.tensor([2.0]))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, query: Tensor, source: Tensor | None = None) -> Tensor:
        return encode([self], [query], None if source is None else [source])[0]

    def embed(self, x: Tensor) -> Tensor:
        """Scale x (B, T, D) and add positions.  -> (B, T, D)"""
        return torch.add(self.embed_positions(x[:, :, 0]), x, alpha=math.sqrt(self.dim))


class _Weights(NamedTuple):
    """The weights of L layers of E encoders, stacked; the norm before each linear layer is folded into it."""

    qkv: Tensor  # (L, E, 3D, D)
    qkv_bias: Tensor  # (L, E, 3D)
    out: Tensor  # (L, E, D, D)
    out_bias: Tensor  # (L, E, D)
    fc1: Tensor  # (L, E, 4D, D)
    fc1_bias: Tensor  # (L, E, 4D)
    fc2: Tensor  # (L, E, D, 4D)
    fc2_bias: Tensor  # (L, E, D)

    def layers(self) -> list["_Weights"]:
        """The same without the axis L, layer by layer."""
        return [_Weights(*tensors) for tensors in zip(*(tensor.unbind(0) for tensor in self), strict=True)]


def _stack(encoders: Sequence[CrossModalEncoder]) -> _Weights:
    layers = list(zip(*(encoder.layers for encoder in encoders), strict=True))

    def stacked(parameter: Callable[[LayerParameters], Tensor]) -> Tensor:
        return kernels.stack([[parameter(layer) for layer in of_one_depth] for of_one_depth in layers])

    def behind_norm(index: int, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """W (γ n + β) + b as (W γ) n + (W β + b): the many rows n are then normalised without scale and shift."""
        scale = stacked(lambda layer: layer.layer_norms[index].weight)
        shift = stacked(lambda layer: layer.layer_norms[index].bias)
        return weight * scale.unsqueeze(-2), bias + (weight @ shift.unsqueeze(-1)).squeeze(-1)

    qkv = stacked(lambda layer: layer.self_attn.in_proj_weight)
    qkv_bias = stacked(lambda layer: layer.self_attn.in_proj_bias)
    return _Weights(
        # Parity: key and value pass the *query's* layer norm, so that it belongs to all three projections.
        *behind_norm(0, qkv, qkv_bias),
        stacked(lambda layer: layer.self_attn.out_proj.weight),
        stacked(lambda layer: layer.self_attn.out_proj.bias),
        *behind_norm(1, stacked(lambda layer: layer.fc1.weight), stacked(lambda layer: layer.fc1.bias)),
        stacked(lambda layer: layer.fc2.weight),
        stacked(lambda layer: layer.fc2.bias),
    )


class _Rows:
    """The rows of E encoders: which are whose, and what is done to them.

    lengths: the steps of each encoder's sequences; it owns B · steps rows
    """

    def __init__(self, encoders: Sequence[CrossModalEncoder], batch: int):
        self.encoders, self.batch, self.first = encoders, batch, encoders[0]
        self.dim, self.training = self.first.dim, self.first.training
        self._embedded: list[tuple[Tensor, Tensor]] = []

    def embed(self, sequences: Sequence[Tensor]) -> Tensor:
        """Sequences (B, T, D), embedded once where several encoders read the same one.  -> (N, D)"""
        rows = torch.cat([self._embed_once(x) for x in sequences])
        return self.dropout(rows, self.first.embed_dropout)

    def _embed_once(self, x: Tensor) -> Tensor:
        for known, embedded in self._embedded:
            if known is x:
                return embedded
        embedded = self.first.embed(x).reshape(-1, self.dim)
        self._embedded.append((x, embedded))
        return embedded

    def dropout(self, rows: Tensor, p: float) -> Tensor:
        return kernels.dropout(rows, p if self.training else 0.0)

    def normalise(self, rows: Tensor) -> Tensor:
        """Layer norm without its scale and shift, which are in the weights."""
        return F.layer_norm(rows, (self.dim,), rows.new_ones(self.dim))  # with a weight it is faster

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor, lengths: Sequence[int]) -> Tensor:
        return kernels.grouped_linear(rows, weight, bias, [self.batch * t for t in lengths])

    def feed_forward(self, rows: Tensor, layer: _Weights, lengths: Sequence[int]) -> Tensor:
        weights = (layer.fc1, layer.fc1_bias, layer.fc2, layer.fc2_bias)
        p = self.first.relu_dropout if self.training else 0.0
        return kernels.feed_forward(self.normalise(rows), *weights, [self.batch * t for t in lengths], p)

    def project(self, sources: Sequence[Tensor], lengths: Sequence[int], weights: _Weights) -> list[list[Tensor]]:
        """Key and value (N, D) of every layer: they do not depend on the query, so that all are projected at once."""
        depth = len(weights.qkv)
        weight = weights.qkv[:, :, self.dim :].transpose(0, 1).unflatten(2, (2, -1))  # (E, L, 2, D, D)
        bias = weights.qkv_bias[:, :, self.dim :].transpose(0, 1).unflatten(2, (2, -1))  # (E, L, 2, D)
        if self.training and self.first.embed_dropout:  # key and value have a dropout draw of their own
            k, v = (
                self.linear(self.normalise(self.embed(sources)), w.flatten(1, 2), b.flatten(1), lengths)
                for w, b in zip(weight.unbind(2), bias.unbind(2), strict=True)
            )
            return list(zip(*(rows.unflatten(1, (depth, -1)).unbind(1) for rows in (k, v)), strict=True))
        rows = self.linear(self.normalise(self.embed(sources)), weight.flatten(1, 3), bias.flatten(1), lengths)
        return [kv.unbind(1) for kv in rows.unflatten(1, (depth, 2, -1)).unbind(1)]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, query_steps: Sequence[int], source_steps: Sequence[int], causal: bool
    ) -> Tensor:
        """Attention of each encoder; neighbours of equal lengths are one call."""
        dropouts = [encoder.attn_dropout if self.training else 0.0 for encoder in self.encoders]
        runs, first = [], 0
        for (t_q, t_s), same in groupby(zip(query_steps, source_steps, strict=True)):
            count = len(list(same))
            runs.append((count * self.batch, t_q, t_s, tuple(dropouts[first : first + count])))
            first += count
        q = q.split([sequences * t_q for sequences, t_q, _, _ in runs])
        k, v = (x.split([sequences * t_s for sequences, _, t_s, _ in runs]) for x in (k, v))
        attended = [
            kernels.attention(*(x.reshape(sequences, -1, self.dim) for x in qkv), self.first.num_heads, causal, p)
            for (sequences, _, _, p), *qkv in zip(runs, q, k, v, strict=True)
        ]
        return torch.cat([x.flatten(0, 1) for x in attended])

    def last_steps(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """The row of each utterance's last step.  -> (E · B, D)"""
        parts = rows.split([self.batch * t for t in lengths])
        return torch.cat([part.view(self.batch, -1, self.dim)[:, -1] for part in parts])


def encode(
    encoders: Sequence[CrossModalEncoder],
    queries: Sequence[Tensor],
    sources: Sequence[Tensor] | None = None,
    last_step: bool = False,
) -> list[Tensor]:
    """Run encoders that agree in everything but weights, lengths and attention dropout as one computation.

    queries (B, T_q, D) and sources (B, T_s, D), one for each encoder; no sources: self-attention
    -> (B, T_q, D) for each encoder; with `last_step` the last step alone, (B, 1, D), for less work in the last layer
    """
    first, batch = encoders[0], queries[0].size(0)
    rows, weights = _Rows(encoders, batch), _stack(encoders)
    steps = [query.size(1) for query in queries]
    source_steps = steps if sources is None else [source.size(1) for source in sources]
    memories = None if sources is None else rows.project(sources, source_steps, weights)
    layers = weights.layers()
    causal = first.attn_mask
    x = rows.embed(queries)  # (N, D)
    for depth, layer in enumerate(layers):
        normed = rows.normalise(x)
        if memories is None:
            q, k, v = rows.linear(normed, layer.qkv, layer.qkv_bias, steps).unflatten(1, (3, -1)).unbind(1)
        else:
            q = rows.linear(normed, layer.qkv[:, : first.dim], layer.qkv_bias[:, : first.dim], steps)
            k, v = memories[depth]
        if last_step and depth == len(layers) - 1:
            # Behind the attention steps do not meet again; and the last query sees every key.
            x, q = rows.last_steps(x, steps), rows.last_steps(q, steps)
            steps, causal = [1] * len(encoders), False
        attended = rows.attend(q, k, v, steps, source_steps, causal)
        x = x + rows.dropout(rows.linear(attended, layer.out, layer.out_bias, steps), first.res_dropout)
        x = x + rows.dropout(rows.feed_forward(x, layer, steps), first.res_dropout)
    outputs = x.split([batch * t for t in steps])
    return [
        encoder.layer_norm(output.view(batch, -1, first.dim)) for encoder, output in zip(encoders, outputs, strict=True)
    ]
