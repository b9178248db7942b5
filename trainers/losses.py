"""The objective: one function for each equation, and their total.

Legend: B batch, T' steps, d width. Where paper and release differ, a switch of the config chooses (config/schema.py);
a `Parity:` note marks what the release does, and the docstring how the paper is read where it leaves that open.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distillation import PAIRS, GraphDistillation
from models.dmd import STACK_ORDER, DMDOutput


def orthogonality_loss(specific: Tensor, common: Tensor, kind: str = "batch") -> Tensor:
    """L_ort of one modality, a mean of cosines; specific, common (T', B, d) -> scalar.

    paper: cos(X_com, X_prt), read as the cosine of each step of each utterance, over the width; not clamped, so that
    opposite parts are lower than orthogonal ones.
    feature: the same, but only its positive part counts: orthogonal is the best there is.
    batch: Parity: the cosine runs over the *batch* axis, and only its positive part counts.
    """
    axis = 1 if kind == "batch" else 2
    dot = (specific * common).sum(dim=axis)
    norms = (specific.square().sum(dim=axis) + 1e-12) * (common.square().sum(dim=axis) + 1e-12)
    cosine = dot / norms.sqrt()
    return (cosine if kind == "paper" else cosine.clamp(min=0)).mean()


def cosines(vectors: Tensor) -> Tensor:
    """The cosine of every two of the vectors (n, d), as the margin losses use it.  -> (n, n)"""
    vectors = vectors / (vectors.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
    return vectors @ vectors.t()


def margin_loss(vectors: Tensor, labels: Tensor, slope: float) -> Tensor:
    """L_mar; vectors (n, d) with the labels (n,) of their utterances -> scalar.

    Every vector is an anchor. Its positives carry exactly its label (itself excluded), its negatives another one;
    the margin grows with the distance of the labels. Mean over the pairs of an anchor, then over the anchors that
    have both. Zero where no anchor has.

    Parity: no condition on the modality, and margin slope·|Δy| instead of the paper's constant α.
    """
    cosine = cosines(vectors)  # (n, n)
    distance = (labels[:, None] - labels[None, :]).abs()  # (n, n)
    same_label = labels[:, None] == labels[None, :]
    positive = same_label & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negative = ~same_label
    violation = (slope * distance + cosine)[:, None, :] - cosine[:, :, None]  # (anchor, positive, negative)
    pairs = positive[:, :, None] & negative[:, None, :]
    per_anchor = (violation.clamp(min=0) * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
    return per_anchor.sum() / pairs.any(dim=2).any(dim=1).sum().clamp(min=1)


def triplet_margin_loss(vectors: Tensor, labels: Tensor, modalities: Tensor, alpha: float) -> Tensor:
    """L_mar of the paper; vectors (n, d) with the labels (n,) of their utterances and modalities (n,) -> scalar.

    Over the triplets (i, j, k) with m[i] ≠ m[j], m[i] = m[k], c[i] = c[j], c[i] ≠ c[k], of modality m and class c:
    the mean of max(0, α - cos(i, j) + cos(i, k)). Zero where there is no triplet.

    Read so where the paper leaves it open: the classes of a regression are its labels, equal or not, as in the
    release; all triplets weigh the same; an utterance's own other modalities are among its positives.
    """
    cosine = cosines(vectors)  # (n, n)
    same_modality = modalities[:, None] == modalities[None, :]
    same_label = labels[:, None] == labels[None, :]
    positive, negative = ~same_modality & same_label, same_modality & ~same_label  # (n, n)
    triplets = positive[:, :, None] & negative[:, None, :]  # (i, j, k)
    violation = alpha - cosine[:, :, None] + cosine[:, None, :]
    return (violation.clamp(min=0) * triplets).sum() / triplets.sum().clamp(min=1)


def graph_prior(pattern: list[float], temperature: float) -> Tensor:
    """The edge weights that a graph is pulled to: softmax(pattern / temperature).  -> (6,)"""
    return (torch.tensor(pattern, dtype=torch.float32) / temperature).softmax(dim=0)


def stack(per_modality: dict[str, Tensor]) -> Tensor:
    """(B, ·) for each modality -> (3, B, ·) in the order l, v, a."""
    return torch.stack([per_modality[m] for m in STACK_ORDER])


class LossTerms(dict):
    """Scalar tensors by name; `edges` holds the edge weights (6, B) of both graphs."""

    edges: dict[str, Tensor]


class Objective(nn.Module):
    """The training objective of DMD, with the two distillation graphs that it learns.

    output (DMDOutput of B utterances), labels (B, 1) -> LossTerms: every term, and `total`
    """

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.repr_kinds = {"homo": args.homo_repr, "hetero": args.hetero_repr}
        d = args.dst_feature_dim_nheads[0]
        self.homo = GraphDistillation(d, args.homo_gd_size, args.gd_edge_temperature)
        self.hetero = GraphDistillation(2 * d, args.hetero_gd_size, args.gd_edge_temperature)
        for graph, pattern in (("homo", args.homo_gd_prior), ("hetero", args.hetero_gd_prior)):
            prior = graph_prior(pattern, args.gd_prior_temperature)
            self.register_buffer(f"{graph}_prior", prior, persistent=False)

    margin = staticmethod(margin_loss)

    def forward(self, output: DMDOutput, labels: Tensor) -> LossTerms:
        terms = LossTerms()
        terms["task/all"] = F.l1_loss(output.output_logit, labels)
        terms["task/c"] = F.l1_loss(output.logits_c, labels)
        for m in STACK_ORDER:
            terms[f"task/{m}_homo"] = F.l1_loss(output.logits_homo[m], labels)
            terms[f"task/{m}_hetero"] = F.l1_loss(output.logits_hetero[m], labels)
            terms[f"recon/{m}"] = F.mse_loss(output.recon[m], output.origin[m])
            terms[f"cycle/{m}"] = F.mse_loss(output.specific_recon[m].permute(2, 0, 1), output.specific[m])
            terms[f"ort/{m}"] = orthogonality_loss(output.specific[m], output.common[m], self.args.ort)
        terms["margin"] = self._margin(stack(output.common_sim), labels.view(-1))
        terms.edges = {
            "homo": self._distil("homo", stack(output.logits_homo), stack(output.repr_homo), terms),
            "hetero": self._distil("hetero", stack(output.logits_hetero), stack(output.repr_hetero), terms),
        }
        terms["total"] = self._total(terms)
        return terms

    def _margin(self, common: Tensor, labels: Tensor) -> Tensor:
        """L_mar of common (3, B, d) and labels (B,) -> scalar"""
        vectors, args = common.flatten(0, 1), self.args  # (3B, d)
        if args.margin == "release":
            return self.margin(vectors, labels.repeat(3), args.margin_slope)
        modalities = torch.arange(3, device=labels.device).repeat_interleave(len(labels))
        return triplet_margin_loss(vectors, labels.repeat(3), modalities, args.margin_alpha)

    def _distil(self, graph: str, logits: Tensor, reprs: Tensor, terms: LossTerms) -> Tensor:
        """Add the terms of one graph; logits (3, B, 1), reprs (3, B, ·).  -> edges (6, B)

        The paper's L_dtl = ‖W ⊙ E‖₁ is the term `logit`, a mean over the batch: E are the distances of the logits, W
        the edges. Without the prior W is free but for its softmax, which is kept: W = 0 would be the best W. Teachers
        are detached and edges are not, as in the release.
        """
        args, edges, prior = self.args, getattr(self, graph)(logits, reprs), getattr(self, f"{graph}_prior")
        # Parity: a fixed prior is added to the edges, and the mean edges are pulled to it.
        has_prior = args.gd_prior == "release"
        weights = edges + prior[:, None] if has_prior else edges
        students, teachers = (list(side) for side in zip(*PAIRS, strict=True))
        student_logits, teacher_logits = logits[students].squeeze(-1), logits[teachers].squeeze(-1).detach()  # (6, B)
        student_reprs, teacher_reprs = reprs[students], reprs[teachers].detach()  # (6, B, ·)

        pull = (edges.mean(dim=1) - prior).square().sum() if has_prior else edges.new_zeros(())
        terms[f"{graph}/reg"] = args.gd_reg_weight * pull
        terms[f"{graph}/logit"] = (weights * (student_logits - teacher_logits).abs()).mean(dim=1).sum()
        if self.repr_kinds[graph] == "cosine_apart":
            # Parity: this lowers the similarity of the representations, where distilling them would raise it.
            similarity = F.cosine_similarity(student_reprs, teacher_reprs, dim=-1).clamp(min=0)  # (6, B)
            per_pair = weights.mean(dim=1) * similarity.mean(dim=1)
        else:
            distances = (student_reprs - teacher_reprs).abs().sum(dim=-1)  # (6, B)
            per_pair = (weights * distances).mean(dim=1)
        terms[f"{graph}/repr"] = args.gd_repr_weight * per_pair.sum()
        return edges

    def _total(self, terms: LossTerms) -> Tensor:
        """L_total = task + λ2 · (homo + hetero) + λ1 · (recon + cycle + γ · (margin + ort)), each with a weight of its
        own that is 1 unless an ablation says otherwise."""
        args = self.args

        def group(prefix: str) -> Tensor:
            return sum(value for name, value in terms.items() if name.startswith(f"{prefix}/"))

        def distillation(graph: str) -> Tensor:
            # Parity: the release computes and reports homo/repr, but does not train on it ("off").
            trained = ("reg", "logit") if self.repr_kinds[graph] == "off" else ("reg", "logit", "repr")
            return sum(terms[f"{graph}/{name}"] for name in trained)

        distilled = args.homo_weight * distillation("homo") + args.hetero_weight * distillation("hetero")
        apart = args.margin_weight * terms["margin"] + args.ort_weight * group("ort")
        decoupling = args.recon_weight * group("recon") + args.cycle_weight * group("cycle") + args.gamma * apart
        return group("task") + args.lambda_distillation * distilled + args.lambda_decoupling * decoupling
