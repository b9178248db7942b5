"""The metrics of the result tables: predicted against true sentiment."""

import numpy as np
from sklearn.metrics import f1_score

# With Loss, the columns of result/normal/<dataset>.csv.
CORE_METRICS = ("Acc_2", "F1_score", "Acc_7", "MAE")
WIDER_METRICS = ("Has0_Acc_2", "Has0_F1_score", "Acc_5", "Acc_3", "Corr")
METRICS = (*CORE_METRICS, *WIDER_METRICS)  # all metrics of regression_metrics
LOWER_IS_BETTER = ("Loss", "MAE")
# Values that span less than this count as constant: they differ only by rounding in float32.
CONSTANT = 1e-6


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score predictions (N,) against labels (N,), both in [-3, 3] or beyond.

    `Acc_2`, `F1_score` (weighted): positive against negative, over the utterances whose label is
    not 0. A prediction of exactly 0 counts as negative; NaN if every label is 0 (the release
    crashes then). `Has0_*`: non-negative against negative, over all utterances. `Acc_7`, `Acc_5`,
    `Acc_3`: classes after clipping to ±3, ±2, ±1 and rounding half to even. `MAE`, `Corr`
    (Pearson; NaN if either side is constant up to rounding). Rounded to 4 digits, as the release
    does before it compares epochs.
    """
    predictions, labels = (
        np.asarray(values, np.float64).ravel() for values in (predictions, labels)
    )
    varying = min(np.ptp(predictions), np.ptp(labels)) >= CONSTANT
    metrics = {"MAE": np.abs(predictions - labels).mean()}
    metrics["Corr"] = np.corrcoef(predictions, labels)[0, 1] if varying else np.nan
    polar = labels != 0
    metrics["Acc_2"], metrics["F1_score"] = _binary(predictions[polar] > 0, labels[polar] > 0)
    metrics["Has0_Acc_2"], metrics["Has0_F1_score"] = _binary(predictions >= 0, labels >= 0)
    for limit in (1, 2, 3):
        right = sentiment_classes(predictions, limit) == sentiment_classes(labels, limit)
        metrics[f"Acc_{2 * limit + 1}"] = right.mean()
    return {name: round(float(metrics[name]), 4) for name in METRICS}


def _binary(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    if not len(true):
        return np.nan, np.nan
    return (predicted == true).mean(), f1_score(
        true, predicted, average="weighted", zero_division=0
    )


def sentiment_classes(values: np.ndarray, limit: int) -> np.ndarray:
    """The classes -limit … limit of sentiments (N,): clipped, and rounded half to even."""
    return np.rint(np.clip(values, -limit, limit)).astype(int)


def format_metrics(metrics: dict[str, float], names: tuple[str, ...]) -> str:
    """'Acc_2: 0.5248 F1_score: 0.4299 …' for a log line."""
    return " ".join(f"{name}: {metrics[name]:.4f}" for name in names)
