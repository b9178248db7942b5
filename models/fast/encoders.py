"""Several encoders as one computation on stacked weights.

Legend: E encoders, L layers, B batch, D width, N rows: the steps of all utterances of all encoders, encoder by encoder
and utterance by utterance.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.fast import cpu
from models.transformer import CrossModalEncoder, Layer, causal_mask


class _Weights(NamedTuple):
    """The weights of L layers of E encoders; the norm before a linear layer is folded into it."""

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
    layers = [layer for of_one_depth in zip(*(encoder.layers for encoder in encoders), strict=True)
              for layer in of_one_depth]  # fmt: skip

    def stacked(parameter: Callable[[Layer], Tensor]) -> Tensor:
        return torch.stack([parameter(layer) for layer in layers]).unflatten(0, (-1, len(encoders)))

    def after_norm(index: int, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """W (γ n + β) + b as (W γ) n + (W β + b): the many rows n are then normalised without scale and shift."""
        scale = stacked(lambda layer: layer.layer_norms[index].weight)
        shift = stacked(lambda layer: layer.layer_norms[index].bias)
        return weight * scale.unsqueeze(-2), bias + (weight @ shift.unsqueeze(-1)).squeeze(-1)

    return _Weights(
        *after_norm(
            0,
            stacked(lambda layer: layer.self_attn.in_proj_weight),
            stacked(lambda layer: layer.self_attn.in_proj_bias),
        ),
        stacked(lambda layer: layer.self_attn.out_proj.weight),
        stacked(lambda layer: layer.self_attn.out_proj.bias),
        *after_norm(1, stacked(lambda layer: layer.fc1.weight), stacked(lambda layer: layer.fc1.bias)),
        stacked(lambda layer: layer.fc2.weight),
        stacked(lambda layer: layer.fc2.bias),
    )


def run_encoders(
    encoders: Sequence[CrossModalEncoder],
    queries: Sequence[Tensor],
    sources: Sequence[Tensor] | None = None,
    last_step: bool = False,
) -> list[Tensor]:
    """See models.transformer.run_encoders. With `last_step`, the last layer computes no other step."""
    first, rows, weights = encoders[0], _Rows(encoders, len(queries[0])), _stack(encoders)
    dim, training, causal = first.dim, first.training, first.attn_mask
    t_q = [query.size(1) for query in queries]
    t_s = t_q if sources is None else [source.size(1) for source in sources]
    x = rows.embed(queries)  # (N, D)
    if sources is not None:
        q_weights, q_biases, keys, values = _project_sources(rows, sources, t_s, weights)
    for depth, (layer, w) in enumerate(zip(first.layers, weights.layers(), strict=True)):
        normed = rows.normalise(x)
        if sources is None:
            q, k, v = rows.linear(normed, w.qkv, w.qkv_bias, t_q).unflatten(1, (3, dim)).unbind(1)
        else:
            q, k, v = rows.linear(normed, q_weights[depth], q_biases[depth], t_q), keys[depth], values[depth]
        if last_step and depth == len(first.layers) - 1:
            # After attention, steps do not meet again; and the last query sees every key.
            x, q = rows.last_steps(x, t_q), rows.last_steps(q, t_q)
            t_q, causal = [1] * len(encoders), False
        dropouts = [encoder.layers[depth].self_attn.dropout if training else 0.0 for encoder in encoders]
        attended = rows.attend(q, k, v, t_q, t_s, causal, dropouts)
        x = x + cpu.dropout(rows.linear(attended, w.out, w.out_bias, t_q), layer.dropout.p, training)
        hidden = rows.linear(rows.normalise(x), w.fc1, w.fc1_bias, t_q, relu=True)
        hidden = cpu.dropout(hidden, layer.relu_dropout.p, training)
        x = x + cpu.dropout(rows.linear(hidden, w.fc2, w.fc2_bias, t_q), layer.dropout.p, training)
    outputs = [encoder.layer_norm(part) for encoder, part in zip(encoders, rows.split(x, t_q), strict=True)]
    return outputs if last_step else [x.unflatten(0, (rows.batch, -1)) for x in outputs]


def _project_sources(rows: "_Rows", sources: Sequence[Tensor], t_s: list[int], weights: _Weights):
    """Key and value do not depend on the query, so that those of all layers are projected at once.

    -> the query's weights and biases of each layer, (E, D, D) and (E, D); key and value (N, D) of each layer
    """
    # Parity: key and value pass the query's layer norm, so that it is folded into their projections too.
    dim = weights.out.size(-1)
    w_q, w_k, w_v = weights.qkv.split(dim, dim=2)  # (L, E, D, D) each
    b_q, b_k, b_v = weights.qkv_bias.split(dim, dim=2)  # (L, E, D) each
    embedded = rows.normalise(rows.embed(sources))
    # With dropout, value has a draw of its own.
    again = rows.normalise(rows.embed(sources)) if rows.draws else embedded
    projected = []
    for x, w, b in ((embedded, w_k, b_k), (again, w_v, b_v)):
        of_layers = rows.linear(x, w.transpose(0, 1).flatten(1, 2), b.transpose(0, 1).flatten(1), t_s)
        projected.append(of_layers.unflatten(1, (-1, dim)).unbind(1))
    return w_q.unbind(0), b_q.unbind(0), *projected


class _Rows:
    """What is done to the rows (N, ·) of E encoders; `steps` tells how many each of its B sequences has."""

    def __init__(self, encoders: Sequence[CrossModalEncoder], batch: int):
        self.encoders, self.batch = encoders, batch
        weight = encoders[0].layer_norm.weight
        self.draws = encoders[0].training and encoders[0].embed_dropout.p > 0
        self.ones = torch.ones_like(weight, requires_grad=False)
        self.embedded: dict[int, Tensor] = {}
        self.masks: dict[tuple[int, int, bool], Tensor] = {}

    def split(self, rows: Tensor, steps: list[int]) -> Sequence[Tensor]:
        return rows.split([self.batch * t for t in steps])

    def embed(self, sequences: Sequence[Tensor]) -> Tensor:
        """Embed (B, T, D) each, with a dropout draw for each.  -> (N, D)"""
        encoder = self.encoders[0]
        if any(id(x) not in self.embedded for x in sequences):  # several encoders read the same one
            table = encoder.embed_positions.table(max(x.size(1) for x in sequences), sequences[0].device)
        for x in sequences:
            if id(x) not in self.embedded:
                positions = table[: x.size(1)] * x[:, :, :1].ne(0)
                self.embedded[id(x)] = torch.add(positions, x, alpha=math.sqrt(encoder.dim)).flatten(0, 1)
        rows = torch.cat([self.embedded[id(x)] for x in sequences])
        return cpu.dropout(rows, encoder.embed_dropout.p, encoder.training)

    def normalise(self, rows: Tensor) -> Tensor:
        """Layer norm without its scale and shift, which are in the weights."""
        return F.layer_norm(rows, self.ones.shape, self.ones)  # with a weight it is faster

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor, steps: list[int], relu: bool = False) -> Tensor:
        """A linear layer for each encoder, weight (E, D_out, D_in) and bias (E, D_out)."""
        if len(set(steps)) == 1:
            rows = torch.bmm(rows.unflatten(0, (len(steps), -1)), weight.mT).add_(bias.unsqueeze(1))
            return (rows.relu_() if relu else rows).flatten(0, 1)
        operands = zip(self.split(rows, steps), weight.unbind(), bias.unbind(), strict=True)
        rows = torch.cat([F.linear(*each) for each in operands])
        return rows.relu_() if relu else rows

    def last_steps(self, rows: Tensor, steps: list[int]) -> Tensor:
        """The row of each utterance's last step.  -> (E · B, D)"""
        return torch.cat([part.unflatten(0, (self.batch, -1))[:, -1] for part in self.split(rows, steps)])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, t_q: list[int], t_s: list[int], causal: bool, dropouts: list[float]
    ) -> Tensor:
        """Attention of each encoder; neighbours of equal lengths are one call."""
        each = zip(t_q, t_s, dropouts, strict=True)
        calls = [(*lengths, [p for *_, p in alike]) for lengths, alike in groupby(each, key=lambda e: e[:2])]
        q = q.split([self.batch * steps * len(p) for steps, _, p in calls])
        k, v = (x.split([self.batch * steps * len(p) for _, steps, p in calls]) for x in (k, v))
        attended = []
        for (steps, source_steps, p), *parts in zip(calls, q, k, v, strict=True):
            lengths = (steps, source_steps, source_steps)
            sequences = (x.unflatten(0, (-1, t)) for x, t in zip(parts, lengths, strict=True))
            attended.append(self._attention(*sequences, causal, p).flatten(0, 1))
        return torch.cat(attended) if len(attended) > 1 else attended[0]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, dropouts: list[float]) -> Tensor:
        """q (G, T_q, D), k and v (G, T_s, D), of G sequences in as many equal parts as there are dropouts.

        -> (G, T_q, D)
        """
        heads = self.encoders[0].layers[0].self_attn.num_heads
        if cpu.eager(q):
            return cpu.attention(q, k, v, heads, causal, dropouts)
        lengths = (q.size(1), k.size(1), causal)
        if lengths not in self.masks:
            mask = q.new_zeros(lengths[:2])
            hidden = ~causal_mask(*lengths[:2], q.device) if causal else None
            self.masks[lengths] = mask.masked_fill(hidden, -math.inf) if causal else mask
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (G·h, T, D/h)
        weights = torch.baddbmm(self.masks[lengths], q, k.mT, alpha=q.size(-1) ** -0.5).softmax(dim=-1)
        if any(dropouts):
            parts = weights.chunk(len(dropouts))
            weights = torch.cat([cpu.dropout(part, p) for part, p in zip(parts, dropouts, strict=True)])
        return (weights @ v).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
