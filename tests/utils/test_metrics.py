"""Metrics on predictions small enough to score by hand."""

import math

import numpy as np

from utils.metrics import regression_metrics


def test_metrics_match_hand_computed_values():
    #                      class at ±3:  3     -2    0 (half to even)  -1   2 (half to even)   0
    predictions = np.array([4.0, -2.2, 0.5, -0.6, 1.5, 0.0])
    labels = np.array([3.0, -2.0, 0.0, 1.0, 2.0, -0.4])
    metrics = regression_metrics(predictions, labels)
    # Five labels are not 0. Signs: right, right, wrong, right, right (a prediction of exactly 0 is
    # negative).
    assert metrics["Acc_2"] == 0.8
    # Positive: precision 2/2, recall 2/3, F1 0.8, support 3; negative: precision 2/3, recall 2/2,
    # F1 0.8, support 2.
    assert metrics["F1_score"] == 0.8
    # Classes 3, -2, 0, -1, 2, 0 against 3, -2, 0, 1, 2, 0.
    assert metrics["Acc_7"] == round(5 / 6, 4)
    # Clipped to ±1: 1, -1, 0, -1, 1, 0 against 1, -1, 0, 1, 1, 0.
    assert metrics["Acc_3"] == round(5 / 6, 4)
    assert metrics["Acc_5"] == round(5 / 6, 4)
    assert metrics["MAE"] == round((1 + 0.2 + 0.5 + 1.6 + 0.5 + 0.4) / 6, 4)
    # Not negative: 1 0 1 0 1 1 against 1 0 1 1 1 0.
    assert metrics["Has0_Acc_2"] == round(4 / 6, 4)
    assert metrics["Corr"] == round(np.corrcoef(predictions, labels)[0, 1], 4)


def test_metrics_of_neutral_labels_are_nan():
    metrics = regression_metrics(np.array([1.0, -1.0]), np.zeros(2))
    assert (
        math.isnan(metrics["Acc_2"])
        and math.isnan(metrics["F1_score"])
        and math.isnan(metrics["Corr"])
    )
    assert metrics["MAE"] == 1.0
