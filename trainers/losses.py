"""The objective: one function for each equation, and their total.

Legend: B batch, T' steps, d width. Where paper and release differ, a switch of the config chooses (config/schema.py);
a `Parity:` note marks what the release does, and the docstring how the paper is read where it leaves that open.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distillation import GraphDistillation, students, teachers
from models.dmd import STACK_ORDER, DMDOutput


def task_loss(predicted: Tensor, labels: Tensor) -> Tensor:
    """L_task of one output (Eq. 11 sums them): mean |y - ŷ|; predicted, labels (B, 1) -> scalar"""
    return F.l1_loss(predicted, labels)


def reconstruction_loss(recon: Tensor, origin: Tensor) -> Tensor:
    """L_rec of one modality (Eq. 2): what both parts decode to, against the projected features.

    (B, T', d) each -> scalar
    """
    return F.mse_loss(recon, origin)


def cycle_loss(specific_recon: Tensor, specific: Tensor) -> Tensor:
    """L_cyc of one modality (Eq. 3): the specific part of the reconstruction, against the specific part.

    (B, T', d) each -> scalar
    """
    return F.mse_loss(specific_recon, specific)


def margin_loss(vectors: Tensor, labels: Tensor, slope: float) -> Tensor:
    """L_mar (Eq. 4) of the release; vectors (n, d) with the labels (n,) of their utterances -> scalar.

    Every vector is an anchor. Its positives carry exactly its label (itself excluded), its negatives another one;
    the margin grows with the distance of the labels. Mean over the pairs of an anchor, then over the anchors that
    have both. Zero where no anchor has.

    Parity: no condition on the modality, and margin slope·|Δy| instead of the paper's constant α; labels are compared
    by exact equality.
    """
    distance = (labels[:, None] - labels[None, :]).abs()  # (n, n)
    same_label = labels[:, None] == labels[None, :]
    positive = same_label & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    cosine = cosines(vectors)
    pairs = positive.sum(dim=1) * (~same_label).sum(dim=1)  # of each anchor
    per_anchor = hinges(slope * distance + cosine, cosine, positive, ~same_label) / pairs.clamp(min=1)
    return per_anchor.sum() / (pairs > 0).sum().clamp(min=1)


def triplet_margin_loss(vectors: Tensor, labels: Tensor, modalities: Tensor, alpha: float) -> Tensor:
    """L_mar (Eq. 4) of the paper; vectors (n, d) with labels (n,) of their utterances and modalities (n,) -> scalar.

    Over the triplets (i, j, k) with m[i] ≠ m[j], m[i] = m[k], c[i] = c[j], c[i] ≠ c[k], of modality m and class c:
    the mean of max(0, α - cos(i, j) + cos(i, k)). Zero where there is no triplet.

    Read so where the paper leaves it open: the classes of a regression are its labels, equal or not, as in the
    release; all triplets weigh the same; an utterance's own other modalities are among its positives.
    """
    same_modality = modalities[:, None] == modalities[None, :]
    same_label = labels[:, None] == labels[None, :]
    positive, negative = ~same_modality & same_label, same_modality & ~same_label  # (n, n)
    cosine = cosines(vectors)
    triplets = (positive.sum(dim=1) * negative.sum(dim=1)).sum()
    return hinges(alpha + cosine, cosine, positive, negative).sum() / triplets.clamp(min=1)


def cosines(vectors: Tensor) -> Tensor:
    """The cosine of every two of the vectors (n, d), as the margin losses use it.  -> (n, n)"""
    vectors = vectors / (vectors.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
    return vectors @ vectors.t()


def hinges(raised: Tensor, cosine: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """For each anchor (a row) the sum of max(0, r - c) over its pairs of a negative and a positive, where r is the
    value in `raised` (margin plus cosine) of the negative and c the cosine of the positive.

    (n, n) each -> (n,). No tensor holds all triplets: of one negative, the k positives with c < r count, and their sum
    is k·r minus the sum of the k least c.
    """
    least, _ = cosine.masked_fill(~positive, torch.inf).sort(dim=1)
    k = torch.searchsorted(least.detach(), raised.detach().contiguous())  # (n, n)
    # The sums of the 0, 1, … n least, (n, n + 1): by a product, as CUDA has no deterministic cumsum; in float64, as the
    # difference below is small.
    below = torch.ones(len(least), len(least) + 1, dtype=torch.double, device=least.device).triu(1)
    sums = least.masked_fill(least.isinf(), 0).double() @ below
    return (k * raised - sums.gather(1, k)).masked_fill(~negative, 0).sum(dim=1).to(raised.dtype)


def orthogonality_loss(specific: Tensor, common: Tensor, kind: str = "batch") -> Tensor:
    """L_ort of one modality (Eq. 5), a mean of cosines; specific, common (B, T', d) -> scalar.

    paper: cos(X_com, X_prt), read as the cosine of each step of each utterance, over the width; not clamped, so that
    opposite parts are lower than orthogonal ones.
    feature: the same, but only its positive part counts: orthogonal is the best there is.
    batch: Parity: the cosine runs over the *batch* axis, and only its positive part counts.
    """
    axis = 0 if kind == "batch" else 2
    dot = (specific * common).sum(dim=axis)
    norms = (specific.square().sum(dim=axis) + 1e-12) * (common.square().sum(dim=axis) + 1e-12)
    cosine = dot / norms.sqrt()
    return (cosine if kind == "paper" else cosine.clamp(min=0)).mean()


def decoupling_loss(rec: Tensor, cyc: Tensor, mar: Tensor, ort: Tensor, gamma: float) -> Tensor:
    """L_dec = L_rec + L_cyc + γ (L_mar + L_ort) (Eq. 6)."""
    return rec + cyc + gamma * (mar + ort)


def distillation_loss(weights: Tensor, distances: Tensor) -> Tensor:
    """L_dtl = ‖W ⊙ E‖₁ of one graph (Eq. 9), the sum of Eq. 7, Σ w·ε, over the students; a mean over the batch.

    weights W and distances E >= 0 between student and teacher, (6, B) each in the order of PAIRS -> scalar
    """
    return (weights * distances).mean(dim=1).sum()


def total_loss(task: Tensor, dec: Tensor, dtl: Tensor, lambda_1: float, lambda_2: float) -> Tensor:
    """L_total = L_task + λ1 L_dec + λ2 L_dtl (Eq. 11)."""
    return task + lambda_1 * dec + lambda_2 * dtl


def stack(per_modality: dict[str, Tensor]) -> Tensor:
    """(B, ·) for each modality -> (3, B, ·) in the order l, v, a."""
    return torch.stack([per_modality[m] for m in STACK_ORDER])


class LossTerms(dict):
    """Scalar tensors by name; `edges` holds the edge weights (6, B) of both graphs."""

    edges: dict[str, Tensor]

    def sum(self, prefix: str) -> Tensor:
        """Of the terms whose names begin so."""
        return torch.stack([value for name, value in self.items() if name.startswith(prefix)]).sum()


class Objective(nn.Module):
    """The training objective of DMD, with the two distillation graphs that it learns.

    output (DMDOutput of B utterances), labels (B, 1) -> LossTerms: every term, and `total`
    """

    def __init__(self, args):
        super().__init__()
        self.args = args
        d = args.dst_feature_dim_nheads[0]
        self.homo = GraphDistillation(d, args.homo_gd_size, args.gd_edge_temperature)
        self.hetero = GraphDistillation(2 * d, args.hetero_gd_size, args.gd_edge_temperature)
        for graph, pattern in (("homo", args.homo_gd_prior), ("hetero", args.hetero_gd_prior)):
            prior = (torch.tensor(pattern, dtype=torch.float32) / args.gd_prior_temperature).softmax(dim=0)
            self.register_buffer(f"{graph}_prior", prior, persistent=False)  # the edges that a graph is pulled to

    def forward(self, output: DMDOutput, labels: Tensor) -> LossTerms:
        args, terms = self.args, LossTerms()
        terms["task/all"] = task_loss(output.output_logit, labels)
        terms["task/c"] = task_loss(output.logits_c, labels)
        for m in STACK_ORDER:
            terms[f"task/{m}_homo"] = task_loss(output.logits_homo[m], labels)
            terms[f"task/{m}_hetero"] = task_loss(output.logits_hetero[m], labels)
            terms[f"recon/{m}"] = reconstruction_loss(output.recon[m], output.origin[m])
            terms[f"cycle/{m}"] = cycle_loss(output.specific_recon[m], output.specific[m])
            terms[f"ort/{m}"] = orthogonality_loss(output.specific[m], output.common[m], args.ort)
        terms["margin"] = self._margin(stack(output.common_sim), labels.view(-1))
        terms.edges = {
            "homo": self._distil("homo", stack(output.logits_homo), stack(output.repr_homo), terms),
            "hetero": self._distil("hetero", stack(output.logits_hetero), stack(output.repr_hetero), terms),
        }

        # Each term has a weight of its own that is 1 unless an ablation says otherwise.
        rec, cyc = args.recon_weight * terms.sum("recon/"), args.cycle_weight * terms.sum("cycle/")
        mar, ort = args.margin_weight * terms["margin"], args.ort_weight * terms.sum("ort/")
        task, dec = terms.sum("task/"), decoupling_loss(rec, cyc, mar, ort, args.gamma)
        dtl = args.homo_weight * self._trained("homo", terms) + args.hetero_weight * self._trained("hetero", terms)
        terms["total"] = total_loss(task, dec, dtl, args.lambda_decoupling, args.lambda_distillation)
        return terms

    def _margin(self, common: Tensor, labels: Tensor) -> Tensor:
        """L_mar of common (3, B, d) and labels (B,) -> scalar"""
        vectors, args = common.flatten(0, 1), self.args  # (3B, d)
        if args.margin == "release":
            return margin_loss(vectors, labels.repeat(3), args.margin_slope)
        modalities = torch.arange(3, device=labels.device).repeat_interleave(len(labels))
        return triplet_margin_loss(vectors, labels.repeat(3), modalities, args.margin_alpha)

    def _distil(self, graph: str, logits: Tensor, reprs: Tensor, terms: LossTerms) -> Tensor:
        """Add the terms of one graph; logits (3, B, 1), reprs (3, B, ·).  -> edges (6, B)

        The paper's L_dtl (Eq. 9) is the term `logit`: E are the distances of the logits, W the edges (Eq. 8). Without
        the prior W is free but for its softmax, which is kept: W = 0 would be the best W. Teachers are detached and
        edges are not, as in the release.
        """
        args, edges, prior = self.args, getattr(self, graph)(logits, reprs), getattr(self, f"{graph}_prior")
        # Parity: a fixed prior is added to the edges, and the mean edges are pulled to it.
        has_prior = args.gd_prior == "release"
        weights = edges + prior[:, None] if has_prior else edges
        logit_distances = (students(logits) - teachers(logits.detach())).abs().squeeze(-1)  # (6, B)
        student_reprs, teacher_reprs = students(reprs), teachers(reprs.detach())  # (6, B, ·)

        pull = (edges.mean(dim=1) - prior).square().sum() if has_prior else edges.new_zeros(())
        terms[f"{graph}/reg"] = args.gd_reg_weight * pull
        terms[f"{graph}/logit"] = distillation_loss(weights, logit_distances)
        if self.args[f"{graph}_repr"] == "cosine_apart":
            # Parity: this lowers the similarity of the representations, where distilling them would raise it.
            similarity = F.cosine_similarity(student_reprs, teacher_reprs, dim=-1).clamp(min=0)  # (6, B)
            of_reprs = (weights.mean(dim=1) * similarity.mean(dim=1)).sum()
        else:
            of_reprs = distillation_loss(weights, (student_reprs - teacher_reprs).abs().sum(dim=-1))
        terms[f"{graph}/repr"] = args.gd_repr_weight * of_reprs
        return edges

    def _trained(self, graph: str, terms: LossTerms) -> Tensor:
        """The terms of one graph that are trained on."""
        distilled = terms[f"{graph}/logit"] + terms[f"{graph}/reg"]
        # Parity: the release computes and reports homo/repr, but does not train on it ("off").
        return distilled if self.args[f"{graph}_repr"] == "off" else distilled + terms[f"{graph}/repr"]
