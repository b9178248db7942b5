"""How sure the metrics of test are: over several seeds, and of one run against another.

Utterances are resampled with replacement (the bootstrap), all predictions for one utterance together. The intervals
are plain percentiles of the resampled metrics: BCa divides zero by zero for two runs that predict the same, or a metric
that is 1, and with the hundreds of utterances of a test split both are nearly the same.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, regression_metrics, sentiment_classes

LEVEL = 0.05  # of the tests; intervals hold the rest
RESAMPLES = 10_000
CELLS = 2**20  # resamples times utterances that are in memory at a time


def over_seeds(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Several seeds of one configuration, on the same utterances.

    predictions (S, N), labels (N): in [-3, 3] or beyond, N at least 2; names (S): of the seeds

    -> a column for each of CORE_METRICS; rows: the seeds by name, their `mean` and `std` (ddof 0), `low` and `high` of
    the mean's 95 % interval, the seeds being given. NaN where a metric, or one of its resamples, is not defined.
    """
    scored = [regression_metrics(predicted, labels) for predicted in predictions]
    per_seed = pd.DataFrame(scored, index=list(names))[list(CORE_METRICS)]
    low, high = _interval(predictions, labels, lambda metrics: metrics.mean(axis=0), resamples)
    summary = {"mean": per_seed.mean(skipna=False), "std": per_seed.std(ddof=0, skipna=False), "low": low, "high": high}
    return pd.concat([per_seed, pd.DataFrame(summary, index=per_seed.columns).T])


def compare(a: np.ndarray, b: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Two runs A and B on the same utterances: predictions a, b (N), labels (N), N at least 2.

    -> a row for each of CORE_METRICS with the columns `A` and `B`; `difference`, which is A - B, and its 95 % interval
    `low`, `high`; for Acc_2 and Acc_7 `only_A` and `only_B`, the utterances that only A or only B has right, with `p`,
    that of McNemar's exact test; `better`: A, B or neither, by p or else by the interval. NaN where not defined.
    """
    predictions = np.stack([a, b])
    score_a, score_b = _metrics(_contributions(predictions, labels).sum(axis=1))
    low, high = _interval(predictions, labels, lambda metrics: metrics[0] - metrics[1], resamples)
    columns = {"A": score_a, "B": score_b, "difference": score_a - score_b, "low": low, "high": high}
    table = pd.DataFrame(columns, index=list(CORE_METRICS))
    right = {
        "Acc_2": ((predictions > 0) == (labels > 0))[:, labels != 0],
        "Acc_7": sentiment_classes(predictions, 3) == sentiment_classes(labels, 3),
    }
    tests = {metric: mcnemar(*rows) for metric, rows in right.items() if rows.size}
    tested = pd.DataFrame(tests, index=["only_A", "only_B", "p"]).T
    table = table.join(tested.astype({"only_A": "Int64", "only_B": "Int64"}))
    differs = (table["p"] < LEVEL).where(table["p"].notna(), (table["low"] > 0) | (table["high"] < 0))
    b_is_better = (table["difference"] > 0) == table.index.isin(LOWER_IS_BETTER)
    return table.assign(better=np.where(differs, np.where(b_is_better, "B", "A"), "neither"))


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> tuple[int, int, float]:
    """Exact McNemar test of which utterances (N) A and B have right.

    -> (how many only A, how many only B, p): if neither were better, each of these would be A's or B's by a fair coin.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    return only_a, only_b, float(p)


def _interval(
    predictions: np.ndarray, labels: np.ndarray, combine: Callable[[np.ndarray], np.ndarray], resamples: int
) -> np.ndarray:
    """Low and high (2, M) of what `combine` makes of the metrics (S, R, M) of S runs; the same at each call.

    A metric of a resample is made of sums over utterances, which one matrix product gives for many resamples.
    """
    contributions, size = _contributions(predictions, labels), len(labels)
    generator, batch, values = np.random.default_rng(0), max(1, CELLS // size), []
    for start in range(0, resamples, batch):
        drawn = generator.integers(0, size, (min(batch, resamples - start), size))
        offsets = size * np.arange(len(drawn))[:, None]
        times = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape)
        values.append(combine(_metrics(times.astype(float) @ contributions)))
    return np.quantile(np.concatenate(values), [LEVEL / 2, 1 - LEVEL / 2], axis=0)


def _contributions(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each utterance adds to the sums that `_metrics` needs.  (S, N), (N) -> (S, N, 7)"""
    predictions, labels = np.broadcast_arrays(np.asarray(predictions, float), np.asarray(labels, float))
    polar, positive = labels != 0, labels > 0
    called_positive = (predictions > 0) & polar
    right_class = sentiment_classes(predictions, 3) == sentiment_classes(labels, 3)
    counts = (np.ones_like(polar), polar, positive, called_positive, called_positive & positive, right_class)
    return np.stack([*counts, np.abs(predictions - labels)], axis=-1)


def _metrics(sums: np.ndarray) -> np.ndarray:
    """CORE_METRICS of each run and resample from its sums of contributions.  (..., 7) -> (..., M)

    The same as utils.metrics has, without rounding; written so that it takes all resamples at once.
    """
    count, polar, positive, called_positive, both_positive, right_class, error = np.moveaxis(sums, -1, 0)
    negative, called_negative = polar - positive, polar - called_positive
    both_negative = negative - called_positive + both_positive

    right = both_positive + both_negative
    # F1 of a class, weighted by its support; both are 0 for a class that nobody names.
    f1_sum = positive * 2 * both_positive / np.maximum(positive + called_positive, 1)
    f1_sum += negative * 2 * both_negative / np.maximum(negative + called_negative, 1)
    with np.errstate(invalid="ignore"):  # NaN where every label is 0
        return np.stack([right / polar, f1_sum / polar, right_class / count, error / count], axis=-1)
