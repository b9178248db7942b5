"""The training step written plainly: one encoder at a time, margin loss in a loop over anchors, gradients clipped list
by list. It computes what the released code computes, in about the time that the released code takes, on the
parameters of the project's own model: the yardstick of the benchmarks.

Legend: T_q and T_s steps of query and source, B batch, d and D widths.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dmd import ARGUMENT_ORDER, DMD, STACK_ORDER, DMDOutput
from models.transformer import CrossModalEncoder, LayerParameters
from trainers.losses import Objective


def forward(model: DMD, text: Tensor, audio: Tensor, vision: Tensor) -> DMDOutput:
    """What model(text, audio, vision) computes."""
    if model.args.use_bert:
        text = _bert(model.text_model, text)
    text = F.dropout(text, model.args.text_dropout, model.training)
    features = {"l": text, "a": audio, "v": vision}
    module = dict(model.named_children())

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv1d(x, module[name].weight)

    def head(name: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(module[name.format("proj1")](z))
        dropped = F.dropout(hidden, model.args.output_dropout, model.training)
        residual = module[name.format("proj2")](dropped) + z
        return module[name.format("out_layer")](residual), hidden, residual

    x = {m: features[m].transpose(1, 2) for m in STACK_ORDER}
    origin = {m: conv(f"proj_{m}", x[m]) if model.projected[m] else x[m] for m in STACK_ORDER}
    specific = {m: conv(f"encoder_s_{m}", origin[m]) for m in STACK_ORDER}
    common = {m: conv("encoder_c", origin[m]) for m in STACK_ORDER}
    recon = {m: conv(f"decoder_{m}", torch.cat([specific[m], common[m]], dim=1)) for m in STACK_ORDER}
    specific_recon = {m: conv(f"encoder_s_{m}", recon[m]) for m in STACK_ORDER}
    common_sim = {m: module[f"align_c_{m}"](common[m].flatten(1)) for m in STACK_ORDER}

    specific = {m: s.permute(2, 0, 1) for m, s in specific.items()}  # (T', B, d)
    common = {m: c.permute(2, 0, 1) for m, c in common.items()}
    for m in STACK_ORDER:  # computed by the release, though nothing reads it
        module[f"proj_cosine_{m}"](specific[m].transpose(0, 1).flatten(1))
    homo = {m: head(f"{{}}_{m}_low", common[m].transpose(0, 1).flatten(1)) for m in STACK_ORDER}
    c_fusion = torch.cat([_encode(module[f"self_attentions_c_{m}"], common[m])[-1] for m in STACK_ORDER], dim=1)
    logits_c, _, _ = head("{}_c", c_fusion)
    last_h = {}
    for m in ARGUMENT_ORDER:
        others = [n for n in ARGUMENT_ORDER if n != m]
        enriched = [_encode(module[f"trans_{m}_with_{n}"], specific[m], specific[n]) for n in others]
        last_h[m] = _encode(module[f"trans_{m}_mem"], torch.cat(enriched, dim=2))[-1]
    last_h = {m: last_h[m] for m in STACK_ORDER}
    hetero = {m: head(f"{{}}_{m}_high", last_h[m]) for m in STACK_ORDER}
    gates = [torch.sigmoid(module[f"weight_{m}"](last_h[m])) for m in STACK_ORDER]
    gates.append(torch.sigmoid(model.weight_c(c_fusion)))
    output_logit, _, _ = head("{}", torch.cat(gates, dim=1))
    return DMDOutput(
        output_logit, logits_c, origin, specific, common, recon, specific_recon, common_sim,
        logits_homo={m: logit for m, (logit, _, _) in homo.items()},
        repr_homo={m: hidden for m, (_, hidden, _) in homo.items()},
        last_h=last_h,
        logits_hetero={m: logit for m, (logit, _, _) in hetero.items()},
        repr_hetero={m: residual for m, (_, _, residual) in hetero.items()},
    )  # fmt: skip


def _bert(encoder, tokens: Tensor) -> Tensor:
    ids, mask, segments = tokens.long().unbind(1)
    return encoder.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state


def _encode(encoder: CrossModalEncoder, query: Tensor, source: Tensor | None = None) -> Tensor:
    """query (T_q, B, D), source (T_s, B, D) or none for self-attention -> (T_q, B, D)"""

    def embed(x: Tensor) -> Tensor:
        positions = encoder.embed_positions(x[:, :, 0].t()).transpose(0, 1)
        return F.dropout(math.sqrt(encoder.dim) * x + positions, encoder.embed_dropout, encoder.training)

    x = embed(query)
    key, value = (None, None) if source is None else (embed(source), embed(source))
    mask = None
    if encoder.attn_mask:
        t_q, t_s = len(query), len(query if source is None else source)
        mask = torch.full((t_q, t_s), -math.inf, device=query.device).triu(1 + abs(t_s - t_q))
    for layer in encoder.layers:
        x = _layer(encoder, layer, x, key, value, mask)
    return encoder.layer_norm(x)


def _layer(encoder: CrossModalEncoder, layer: LayerParameters, x: Tensor, key, value, mask) -> Tensor:
    norm_attention, norm_ffn = layer.layer_norms
    query = norm_attention(x)
    key = query if key is None else norm_attention(key)
    value = query if value is None else norm_attention(value)
    attended = _attention(encoder, layer, query, key, value, mask)
    x = x + F.dropout(attended, encoder.res_dropout, encoder.training)
    hidden = F.dropout(F.relu(layer.fc1(norm_ffn(x))), encoder.relu_dropout, encoder.training)
    return x + F.dropout(layer.fc2(hidden), encoder.res_dropout, encoder.training)


def _attention(encoder: CrossModalEncoder, layer: LayerParameters, query, key, value, mask) -> Tensor:
    parameters, heads = layer.self_attn, encoder.num_heads
    weights, biases = parameters.in_proj_weight.chunk(3), parameters.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    t_q, batch, dim = q.shape
    q = q * (dim // heads) ** -0.5
    q, k, v = (x.contiguous().view(len(x), batch * heads, dim // heads).transpose(0, 1) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2))  # (B·h, T_q, T_s)
    if mask is not None:
        scores = scores + mask
    attention = F.dropout(F.softmax(scores, dim=-1), encoder.attn_dropout, encoder.training)
    attended = torch.bmm(attention, v).transpose(0, 1).contiguous().view(t_q, batch, dim)
    return parameters.out_proj(attended)


def _margin_loss(vectors: Tensor, labels: Tensor, slope: float) -> Tensor:
    norms = (vectors.square().sum(dim=1) + 1e-8).sqrt()
    per_anchor = []
    for anchor, label in enumerate(labels):
        same = labels == label
        same[anchor] = False
        positives, negatives = same.nonzero().squeeze(1), (labels != label).nonzero().squeeze(1)
        if not len(positives) or not len(negatives):
            continue
        cosine = (vectors @ vectors[anchor]) / (norms * norms[anchor])
        margin = slope * (labels[negatives] - label).abs()
        per_anchor.append((margin + cosine[negatives] - cosine[positives][:, None]).clamp(min=0).mean())
    return torch.stack(per_anchor).mean() if per_anchor else vectors.new_zeros(())


class PlainObjective(Objective):
    """The objective with the looped margin loss."""

    margin = staticmethod(_margin_loss)


def clip(modules: list[nn.Module], limit: float) -> None:
    """Clip the gradients of one module after the other."""
    for module in modules:
        nn.utils.clip_grad_value_(module.parameters(), limit, foreach=False)


def training_step(model: DMD, objective: PlainObjective, inputs: list[Tensor], labels: Tensor, limit: float) -> Tensor:
    """Forward, losses, backward, clipping.  -> prediction (B, 1)"""
    output = forward(model, *inputs)
    objective(output, labels)["total"].backward()
    clip([model, objective], limit)
    return output.output_logit


@torch.no_grad()
def evaluate(model: DMD, inputs: list[Tensor]) -> Tensor:
    """-> prediction (B, 1)"""
    return forward(model, *inputs).output_logit
