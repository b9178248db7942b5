"""The objective: one function for each equation, and their total. Every loss is a scalar.

If paper and release differ, a setting selects one of them (config/schema.py). A `Parity:` note
marks the behavior of the release; docstrings explain interpretations of the paper.

Legend: B batch, T' steps, d width. `homo` is HomoGD, the graph over the common parts (heads `low`);
`hetero` is HeteroGD, over the specific parts (heads `high`). Terms of a graph: `logit`, distance of
the logits, L_dtl; `reg`, regularizer of the edges; `repr`, distance of the representations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.distillation import GraphDistillation, students, teachers
from models.dmd import STACK_ORDER, DMDOutput

TRIPLETS_AT_ONCE = 2**24  # 64 MiB for each tensor of triplets


def task_loss(predicted: Tensor, labels: Tensor) -> Tensor:
    """L_task of one output (Eq. 11 sums them): mean |y - ŷ|, both (B, 1)."""
    return F.l1_loss(predicted, labels)


def reconstruction_loss(recon: Tensor, origin: Tensor) -> Tensor:
    """L_rec of one modality (Eq. 2): of decoded and projected features, both (B, T', d)."""
    return F.mse_loss(recon, origin)


def cycle_loss(specific_recon: Tensor, specific: Tensor) -> Tensor:
    """L_cyc of one modality (Eq. 3): of the specific part, decoded and original (B, T', d)."""
    return F.mse_loss(specific_recon, specific)


def margin_loss(vectors: Tensor, labels: Tensor, slope: float) -> Tensor:
    """L_mar (Eq. 4) of the release.

    Every vector is an anchor. Its positives are the other vectors of exactly its label, its
    negatives those of other labels. Mean over the pairs of an anchor, then over the anchors that
    have both.

    Parity: no condition on the modality, and margin slope·|Δy| instead of the paper's constant α.

    Args:
        vectors: Common features of all modalities (n, d).
        labels: Labels (n,) of their utterances.
        slope: Margin per unit of label distance.

    Returns:
        Zero if no anchor has both.
    """
    same_label = labels[:, None] == labels[None, :]  # (n, n)
    positive = same_label & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negative = ~same_label
    margin = slope * (labels[:, None] - labels[None, :]).abs()
    cosine = cosines(vectors)
    pairs = positive.sum(dim=1) * negative.sum(dim=1)  # of each anchor
    per_anchor = sum_of_hinges(cosine, margin, positive, negative) / pairs.clamp(min=1)
    anchors = (pairs > 0).sum()
    return per_anchor.sum() / anchors.clamp(min=1)


def triplet_margin_loss(
    vectors: Tensor, labels: Tensor, modalities: Tensor, alpha: float
) -> Tensor:
    """L_mar (Eq. 4) of the paper.

    The mean of the hinges over triplets of an anchor, a positive of another modality and the same
    class, and a negative of the same modality and another class. As the paper does not define it,
    the classes of a regression are its labels; all triplets weigh the same; an utterance's own
    other modalities are among its positives.

    Args:
        vectors: As for `margin_loss`.
        labels: As for `margin_loss`.
        modalities: Number of each vector's modality (n,).
        alpha: The constant margin α.

    Returns:
        Zero if there are no triplets.
    """
    same_modality = modalities[:, None] == modalities[None, :]  # (n, n)
    same_label = labels[:, None] == labels[None, :]
    positive = ~same_modality & same_label
    negative = same_modality & ~same_label
    cosine = cosines(vectors)
    triplets = (positive.sum(dim=1) * negative.sum(dim=1)).sum()
    return sum_of_hinges(cosine, alpha, positive, negative).sum() / triplets.clamp(min=1)


def cosines(vectors: Tensor) -> Tensor:
    """Compute the cosine of every two vectors, as the margin losses use it.  (n, d) -> (n, n)"""
    squares = vectors.square().sum(dim=1, keepdim=True)
    vectors = vectors / (squares + 1e-8).sqrt()
    return vectors @ vectors.t()


def sum_of_hinges(
    cosine: Tensor, margin: Tensor | float, positive: Tensor, negative: Tensor
) -> Tensor:
    """Σ_jk max(0, margin - cos(i, j) + cos(i, k)) of anchors i, positives j, negatives k (Eq. 4).

    Args:
        cosine: Cosine of every two vectors (n, n). Here and below, rows are anchors.
        margin: One for all, or that of anchor i and negative k (n, n).
        positive: Whether j is a positive of i (n, n).
        negative: Whether k is a negative of i (n, n).

    Returns:
        The sum for each anchor (n,).
    """
    # The infinities make the hinges of all other pairs zero.
    to_negatives = (margin + cosine).masked_fill(~negative, -torch.inf)
    to_positives = cosine.masked_fill(~positive, torch.inf)
    chunk_size = max(1, TRIPLETS_AT_ONCE // len(cosine) ** 2)  # anchors
    if chunk_size >= len(cosine):
        return _sum_over_pairs(to_positives, to_negatives)
    sums = []
    chunks = zip(to_positives.split(chunk_size), to_negatives.split(chunk_size), strict=True)
    for chunk in chunks:
        # Computed again in the backward pass, so that only one chunk of triplets is held.
        sums.append(checkpoint(_sum_over_pairs, *chunk, use_reentrant=False))
    return torch.cat(sums)


def _sum_over_pairs(to_positives: Tensor, to_negatives: Tensor) -> Tensor:
    """Σ_jk max(0, to_negatives[i, k] - to_positives[i, j])"""
    differences = to_negatives[:, None, :] - to_positives[:, :, None]  # [i, j, k]
    return differences.relu().sum(dim=(1, 2))


def orthogonality_loss(specific: Tensor, common: Tensor, kind: str = "batch") -> Tensor:
    """L_ort of one modality (Eq. 5), a mean of cosines.

    Args:
        specific: X_prt (B, T', d).
        common: X_com (B, T', d).
        kind: "paper": cos(X_com, X_prt), read as the cosine of each step of each utterance, over
            the width; not clamped, so that opposite parts are lower than orthogonal ones.
            "feature": the same, but only its positive part counts: orthogonal is the best value.
            "batch": Parity: the cosine is over the *batch* axis, and only its positive part counts.
    """
    axis = 0 if kind == "batch" else 2
    dot = (specific * common).sum(dim=axis)
    specific_square = specific.square().sum(dim=axis) + 1e-12
    common_square = common.square().sum(dim=axis) + 1e-12
    cosine = dot / (specific_square * common_square).sqrt()
    if kind != "paper":
        cosine = cosine.clamp(min=0)
    return cosine.mean()


def decoupling_loss(rec: Tensor, cyc: Tensor, mar: Tensor, ort: Tensor, gamma: float) -> Tensor:
    """L_dec = L_rec + L_cyc + γ (L_mar + L_ort) (Eq. 6)."""
    return rec + cyc + gamma * (mar + ort)


def distillation_loss(weights: Tensor, distances: Tensor) -> Tensor:
    """L_dtl = ‖W ⊙ E‖₁ of one graph (Eq. 9): the sum of Eq. 7, Σ w·ε, over the students.

    Args:
        weights: Edge weights W (6, B) in the order of PAIRS.
        distances: E (6, B), not negative, between student and teacher.

    Returns:
        The mean over the batch.
    """
    return (weights * distances).mean(dim=1).sum()


def total_loss(
    task: Tensor, dec: Tensor, dtl: Tensor, lambda_decoupling: float, lambda_distillation: float
) -> Tensor:
    """L_total = L_task + λ1 L_dec + λ2 L_dtl (Eq. 11)."""
    return task + lambda_decoupling * dec + lambda_distillation * dtl


def stack(per_modality: dict[str, Tensor]) -> Tensor:
    """Stack the tensors of the modalities in the order l, v, a.  (B, ·) each -> (3, B, ·)"""
    return torch.stack([per_modality[m] for m in STACK_ORDER])


class LossTerms(dict):
    """Loss terms by name, and the edge weights (6, B) of both graphs.

    The terms are unweighted, except that `homo/reg` and `hetero/reg` include `gd_reg_weight`, and
    `homo/repr` and `hetero/repr` include `gd_repr_weight`, as in the release.
    """

    edges: dict[str, Tensor]


def sum_terms(terms: LossTerms, prefix: str) -> Tensor:
    """Sum all terms whose names begin with the prefix."""
    return torch.stack([value for name, value in terms.items() if name.startswith(prefix)]).sum()


class Objective(nn.Module):
    """The training objective of DMD, with the two distillation graphs that it learns.

    Args:
        args: Settings (config/schema.py).
    """

    def __init__(self, args):
        super().__init__()
        self.args = args
        d = args.dst_feature_dim_nheads[0]
        self.homo = GraphDistillation(d, args.homo_gd_size, args.gd_edge_temperature)
        self.hetero = GraphDistillation(2 * d, args.hetero_gd_size, args.gd_edge_temperature)
        for graph in ("homo", "hetero"):
            pattern = torch.tensor(args[f"{graph}_gd_prior"], dtype=torch.float32)
            prior = (pattern / args.gd_prior_temperature).softmax(dim=0)
            # The prior, to which the mean edges are pulled.
            self.register_buffer(f"{graph}_prior", prior, persistent=False)

    def forward(self, output: DMDOutput, labels: Tensor) -> LossTerms:
        """Compute every term and their total.

        Args:
            output: The model's output for B utterances.
            labels: Their sentiment (B, 1).

        Returns:
            The terms by name, `total` last, and the edges.
        """
        args, terms = self.args, LossTerms()
        terms["task/all"] = task_loss(output.output_logit, labels)
        terms["task/c"] = task_loss(output.logits_c, labels)
        for m in STACK_ORDER:
            specific, common = output.specific[m], output.common[m]
            terms[f"task/{m}_homo"] = task_loss(output.logits_homo[m], labels)
            terms[f"task/{m}_hetero"] = task_loss(output.logits_hetero[m], labels)
            terms[f"recon/{m}"] = reconstruction_loss(output.recon[m], output.origin[m])
            terms[f"cycle/{m}"] = cycle_loss(output.specific_recon[m], specific)
            terms[f"ort/{m}"] = orthogonality_loss(specific, common, args.ort)
        terms["margin"] = self._margin(stack(output.common_sim), labels.view(-1))
        terms.edges = {}
        for graph in ("homo", "hetero"):
            terms.edges[graph] = self._distill(graph, output, terms)

        # Each part has a weight that is 1 unless an ablation changes it.
        rec = args.recon_weight * sum_terms(terms, "recon/")
        cyc = args.cycle_weight * sum_terms(terms, "cycle/")
        mar = args.margin_weight * terms["margin"]
        ort = args.ort_weight * sum_terms(terms, "ort/")
        dec = decoupling_loss(rec, cyc, mar, ort, args.gamma)
        homo = args.homo_weight * self._trained_terms("homo", terms)
        hetero = args.hetero_weight * self._trained_terms("hetero", terms)
        task = sum_terms(terms, "task/")  # every term of that prefix is trained on
        total = total_loss(
            task, dec, homo + hetero, args.lambda_decoupling, args.lambda_distillation
        )
        # Add a loss with its own weight here: store its term, and add the weighted term to total.
        terms["total"] = total
        return terms

    def _margin(self, common: Tensor, labels: Tensor) -> Tensor:
        """L_mar of common (3, B, d) and labels (B,) -> scalar"""
        args = self.args
        vectors = common.flatten(0, 1)  # (3B, d)
        if args.margin == "release":
            return margin_loss(vectors, labels.repeat(3), args.margin_slope)
        modalities = torch.arange(3, device=labels.device).repeat_interleave(len(labels))
        return triplet_margin_loss(vectors, labels.repeat(3), modalities, args.margin_alpha)

    def _distill(self, graph: str, output: DMDOutput, terms: LossTerms) -> Tensor:
        """Add the terms of a graph to `terms`, and return its edges (6, B).

        The paper's L_dtl (Eq. 9) is the term `logit`: E are the distances of the logits, W the
        edges (Eq. 8), whose softmax is kept, because the best W would be 0 without it. Teachers are
        detached and edges are not, as in the release.
        """
        args = self.args
        logits = stack(getattr(output, f"logits_{graph}"))  # (3, B, 1)
        reprs = stack(getattr(output, f"repr_{graph}"))  # (3, B, ·)
        edges = getattr(self, graph)(logits, reprs)
        weights = edges
        reg = edges.new_zeros(())
        if args.gd_prior == "release":
            # Parity: a fixed prior is added to the edges, and the mean edges are pulled to it.
            prior = getattr(self, f"{graph}_prior")
            weights = edges + prior[:, None]
            reg = (edges.mean(dim=1) - prior).square().sum()
        logit_distances = (students(logits) - teachers(logits.detach())).abs().squeeze(-1)  # (6, B)
        kind = args[f"{graph}_repr"]
        repr_loss = _representation_loss(weights, students(reprs), teachers(reprs.detach()), kind)

        terms[f"{graph}/reg"] = args.gd_reg_weight * reg
        terms[f"{graph}/logit"] = distillation_loss(weights, logit_distances)
        terms[f"{graph}/repr"] = args.gd_repr_weight * repr_loss
        return edges

    def _trained_terms(self, graph: str, terms: LossTerms) -> Tensor:
        """The sum of the terms of one graph that are trained on."""
        distilled = terms[f"{graph}/logit"] + terms[f"{graph}/reg"]
        # Parity: the release computes and reports homo/repr, but does not train on it ("off").
        if self.args[f"{graph}_repr"] == "off":
            return distilled
        return distilled + terms[f"{graph}/repr"]


def _representation_loss(weights: Tensor, student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """The distance or similarity of representations (6, B, ·), weighted by the edges (6, B)."""
    if kind == "min_cosine":
        # Parity: this lowers the similarity of the representations; distilling would raise it.
        similarity = F.cosine_similarity(student, teacher, dim=-1).clamp(min=0)  # (6, B)
        return (weights.mean(dim=1) * similarity.mean(dim=1)).sum()
    return distillation_loss(weights, (student - teacher).abs().sum(dim=-1))
