"""Predictions of a model over a split, and their metrics."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from models.dmd import DMD
from utils.metrics import regression_metrics
from utils.runtime import progress


@dataclass(frozen=True)
class Predictions:
    """Predicted and true sentiment (N,) of a split in file order, and the mean of the batches' losses."""

    predicted: np.ndarray
    labels: np.ndarray
    loss: float

    @classmethod
    def collect(cls, predicted: list[torch.Tensor], labels: list[torch.Tensor], loss: float) -> "Predictions":
        """Join the batches (B, 1) of an epoch or a split."""
        return cls(*(torch.cat(batches).squeeze(1).float().cpu().numpy() for batches in (predicted, labels)), loss)

    def metrics(self) -> dict[str, float]:
        """The metrics of utils.metrics, and `Loss`."""
        return regression_metrics(self.predicted, self.labels) | {"Loss": round(self.loss, 4)}


def to_device(batch: dict, device: torch.device) -> tuple[torch.Tensor, ...]:
    """text, audio, vision, labels of a batch, on the device."""
    return tuple(batch[name].to(device, non_blocking=True) for name in ("text", "audio", "vision", "labels"))


@torch.inference_mode()
def predict(model: DMD, loader: DataLoader, device: torch.device, description: str = "evaluate") -> Predictions:
    """Run the model over a split in eval mode.

    Parity: Loss is the mean over batches of their mean absolute error, so that utterances of the last, smaller
    batch weigh more.
    """
    model.eval()
    predicted, labels, losses = [], [], []
    for batch in progress(loader, description):
        text, audio, vision, target = to_device(batch, device)
        output = model(text, audio, vision).output_logit
        predicted.append(output)
        labels.append(target)
        losses.append(F.l1_loss(output, target))
    return Predictions.collect(predicted, labels, torch.stack(losses).double().mean().item())
