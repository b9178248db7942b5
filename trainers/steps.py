"""What a training step leaves, what an epoch of them comes to, and what is wrong with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from models.distillation import EDGE_NAMES
from trainers.distributed import Ranks
from trainers.evaluate import Predictions, joined, name_some
from utils.errors import NumericalError


class Step(NamedTuple):
    """Tensors on the device, without gradients. Reading a value makes the host wait for the device, so that this is
    done for many steps at once. With several ranks everything but the gradient is of this rank's share of the batch,
    and losses and edges are weighted with it."""

    predicted: torch.Tensor  # (B, 1)
    labels: torch.Tensor  # (B, 1)
    rows: torch.Tensor  # (B) of the train split
    names: list[str]  # of the loss terms
    losses: torch.Tensor  # (number of names)
    edges: torch.Tensor  # (12) batch means
    largest_gradient: torch.Tensor  # () of all parameters' accumulated gradients; finite if they are


@dataclass(frozen=True)
class TrainedEpoch:
    """Means over the batches of an epoch, and the predictions made while training."""

    losses: dict[str, float]
    edges: dict[str, float]
    predictions: Predictions

    @classmethod
    def collect(cls, steps: Sequence[Step], ranks: Ranks) -> "TrainedEpoch":
        """Join the steps of an epoch, of all ranks."""
        losses, edges = (
            ranks.sum(torch.stack([getattr(step, what) for step in steps])).double().mean(dim=0).tolist()
            for what in ("losses", "edges")
        )
        by_name = dict(zip(steps[0].names, losses, strict=True))
        edge_names = [f"{graph}_{name}" for graph in ("homo", "hetero") for name in EDGE_NAMES]
        predicted, labels = joined(*zip(*(step[:3] for step in steps), strict=True), ranks)
        predictions = Predictions(predicted.numpy(), labels.numpy(), by_name["task/all"])
        return cls(by_name, dict(zip(edge_names, edges, strict=True)), predictions)


def prefixed(groups: dict[str, dict[str, float]]) -> dict[str, float]:
    """{"valid": {"MAE": 1}} -> {"valid/MAE": 1}"""
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def check_finite(steps: Sequence[Step], ids: Sequence[str], epoch: int, ranks: Ranks) -> None:
    """Raise NumericalError where the losses or gradients of these batches are not finite; ids: of the train split.

    Of several ranks all raise it for the one that has found most.
    """
    if not steps:
        return
    totals = [torch.stack([step.losses[step.names.index("total")], step.largest_gradient]) for step in steps]
    finite = torch.stack(totals).isfinite().all(dim=1).tolist()  # the host waits for the device
    if all(finite):
        return
    step = steps[finite.index(False)]
    terms = [name for name, value in zip(step.names, step.losses.tolist(), strict=True) if not math.isfinite(value)]
    what = f"the loss term {terms[0]} is" if terms else "all losses are finite, but a gradient is"
    bad = ~step.predicted.flatten().isfinite().cpu()
    rows = step.rows.cpu()[bad if bad.any() else slice(None)].tolist()
    message = (
        f"epoch {epoch}: {what} not finite, in the batch with the utterances {name_some([ids[i] for i in rows])}. "
        "No step was taken with it; the checkpoints of the epochs before are good. Lower the learning_rate, or look "
        "for extreme features in these utterances."
    )
    finding = (bool(terms), bool(bad.any()), message)
    gradient_is_not = not step.largest_gradient.isfinite()  # then on every rank, as gradients are summed over them
    raise NumericalError(max(ranks.join(finding))[2] if gradient_is_not else message)
