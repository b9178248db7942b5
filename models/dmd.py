"""DMD: decoupled features, a head for each node of two graphs, cross-modal attention and fusion.

Legend: B batch, T_m steps of modality m and T'_m after its convolution, d_m its width, d the
model's width. Sequences are (B, T', d) throughout. In the published names `low` is the homogeneous
side and `high` the heterogeneous one; l, v, a are text (language), vision, audio.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ensemble
from models.text_encoder import TextEncoder
from models.transformer import CrossModalEncoder
from utils.errors import ConfigError

ARGUMENT_ORDER = ("l", "a", "v")  # forward's arguments, feature_dims, seq_lens
STACK_ORDER = ("l", "v", "a")  # everything that is stacked: graphs and fusion
MODALITIES = {"l": "text", "v": "vision", "a": "audio"}  # names for display

PerModality = dict[str, Tensor]  # by modality letter


class DMDOutput(NamedTuple):
    """All outputs of the forward pass; a tuple, which nn.DataParallel can gather."""

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
        """Return every tensor under its published name and in its published layout."""
        flat = {"output_logit": self.output_logit, "logits_c": self.logits_c}
        for field, (template, axes) in PUBLISHED.items():
            for m, x in getattr(self, field).items():
                flat[template.format(m)] = x.permute(axes) if axes else x
        return flat

    def map(self, function: Callable[[Tensor], Tensor]) -> "DMDOutput":
        """Apply a function to each tensor."""
        mapped = {}
        for name, value in self._asdict().items():
            if isinstance(value, Tensor):
                mapped[name] = function(value)
            else:
                mapped[name] = {m: function(x) for m, x in value.items()}
        return DMDOutput(**mapped)


# A field's published name, and the order of its axes if the published layout differs.
PUBLISHED = {
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
    """Residual prediction head. Its three layers belong to the model, under their published names.

    Args:
        dropout: Dropout of the hidden layer.
    """

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, z: Tensor, proj1: nn.Module, proj2: nn.Module, out_layer: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict from features.

        Args:
            z: Features (B, width).
            proj1: The layer to the hidden features.
            proj2: The layer back to the width of z.
            out_layer: The layer to the logit.

        Returns:
            The logit (B, 1), the hidden features (B, ·) after the ReLU, and the residual sum
            (B, width).
        """
        hidden = F.relu(proj1(z))
        residual = proj2(self.dropout(hidden)) + z
        return out_layer(residual), hidden, residual


class DMD(nn.Module):
    """Decoupled Multimodal Distilling, sized by the data (paper, section 3).

    The parameters have the names, order and shapes of published checkpoints, which therefore load
    strictly, whatever `fusion` is. They were trained with `sigmoid`; with `gate` their predictions
    are meaningless.

    Args:
        args: Settings (config/schema.py), with feature_dims and seq_lens: widths and steps of
            text, audio and vision.

    Raises:
        ConfigError: A modality has fewer steps than its convolution spans, or the text encoder
            cannot be loaded.
    """

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.d, self.num_heads = args.dst_feature_dim_nheads
        self.fast = args.fast
        widths = dict(zip(ARGUMENT_ORDER, args.feature_dims, strict=True))
        self.projected: dict[str, bool] = {}
        self.steps: dict[str, int] = {}  # T'_m
        for m, steps in zip(ARGUMENT_ORDER, args.seq_lens, strict=True):
            # Parity: a modality that is already d wide is not convolved, although its proj exists.
            self.projected[m] = widths[m] != self.d
            self.steps[m] = steps
            if self.projected[m]:
                self.steps[m] = _steps_after_projection(args, m, steps)

        if args.use_bert:
            self.text_model = TextEncoder(
                args.pretrained, args.use_finetune, widths["l"], args.transformers
            )
        self._add_decoupling(widths)
        self._add_transformers_and_heads()
        self.head = Head(args.output_dropout)
        self.text_dropout = nn.Dropout(args.text_dropout)

    # Registration order is part of the format: published checkpoints list parameters in it, and the
    # same seed gives the same initial weights only in it. Hence a loop for each stage.

    def _add_decoupling(self, widths: dict[str, int]) -> None:
        """Register the convolutions, and the linear layers over whole sequences."""
        d = self.d
        for m in ARGUMENT_ORDER:  # proj_l, proj_a, proj_v
            kernel_size = self.args[f"conv1d_kernel_size_{m}"]
            self.add_module(f"proj_{m}", nn.Conv1d(widths[m], d, kernel_size, bias=False))
        for m in STACK_ORDER:  # encoder_s_l, encoder_s_v, encoder_s_a
            self.add_module(f"encoder_s_{m}", nn.Conv1d(d, d, 1, bias=False))
        self.encoder_c = nn.Conv1d(d, d, 1, bias=False)
        for m in STACK_ORDER:  # decoder_l, decoder_v, decoder_a
            self.add_module(f"decoder_{m}", nn.Conv1d(2 * d, d, 1, bias=False))
        for m in STACK_ORDER:  # proj_cosine_l, proj_cosine_v, proj_cosine_a
            self.add_module(f"proj_cosine_{m}", nn.Linear(self.steps[m] * d, d))
        for m in STACK_ORDER:  # align_c_l, align_c_v, align_c_a
            self.add_module(f"align_c_{m}", nn.Linear(self.steps[m] * d, d))

    def _add_transformers_and_heads(self) -> None:
        """Register the encoders, the layers of all heads, and the weights of the fusion."""
        d = self.d
        args = self.args
        # By the modality that is read.
        attn_dropouts = {"l": args.attn_dropout, "a": args.attn_dropout_a, "v": args.attn_dropout_v}
        for m in STACK_ORDER:  # self_attentions_c_l, self_attentions_c_v, self_attentions_c_a
            self.add_module(f"self_attentions_c_{m}", self._make_encoder(d, attn_dropouts[m]))
        self._add_head("_c", 3 * d, 3 * d)
        for m in ARGUMENT_ORDER:  # trans_l_with_a, trans_l_with_v, trans_a_with_l, … trans_v_with_a
            for n in _others(m):
                self.add_module(f"trans_{m}_with_{n}", self._make_encoder(d, attn_dropouts[n]))
        for m in ARGUMENT_ORDER:  # trans_l_mem, trans_a_mem, trans_v_mem
            memory = self._make_encoder(2 * d, args.attn_dropout, min_layers=3)
            self.add_module(f"trans_{m}_mem", memory)
        for m in STACK_ORDER:
            self._add_head(f"_{m}_low", self.steps[m] * d, d)
        for m in STACK_ORDER:
            self._add_head(f"_{m}_high", 2 * d, 2 * d)
        for m in STACK_ORDER:  # weight_l, weight_v, weight_a
            self.add_module(f"weight_{m}", nn.Linear(2 * d, 2 * d))
        self.weight_c = nn.Linear(3 * d, 3 * d)
        self._add_head("", 9 * d, 9 * d)

    def _make_encoder(
        self, dim: int, attn_dropout: float, min_layers: int = 0
    ) -> CrossModalEncoder:
        """Make an encoder of `nlevels` layers, or of `min_layers` if that is more."""
        args = self.args
        return CrossModalEncoder(
            dim,
            self.num_heads,
            num_layers=max(args.nlevels, min_layers),
            attn_dropout=attn_dropout,
            relu_dropout=args.relu_dropout,
            res_dropout=args.res_dropout,
            embed_dropout=args.embed_dropout,
            attn_mask=args.attn_mask,
            fast=args.fast,
        )

    def _add_head(self, suffix: str, width: int, hidden: int) -> None:
        """Register the layers of a head: proj1_c, proj2_c, out_layer_c; proj1_l_low, …"""
        self.add_module(f"proj1{suffix}", nn.Linear(width, hidden))
        self.add_module(f"proj2{suffix}", nn.Linear(hidden, width))
        self.add_module(f"out_layer{suffix}", nn.Linear(width, 1))

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor) -> DMDOutput:
        """Predict the sentiment of B utterances.

        Args:
            text: (B, T_l, d_l) features, or (B, 3, T_l) token rows with `use_bert`.
            audio: (B, T_a, d_a) features.
            vision: (B, T_v, d_v) features.

        Returns:
            All outputs; `output_logit` (B, 1) is the prediction.
        """
        origin = self._project(text, audio, vision)
        specific, common = self._decouple(origin)  # Eq. 1
        recon, specific_recon = self._reconstruct(specific, common)  # for Eq. 2 and 3
        common_sim, specific_proj = {}, {}
        for m in STACK_ORDER:
            common_sim[m] = self._layer("align_c", m)(common[m].mT.flatten(1))  # for Eq. 4
            # Parity: nothing reads this; published checkpoints contain its parameters.
            specific_proj[m] = self._layer("proj_cosine", m)(specific[m].flatten(1))

        c_fusion = self._fuse_common(common)
        logits_c, _, _ = self._run_head("_c", c_fusion)
        last_h = self._attend(specific)  # Eq. 10
        logits_homo, repr_homo, logits_hetero, repr_hetero = {}, {}, {}, {}
        for m in STACK_ORDER:  # the nodes of HomoGD and HeteroGD
            # Parity: a homogeneous representation is `hidden`, a heterogeneous one `residual`.
            logits_homo[m], repr_homo[m], _ = self._run_head(f"_{m}_low", common[m].flatten(1))
            logits_hetero[m], _, repr_hetero[m] = self._run_head(f"_{m}_high", last_h[m])

        return DMDOutput(
            output_logit=self._fuse(last_h, c_fusion),
            logits_c=logits_c,
            origin=origin,
            specific=specific,
            common=common,
            recon=recon,
            specific_recon=specific_recon,
            specific_proj=specific_proj,
            common_sim=common_sim,
            logits_homo=logits_homo,
            repr_homo=repr_homo,
            last_h=last_h,
            logits_hetero=logits_hetero,
            repr_hetero=repr_hetero,
        )

    def _layer(self, stage: str, m: str) -> nn.Module:
        """The module of a stage for modality m: proj_l, encoder_s_l, …"""
        return getattr(self, f"{stage}_{m}")

    def _run_head(self, suffix: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run self.head with the layers of that suffix."""
        proj1 = getattr(self, f"proj1{suffix}")
        proj2 = getattr(self, f"proj2{suffix}")
        out_layer = getattr(self, f"out_layer{suffix}")
        return self.head(z, proj1, proj2, out_layer)

    def _run_encoders(
        self,
        encoders: Sequence[CrossModalEncoder],
        queries: Sequence[Tensor],
        sources: Sequence[Tensor] | None = None,
        last_step: bool = False,
    ) -> list[Tensor]:
        """Run each encoder on its own query, and on its own source if there are sources."""
        if self.fast and ensemble.is_faster_on(queries[0].device):
            sequences = [queries] if sources is None else [queries, sources]
            if ensemble.are_alike(encoders, sequences):
                return ensemble.run_together(encoders, sequences, last_step)
        if sources is None:
            sources = [None] * len(encoders)
        outputs = []
        for encoder, query, source in zip(encoders, queries, sources, strict=True):
            outputs.append(encoder(query, source, last_step=last_step))
        return outputs

    def _project(self, text: Tensor, audio: Tensor, vision: Tensor) -> PerModality:
        """Bring every modality to width d.  -> (B, T', d) each"""
        if self.args.use_bert:
            text = self.text_model(text)  # (B, T_l, d_l)
        features = {"l": self.text_dropout(text), "a": audio, "v": vision}
        for m in ARGUMENT_ORDER:
            if self.projected[m]:
                features[m] = _over_time(self._layer("proj", m), features[m])
        return features

    def _decouple(self, origin: PerModality) -> tuple[PerModality, PerModality]:
        """Split into X_prt, which only the modality has, and X_com, which all have (Eq. 1).

        (B, T', d) each -> specific and common, (B, T', d) each
        """
        if not self.args.feature_decoupling:
            return origin, origin
        specific, common = {}, {}
        for m in STACK_ORDER:
            specific[m] = _over_time(self._layer("encoder_s", m), origin[m])
            common[m] = _over_time(self.encoder_c, origin[m])
        return specific, common

    def _reconstruct(
        self, specific: PerModality, common: PerModality
    ) -> tuple[PerModality, PerModality]:
        """Decode from both parts, and split the specific part off again.

        (B, T', d) each -> recon and specific_recon, (B, T', d) each
        """
        recon, specific_recon = {}, {}
        for m in STACK_ORDER:
            both = torch.cat([specific[m], common[m]], dim=2)  # (B, T', 2d)
            recon[m] = _over_time(self._layer("decoder", m), both)
            specific_recon[m] = _over_time(self._layer("encoder_s", m), recon[m])
        return recon, specific_recon

    def _fuse_common(self, common: PerModality) -> Tensor:
        """The last steps of self-attention over each common part.  (B, T', d) each -> (B, 3d)"""
        encoders = [self._layer("self_attentions_c", m) for m in STACK_ORDER]
        queries = [common[m] for m in STACK_ORDER]
        return torch.cat(self._run_encoders(encoders, queries, last_step=True), dim=1)

    def _attend(self, specific: PerModality) -> PerModality:
        """Cross-modal attention (Eq. 10), then the last step of a memory over both results.

        (B, T', d) each -> (B, 2d) each
        """
        if self.args.cross_modal_attention:
            enriched = self._read_others(specific)
        else:
            enriched = {m: [specific[m], specific[m]] for m in STACK_ORDER}
        encoders = [getattr(self, f"trans_{m}_mem") for m in STACK_ORDER]
        memories = [torch.cat(enriched[m], dim=2) for m in STACK_ORDER]  # (B, T', 2d)
        last_steps = self._run_encoders(encoders, memories, last_step=True)
        return dict(zip(STACK_ORDER, last_steps, strict=True))

    def _read_others(self, specific: PerModality) -> dict[str, list[Tensor]]:
        """Each modality reads the two others.  (B, T', d) each -> two of (B, T', d) each"""
        readers, encoders, queries, sources = [], [], [], []
        for m in ARGUMENT_ORDER:
            for n in _others(m):
                readers.append(m)
                encoders.append(getattr(self, f"trans_{m}_with_{n}"))
                queries.append(specific[m])
                sources.append(specific[n])
        outputs = self._run_encoders(encoders, queries, sources)
        enriched = {m: [] for m in ARGUMENT_ORDER}
        for m, output in zip(readers, outputs, strict=True):
            enriched[m].append(output)
        return enriched

    def _fuse(self, last_h: PerModality, c_fusion: Tensor) -> Tensor:
        """The prediction from last_h (B, 2d) each and c_fusion (B, 3d).  -> (B, 1)

        `gate` is the paper's fusion (section 3.4), the features weighted by weights learned from
        them: read as sigmoid(W x + b) times x, element by element.
        """
        features = [last_h["l"], last_h["v"], last_h["a"], c_fusion]
        scores = [
            self.weight_l(last_h["l"]),
            self.weight_v(last_h["v"]),
            self.weight_a(last_h["a"]),
            self.weight_c(c_fusion),
        ]
        weights = torch.cat(scores, dim=1).sigmoid()  # (B, 9d)
        fused = weights  # Parity: with `sigmoid`, the weights alone, not the features
        if self.args.fusion == "gate":
            fused = weights * torch.cat(features, dim=1)
        logit, _, _ = self._run_head("", fused)
        return logit


def _steps_after_projection(args, m: str, steps: int) -> int:
    """T'_m of T_m steps. Raises ConfigError if none is left."""
    kernel_size = args[f"conv1d_kernel_size_{m}"]
    if steps < kernel_size:
        raise ConfigError(
            f"conv1d_kernel_size_{m} is {kernel_size}, but the data has only {steps} steps."
        )
    return steps - kernel_size + 1


def infer_sizes(state: dict[str, Tensor]) -> tuple[list[int], list[int]] | None:
    """Infer the sizes of the data that a DMD was trained on from the shapes of its weights.

    Args:
        state: A state_dict.

    Returns:
        `feature_dims` and `seq_lens`, [text, audio, vision] each; None if these are not the weights
        of a DMD.
    """
    feature_dims, seq_lens = [], []
    for m in ARGUMENT_ORDER:
        projection = state.get(f"proj_{m}.weight")
        alignment = state.get(f"align_c_{m}.weight")
        if projection is None or alignment is None:
            return None
        if projection.dim() != 3 or alignment.dim() != 2:
            return None
        d, width, kernel_size = projection.shape
        steps = alignment.shape[1] // max(d, 1)
        if width != d:  # the modality was convolved
            steps += kernel_size - 1  # the inverse of _steps_after_projection
        feature_dims.append(width)
        seq_lens.append(steps)
    return feature_dims, seq_lens


def _others(m: str) -> list[str]:
    """The two modalities that m reads: l reads a, v; a reads l, v; v reads l, a."""
    return [n for n in ARGUMENT_ORDER if n != m]


def _over_time(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution over the steps of x (B, T, ·).  -> (B, T', ·)"""
    return conv(x.mT).mT
