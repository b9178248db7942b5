"""DMD: decoupled features, a head for each node of two graphs, cross-modal attention and fusion.

Legend: B batch, T_m steps of modality m and T'_m after its convolution, d_m its width, d the model's width. Sequences
are (B, T', d) throughout. In the published names `low` is the homogeneous side and `high` the heterogeneous one;
l, v, a are text (language), vision, audio.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import fast
from models.text_encoder import TextEncoder
from models.transformer import CrossModalEncoder, run_encoders

ARGUMENT_ORDER = ("l", "a", "v")  # forward's arguments, feature_dims, seq_lens: text, audio, vision
STACK_ORDER = ("l", "v", "a")  # everything that is stacked: graphs and fusion
MODALITIES = {"l": "text", "v": "vision", "a": "audio"}  # for readers

PerModality = dict[str, Tensor]  # by modality letter


@dataclass
class DMDOutput:
    """All that the forward pass computes."""

    output_logit: Tensor  # (B, 1) the prediction
    logits_c: Tensor  # (B, 1) prediction from the common features
    origin: PerModality  # (B, T', d) projected features, x_m
    specific: PerModality  # (B, T', d) s_m
    common: PerModality  # (B, T', d) c_m
    recon: PerModality  # (B, T', d) decoded from [s_m, c_m]
    specific_recon: PerModality  # (B, T', d) s_m of the reconstruction
    specific_proj: PerModality  # (B, d) s_m projected; nothing reads it
    common_sim: PerModality  # (B, d) c_m for the margin loss
    logits_homo: PerModality  # (B, 1)
    repr_homo: PerModality  # (B, d)
    last_h: PerModality  # (B, 2d) last step of the cross-modal attention
    logits_hetero: PerModality  # (B, 1)
    repr_hetero: PerModality  # (B, 2d)

    def flat(self) -> dict[str, Tensor]:
        """Every tensor under its published name and in its published layout."""
        flat = {"output_logit": self.output_logit, "logits_c": self.logits_c}
        for field, (template, axes) in PUBLISHED.items():
            for m, x in getattr(self, field).items():
                flat[template.format(m)] = x.permute(axes) if axes else x
        return flat

    def map(self, function: Callable[[Tensor], Tensor]) -> "DMDOutput":
        """Apply a function to each tensor."""

        def of(x: Tensor | PerModality) -> Tensor | PerModality:
            return function(x) if isinstance(x, Tensor) else {m: function(x_m) for m, x_m in x.items()}

        return DMDOutput(*(of(getattr(self, field.name)) for field in fields(self)))


PUBLISHED = {  # a field's published name, and where the published layout is another, the order of its axes
    "origin": ("origin_{}", (0, 2, 1)),  # (B, d, T')
    "specific": ("s_{}", (1, 0, 2)),  # (T', B, d)
    "common": ("c_{}", (1, 0, 2)),  # (T', B, d)
    "recon": ("recon_{}", (0, 2, 1)),  # (B, d, T')
    "specific_recon": ("s_{}_r", (0, 2, 1)),  # (B, d, T')
    "specific_proj": ("proj_s_{}", None),
    "common_sim": ("c_{}_sim", None),
    "logits_homo": ("logits_{}_homo", None),
    "repr_homo": ("repr_{}_homo", None),
    "last_h": ("last_h_{}", None),
    "logits_hetero": ("logits_{}_hetero", None),
    "repr_hetero": ("repr_{}_hetero", None),
}


class Head(nn.Module):
    """Residual prediction head. Its three layers stand in the model, under their published names.

    z (B, width) -> logit (B, 1), hidden (B, ·) after the ReLU, residual (B, width)
    """

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, proj1: nn.Module, proj2: nn.Module, out_layer: nn.Module):
        hidden = F.relu(proj1(z))
        residual = proj2(self.dropout(hidden)) + z
        return out_layer(residual), hidden, residual


class DMD(nn.Module):
    """Decoupled Multimodal Distilling, sized by the data (paper, section 3; names and order of the release).

    With every value of `fusion` the parameters have the names and shapes of published checkpoints, which load
    strictly; but they were trained with `sigmoid`, and predict nothing sensible with `gate`.

    Reads from `args`: feature_dims and seq_lens ([text, audio, vision] widths and steps), use_bert, use_finetune,
    pretrained, fusion, feature_decoupling, cross_modal_attention, attn_mask, nlevels, dst_feature_dim_nheads
    [d, heads], conv1d_kernel_size_{l,a,v}, the dropouts, and fast.
    """

    def __init__(self, args):
        super().__init__()
        self.args = args
        widths = dict(zip(ARGUMENT_ORDER, args.feature_dims, strict=True))
        steps = dict(zip(ARGUMENT_ORDER, args.seq_lens, strict=True))
        kernels = {m: args[f"conv1d_kernel_size_{m}"] for m in ARGUMENT_ORDER}
        self.d, self.num_heads = args.dst_feature_dim_nheads
        d = self.d
        # Parity: a modality that is already d wide is not convolved; its proj parameters exist all the same.
        self.projected = {m: widths[m] != d for m in ARGUMENT_ORDER}
        self.steps = {m: steps[m] - kernels[m] + 1 if self.projected[m] else steps[m] for m in ARGUMENT_ORDER}
        short = [m for m in ARGUMENT_ORDER if self.steps[m] < 1]
        if short:
            raise ValueError(
                f"conv1d_kernel_size_{short[0]} is {kernels[short[0]]}, but the data has only {steps[short[0]]} steps; "
                "choose a smaller one"
            )

        if args.use_bert:
            self.text_model = TextEncoder(args.pretrained, args.use_finetune, widths["l"], args.transformers)
        # Registration order is part of the format: published checkpoints list parameters in it, and the same seed
        # gives the same initial weights only in it. Hence a loop for each stage.
        for m in ARGUMENT_ORDER:  # proj_l, proj_a, proj_v
            self.add_module(f"proj_{m}", nn.Conv1d(widths[m], d, kernels[m], bias=False))
        for m in STACK_ORDER:  # encoder_s_l, encoder_s_v, encoder_s_a
            self.add_module(f"encoder_s_{m}", nn.Conv1d(d, d, 1, bias=False))
        self.encoder_c = nn.Conv1d(d, d, 1, bias=False)
        for m in STACK_ORDER:  # decoder_l, decoder_v, decoder_a
            self.add_module(f"decoder_{m}", nn.Conv1d(2 * d, d, 1, bias=False))
        for stage in ("proj_cosine", "align_c"):  # proj_cosine_l, … proj_cosine_a; align_c_l, … align_c_a
            for m in STACK_ORDER:
                self.add_module(f"{stage}_{m}", nn.Linear(self.steps[m] * d, d))
        for m in STACK_ORDER:  # self_attentions_c_l, self_attentions_c_v, self_attentions_c_a
            self.add_module(f"self_attentions_c_{m}", self._encoder(source=m))
        self._add_head("_c", 3 * d, 3 * d)
        for m in ARGUMENT_ORDER:  # trans_l_with_a, trans_l_with_v, trans_a_with_l, … trans_v_with_a
            for n in _others(m):
                self.add_module(f"trans_{m}_with_{n}", self._encoder(source=n))
        for m in ARGUMENT_ORDER:  # trans_l_mem, trans_a_mem, trans_v_mem
            self.add_module(f"trans_{m}_mem", self._encoder(source="l", dim=2 * d, min_layers=3))
        for m in STACK_ORDER:
            self._add_head(f"_{m}_low", self.steps[m] * d, d)
        for m in STACK_ORDER:
            self._add_head(f"_{m}_high", 2 * d, 2 * d)
        for m in STACK_ORDER:  # weight_l, weight_v, weight_a
            self.add_module(f"weight_{m}", nn.Linear(2 * d, 2 * d))
        self.weight_c = nn.Linear(3 * d, 3 * d)
        self._add_head("", 9 * d, 9 * d)
        self.head = Head(args.output_dropout)
        self.text_dropout = nn.Dropout(args.text_dropout)

    def _encoder(self, source: str, dim: int | None = None, min_layers: int = 0) -> CrossModalEncoder:
        args = self.args
        attn_dropout = {"l": args.attn_dropout, "a": args.attn_dropout_a, "v": args.attn_dropout_v}[source]
        return CrossModalEncoder(
            dim or self.d, self.num_heads, max(args.nlevels, min_layers), attn_dropout,
            args.relu_dropout, args.res_dropout, args.embed_dropout, args.attn_mask,
        )  # fmt: skip

    def _add_head(self, suffix: str, width: int, hidden: int) -> None:
        """Register the layers of a head: proj1_c, proj2_c, out_layer_c; proj1_l_low, …; proj1_l_high, …; proj1, …"""
        self.add_module(f"proj1{suffix}", nn.Linear(width, hidden))
        self.add_module(f"proj2{suffix}", nn.Linear(hidden, width))
        self.add_module(f"out_layer{suffix}", nn.Linear(width, 1))

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor) -> DMDOutput:
        """Predict the sentiment of B utterances.

        text   (B, T_l, d_l) features, or (B, 3, T_l) token rows with `use_bert`
        audio  (B, T_a, d_a)
        vision (B, T_v, d_v)
        ->     DMDOutput; `output_logit` (B, 1) is the prediction
        """
        origin = self._project(text, audio, vision)
        specific, common = self._decouple(origin)  # Eq. 1
        recon, specific_recon = self._reconstruct(specific, common)  # for Eq. 2 and 3
        common_sim = {m: self._of("align_c", m)(common[m].mT.flatten(1)) for m in STACK_ORDER}  # for Eq. 4
        # Parity: nothing reads this; published checkpoints contain its parameters.
        specific_proj = {m: self._of("proj_cosine", m)(specific[m].flatten(1)) for m in STACK_ORDER}

        homo = {m: self._head(f"_{m}_low", common[m].flatten(1)) for m in STACK_ORDER}  # nodes of HomoGD
        c_fusion = self._fuse_common(common)
        logits_c, _, _ = self._head("_c", c_fusion)
        last_h = self._attend(specific)  # Eq. 10
        hetero = {m: self._head(f"_{m}_high", last_h[m]) for m in STACK_ORDER}  # nodes of HeteroGD
        output_logit = self._fuse(last_h, c_fusion)

        return DMDOutput(
            output_logit, logits_c, origin, specific, common, recon, specific_recon, specific_proj, common_sim,
            logits_homo={m: logit for m, (logit, _, _) in homo.items()},
            # Parity: a homogeneous representation is taken after the ReLU, a heterogeneous one is the residual.
            repr_homo={m: hidden for m, (_, hidden, _) in homo.items()},
            last_h=last_h,
            logits_hetero={m: logit for m, (logit, _, _) in hetero.items()},
            repr_hetero={m: residual for m, (_, _, residual) in hetero.items()},
        )  # fmt: skip

    def _of(self, stage: str, m: str) -> nn.Module:
        """The module of a stage for modality m: proj_l, encoder_s_l, …"""
        return getattr(self, f"{stage}_{m}")

    def _head(self, suffix: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run self.head with the layers of that suffix."""
        return self.head(z, *(getattr(self, f"{layer}{suffix}") for layer in ("proj1", "proj2", "out_layer")))

    def _run(self, encoders, queries, sources=None, last_step: bool = False) -> list[Tensor]:
        """models.transformer.run_encoders, or the same faster where that is known to be equal."""
        run = fast.run_encoders if self.args.fast and fast.applies(encoders) else run_encoders
        return run(encoders, queries, sources, last_step)

    def _project(self, text: Tensor, audio: Tensor, vision: Tensor) -> PerModality:
        """Bring every modality to width d.  -> (B, T', d) each"""
        if self.args.use_bert:
            with fast.CpuForms() if self.args.fast and text.device.type == "cpu" else contextlib.nullcontext():
                text = self.text_model(text)  # (B, T_l, d_l)
        features = {"l": self.text_dropout(text), "a": audio, "v": vision}
        return {m: _over_time(self._of("proj", m), x) if self.projected[m] else x for m, x in features.items()}

    def _decouple(self, origin: PerModality) -> tuple[PerModality, PerModality]:
        """Split into what only the modality says, X_prt, and what all have in common, X_com (Eq. 1).

        (B, T', d) each -> specific and common, (B, T', d) each
        """
        if not self.args.feature_decoupling:
            return origin, origin
        specific = {m: _over_time(self._of("encoder_s", m), origin[m]) for m in STACK_ORDER}
        common = {m: _over_time(self.encoder_c, origin[m]) for m in STACK_ORDER}
        return specific, common

    def _reconstruct(self, specific: PerModality, common: PerModality) -> tuple[PerModality, PerModality]:
        """Decode (B, T', d) from both parts, and split its specific part off again.  -> (B, T', d) each, twice"""
        both = {m: torch.cat([specific[m], common[m]], dim=2) for m in STACK_ORDER}
        recon = {m: _over_time(self._of("decoder", m), both[m]) for m in STACK_ORDER}
        return recon, {m: _over_time(self._of("encoder_s", m), recon[m]) for m in STACK_ORDER}

    def _fuse_common(self, common: PerModality) -> Tensor:
        """The last steps of self-attention over each modality's common part.  (B, T', d) each -> c_fusion (B, 3d)"""
        encoders = [self._of("self_attentions_c", m) for m in STACK_ORDER]
        return torch.cat(self._run(encoders, [common[m] for m in STACK_ORDER], last_step=True), dim=1)

    def _attend(self, specific: PerModality) -> PerModality:
        """Cross-modal attention (Eq. 10): each modality reads the two others; the last step of a memory over both.

        (B, T', d) each -> (B, 2d) each
        """
        if self.args.cross_modal_attention:
            pairs = [(m, n) for n in ARGUMENT_ORDER for m in _others(n)]  # m reads n
            encoders = [getattr(self, f"trans_{m}_with_{n}") for m, n in pairs]
            enriched = self._run(encoders, [specific[m] for m, _ in pairs], [specific[n] for _, n in pairs])
            by_pair = dict(zip(pairs, enriched, strict=True))
            both = [torch.cat([by_pair[m, n] for n in _others(m)], dim=2) for m in STACK_ORDER]  # (B, T', 2d)
        else:
            both = [torch.cat([specific[m], specific[m]], dim=2) for m in STACK_ORDER]
        last = self._run([getattr(self, f"trans_{m}_mem") for m in STACK_ORDER], both, last_step=True)
        return dict(zip(STACK_ORDER, last, strict=True))

    def _fuse(self, last_h: PerModality, c_fusion: Tensor) -> Tensor:
        """The prediction from last_h (B, 2d) each and c_fusion (B, 3d).  -> (B, 1)

        `gate` is the paper's fusion (section 3.4), the features weighted by weights learned from them: read as
        sigmoid(W x + b) times x, element by element.
        """
        weights = [self._of("weight", m)(last_h[m]) for m in STACK_ORDER] + [self.weight_c(c_fusion)]
        fused = torch.cat(weights, dim=1).sigmoid()  # (B, 9d)
        # Parity: without the gate the weights themselves are fed on, not the features weighted by them.
        if self.args.fusion == "gate":
            fused = fused * torch.cat([*(last_h[m] for m in STACK_ORDER), c_fusion], dim=1)
        logit, _, _ = self._head("", fused)
        return logit


def _others(m: str) -> list[str]:
    """The two modalities that m reads: l reads a, v; a reads l, v; v reads l, a."""
    return [n for n in ARGUMENT_ORDER if n != m]


def _over_time(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution over the steps of x (B, T, ·).  -> (B, T', ·)"""
    return conv(x.mT).mT
