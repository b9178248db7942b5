"""What a number in a result table means: metrics of predicted against true sentiment."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

CORE_METRICS = ("Acc_2", "F1_score", "Acc_7", "MAE")  # with Loss: the columns of result/normal/<dataset>.csv
WIDER_METRICS = ("Has0_Acc_2", "Has0_F1_score", "Acc_5", "Acc_3", "Corr")
METRICS = (*CORE_METRICS, *WIDER_METRICS)  # all that regression_metrics gives
LOWER_IS_BETTER = ("Loss", "MAE")
CONSTANT = 1e-6  # least range of predictions; float32 has fewer than that between two of the same utterance


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score predictions (N,) against labels (N,), both in [-3, 3] or beyond.

    `Acc_2`, `F1_score` (weighted): positive against negative, over the utterances whose label is not 0. A
    prediction of exactly 0 counts as negative; NaN where every label is 0 (there the release crashes).
    `Has0_*`: not negative against negative, over all. `Acc_7`, `Acc_5`, `Acc_3`: classes after clipping to ±3, ±2,
    ±1 and rounding half to even. `MAE`, `Corr` (Pearson; NaN where either side is constant but
    for rounding).
    Rounded to 4 digits, as the release does before it compares epochs.
    """
    predictions, labels = np.asarray(predictions, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
    polar = labels != 0
    acc_2, f1 = _binary(predictions[polar] > 0, labels[polar] > 0)
    has0_acc_2, has0_f1 = _binary(predictions >= 0, labels >= 0)
    metrics = {
        "Acc_2": acc_2,
        "F1_score": f1,
        "Acc_7": _class_accuracy(predictions, labels, 3),
        "MAE": np.abs(predictions - labels).mean(),
        "Has0_Acc_2": has0_acc_2,
        "Has0_F1_score": has0_f1,
        "Acc_5": _class_accuracy(predictions, labels, 2),
        "Acc_3": _class_accuracy(predictions, labels, 1),
        "Corr": _correlation(predictions, labels),
    }
    return {name: round(float(value), 4) for name, value in metrics.items()}


def _binary(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    if not len(true):
        return float("nan"), float("nan")
    return accuracy_score(true, predicted), f1_score(true, predicted, average="weighted", zero_division=0)


def _class_accuracy(predictions: np.ndarray, labels: np.ndarray, limit: int) -> float:
    return accuracy_score(sentiment_classes(labels, limit), sentiment_classes(predictions, limit))


def sentiment_classes(values: np.ndarray, limit: int) -> np.ndarray:
    """The classes -limit … limit of sentiments (N,): clipped, and rounded half to even."""
    return np.rint(np.clip(values, -limit, limit)).astype(int)


def _correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    if min(np.ptp(predictions), np.ptp(labels)) < CONSTANT:
        return float("nan")
    return np.corrcoef(predictions, labels)[0, 1]


def format_metrics(metrics: dict[str, float], names: tuple[str, ...]) -> str:
    """'Acc_2: 0.5248 F1_score: 0.4299 …' for a log line."""
    return " ".join(f"{name}: {metrics[name]:.4f}" for name in names)
