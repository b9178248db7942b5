"""How sure the metrics of test are: over several seeds, and of one run against another.

Utterances are resampled with replacement (the bootstrap), all predictions for one utterance together. The intervals
are plain percentiles of the resampled metrics. They need no formula for a metric that is no mean, such as Acc_2 whose
utterances are counted anew in each resample, and they hold where BCa divides zero by zero: for two runs that predict
the same, or a metric that is 1. With the hundreds of utterances of a test split both come to nearly the same.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

from utils.metrics import CORE_METRICS, regression_metrics, sentiment_classes

CONFIDENCE = 0.95
RESAMPLES = 10_000
CELLS = 2**20  # resamples times utterances that are in memory at a time
STATISTICS = ("mean", "std", "low", "high")


def over_seeds(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Several seeds of one configuration, on the same utterances.

    predictions (S, N), labels (N): in [-3, 3] or beyond, N at least 2; names (S): of the seeds

    -> a column for each of CORE_METRICS, and as rows: the seeds by name, rounded to 4 digits as all metrics are; their
    `mean` and `std` (ddof 0, as in result/normal/<dataset>.csv); `low` and `high`, the 95 % interval of the mean over
    utterances, the seeds being given. NaN where a metric, or one of its resamples, is not defined.
    """
    per_seed = pd.DataFrame([regression_metrics(predicted, labels) for predicted in predictions], index=list(names))
    per_seed = per_seed[list(CORE_METRICS)]
    low, high = _interval(predictions, labels, lambda metrics: metrics.mean(axis=-1), resamples)
    values = (per_seed.mean(skipna=False), per_seed.std(ddof=0, skipna=False), low, high)
    summary = pd.DataFrame([np.asarray(value) for value in values], index=list(STATISTICS), columns=per_seed.columns)
    return pd.concat([per_seed, summary])


def compare(a: np.ndarray, b: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Two runs A and B on the same utterances: predictions a, b (N), labels (N), N at least 2.

    -> a row for each of CORE_METRICS with the columns `A` and `B`; `difference`, which is A - B, and its 95 % interval
    `low`, `high`; and for Acc_2 and Acc_7 `only_A` and `only_B`, the utterances that only A or only B has right, with
    `p`, that of McNemar's test. NaN where something is not defined.
    """
    predictions = np.stack([a, b])
    both = _metrics(_contributions(predictions, labels).sum(axis=0))
    low, high = _interval(predictions, labels, lambda metrics: metrics[..., 0] - metrics[..., 1], resamples)
    columns = {"A": both[:, 0], "B": both[:, 1], "difference": both[:, 0] - both[:, 1], "low": low, "high": high}
    table = pd.DataFrame(columns, index=list(CORE_METRICS))
    polar = labels != 0
    right = {
        "Acc_2": ((predictions > 0) == (labels > 0))[:, polar],
        "Acc_7": sentiment_classes(predictions, 3) == sentiment_classes(labels, 3),
    }
    tests = {metric: mcnemar(*rows) for metric, rows in right.items() if rows.size}
    tested = pd.DataFrame(tests, index=["only_A", "only_B", "p"]).T
    return table.join(tested.astype({"only_A": "Int64", "only_B": "Int64"}))


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> tuple[int, int, float]:
    """Exact McNemar test of which utterances (N) A and B have right.

    -> (how many only A, how many only B, p): were neither better, each of these would be A's or B's by a fair coin.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    discordant = only_a + only_b
    return only_a, only_b, float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0


def _interval(
    predictions: np.ndarray, labels: np.ndarray, combine: Callable[[np.ndarray], np.ndarray], resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high (M) of what `combine` makes of the metrics (M, ..., S) of S runs; the same at each call.

    What is resampled is the index of the utterances, as scipy's paired=True does it. A metric of a resample is then
    made of sums over utterances, which one matrix product gives for many resamples and all runs.
    """
    contributions = _contributions(predictions, labels)
    size = len(labels)

    def statistic(indices: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = indices.reshape(-1, size) + size * np.arange(indices.size // size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=indices.size).reshape(indices.shape)
        return combine(_metrics(times.astype(float) @ contributions))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # NaN says it
        result = bootstrap(
            (np.arange(size),), statistic, n_resamples=resamples, batch=max(1, CELLS // size), vectorized=True,
            confidence_level=CONFIDENCE, method="percentile", random_state=np.random.default_rng(0),
        )  # fmt: skip
    return result.confidence_interval.low, result.confidence_interval.high


def _contributions(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each utterance adds to the sums that `_metrics` needs.  (S, N), (N) -> (N, 3 + 4 S)"""
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    polar, positive = labels != 0, labels > 0
    called_positive = (predictions > 0) & polar
    right_class = sentiment_classes(predictions, 3) == sentiment_classes(labels, 3)
    error = np.abs(predictions - labels)
    common = [np.ones_like(labels), polar, positive]
    return np.stack([*common, *called_positive, *(called_positive & positive), *right_class, *error], axis=1)


def _metrics(sums: np.ndarray) -> np.ndarray:
    """CORE_METRICS of each run from the sums of its contributions.  (..., 3 + 4 S) -> (M, ..., S)

    The same as utils.metrics has, without rounding; written so that it takes all resamples at once.
    """
    count, polar, positive = (sums[..., i, None] for i in range(3))
    called_positive, both_positive, right_class, error = np.split(sums[..., 3:], 4, axis=-1)
    negative, called_negative = polar - positive, polar - called_positive
    both_negative = negative - called_positive + both_positive

    def f1(hits: np.ndarray, support: np.ndarray, called: np.ndarray) -> np.ndarray:
        return 2 * hits / np.maximum(support + called, 1)  # a class that nobody names has hits 0, and weight 0

    with np.errstate(invalid="ignore"):  # NaN where every label is 0
        acc_2 = (both_positive + both_negative) / polar
        f1_score = (
            positive * f1(both_positive, positive, called_positive)
            + negative * f1(both_negative, negative, called_negative)
        ) / polar
    return np.stack([acc_2, f1_score, right_class / count, error / count])
