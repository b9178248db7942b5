"""DMD: decoupled features, two graphs' worth of heads, cross-modal attention and fusion.

Legend: B batch, T_m steps of modality m and T'_m after its convolution, d_m its width, d the model's width.
Convolutions see (B, d, T'), transformers (B, T', d). In the published names `low` is the homogeneous side and
`high` the heterogeneous one; l, v, a are text (language), vision, audio.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import kernels
from models.text_encoder import BertTextEncoder
from models.transformer import CrossModalEncoder, encode

ARGUMENT_ORDER = ("l", "a", "v")  # forward's arguments, feature_dims, seq_lens: text, audio, vision
STACK_ORDER = ("l", "v", "a")  # everything that is stacked: graphs and fusion
MODALITIES = {"l": "text", "v": "vision", "a": "audio"}  # for readers

PerModality = dict[str, Tensor]


@dataclass
class DMDOutput:
    """All that the forward pass computes: one mapping from modality letter to tensor for each kind.

    A tensor is also found under its published flat name: `output["s_l"]`, `output.s_l` and
    `dict(output)["s_l"]` are `output.specific["l"]`.
    """

    output_logit: Tensor  # (B, 1) the prediction
    logits_c: Tensor  # (B, 1) prediction from the common features
    origin: PerModality  # (B, d, T') projected features, x_m
    specific: PerModality  # (T', B, d) s_m
    common: PerModality  # (T', B, d) c_m
    recon: PerModality  # (B, d, T') decoded from [s_m, c_m]
    specific_recon: PerModality  # (B, d, T') s_m of the reconstruction
    common_sim: PerModality  # (B, d) c_m for the margin loss
    logits_homo: PerModality  # (B, 1)
    repr_homo: PerModality  # (B, d)
    last_h: PerModality  # (B, 2d) last step of the cross-modal attention
    logits_hetero: PerModality  # (B, 1)
    repr_hetero: PerModality  # (B, 2d)

    PUBLISHED_NAMES = {
        "origin": "origin_{}",
        "specific": "s_{}",
        "common": "c_{}",
        "recon": "recon_{}",
        "specific_recon": "s_{}_r",
        "common_sim": "c_{}_sim",
        "logits_homo": "logits_{}_homo",
        "repr_homo": "repr_{}_homo",
        "last_h": "last_h_{}",
        "logits_hetero": "logits_{}_hetero",
        "repr_hetero": "repr_{}_hetero",
    }  # fmt: skip

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its published name."""
        yield from (("output_logit", self.output_logit), ("logits_c", self.logits_c))
        for field, template in self.PUBLISHED_NAMES.items():
            for m, tensor in getattr(self, field).items():
                yield template.format(m), tensor

    def float(self) -> "DMDOutput":
        """The same in float32, for the losses."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return DMDOutput(**{
            name: x.float() if isinstance(x, Tensor) else {m: tensor.float() for m, tensor in x.items()}
            for name, x in fields
        })  # fmt: skip

    def keys(self) -> list[str]:
        return [name for name, _ in self.items()]

    def __getitem__(self, name: str) -> Tensor:
        return dict(self.items())[name]

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"DMDOutput has no tensor '{name}'") from None


class DMD(nn.Module):
    """Decoupled Multimodal Distilling, sized by the data (paper, section 3; names and order of the release).

    With every value of `fusion` the parameters have the names and shapes of published checkpoints, which load
    strictly; but they were trained with `sigmoid`, and predict nothing sensible with `gate`.

    Reads from `args`: feature_dims and seq_lens ([text, audio, vision] widths and steps), use_bert, use_finetune,
    pretrained, fusion, feature_decoupling, cross_modal_attention, attn_mask, nlevels, dst_feature_dim_nheads
    [d, heads], conv1d_kernel_size_{l,a,v} and the dropouts.
    """

    def __init__(self, args):
        super().__init__()
        self.args = args
        widths = dict(zip(ARGUMENT_ORDER, args.feature_dims, strict=True))
        steps = dict(zip(ARGUMENT_ORDER, args.seq_lens, strict=True))
        kernels = {m: args[f"conv1d_kernel_size_{m}"] for m in ARGUMENT_ORDER}
        d, self.num_heads = args.dst_feature_dim_nheads
        self.d = d
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
            self.text_model = BertTextEncoder(args.pretrained, args.use_finetune, widths["l"])
        # Registration order is part of the format: published checkpoints list parameters in it, and the same seed
        # gives the same initial weights only in it. Hence a loop for each stage.
        for m in ARGUMENT_ORDER:
            self.add_module(f"proj_{m}", nn.Conv1d(widths[m], d, kernels[m], bias=False))
        for m in STACK_ORDER:
            self.add_module(f"encoder_s_{m}", nn.Conv1d(d, d, 1, bias=False))
        self.encoder_c = nn.Conv1d(d, d, 1, bias=False)
        for m in STACK_ORDER:
            self.add_module(f"decoder_{m}", nn.Conv1d(2 * d, d, 1, bias=False))
        # Parity: proj_cosine_* feeds nothing. It is here because published checkpoints contain it.
        for stage in ("proj_cosine", "align_c"):
            for m in STACK_ORDER:
                self.add_module(f"{stage}_{m}", nn.Linear(self.steps[m] * d, d))
        for m in STACK_ORDER:
            self.add_module(f"self_attentions_c_{m}", self._encoder(source=m))
        self._add_head("{}_c", 3 * d, 3 * d)
        for m in ARGUMENT_ORDER:
            for n in self._others(m):
                self.add_module(f"trans_{m}_with_{n}", self._encoder(source=n))
        for m in ARGUMENT_ORDER:
            self.add_module(f"trans_{m}_mem", self._encoder(source="l", dim=2 * d, min_layers=3))
        for m in STACK_ORDER:
            self._add_head(f"{{}}_{m}_low", self.steps[m] * d, d)
        for m in STACK_ORDER:
            self._add_head(f"{{}}_{m}_high", 2 * d, 2 * d)
        for m in STACK_ORDER:
            self.add_module(f"weight_{m}", nn.Linear(2 * d, 2 * d))
        self.weight_c = nn.Linear(3 * d, 3 * d)
        self._add_head("{}", 9 * d, 9 * d)

    def _encoder(self, source: str, dim: int | None = None, min_layers: int = 0) -> CrossModalEncoder:
        args = self.args
        attn_dropout = {"l": args.attn_dropout, "a": args.attn_dropout_a, "v": args.attn_dropout_v}[source]
        return CrossModalEncoder(
            dim or self.d, self.num_heads, max(args.nlevels, min_layers), attn_dropout,
            args.relu_dropout, args.res_dropout, args.embed_dropout, args.attn_mask,
        )  # fmt: skip

    @staticmethod
    def _others(m: str) -> list[str]:
        """The two modalities that m reads: l reads a, v; a reads l, v; v reads l, a."""
        return [n for n in ARGUMENT_ORDER if n != m]

    def _add_head(self, name: str, width: int, hidden: int) -> None:
        """Register a residual head: proj1, proj2, out_layer under the template `name`."""
        self.add_module(name.format("proj1"), nn.Linear(width, hidden))
        self.add_module(name.format("proj2"), nn.Linear(hidden, width))
        self.add_module(name.format("out_layer"), nn.Linear(width, 1))

    def _head(self, name: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run a residual head on z (B, width).  -> logit (B, 1), hidden after the ReLU, output of the residual"""
        proj1, proj2, out_layer = (getattr(self, name.format(p)) for p in ("proj1", "proj2", "out_layer"))
        hidden = F.relu(proj1(z))
        residual = proj2(F.dropout(hidden, self.args.output_dropout, self.training)) + z
        return out_layer(residual), hidden, residual

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor) -> DMDOutput:
        """Predict the sentiment of B utterances.

        text   (B, T_l, d_l) features, or (B, 3, T_l) token rows with `use_bert`
        audio  (B, T_a, d_a)
        vision (B, T_v, d_v)
        ->     DMDOutput; `output_logit` (B, 1) is the prediction
        """
        origin = self._project(text, audio, vision)
        specific, common = self._decouple(origin)
        recon, specific_recon = self._reconstruct(specific, common)
        common_sim = {m: getattr(self, f"align_c_{m}")(common[m].transpose(1, 2).flatten(1)) for m in STACK_ORDER}
        homo = {m: self._head(f"{{}}_{m}_low", common[m].flatten(1)) for m in STACK_ORDER}

        remembered, c_fusion = self._attend(specific), self._fuse_common(common)
        last_h = {m: remembered[m] for m in STACK_ORDER}
        logits_c, _, _ = self._head("{}_c", c_fusion)
        hetero = {m: self._head(f"{{}}_{m}_high", last_h[m]) for m in STACK_ORDER}
        output_logit = self._fuse(last_h, c_fusion)

        return DMDOutput(
            output_logit, logits_c, origin,
            specific={m: x.transpose(0, 1) for m, x in specific.items()},
            common={m: x.transpose(0, 1) for m, x in common.items()},
            recon={m: x.transpose(1, 2) for m, x in recon.items()},
            specific_recon={m: x.transpose(1, 2) for m, x in specific_recon.items()},
            common_sim=common_sim,
            logits_homo={m: logit for m, (logit, _, _) in homo.items()},
            repr_homo={m: hidden for m, (_, hidden, _) in homo.items()},
            last_h=last_h,
            logits_hetero={m: logit for m, (logit, _, _) in hetero.items()},
            repr_hetero={m: residual for m, (_, _, residual) in hetero.items()},
        )  # fmt: skip

    def predict(self, text: Tensor, audio: Tensor, vision: Tensor) -> Tensor:
        """`output_logit` (B, 1) alone, without the branches that only the objective reads."""
        specific, common = self._decouple(self._project(text, audio, vision))
        return self._fuse(self._attend(specific), self._fuse_common(common))

    def _project(self, text: Tensor, audio: Tensor, vision: Tensor) -> PerModality:
        """Bring every modality to width d.  -> (B, d, T') each"""
        if self.args.use_bert:
            text = self.text_model(text)  # (B, T_l, d_l)
        text = F.dropout(text, self.args.text_dropout, self.training)
        features = {"l": text, "a": audio, "v": vision}
        return {
            m: getattr(self, f"proj_{m}")(features[m].transpose(1, 2))
            if self.projected[m]
            else features[m].transpose(1, 2)
            for m in STACK_ORDER
        }

    def _decouple(self, origin: PerModality) -> tuple[PerModality, PerModality]:
        """Split (B, d, T') into what only the modality says and what all have in common.  -> (B, T', d) each, twice"""
        x = {m: origin[m].transpose(1, 2) for m in STACK_ORDER}
        if not self.args.feature_decoupling:
            return x, x
        return self._per_step("encoder_s_{}", x), self._per_step("encoder_c", x)

    def _reconstruct(self, specific: PerModality, common: PerModality) -> tuple[PerModality, PerModality]:
        """Decode (B, T', d) from both parts, and split its specific part off again.  -> (B, T', d) each, twice"""
        recon = self._per_step("decoder_{}", {m: torch.cat([specific[m], common[m]], dim=2) for m in STACK_ORDER})
        return recon, self._per_step("encoder_s_{}", recon)

    def _per_step(self, name: str, x: PerModality) -> PerModality:
        """The convolutions `name`, whose kernels span one step: linear layers.  (B, T', ·) -> (B, T', d) each"""
        batch, sizes = len(x["l"]), [x[m].size(0) * x[m].size(1) for m in STACK_ORDER]
        weight = torch.stack([getattr(self, name.format(m)).weight.squeeze(-1) for m in STACK_ORDER])
        rows = kernels.grouped_linear(torch.cat([x[m].flatten(0, 1) for m in STACK_ORDER]), weight, None, sizes)
        return {m: part.view(batch, -1, self.d) for m, part in zip(STACK_ORDER, rows.split(sizes), strict=True)}

    def _attend(self, specific: PerModality) -> PerModality:
        """Enrich every modality by the two others, and remember.  (B, T', d) each -> (B, 2d) each"""
        if not self.args.cross_modal_attention:
            return self._remember("trans_{}_mem", {m: torch.cat([specific[m]] * 2, dim=2) for m in ARGUMENT_ORDER})
        # In the order of registration, in which stacking the weights costs nothing (see kernels.stack).
        pairs = [(m, n) for m in ARGUMENT_ORDER for n in self._others(m)]
        encoders = [getattr(self, f"trans_{m}_with_{n}") for m, n in pairs]
        enriched = encode(encoders, [specific[m] for m, _ in pairs], [specific[n] for _, n in pairs])
        by_pair = dict(zip(pairs, enriched, strict=True))
        both = {m: torch.cat([by_pair[m, n] for n in self._others(m)], dim=2) for m in ARGUMENT_ORDER}  # (B, T', 2d)
        return self._remember("trans_{}_mem", both)

    def _fuse_common(self, common: PerModality) -> Tensor:
        """(B, T', d) each -> c_fusion (B, 3d)"""
        last = self._remember("self_attentions_c_{}", common)
        return torch.cat([last[m] for m in STACK_ORDER], dim=1)

    def _remember(self, name: str, sequences: PerModality) -> PerModality:
        """The last step of the self-attention `name` over each sequence (B, T', ·).  -> (B, ·) each"""
        encoders = [getattr(self, name.format(m)) for m in sequences]
        last = encode(encoders, list(sequences.values()), last_step=True)
        return {m: x[:, 0] for m, x in zip(sequences, last, strict=True)}

    def _fuse(self, last_h: PerModality, c_fusion: Tensor) -> Tensor:
        """The prediction from last_h (B, 2d) each and c_fusion (B, 3d).  -> (B, 1)

        `gate` is the paper's fusion (section 3.4), the features weighted by weights learned from them: read as
        sigmoid(W x + b) times x, element by element.
        """
        features = [(f"weight_{m}", last_h[m]) for m in STACK_ORDER] + [("weight_c", c_fusion)]
        fused = torch.cat([torch.sigmoid(getattr(self, name)(x)) for name, x in features], dim=1)  # (B, 9d)
        # Parity: without the gate the weights themselves are fed on, not the features weighted by them.
        if self.args.fusion == "gate":
            fused = fused * torch.cat([x for _, x in features], dim=1)
        return self._head("{}", fused)[0]  # (B, 9d) -> (B, 1)
