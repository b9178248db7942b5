"""Several encoders as one computation on stacked weights.

Legend: E encoders, L layers, B batch, D width, N rows: the steps of all utterances of all encoders, encoder by encoder
and utterance by utterance; `steps` tells how many each of an encoder's B sequences has.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from models.fast import cpu
from models.transformer import CrossModalEncoder

IN_WEIGHT, IN_BIAS = "self_attn.in_proj_weight", "self_attn.in_proj_bias"


def run_encoders(encoders, queries, sources=None, last_step=False) -> list[Tensor]:
    """See models.transformer.run_encoders. With `last_step`, the last layer computes no other step."""
    first, rows, stacked = encoders[0], _Rows(encoders[0], [*queries, *(sources or ())]), _stack(encoders)
    dim, training, causal = first.dim, first.training, first.attn_mask
    t_q = [query.size(1) for query in queries]
    t_s = t_q if sources is None else [source.size(1) for source in sources]
    if sources is not None:
        keys, values = rows.project(sources, stacked, t_s)
    weights = {name: x.unbind(0) for name, x in stacked.items()}
    x = rows.embed(queries)  # (N, D)
    for depth, layer in enumerate(first.layers):
        w = {name: x[depth] for name, x in weights.items()}
        q = rows.linear(rows.normalise(x), w[IN_WEIGHT], w[IN_BIAS], t_q)
        if sources is None:
            q, k, v = q.unflatten(1, (3, dim)).unbind(1)
        else:
            k, v = keys[depth], values[depth]
        if last_step and depth == len(first.layers) - 1:
            # After attention, steps do not meet again; and the last query sees every key.
            x, q = (rows.last_steps(y, t_q) for y in (x, q))
            t_q, causal = [1] * len(encoders), False
        dropouts = [encoder.layers[depth].self_attn.dropout if training else 0.0 for encoder in encoders]
        attended = rows.attend(q, k, v, t_q, t_s, layer.self_attn.num_heads, causal, dropouts)
        attended = rows.linear(attended, w["self_attn.out_proj.weight"], w["self_attn.out_proj.bias"], t_q)
        x = x + cpu.dropout(attended, layer.dropout.p, training)
        hidden = rows.linear(rows.normalise(x), w["fc1.weight"], w["fc1.bias"], t_q)
        hidden = F.relu(hidden, inplace=not torch.is_grad_enabled())
        hidden = cpu.dropout(hidden, layer.relu_dropout.p, training)
        x = x + cpu.dropout(rows.linear(hidden, w["fc2.weight"], w["fc2.bias"], t_q), layer.dropout.p, training)
    outputs = [encoder.layer_norm(part) for encoder, part in zip(encoders, rows.split(x, t_q), strict=True)]
    return outputs if last_step else [x.unflatten(0, (rows.batch, -1)) for x in outputs]


def _stack(encoders: Sequence[CrossModalEncoder]) -> dict[str, Tensor]:
    """The parameters of all layers, (L, E, ·) under their names in a layer; norms are folded into what they precede."""
    layers = [layer for of_depth in zip(*(encoder.layers for encoder in encoders), strict=True) for layer in of_depth]
    names = [name for name, _ in layers[0].named_parameters()]
    w = {name: torch.stack(list(map(attrgetter(name), layers))).unflatten(0, (-1, len(encoders))) for name in names}
    for norm, weight, bias in (("layer_norms.0", IN_WEIGHT, IN_BIAS), ("layer_norms.1", "fc1.weight", "fc1.bias")):
        # W (γ n + β) + b = (W γ) n + (W β + b): the many rows n are then normalised without scale and shift.
        scale, shift = w.pop(f"{norm}.weight"), w.pop(f"{norm}.bias")
        w[bias] = w[bias] + (w[weight] @ shift.unsqueeze(-1)).squeeze(-1)
        w[weight] = w[weight] * scale.unsqueeze(-2)
    return w


class _Rows:
    """What is done to the rows (N, ·) of E encoders."""

    def __init__(self, encoder: CrossModalEncoder, sequences: Sequence[Tensor]):
        self.encoder, self.batch = encoder, len(sequences[0])
        self.ones = torch.ones_like(encoder.layer_norm.weight, requires_grad=False)
        table = encoder.embed_positions.table(max(x.size(1) for x in sequences), sequences[0].device)
        self.embedded = {}  # by id, as several encoders read the same sequence
        for key, x in {id(x): x for x in sequences}.items():
            positions = table[: x.size(1)] * x[:, :, :1].ne(0)
            embedded = torch.add(positions, x, alpha=math.sqrt(encoder.dim)).to(self.ones.dtype)
            self.embedded[key] = embedded.flatten(0, 1)

    def embed(self, sequences: Sequence[Tensor]) -> Tensor:
        """The embedded sequences, (B, T, D) each, with a dropout draw for each.  -> (N, D)"""
        rows = torch.cat([self.embedded[id(x)] for x in sequences])
        return cpu.dropout(rows, self.encoder.embed_dropout.p, self.encoder.training)

    def split(self, rows: Tensor, steps: list[int]) -> Sequence[Tensor]:
        return rows.split([self.batch * t for t in steps])

    def project(self, sources: Sequence[Tensor], stacked: dict[str, Tensor], steps: list[int]) -> list:
        """Key and value (N, D) of all layers, as they depend on no query; the query's part stays in `stacked`."""
        dim, rows, projected = self.encoder.dim, None, []
        stacked[IN_WEIGHT], *weights = stacked[IN_WEIGHT].split(dim, dim=2)
        stacked[IN_BIAS], *biases = stacked[IN_BIAS].split(dim, dim=2)
        for weight, bias in zip(weights, biases, strict=True):  # with dropout, value has a draw of its own
            if rows is None or (self.encoder.training and self.encoder.embed_dropout.p > 0):
                rows = self.normalise(self.embed(sources))
            of_layers = self.linear(rows, weight.transpose(0, 1).flatten(1, 2), bias.transpose(0, 1).flatten(1), steps)
            projected.append(of_layers.unflatten(1, (-1, dim)).unbind(1))
        return projected

    def normalise(self, rows: Tensor) -> Tensor:
        """Layer norm without its scale and shift, which are in the weights."""
        return F.layer_norm(rows, self.ones.shape, self.ones)  # with a weight it is faster

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor, steps: list[int]) -> Tensor:
        """A linear layer for each encoder, weight (E, D_out, D_in) and bias (E, D_out).  -> (N, D_out)"""
        if len(set(steps)) == 1:
            return torch.bmm(rows.unflatten(0, (len(steps), -1)), weight.mT).add_(bias.unsqueeze(1)).flatten(0, 1)
        return torch.cat([F.linear(*each) for each in zip(self.split(rows, steps), weight, bias, strict=True)])

    def last_steps(self, rows: Tensor, steps: list[int]) -> Tensor:
        return torch.cat([part.unflatten(0, (self.batch, -1))[:, -1] for part in self.split(rows, steps)])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, t_q: list[int], t_s: list[int],
        heads: int, causal: bool, dropouts: list[float],
    ) -> Tensor:  # fmt: skip
        """Attention of each encoder; neighbours of equal lengths are one call."""
        each = zip(t_q, t_s, dropouts, strict=True)
        calls = [(*lengths, [p for *_, p in alike]) for lengths, alike in groupby(each, key=lambda e: e[:2])]
        q = q.split([self.batch * t * len(p) for t, _, p in calls])
        k, v = (x.split([self.batch * t * len(p) for _, t, p in calls]) for x in (k, v))
        attended = []
        for (*_, p), *parts in zip(calls, q, k, v, strict=True):
            sequences = (x.unflatten(0, (self.batch * len(p), -1)) for x in parts)  # (G, T, D)
            attended.append(_attention(*sequences, heads, causal, p).flatten(0, 1))
        return torch.cat(attended) if len(attended) > 1 else attended[0]


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool, dropouts: list[float]) -> Tensor:
    """See cpu.Attention."""
    if cpu.eager(q) and max(dropouts) <= cpu.LARGEST_DROPOUT:
        return cpu.Attention.apply(q, k, v, heads, causal, dropouts).to(q.dtype)
    mask = q.new_full((q.size(1), k.size(1)), -math.inf if causal else 0.0).triu(1 + abs(k.size(1) - q.size(1)))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (G·h, T, D/h)
    weights = torch.baddbmm(mask, q, k.mT, alpha=q.size(-1) ** -0.5).softmax(dim=-1)
    if any(dropouts):
        parts = weights.chunk(len(dropouts))
        weights = torch.cat([cpu.dropout(part, p) for part, p in zip(parts, dropouts, strict=True)])
    return (weights @ v).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
