"""How sure the metrics of test are: over several seeds, and of one run against another.

Utterances are resampled with replacement (the bootstrap), all predictions for one utterance together. The intervals
are plain percentiles of the resampled metrics: BCa divides zero by zero for two runs that predict the same, or a metric
that is 1, and with the hundreds of utterances of a test split both are nearly the same.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, regression_metrics, sentiment_classes

LEVEL = 0.05  # of the tests; intervals hold the rest
RESAMPLES = 10_000
BATCH = 250  # resamples that are in memory at a time


def over_seeds(predictions: np.ndarray, labels: np.ndarray, names: list, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Several seeds of one configuration, on the same utterances.

    predictions (S, N), labels (N): in [-3, 3] or beyond, N at least 2; names (S): of the seeds

    -> a column for each of CORE_METRICS; rows: the seeds by name, their `mean` and `std` (ddof 0), `low` and `high` of
    the mean's 95 % interval, the seeds being given. NaN where a metric, or one of its resamples, is not defined.
    """
    scored = [regression_metrics(predicted, labels) for predicted in predictions]
    per_seed = pd.DataFrame(scored, index=names)[list(CORE_METRICS)]
    low, high = _interval(_contributions(predictions, labels), lambda metrics: metrics.mean(axis=0), resamples)
    summary = {"mean": per_seed.mean(skipna=False), "std": per_seed.std(ddof=0, skipna=False), "low": low, "high": high}
    return pd.concat([per_seed, pd.DataFrame(summary, index=per_seed.columns).T])


def compare(a: np.ndarray, b: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Two runs A and B on the same utterances: predictions a, b (N), labels (N), N at least 2.

    -> a row for each of CORE_METRICS with the columns `A` and `B`; `difference`, which is A - B, and its 95 % interval
    `low`, `high`; for Acc_2 and Acc_7 `only_A` and `only_B`, the utterances that only A or only B has right, with `p`,
    that of McNemar's exact test; `better`: A, B or neither, by p or else by the interval. NaN where not defined.
    """
    contributions = _contributions(np.stack([a, b]), labels)
    score_a, score_b = _metrics(contributions.sum(axis=1))
    low, high = _interval(contributions, lambda metrics: metrics[0] - metrics[1], resamples)
    columns = {"A": score_a, "B": score_b, "difference": score_a - score_b, "low": low, "high": high}
    right = {"Acc_2": contributions[..., :2].any(axis=-1), "Acc_7": contributions[..., 4] > 0}
    tests = {metric: mcnemar(*rows) for metric, rows in right.items()}
    tested = pd.DataFrame(tests, index=["only_A", "only_B", "p"], dtype=object).T
    table = pd.DataFrame(columns, index=list(CORE_METRICS)).join(tested)
    differs = (table["p"] < LEVEL).where(table["p"].notna(), (table["low"] > 0) | (table["high"] < 0))
    b_is_better = (table["difference"] > 0) == table.index.isin(LOWER_IS_BETTER)
    return table.assign(better=np.where(differs, np.where(b_is_better, "B", "A"), "neither"))


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> tuple[int, int, float]:
    """Exact McNemar test of which utterances (N) A and B have right.

    -> (how many only A, how many only B, p): if neither were better, each of these would be A's or B's by a fair coin.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    throws = max(1, only_a + only_b)  # p is 1 of a single throw, as it is of none
    return only_a, only_b, float(binomtest(only_a, throws, 0.5).pvalue)


def _interval(contributions: np.ndarray, combine: Callable[[np.ndarray], np.ndarray], resamples: int) -> np.ndarray:
    """Low and high (2, M) of what `combine` makes of the metrics (S, R, M) of S runs in R resamples; the same at each
    call. A metric of a resample is made of sums over utterances, which one matrix product gives for many resamples."""
    generator, size = np.random.default_rng(0), contributions.shape[1]
    sums = []
    for _ in range(0, resamples, BATCH):
        drawn = generator.integers(0, size, (BATCH, size))
        times = np.apply_along_axis(np.bincount, 1, drawn, minlength=size)
        sums.append(times.astype(float) @ contributions)
    metrics = _metrics(np.concatenate(sums, axis=1)[:, :resamples])
    return np.quantile(combine(metrics), [LEVEL / 2, 1 - LEVEL / 2], axis=0)


def _contributions(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each utterance adds to the sums that `_metrics` needs.  (S, N), (N) -> (S, N, 7)"""
    predictions, labels = np.broadcast_arrays(np.asarray(predictions, float), np.asarray(labels, float))
    called_positive, positive, negative = predictions > 0, labels > 0, labels < 0
    right_class = sentiment_classes(predictions, 3) == sentiment_classes(labels, 3)
    fields = [called_positive & positive, ~called_positive & negative, positive, negative, right_class]
    return np.stack([*fields, np.abs(predictions - labels), np.ones_like(labels)], axis=-1)


def _metrics(sums: np.ndarray) -> np.ndarray:
    """CORE_METRICS of each run and resample from its sums of contributions, without rounding.  (..., 7) -> (..., M)"""
    right_positive, right_negative, positive, negative, right_class, error, count = np.moveaxis(sums, -1, 0)
    right, polar = right_positive + right_negative, positive + negative
    wrong = polar - right
    # F1 of a class, weighted by its support; 0 for a class that nobody names.
    f1_sum = positive * 2 * right_positive / np.maximum(2 * right_positive + wrong, 1)
    f1_sum += negative * 2 * right_negative / np.maximum(2 * right_negative + wrong, 1)
    with np.errstate(invalid="ignore"):  # NaN where every label is 0
        return np.stack([right / polar, f1_sum / polar, right_class / count, error / count], axis=-1)
