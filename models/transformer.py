"""The cross-modal transformer encoder (MulT's, as the release uses it).

Legend: T_q, T_s steps of the query and the source, B batch, D width, h heads. Time comes first here, and
only here: (T, B, D).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with one packed input projection, under the published parameter names.

    query (T_q, B, D); key, value (T_s, B, D); mask (T_q, T_s), true where a key may be seen, or None
    -> (T_q, B, D)
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            self._split_heads(F.linear(x, w, b)) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(attended.permute(2, 0, 1, 3).reshape(query.shape))  # (T_q, B, D)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)  # (B, h, T, D/h)


class EncoderLayer(nn.Module):
    """One pre-norm layer: attention, then a feed-forward network four times as wide, each with a residual.

    x (T_q, B, D); key, value (T_s, B, D), or None for self-attention -> (T_q, B, D)
    """

    def __init__(
        self, dim: int, num_heads: int, attn_dropout: float, relu_dropout: float, res_dropout: float
    ):
        super().__init__()
        self.relu_dropout, self.res_dropout = relu_dropout, res_dropout
        self.self_attn = MultiheadAttention(dim, num_heads, attn_dropout)
        self.fc1 = self._linear(dim, 4 * dim)
        self.fc2 = self._linear(4 * dim, dim)
        self.layer_norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])

    @staticmethod
    def _linear(d_in: int, d_out: int) -> nn.Linear:
        layer = nn.Linear(d_in, d_out)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def forward(self, x: Tensor, key: Tensor | None, value: Tensor | None, mask: Tensor | None) -> Tensor:
        norm_attention, norm_ffn = self.layer_norms
        query = norm_attention(x)
        # Parity: key and value pass the *query's* layer norm.
        key = query if key is None else norm_attention(key)
        value = query if value is None else norm_attention(value)
        attended = self.self_attn(query, key, value, mask)
        x = x + F.dropout(attended, self.res_dropout, self.training)
        hidden = F.dropout(F.relu(self.fc1(norm_ffn(x))), self.relu_dropout, self.training)
        return x + F.dropout(self.fc2(hidden), self.res_dropout, self.training)


class CrossModalEncoder(nn.Module):
    """Transformer through which one modality reads another.

    query  (T_q, B, D)  the modality being enriched
    source (T_s, B, D)  the modality it reads; leave it out for self-attention
    ->     (T_q, B, D)
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
        self.scale, self.embed_dropout, self.attn_mask = math.sqrt(dim), embed_dropout, attn_mask
        self.embed_positions = SinusoidalPositions(dim)
        self.layers = nn.ModuleList(
            [EncoderLayer(dim, num_heads, attn_dropout, relu_dropout, res_dropout) for _ in range(num_layers)]
        )
        # Parity: nothing reads this buffer; published checkpoints contain it.
        self.register_buffer("version", torch.tensor([2.0]))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, query: Tensor, source: Tensor | None = None) -> Tensor:
        x = self._embed(query)
        # Key and value are the embedded source in every layer, each with a dropout draw of its own.
        key, value = (None, None) if source is None else (self._embed(source), self._embed(source))
        mask = self._causal_mask(query, query if source is None else source) if self.attn_mask else None
        for layer in self.layers:
            x = layer(x, key, value, mask)
        return self.layer_norm(x)

    def _embed(self, x: Tensor) -> Tensor:
        positions = self.embed_positions(x[:, :, 0].t()).transpose(0, 1)  # (T, B, D)
        return F.dropout(self.scale * x + positions, self.embed_dropout, self.training)

    @staticmethod
    def _causal_mask(query: Tensor, source: Tensor) -> Tensor:
        """Query i sees key j where j <= i + |T_s - T_q|.  -> (T_q, T_s) bool"""
        t_q, t_s = query.size(0), source.size(0)
        return torch.ones(t_q, t_s, dtype=torch.bool, device=query.device).tril(abs(t_s - t_q))
