"""Run a model over a split: predictions, their metrics, and the outputs of each part."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.dmd import ARGUMENT_ORDER, DMD, STACK_ORDER, DMDOutput
from trainers import distributed
from utils.device import autocast, choose_tf32
from utils.errors import NumericalError
from utils.log import logger, progress
from utils.metrics import CORE_METRICS, format_metrics, regression_metrics

# The model's predictions of the sentiment, by their published names: the final one, that of the
# common features, and one for each node of the two graphs.
HEADS = (
    "output_logit",
    "logits_c",
    "logits_l_homo",
    "logits_v_homo",
    "logits_a_homo",
    "logits_l_hetero",
    "logits_v_hetero",
    "logits_a_hetero",
)


@dataclass(frozen=True)
class Predictions:
    """Predicted and true sentiment of a split.

    Attributes:
        predicted: (N,), in file order.
        labels: (N,); NaN if the file has no labels.
        loss: The `Loss` of the split, see `predict`.
    """

    predicted: np.ndarray
    labels: np.ndarray
    loss: float

    def metrics(self) -> dict[str, float]:
        """Compute the metrics of utils.metrics, and `Loss`."""
        metrics = regression_metrics(self.predicted, self.labels)
        metrics["Loss"] = round(self.loss, 4)
        return metrics


def to_device(batch: dict[str, Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Move text, audio, vision and labels of a batch to the device."""
    names = ("text", "audio", "vision", "labels")
    return tuple(batch[name].to(device, non_blocking=True) for name in names)


def predict(
    model: DMD,
    loader: DataLoader,
    device: torch.device,
    description: str = "evaluate",
    precision: str = "fp32",
) -> Predictions:
    """Run the model over a split in eval mode.

    Parity: `Loss` is the mean over batches of `batch_size` of their mean absolute error, so that
    utterances of the last, smaller batch weigh more; the batches of the loader do not matter. With
    `valid_loss` sample_mean all utterances weigh the same.

    Args:
        model: On the device.
        loader: Loader of the split.
        device: Device to compute on.
        description: Name of the split, for the progress bar and error messages.
        precision: fp32, tf32 or bf16.

    Returns:
        Predictions in file order.

    Raises:
        NumericalError: A prediction is not finite.
    """
    model.eval()
    choose_tf32(precision)
    predicted, labels, rows = [], [], []
    with torch.inference_mode():
        for batch in progress(loader, description):
            text, audio, vision, target = to_device(batch, device)
            with autocast(device, precision):
                shards = [distributed.shard(x) for x in (text, audio, vision)]
                logit = model(*shards).output_logit
            predicted.append(distributed.all_gather(logit.float(), len(target)))
            # Copies, because a tensor of a loader process keeps a file open while it is in use.
            labels.append(target.clone())
            rows.append(batch["rows"].clone())
    predicted, labels = in_file_order(predicted, labels, rows)
    check_finite(predicted, loader.dataset.ids, description)
    loss = evaluation_loss(predicted, labels, model.args)
    return Predictions(predicted.numpy(), labels.numpy(), loss)


def evaluation_loss(predicted: Tensor, labels: Tensor, args) -> float:
    """Compute the `Loss` (see `predict`) of predictions and labels (N,), in file order."""
    batch_size = args.batch_size if args.valid_loss == "batch_mean" else len(labels)
    errors = (predicted - labels).abs()
    losses = [batch.mean() for batch in errors.split(batch_size)]
    return torch.stack(losses).double().mean().item()


def in_file_order(
    predicted: Sequence[Tensor], labels: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Join the predictions and labels (B, 1) of batches of rows (B,).  -> (N,) each, on the CPU"""
    order = torch.cat(list(rows)).cpu().argsort()
    predicted = torch.cat(list(predicted)).cpu().float().squeeze(1)
    labels = torch.cat(list(labels)).cpu().squeeze(1)
    return predicted[order], labels[order]


def check_finite(predicted: Tensor, ids: Sequence[str], split: str) -> None:
    """Raise NumericalError, with the utterances, if a prediction (N,) is not finite."""
    bad = (~predicted.isfinite()).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(ids[i] for i in bad[:3])
        raise NumericalError(
            f"{split}: the predictions for {len(bad)} of {len(ids)} utterances are not finite: "
            f"{names}. Their features, or the weights, are out of range; during training, lower "
            "the learning_rate."
        )


def log_metrics(split: str, model_name: str, metrics: dict[str, float]) -> None:
    """Log the VAL or TEST line of the release, and a line with further metrics."""
    name = {"train": "TRAIN", "valid": "VAL", "test": "TEST"}[split]
    logger.info(f"{name}-({model_name}) >> {format_metrics(metrics, (*CORE_METRICS, 'Loss'))}")
    logger.info(f"{name}: {format_metrics(metrics, ('Corr', 'Acc_5', 'Has0_Acc_2'))}")


@dataclass(frozen=True)
class Inspection:
    """The outputs of each part of a model for the N utterances of a split, in file order.

    Attributes:
        labels: (N,)
        heads: (N,) predicted sentiment of each of HEADS, by name.
        specific: (N, d) mean over the steps, by modality letter.
        common: (N, d) mean over the steps, by modality letter.
    """

    labels: np.ndarray
    heads: dict[str, np.ndarray]
    specific: dict[str, np.ndarray]
    common: dict[str, np.ndarray]

    def head_metrics(self) -> dict[str, dict[str, float]]:
        """Compute the metrics of utils.metrics for each head."""
        return {
            name: regression_metrics(predicted, self.labels)
            for name, predicted in self.heads.items()
        }


@torch.inference_mode()
def inspect(
    model: DMD,
    loader: DataLoader,
    device: torch.device,
    precision: str = "fp32",
    modalities: str = "lva",
) -> Inspection:
    """Run the whole model over a split in eval mode.

    Args:
        model, loader, device, precision: As for `predict`.
        modalities: Letters of the modalities to use; those not listed are replaced by zeros.

    Raises:
        NumericalError: A prediction is not finite.
    """
    model.eval()
    choose_tf32(precision)
    labels, outputs = [], []
    with keep_modalities(model, modalities):
        for batch in loader:
            *inputs, target = to_device(batch, device)
            with autocast(device, precision):
                output = model(*inputs)
            outputs.append(_summarize(output))
            labels.append(target.squeeze(1))
    joined = {}
    for name in outputs[0]:
        joined[name] = torch.cat([output[name] for output in outputs]).cpu()
    check_finite(joined["output_logit"], loader.dataset.ids, "test")
    return Inspection(
        labels=torch.cat(labels).cpu().numpy(),
        heads={name: joined[name].numpy() for name in HEADS},
        specific={m: joined[f"specific_{m}"].numpy() for m in STACK_ORDER},
        common={m: joined[f"common_{m}"].numpy() for m in STACK_ORDER},
    )


def _summarize(output: DMDOutput) -> dict[str, Tensor]:
    """The heads (B,), and the decoupled features (B, d) as means over the steps."""
    summary = {}
    published = output.flat()
    for name in HEADS:
        summary[name] = published[name].float().squeeze(1)
    for m in STACK_ORDER:
        summary[f"specific_{m}"] = output.specific[m].float().mean(dim=1)
        summary[f"common_{m}"] = output.common[m].float().mean(dim=1)
    return summary


@contextlib.contextmanager
def keep_modalities(model: DMD, modalities: str) -> Iterator[None]:
    """Replace the modalities that are not listed by zeros, within the context.

    For text, both the input and the output of the text encoder are replaced: token 0 is a word.

    Args:
        model: The model; it is unchanged if all modalities are listed.
        modalities: Letters of the modalities to use, such as "va".
    """
    missing = set(ARGUMENT_ORDER) - set(modalities)
    hooks = []

    def replace_inputs(module: DMD, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        replaced = []
        for m, x in zip(ARGUMENT_ORDER, inputs, strict=True):
            replaced.append(torch.zeros_like(x) if m in missing else x)
        return tuple(replaced)

    def replace_features(module: nn.Module, tokens: tuple, features: Tensor) -> Tensor:
        return torch.zeros_like(features)

    if missing:
        hooks.append(model.register_forward_pre_hook(replace_inputs))
    if "l" in missing and model.args.use_bert:
        hooks.append(model.text_model.register_forward_hook(replace_features))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
