"""The cross-modal transformer encoder (MulT's, as the release uses it).

Legend: B batch, T_q and T_s steps of the query and the source, D width, h heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cpu_attention import can_use_cpu_attention, cpu_attention


class SinusoidalPositions(nn.Module):
    """Position vectors of the steps that are not padding.

    Args:
        dim: Width D of the vectors, even.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        # Parity: a buffer that nothing reads; published checkpoints contain one for each encoder.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def table(self, steps: int, device: torch.device) -> Tensor:
        """Compute the position vectors: sine half, then cosine half.

        Args:
            steps: Number of steps T, counted from 1.
            device: Where they are computed.

        Returns:
            (T, D) in float32 whatever the precision of the sequence: bf16 cannot count past 256.
        """
        half = self.dim // 2
        exponents = torch.arange(half, device=device) * -(math.log(10_000) / max(half - 1, 1))
        positions = torch.arange(1, steps + 1, device=device, dtype=torch.float32)
        angles = positions[:, None] * exponents.exp()
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the position vectors of a sequence.

        Args:
            x: (B, T, D). A step whose first channel is exactly 0 counts as padding.

        Returns:
            (B, T, D), zero at padding.
        """
        is_step = x[:, :, :1].ne(0)
        return self.table(x.size(1), x.device) * is_step


def causal_mask(t_q: int, t_s: int, device: torch.device) -> Tensor:
    """Mark the later steps: query i attends to key j only if j <= i + |T_s - T_q|.

    Returns:
        (T_q, T_s) bool, True if the query must not attend to the key, as in nn.MultiheadAttention.
    """
    return torch.ones(t_q, t_s, dtype=torch.bool, device=device).triu(1 + abs(t_s - t_q))


class MultiheadAttention(nn.Module):
    """softmax(Q Kᵀ / √(D/h)) V in each of h heads, with one packed input projection (Eq. 10).

    Args:
        dim: Width D.
        num_heads: Number of heads h, a divisor of D.
        dropout: Probability with which a weight of the softmax is dropped.
        fast: Use models/cpu_attention.py on the CPU.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, fast: bool = True):
        super().__init__()
        self.num_heads, self.fast = num_heads, fast
        # A buffer, because encoders that run together share everything but tensors
        # (models/ensemble.py), and this probability differs between them. Not persistent, because
        # published checkpoints do not contain it.
        self.register_buffer("dropout", torch.tensor(dropout), persistent=False)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
        """Attend with each query to the keys.

        Args:
            query: (B, T_q, D).
            key: (B, T_s, D).
            value: (B, T_s, D).
            causal: Hide later steps from a query (see `causal_mask`).

        Returns:
            (B, T_q, D)
        """
        w_q, w_k, w_v = self.in_proj_weight.chunk(3)
        b_q, b_k, b_v = self.in_proj_bias.chunk(3)
        q = F.linear(query, w_q, b_q)
        k = F.linear(key, w_k, b_k)
        v = F.linear(value, w_v, b_v)
        if self.fast and can_use_cpu_attention(q):
            dropout = self.dropout.item() if self.training else 0.0
            attended = cpu_attention(q, k, v, self.num_heads, causal, dropout)
        else:
            q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
            scores = (q * q.size(-1) ** -0.5) @ k.mT  # (B, h, T_q, T_s)
            if causal:
                mask = causal_mask(query.size(1), key.size(1), query.device)
                scores = scores.masked_fill(mask, -math.inf)
            weights = scores.softmax(dim=-1)
            if self.training:
                weights = tensor_dropout(weights, self.dropout)
            attended = (weights @ v).transpose(1, 2).flatten(2)  # (B, T_q, D)
        return self.out_proj(attended)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, h, T, D/h)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def tensor_dropout(x: Tensor, p: Tensor) -> Tensor:
    """F.dropout with a tensor () as its probability."""
    return x * torch.rand_like(x).ge(p) / (1 - p)


class Layer(nn.Module):
    """Pre-norm transformer layer: attention, then a feed-forward network four times as wide.

    Args:
        dim: Width D.
        num_heads: Number of attention heads.
        attn_dropout: Dropout of the attention weights.
        relu_dropout: Dropout inside the feed-forward network.
        res_dropout: Dropout before each residual sum.
        fast: See `MultiheadAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_dropout: float,
        relu_dropout: float,
        res_dropout: float,
        fast: bool = True,
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads, attn_dropout, fast)
        self.fc1 = self._linear(dim, 4 * dim)
        self.fc2 = self._linear(4 * dim, dim)
        self.layer_norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.relu_dropout = nn.Dropout(relu_dropout)
        self.dropout = nn.Dropout(res_dropout)

    @staticmethod
    def _linear(d_in: int, d_out: int) -> nn.Linear:
        layer = nn.Linear(d_in, d_out)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def forward(self, query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
        """Enrich query (B, T_q, D) by key and value (B, T_s, D).  -> (B, T_q, D)"""
        norm, norm_ffn = self.layer_norms
        # Parity: one norm serves query, key and value. In self-attention, which gets the same
        # tensor three times, it is computed only once.
        q = norm(query)
        k = q if key is query else norm(key)
        v = k if value is key else norm(value)
        query = query + self.dropout(self.self_attn(q, k, v, causal))
        hidden = self.relu_dropout(F.relu(self.fc1(norm_ffn(query))))
        return query + self.dropout(self.fc2(hidden))


class CrossModalEncoder(nn.Module):
    """Transformer through which one modality reads another (Eq. 10, layer by layer).

    Args:
        dim: Width D.
        num_heads: Number of attention heads.
        num_layers: Number of layers.
        attn_dropout: Dropout of the attention weights.
        relu_dropout: Dropout inside the feed-forward networks.
        res_dropout: Dropout before each residual sum.
        embed_dropout: Dropout of the embedded sequences.
        attn_mask: Hide later steps from a query.
        fast: See `MultiheadAttention`.
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
        fast: bool = True,
    ):
        super().__init__()
        self.dim, self.attn_mask = dim, attn_mask
        self.embed_positions = SinusoidalPositions(dim)
        self.embed_dropout = nn.Dropout(embed_dropout)
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            layer = Layer(dim, num_heads, attn_dropout, relu_dropout, res_dropout, fast)
            self.layers.append(layer)
        # Parity: nothing reads this buffer; published checkpoints contain it.
        self.register_buffer("version", torch.tensor([2.0]))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(
        self, query: Tensor, source: Tensor | None = None, last_step: bool = False
    ) -> Tensor:
        """Encode the query.

        Args:
            query: (B, T_q, D), the modality being enriched.
            source: (B, T_s, D), the modality it reads; None: self-attention.
            last_step: Return only the last step.

        Returns:
            (B, T_q, D), or (B, D) with `last_step`.
        """
        x = self.embed(query)
        if source is None:
            x = self._attend_to_itself(x, last_step)
        else:
            key = self.embed(source)
            value = self.embed(source)  # with another dropout mask
            for layer in self.layers:
                x = layer(x, key, value, self.attn_mask)
        x = self.layer_norm(x)
        return x[:, -1] if last_step else x

    def _attend_to_itself(self, x: Tensor, last_step: bool) -> Tensor:
        """All layers as self-attention.  (B, T, D) -> (B, T, D), or (B, 1, D) with `last_step`"""
        *earlier_layers, last_layer = self.layers
        for layer in earlier_layers:
            x = layer(x, x, x, self.attn_mask)
        if not last_step:
            return last_layer(x, x, x, self.attn_mask)
        # No later layer reads the other queries. The last query attends to all keys.
        return last_layer(x[:, -1:], x, x)

    def embed(self, x: Tensor) -> Tensor:
        """Scale x (B, T, D) and add positions.  -> (B, T, D), of the parameters' type"""
        x = math.sqrt(self.dim) * x + self.embed_positions(x)
        return self.embed_dropout(x.to(self.layer_norm.weight.dtype))
