"""The cross-modal transformer encoder (MulT's, as the release uses it).

Legend: B batch, T_q and T_s steps of the query and the source, D width, h heads.

This is the model, to be read and edited. models/fast/ computes the same for several encoders at a time, where it may.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Position vectors of the steps that are not padding, of an even width D.

    x (B, T, D) -> (B, T, D), sine half then cosine half; zero where the first channel of x is exactly 0: padding
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        # Parity: a buffer that nothing reads; published checkpoints contain one for each encoder.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def table(self, steps: int, device: torch.device) -> Tensor:
        """The position vectors of so many steps, counted from 1.  -> (T, D)"""
        half = self.dim // 2
        frequencies = torch.exp(torch.arange(half, device=device) * -(math.log(10_000) / max(half - 1, 1)))
        # In float32 whatever the precision of the sequence: bf16 cannot count past 256.
        angles = torch.arange(1, steps + 1, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.size(1), x.device) * x[:, :, :1].ne(0)


def causal_mask(t_q: int, t_s: int, device: torch.device) -> Tensor:
    """Query i sees key j where j <= i + |T_s - T_q|.  -> (T_q, T_s) bool, True where it sees"""
    return torch.ones(t_q, t_s, dtype=torch.bool, device=device).tril(abs(t_s - t_q))


class MultiheadAttention(nn.Module):
    """softmax(Q Kᵀ / √(D/h)) V in each of h heads, with one packed input projection (Eq. 10)."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, T_q, D), key and value (B, T_s, D), mask (T_q, T_s) -> (B, T_q, D)"""
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (self._split_heads(F.linear(x, weight, bias)) for x, weight, bias in projections)  # (B, h, T, D/h)
        scores = (q * q.size(-1) ** -0.5) @ k.mT  # (B, h, T_q, T_s)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Pre-norm transformer layer: attention, then a feed-forward network four times as wide."""

    def __init__(self, dim: int, num_heads: int, attn_dropout: float, relu_dropout: float, res_dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads, attn_dropout)
        self.fc1 = self._linear(dim, 4 * dim)
        self.fc2 = self._linear(4 * dim, dim)
        self.layer_norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])
        self.relu_dropout, self.dropout = nn.Dropout(relu_dropout), nn.Dropout(res_dropout)

    @staticmethod
    def _linear(d_in: int, d_out: int) -> nn.Linear:
        layer = nn.Linear(d_in, d_out)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, T_q, D) reads key and value (B, T_s, D).  -> (B, T_q, D)"""
        # Parity: one norm serves query, key and value.
        norm, norm_ffn = self.layer_norms
        query = query + self.dropout(self.self_attn(norm(query), norm(key), norm(value), mask))
        return query + self.dropout(self.fc2(self.relu_dropout(F.relu(self.fc1(norm_ffn(query))))))


class CrossModalEncoder(nn.Module):
    """Transformer through which one modality reads another (Eq. 10, layer by layer).

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
        self.dim, self.attn_mask = dim, attn_mask
        self.embed_positions = SinusoidalPositions(dim)
        self.embed_dropout = nn.Dropout(embed_dropout)
        layer = (dim, num_heads, attn_dropout, relu_dropout, res_dropout)
        self.layers = nn.ModuleList([Layer(*layer) for _ in range(num_layers)])
        # Parity: nothing reads this buffer; published checkpoints contain it.
        self.register_buffer("version", torch.tensor([2.0]))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, query: Tensor, source: Tensor | None = None) -> Tensor:
        x = self.embed(query)
        t_s = (query if source is None else source).size(1)
        mask = causal_mask(x.size(1), t_s, x.device) if self.attn_mask else None
        if source is None:
            for layer in self.layers:
                x = layer(x, x, x, mask)
        else:
            key, value = self.embed(source), self.embed(source)  # with a dropout draw each
            for layer in self.layers:
                x = layer(x, key, value, mask)
        return self.layer_norm(x)

    def embed(self, x: Tensor) -> Tensor:
        """Scale x (B, T, D) and add positions.  -> (B, T, D), of the parameters' type"""
        x = math.sqrt(self.dim) * x + self.embed_positions(x)
        return self.embed_dropout(x.to(self.layer_norm.weight.dtype))


def run_encoders(
    encoders: Sequence[CrossModalEncoder],
    queries: Sequence[Tensor],
    sources: Sequence[Tensor] | None = None,
    last_step: bool = False,
) -> list[Tensor]:
    """Run each encoder on its own query (B, T_q, D) and source (B, T_s, D); no sources: self-attention.

    -> (B, T_q, D) for each encoder; with `last_step` only the last step, (B, D)
    """
    outputs = [
        encoder(query, source)
        for encoder, query, source in zip(encoders, queries, sources or [None] * len(encoders), strict=True)
    ]
    return [x[:, -1] for x in outputs] if last_step else outputs
