"""Intervals and tests against numbers worked out by hand and on simulated runs."""

import numpy as np
import pytest

from analysis.statistics import compare, mcnemar, over_seeds
from utils.metrics import CORE_METRICS, regression_metrics

#                    utterance: a     b     c    d     e    f
LABELS = np.array([2.0, -1.0, 0.0, 1.0, -2.4, 0.6])
FIRST = np.array([1.6, -0.6, 0.4, -0.2, -2.0, 1.0])  # signs: d wrong; classes 2 -1 0 0 -2 1: d wrong
SECOND = np.array([0.9, 0.3, 0.2, 0.8, -2.6, 0.1])  # signs: b wrong; classes 1 0 0 1 -3 0: a, b, e, f wrong


def simulated(rng: np.random.Generator, utterances: int, seeds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (S, N) and labels (N): runs that share a part of their error, as real ones do."""
    labels = rng.integers(-9, 10, utterances) / 3
    noise = rng.normal(0, 0.6, utterances) + rng.normal(0, 0.5, (seeds, utterances))
    return labels + noise, labels


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    # Both tails of a fair coin: of six throws, none or one is heads; and so on.
    [(5, 1, 2 * (1 + 6) / 2**6), (0, 8, 2 / 2**8), (4, 2, 2 * (1 + 6 + 15) / 2**6), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_by_hand(only_a, only_b, p):
    counts = [only_a, only_b, 7, 2]  # of which 7 are right in both, 2 wrong in both
    right_a, right_b = np.repeat([[True, False, True, False], [False, True, True, False]], counts, axis=1)
    assert mcnemar(right_a, right_b) == (only_a, only_b, pytest.approx(p, rel=1e-12))


def test_a_comparison_by_hand():
    table = compare(FIRST, SECOND, LABELS)
    assert list(table.index) == list(CORE_METRICS)
    # Five labels are not 0; each run has four of their signs right.
    assert table.loc["Acc_2", ["A", "B", "difference", "only_A", "only_B", "p"]].tolist() == [0.8, 0.8, 0, 1, 1, 1]
    assert table.loc["Acc_7", ["A", "B", "only_A", "only_B"]].tolist() == pytest.approx([5 / 6, 2 / 6, 4, 1])
    assert table.loc["Acc_7", "p"] == pytest.approx(2 * (1 + 5) / 2**5)
    errors_a, errors_b = 0.4 + 0.4 + 0.4 + 1.2 + 0.4 + 0.4, 1.1 + 1.3 + 0.2 + 0.2 + 0.2 + 0.5
    assert table.loc["MAE", "difference"] == pytest.approx((errors_a - errors_b) / 6)
    assert table.loc["MAE", ["only_A", "p"]].isna().all()
    for metric in CORE_METRICS:
        for run, predicted in (("A", FIRST), ("B", SECOND)):
            assert table.loc[metric, run] == pytest.approx(regression_metrics(predicted, LABELS)[metric], abs=5.1e-5)


def test_intervals_are_those_of_metrics_scored_resample_by_resample():
    predictions, labels = simulated(np.random.default_rng(3), 40, seeds=2)
    resamples = np.random.default_rng(0).integers(0, 40, (60, 40))
    scored = [
        [list(map(regression_metrics(predicted[rows], labels[rows]).get, CORE_METRICS)) for predicted in predictions]
        for rows in resamples
    ]
    seeds = over_seeds(predictions, labels, [1, 2], resamples=60)
    low, high = np.quantile(np.mean(scored, axis=1), [0.025, 0.975], axis=0)
    assert seeds.loc[["low", "high"]].to_numpy() == pytest.approx(np.stack([low, high]), abs=1.1e-4)  # their rounding
    table = compare(*predictions, labels, resamples=60)
    low, high = np.quantile(np.subtract(*np.moveaxis(scored, 1, 0)), [0.025, 0.975], axis=0)
    assert table[["low", "high"]].to_numpy() == pytest.approx(np.stack([low, high], axis=1), abs=1.1e-4)


def test_what_is_not_defined_is_nan_without_a_warning(recwarn):
    neutral, predictions = np.zeros(6), np.stack([FIRST, SECOND])
    for table in (
        compare(FIRST, SECOND, neutral)[["A", "B", "difference", "low", "high"]],
        over_seeds(predictions, neutral, [1, 2]).T.drop(columns=[1, 2]),
    ):
        assert table.loc[["Acc_2", "F1_score"]].isna().all(axis=None)
        assert table.loc["MAE", ["low", "high"]].notna().all()
    one_polar = over_seeds(predictions, np.array([1.0, 0, 0, 0, 0, 0]), [1, 2])["Acc_2"]
    assert one_polar["mean"] == 1 and one_polar[["low", "high"]].isna().all()  # a third of the resamples is without it
    assert not recwarn.list
