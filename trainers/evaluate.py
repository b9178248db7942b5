"""Predictions of a model over a split, and their metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from models.dmd import DMD
from trainers import distributed
from utils.device import autocast, choose_tf32
from utils.errors import NumericalError
from utils.log import progress
from utils.metrics import regression_metrics


@dataclass(frozen=True)
class Predictions:
    """Predicted and true sentiment (N,) of a split in file order, and its Loss."""

    predicted: np.ndarray
    labels: np.ndarray
    loss: float

    def metrics(self) -> dict[str, float]:
        """The metrics of utils.metrics, and `Loss`."""
        return regression_metrics(self.predicted, self.labels) | {"Loss": round(self.loss, 4)}


def to_device(batch: dict, device: torch.device) -> tuple[Tensor, ...]:
    """text, audio, vision, labels of a batch, on the device."""
    return tuple(batch[name].to(device, non_blocking=True) for name in ("text", "audio", "vision", "labels"))


def predict(
    model: DMD,
    loader: DataLoader,
    device: torch.device,
    description: str = "evaluate",
    precision: str = "fp32",
) -> Predictions:
    """Run the model over a split in eval mode.

    Parity: Loss is the mean over batches of `batch_size` of their mean absolute error, so that utterances of the
    last, smaller batch weigh more, whatever the loader's batches; with `valid_loss` sample_mean all weigh the same.
    Raises NumericalError where a prediction is not finite.
    """
    model.eval()
    choose_tf32(precision)
    predicted, labels, rows = [], [], []
    with torch.inference_mode():
        for batch in progress(loader, description):
            text, audio, vision, target = to_device(batch, device)
            with autocast(device, precision):
                logit = model(*(distributed.share(x) for x in (text, audio, vision))).output_logit
            predicted.append(distributed.gather(logit.float(), len(target)))
            labels.append(target.clone())  # as what a loader process sends keeps a file open as long as it is used
            rows.append(batch["rows"].clone())
    everything = in_order(predicted, labels, rows)
    check_predictions(everything[0], loader.dataset.ids, description)
    size = model.args.batch_size if model.args.valid_loss == "batch_mean" else len(everything[0])
    pairs = zip(*(x.split(size) for x in everything), strict=True)
    loss = torch.stack([F.l1_loss(*pair) for pair in pairs]).double().mean().item()
    return Predictions(*(x.numpy() for x in everything), loss)


def in_order(predicted: Sequence[Tensor], labels: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Predictions and labels (B, 1) of batches of these rows (B), as (N,) in the order of the rows."""
    predicted, labels, rows = (torch.cat(list(parts)).cpu() for parts in (predicted, labels, rows))
    order = rows.argsort()
    return predicted[order, 0].float(), labels[order, 0]


def check_predictions(predicted: Tensor, ids: Sequence[str], split: str) -> None:
    """Raise NumericalError, with the utterances, where a prediction (N,) of the split is not finite."""
    bad = (~predicted.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NumericalError(
            f"{split}: the predictions for {len(bad)} of {len(ids)} utterances are not finite: "
            f"{', '.join(ids[i] for i in bad[:3])}. The weights or the features of these are out of range: where this "
            "is in training, lower the learning_rate."
        )
