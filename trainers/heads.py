"""What the parts of a trained model say about a split: the opinion of every head, and the decoupled features."""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch.utils.data import DataLoader

from models.dmd import ARGUMENT_ORDER, DMD, STACK_ORDER
from trainers.evaluate import check_predictions, to_device
from utils.device import autocast, choose_tf32
from utils.metrics import regression_metrics

HEADS = (  # under their published names: the prediction, the common features' head, a head for each node of a graph
    "output_logit",
    "logits_c",
    *(f"logits_{m}_{graph}" for graph in ("homo", "hetero") for m in STACK_ORDER),
)


@dataclass(frozen=True)
class Inspection:
    """A split of N utterances as the model sees it, in file order; features by modality letter."""

    labels: np.ndarray  # (N,)
    heads: dict[str, np.ndarray]  # (N,) predicted sentiment of each of HEADS
    specific: dict[str, np.ndarray]  # (N, d) mean over the steps
    common: dict[str, np.ndarray]  # (N, d) mean over the steps

    def head_metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of utils.metrics for each head by itself."""
        return {name: regression_metrics(predicted, self.labels) for name, predicted in self.heads.items()}


@torch.inference_mode()
def inspect(
    model: DMD, loader: DataLoader, device: torch.device, precision: str = "fp32", kept: str = "lva"
) -> Inspection:
    """Run the whole model over a split in eval mode; of modalities that are not kept, all features are 0.

    Raises NumericalError where a prediction is not finite.
    """
    model.eval()
    choose_tf32(precision)
    hook, batches = contextlib.nullcontext(), []
    if model.args.use_bert and "l" not in kept:  # tokens of 0 are words too: what BERT makes of them becomes 0
        hook = model.text_model.register_forward_hook(lambda module, tokens, features: torch.zeros_like(features))
    with hook:
        for batch in loader:
            *inputs, labels = to_device(batch, device)
            inputs = [x if m in kept else torch.zeros_like(x) for m, x in zip(ARGUMENT_ORDER, inputs, strict=True)]
            with autocast(device, precision):
                output = model(*inputs).map(torch.Tensor.float)
            heads = output.flat()
            part = {"labels": labels.squeeze(1)} | {name: heads[name].squeeze(1) for name in HEADS}
            for m in STACK_ORDER:
                part["specific", m], part["common", m] = output.specific[m].mean(dim=1), output.common[m].mean(dim=1)
            batches.append(part)
    joined = {name: torch.cat([part[name] for part in batches]) for name in batches[0]}
    check_predictions(joined["output_logit"], loader.dataset.ids, "test")
    joined = {name: x.cpu().numpy() for name, x in joined.items()}
    features = ({m: joined[kind, m] for m in STACK_ORDER} for kind in ("specific", "common"))
    return Inspection(joined["labels"], {name: joined[name] for name in HEADS}, *features)


def embed(inspection: Inspection, at_most: int = 300) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """t-SNE of specific and common features, all six in one plane.

    Of more than `at_most` utterances, as many are taken at equal distances: t-SNE's time grows faster than their
    number, and more points hide each other. The same features give the same plane.
    -> points (n, 2) by ("specific" or "common", modality letter), labels (n,)
    """
    total = len(inspection.labels)
    rows = np.linspace(0, total - 1, min(total, at_most)).round().astype(int)
    parts = [(kind, m) for kind in ("specific", "common") for m in STACK_ORDER]
    features = np.concatenate([getattr(inspection, kind)[m][rows] for kind, m in parts])  # (6n, d)
    plane = np.zeros((len(features), 2))
    if features.std(axis=0).max() > 0:  # t-SNE starts from principal components, which a single point does not have
        perplexity = min(30, (len(features) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    return dict(zip(parts, np.split(plane, 6), strict=True)), inspection.labels[rows]
