"""The objective: one function for each equation, and their total.

Legend: B batch, T' steps, d width. Equations are the paper's; where the release computes something else, the
release is what is here, and a `Parity:` note says so.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distillation import PAIRS, GraphDistillation
from models.dmd import STACK_ORDER, DMDOutput


def orthogonality_loss(specific: Tensor, common: Tensor) -> Tensor:
    """L_ort of one modality; specific, common (T', B, d) -> scalar.

    Parity: the cosine runs over the *batch* axis, and only its positive part counts.
    """
    dot = (specific * common).sum(dim=1)
    norms = (specific.square().sum(dim=1) + 1e-12) * (common.square().sum(dim=1) + 1e-12)
    return (dot / norms.sqrt()).clamp(min=0).mean()


def margin_loss(vectors: Tensor, labels: Tensor, slope: float) -> Tensor:
    """L_mar; vectors (n, d) with the labels (n,) of their utterances -> scalar.

    Every vector is an anchor. Its positives carry exactly its label (itself excluded), its negatives another one;
    the margin grows with the distance of the labels. Mean over the pairs of an anchor, then over the anchors that
    have both. Zero where no anchor has.

    Parity: no condition on the modality, and margin slope·|Δy| instead of the paper's constant α.
    """
    vectors = vectors / (vectors.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
    cosine = vectors @ vectors.t()  # (n, n)
    distance = (labels[:, None] - labels[None, :]).abs()  # (n, n)
    same_label = labels[:, None] == labels[None, :]
    positive = same_label & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negative = ~same_label
    violation = (slope * distance + cosine)[:, None, :] - cosine[:, :, None]  # (anchor, positive, negative)
    pairs = positive[:, :, None] & negative[:, None, :]
    per_anchor = (violation.clamp(min=0) * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
    return per_anchor.sum() / pairs.any(dim=2).any(dim=1).sum().clamp(min=1)


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
            terms[f"ort/{m}"] = orthogonality_loss(output.specific[m], output.common[m])
        common = torch.cat([output.common_sim[m] for m in STACK_ORDER])  # (3B, d)
        terms["margin"] = self.margin(common, labels.view(-1).repeat(3), self.args.margin_slope)
        terms.edges = {
            "homo": self._distil("homo", stack(output.logits_homo), stack(output.repr_homo), terms),
            "hetero": self._distil("hetero", stack(output.logits_hetero), stack(output.repr_hetero), terms),
        }
        terms["total"] = self._total(terms)
        return terms

    def _distil(self, graph: str, logits: Tensor, reprs: Tensor, terms: LossTerms) -> Tensor:
        """Add the terms of one graph; logits (3, B, 1), reprs (3, B, ·).  -> edges (6, B)"""
        edges = getattr(self, graph)(logits, reprs)
        prior = getattr(self, f"{graph}_prior")
        weights = edges + prior[:, None]  # Parity: the prior is added to the edges, and edges are not detached
        students, teachers = (list(side) for side in zip(*PAIRS, strict=True))
        student_logits, teacher_logits = logits[students].squeeze(-1), logits[teachers].squeeze(-1).detach()  # (6, B)
        student_reprs, teacher_reprs = reprs[students], reprs[teachers].detach()  # (6, B, ·)

        args = self.args
        terms[f"{graph}/reg"] = args.gd_reg_weight * (edges.mean(dim=1) - prior).square().sum()
        terms[f"{graph}/logit"] = (weights * (student_logits - teacher_logits).abs()).mean(dim=1).sum()
        if graph == "homo":
            distances = (student_reprs - teacher_reprs).abs().sum(dim=-1)  # (6, B)
            per_pair = (weights * distances).mean(dim=1)
        else:
            # Parity: this lowers the similarity of the representations, where the paper's L_dtl raises it.
            similarity = F.cosine_similarity(student_reprs, teacher_reprs, dim=-1).clamp(min=0)  # (6, B)
            per_pair = weights.mean(dim=1) * similarity.mean(dim=1)
        terms[f"{graph}/repr"] = args.gd_repr_weight * per_pair.sum()
        return edges

    def _total(self, terms: LossTerms) -> Tensor:
        """L_total = task + λ2 · distillation + λ1 · (recon + cycle + γ · (margin + ort))."""
        args = self.args

        def group(prefix: str) -> Tensor:
            return sum(value for name, value in terms.items() if name.startswith(f"{prefix}/"))

        # Parity: homo/repr is computed and reported, but not trained on.
        distillation = terms["homo/logit"] + terms["homo/reg"] + group("hetero")
        decoupling = group("recon") + group("cycle") + args.gamma * (terms["margin"] + group("ort"))
        return group("task") + args.lambda_distillation * distillation + args.lambda_decoupling * decoupling
