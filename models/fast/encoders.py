"""Several encoders as one computation on stacked weights.

Legend: E encoders, L layers, B batch, D width, N rows: the steps of all utterances of all encoders, encoder by encoder
and utterance by utterance; T_q and T_s steps of every query and every source.
"""

import math
from collections.abc import Sequence
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from models.fast import cpu
from models.transformer import CrossModalEncoder

IN_WEIGHT, IN_BIAS = "self_attn.in_proj_weight", "self_attn.in_proj_bias"


def run_encoders(encoders, queries, sources=None, last_step=False) -> list[Tensor]:
    """See models.transformer.run_encoders. With `last_step`, the last layer computes no other step."""
    if len(encoders) > 1 and len({x.size(1) for x in [*queries, *(sources or ())]}) > 1:
        # To bring unlike lengths together costs more copies than it saves.
        each = zip(encoders, queries, sources or queries, strict=True)
        singles = [run_encoders([encoder], [q], [s] if sources else None, last_step) for encoder, q, s in each]
        return [output for (output,) in singles]
    first, rows, stacked = encoders[0], _Rows(encoders[0], [*queries, *(sources or ())]), _stack(encoders)
    dim, training, causal = first.dim, first.training, first.attn_mask
    if sources is not None:
        keys, values = rows.project(sources, stacked)
    t_q, t_s = queries[0].size(1), (sources or queries)[0].size(1)
    weights = {name: x.unbind(0) for name, x in stacked.items()}
    x = rows.embed(queries)  # (N, D)
    for depth, layer in enumerate(first.layers):
        w = {name: x[depth] for name, x in weights.items()}
        q = _linear(rows.normalise(x), w[IN_WEIGHT], w[IN_BIAS])
        if sources is None:
            q, k, v = q.unflatten(1, (3, dim)).unbind(1)
        else:
            k, v = keys[depth], values[depth]
        if last_step and depth == len(first.layers) - 1:
            # After attention, steps do not meet again; and the last query sees every key.
            x, q = (y.unflatten(0, (-1, t_q))[:, -1] for y in (x, q))
            t_q, causal = 1, False
        dropouts = [encoder.layers[depth].self_attn.dropout if training else 0.0 for encoder in encoders]
        sequences = (y.unflatten(0, (-1, t)) for y, t in ((q, t_q), (k, t_s), (v, t_s)))  # (E·B, T, D)
        attended = _attention(*sequences, layer.self_attn.num_heads, causal, dropouts).flatten(0, 1)
        attended = _linear(attended, w["self_attn.out_proj.weight"], w["self_attn.out_proj.bias"])
        x = x + cpu.dropout(attended, layer.dropout.p, training)
        hidden = _linear(rows.normalise(x), w["fc1.weight"], w["fc1.bias"])
        hidden = F.relu(hidden, inplace=not torch.is_grad_enabled())
        hidden = cpu.dropout(hidden, layer.relu_dropout.p, training)
        x = x + cpu.dropout(_linear(hidden, w["fc2.weight"], w["fc2.bias"]), layer.dropout.p, training)
    outputs = [encoder.layer_norm(part) for encoder, part in zip(encoders, x.chunk(len(encoders)), strict=True)]
    return outputs if last_step else [x.unflatten(0, (-1, t_q)) for x in outputs]


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


def _linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer for each encoder, weight (E, D_out, D_in) and bias (E, D_out).  -> (N, D_out)"""
    if len(weight) == 1:
        return F.linear(rows, weight[0], bias[0])
    return torch.bmm(rows.unflatten(0, (len(weight), -1)), weight.mT).add_(bias.unsqueeze(1)).flatten(0, 1)


class _Rows:
    """What is done to the rows (N, ·) of E encoders."""

    def __init__(self, encoder: CrossModalEncoder, sequences: Sequence[Tensor]):
        self.encoder = encoder
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

    def project(self, sources: Sequence[Tensor], stacked: dict[str, Tensor]) -> list:
        """Key and value (N, D) of all layers, as they depend on no query; the query's part stays in `stacked`."""
        dim, rows, projected = self.encoder.dim, None, []
        stacked[IN_WEIGHT], *weights = stacked[IN_WEIGHT].split(dim, dim=2)
        stacked[IN_BIAS], *biases = stacked[IN_BIAS].split(dim, dim=2)
        for weight, bias in zip(weights, biases, strict=True):  # with dropout, value has a draw of its own
            if rows is None or (self.encoder.training and self.encoder.embed_dropout.p > 0):
                rows = self.normalise(self.embed(sources))
            of_layers = _linear(rows, weight.transpose(0, 1).flatten(1, 2), bias.transpose(0, 1).flatten(1))
            projected.append(of_layers.unflatten(1, (-1, dim)).unbind(1))
        return projected

    def normalise(self, rows: Tensor) -> Tensor:
        """Layer norm without its scale and shift, which are in the weights."""
        return F.layer_norm(rows, self.ones.shape, self.ones)  # with a weight it is faster


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool, dropouts: list[float]) -> Tensor:
    """See cpu.Attention."""
    if cpu.eager(q) and max(dropouts) <= cpu.LARGEST_DROPOUT:
        return cpu.Attention.apply(q, k, v, heads, causal, dropouts).to(q.dtype)
    mask = q.new_full((q.size(1), k.size(1)), -math.inf if causal else 0.0).triu(1 + abs(k.size(1) - q.size(1)))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (G·h, T, D/h)
    weights = torch.baddbmm(mask, q, k.mT, alpha=q.size(-1) ** -0.5).softmax(dim=-1)
    if len(set(dropouts)) == 1:
        weights = cpu.dropout(weights, dropouts[0])
    else:
        parts = weights.chunk(len(dropouts))
        weights = torch.cat([cpu.dropout(part, p) for part, p in zip(parts, dropouts, strict=True)])
    return (weights @ v).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
