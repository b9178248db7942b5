"""The graph-distillation unit: a graph over three modalities whose edges weigh who teaches whom.

Legend: B batch, d width of a representation, g `gd_size`. Modalities are stacked l, v, a.
"""

import torch
from torch import Tensor, nn

# (student, teacher) as positions in the stack l, v, a, and the edge's name: teacher 2 student.
# The student is outermost, as the release counts its edges.
PAIRS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
EDGE_NAMES = ("V2L", "A2L", "L2V", "A2V", "L2A", "V2A")


def students(x: Tensor) -> Tensor:
    """Select the elements of the students of PAIRS.  (3, ·) -> (6, ·)"""
    parts = x.unbind()
    return torch.stack([parts[student] for student, _ in PAIRS])


def teachers(x: Tensor) -> Tensor:
    """Select the elements of the teachers of PAIRS.  (3, ·) -> (6, ·)"""
    parts = x.unbind()
    return torch.stack([parts[teacher] for _, teacher in PAIRS])


class GraphDistillation(nn.Module):
    """Edge weights W of one graph (Eq. 8; paper, section 3.2).

    Args:
        repr_dim: Width d of a representation.
        gd_size: Width g of each half of a node: its projected logit and representation.
        temperature: Divides the edge scores before their softmax.
    """

    def __init__(self, repr_dim: int, gd_size: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.W_logit = nn.Linear(1, gd_size)
        self.W_repr = nn.Linear(repr_dim, gd_size)
        self.W_edge = nn.Linear(4 * gd_size, 1)

    def forward(self, logits: Tensor, reprs: Tensor) -> Tensor:
        """Compute the edges.

        Args:
            logits: (3, B, 1).
            reprs: (3, B, d).

        Returns:
            (6, B), a softmax over the pairs, in the order of PAIRS.
        """
        nodes = torch.cat([self.W_logit(logits), self.W_repr(reprs)], dim=-1)  # (3, B, 2g)
        pairs = torch.cat([students(nodes), teachers(nodes)], dim=-1)  # (6, B, 4g)
        scores = self.W_edge(pairs).squeeze(-1)  # (6, B)
        return (scores / self.temperature).softmax(dim=0)
