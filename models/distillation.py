"""The graph-distillation unit: a graph over the three modalities whose edges say who teaches whom.

Legend: B batch, d width of a modality's representation, g `gd_size`. Modalities are stacked l, v,
    a.
"""

import torch
from torch import Tensor, nn

# (student, teacher) as positions in the stack l, v, a: the student outermost, as the release counts
# its edges.
PAIRS = tuple(
    (student, teacher) for student in range(3) for teacher in range(3) if student != teacher
)
EDGE_NAMES = tuple(
    f"{'lva'[teacher].upper()}2{'lva'[student].upper()}" for student, teacher in PAIRS
)


def students(x: Tensor) -> Tensor:
    """What the students of PAIRS have.  (3, ·) -> (6, ·)"""
    return _stack(x, [student for student, _ in PAIRS])


def teachers(x: Tensor) -> Tensor:
    """What the teachers of PAIRS have.  (3, ·) -> (6, ·)"""
    return _stack(x, [teacher for _, teacher in PAIRS])


def _stack(x: Tensor, which: list[int]) -> Tensor:
    parts = x.unbind()
    return torch.stack([parts[i] for i in which])


class GraphDistillation(nn.Module):
    """Edge weights W of one graph (Eq. 8; paper, section 3.2; `low` = homogeneous and `high` =
    heterogeneous graph).

    logits (3, B, 1), reprs (3, B, d) -> edges (6, B), a softmax over the pairs, in the order of
    PAIRS
    """

    def __init__(self, repr_dim: int, gd_size: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.W_logit = nn.Linear(1, gd_size)
        self.W_repr = nn.Linear(repr_dim, gd_size)
        self.W_edge = nn.Linear(4 * gd_size, 1)

    def forward(self, logits: Tensor, reprs: Tensor) -> Tensor:
        nodes = torch.cat([self.W_logit(logits), self.W_repr(reprs)], dim=-1)  # (3, B, 2g)
        pairs = torch.cat([students(nodes), teachers(nodes)], dim=-1)  # (6, B, 4g)
        return (self.W_edge(pairs).squeeze(-1) / self.temperature).softmax(dim=0)  # (6, B)
