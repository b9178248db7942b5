"""Intervals and tests against numbers computed by hand, SciPy's own, and simulated runs."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from analysis.statistics import compare, group_by_video, over_seeds
from utils.metrics import CORE_METRICS, regression_metrics

#                    utterance: a     b     c    d     e    f
LABELS = np.array([2.0, -1.0, 0.0, 1.0, -2.4, 0.6])
# signs: d wrong; classes 2 -1 0 0 -2 1: d wrong
FIRST = np.array([1.6, -0.6, 0.4, -0.2, -2.0, 1.0])
# signs: b wrong; classes 1 0 0 1 -3 0: a, b, e, f wrong
SECOND = np.array([0.9, 0.3, 0.2, 0.8, -2.6, 0.1])
EACH = np.arange(6)  # every utterance is a unit


def simulated(
    rng: np.random.Generator, videos: int, clips: int, seeds: int = 2, by_video: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions (S, N), labels and units (N): equally good runs with a part of the error in
    common, and another part, of that standard deviation, that all clips of a video share."""
    units = np.repeat(np.arange(videos), clips)
    labels = rng.integers(-9, 10, len(units)) / 3
    noise = rng.normal(0, 0.6, len(units)) + rng.normal(0, 0.5, (seeds, len(units)))
    return labels + noise + by_video * rng.normal(size=(seeds, videos))[:, units], labels, units


def scores(predictions: np.ndarray, labels: np.ndarray) -> list[float]:
    metrics = regression_metrics(predictions, labels)
    return [metrics[metric] for metric in CORE_METRICS]


def width(table) -> np.ndarray:
    return (table["high"] - table["low"]).to_numpy(float)


def test_comparison_matches_hand_computed_values():
    table = compare(FIRST, SECOND, LABELS, EACH)
    assert list(table.index) == list(CORE_METRICS)
    assert list(table) == ["A", "B", "difference", "low", "high", "p", "better"]
    # Five labels are not 0; each run has four of their signs right, so no swap makes less
    # difference.
    assert table.loc["Acc_2", ["A", "B", "difference", "p"]].tolist() == [0.8, 0.8, 0, 1]
    assert table.loc["Acc_7", ["A", "B"]].tolist() == pytest.approx([5 / 6, 2 / 6])
    # Five units differ, four in favor of A: 2 (1 + 5) of 32 swaps make as much difference.
    assert table.loc["Acc_7", "p"] == pytest.approx(2 * (1 + 5) / 2**5, abs=0.02)
    errors_a, errors_b = 0.4 + 0.4 + 0.4 + 1.2 + 0.4 + 0.4, 1.1 + 1.3 + 0.2 + 0.2 + 0.2 + 0.5
    assert table.loc["MAE", "difference"] == pytest.approx((errors_a - errors_b) / 6)
    for run, predicted in (("A", FIRST), ("B", SECOND)):
        assert table[run].tolist() == pytest.approx(scores(predicted, LABELS), abs=5.1e-5)


@pytest.mark.slow
def test_p_matches_the_exact_permutation_test_of_scipy_over_videos():
    """7 videos have 2^7 swaps, which SciPy goes through one by one, each scored by scikit-learn."""
    (a, b), labels, units = simulated(np.random.default_rng(3), videos=7, clips=4, by_video=0.3)
    table = compare(a, b, labels, units)
    for metric in CORE_METRICS:

        def difference(units_of_a, units_of_b, metric=metric):  # 0: predictions of a, 1: of b
            a_and_b = np.stack([a, b])
            rows = np.arange(len(labels))
            first = a_and_b[units_of_a[units].astype(int), rows]
            second = a_and_b[units_of_b[units].astype(int), rows]
            return (
                regression_metrics(first, labels)[metric]
                - regression_metrics(second, labels)[metric]
            )

        exact = permutation_test(
            (np.zeros(7), np.ones(7)), difference, permutation_type="samples", n_resamples=np.inf
        )
        assert table.loc[metric, "p"] == pytest.approx(exact.pvalue, abs=0.02), metric


def test_intervals_match_metrics_scored_resample_by_resample():
    predictions, labels, units = simulated(np.random.default_rng(3), videos=12, clips=5)
    labels[units == 3] = 0  # units differ in what they add
    scored = []
    for drawn in np.random.default_rng(0).integers(0, 12, (60, 12)):
        rows = np.concatenate([np.flatnonzero(units == video) for video in drawn])
        scored.append([scores(predicted[rows], labels[rows]) for predicted in predictions])
    seeds = over_seeds(predictions, labels, [1, 2], units, resamples=60)
    low, high = np.quantile(np.mean(scored, axis=1), [0.025, 0.975], axis=0)
    # their rounding
    assert seeds.loc[["low", "high"]].to_numpy() == pytest.approx(np.stack([low, high]), abs=1.1e-4)
    table = compare(*predictions, labels, units, resamples=60)
    low, high = np.quantile(np.subtract(*np.moveaxis(scored, 1, 0)), [0.025, 0.975], axis=0)
    assert table[["low", "high"]].to_numpy() == pytest.approx(
        np.stack([low, high], axis=1), abs=1.1e-4
    )


def test_intervals_are_wider_if_errors_within_a_video_are_correlated():
    predictions, labels, units = simulated(np.random.default_rng(0), 30, 20, by_video=0.6)
    each = np.arange(len(labels))
    mae = list(CORE_METRICS).index("MAE")
    for by_video, by_utterance in (
        (compare(*predictions, labels, units), compare(*predictions, labels, each)),
        (
            over_seeds(predictions, labels, [1, 2], units).T,
            over_seeds(predictions, labels, [1, 2], each).T,
        ),
    ):
        assert width(by_video)[mae] > 1.5 * width(by_utterance)[mae]


def test_intervals_are_unchanged_if_clips_of_a_video_are_independent():
    predictions, labels, units = simulated(np.random.default_rng(1), 200, 2)
    by_video, by_utterance = (compare(*predictions, labels, u) for u in (units, np.arange(400)))
    assert width(by_video) == pytest.approx(width(by_utterance), rel=0.2)


def test_equal_runs_rarely_differ_if_errors_within_a_video_are_correlated():
    rng = np.random.default_rng(7)
    by_video, by_utterance = [], []
    for _ in range(100):
        (a, b), labels, units = simulated(rng, 31, 22, by_video=0.6)
        for found, u in ((by_video, units), (by_utterance, np.arange(len(units)))):
            found.append(
                (compare(a, b, labels, u, resamples=200)["better"] != "neither").to_numpy()
            )
    assert np.mean(by_video, axis=0).max() <= 0.1  # 5 % are expected
    assert np.mean(by_utterance, axis=0)[list(CORE_METRICS).index("MAE")] > 0.2


def test_identical_runs_have_p_1_and_repeated_calls_the_same_numbers():
    (a, b), labels, units = simulated(np.random.default_rng(5), 8, 6)
    same = compare(a, a, labels, units)
    assert (same["p"] == 1).all() and (same["better"] == "neither").all()
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)
    assert compare(a, b, labels, units).equals(compare(a, b, labels, units))


def test_p_and_better_do_not_depend_on_which_run_comes_first():
    (a, b), labels, units = simulated(np.random.default_rng(6), 31, 22)
    b = b + 0.5 * np.sign(b - labels)  # further from the labels
    one, other = compare(a, b, labels, units), compare(b, a, labels, units)
    assert one["p"].tolist() == other["p"].tolist()
    assert one.loc["MAE", "better"] == "A" and other.loc["MAE", "better"] == "B"
    assert one["p"].min() == 1 / 10_001  # the runs as they are count as a swap


def test_undefined_metrics_are_nan_without_a_warning(recwarn):
    neutral, predictions = np.zeros(6), np.stack([FIRST, SECOND])
    compared = compare(FIRST, SECOND, neutral, EACH)
    for table in (
        compared[["A", "B", "difference", "low", "high", "p"]],
        over_seeds(predictions, neutral, [1, 2], EACH).T.drop(columns=[1, 2]),
    ):
        assert table.loc[["Acc_2", "F1_score"]].isna().all(axis=None)
        assert table.loc["MAE", ["low", "high"]].notna().all()
    assert compared.loc[["Acc_2", "F1_score"], "better"].tolist() == ["neither"] * 2
    one_polar = over_seeds(predictions, np.array([1.0, 0, 0, 0, 0, 0]), [1, 2], EACH)["Acc_2"]
    # a third of the resamples is without it
    assert one_polar["mean"] == 1 and one_polar[["low", "high"]].isna().all()
    assert not recwarn.list


GROUPS = {
    "videos": (["x$_$0", "y$_$0", "x$_$1"], [0, 1, 0], "of 2 videos"),
    "no videos": (["NA", "", "7", "7"], [0, 1, 2, 3], "whose ids name no videos"),
    "a single video": (["x$_$0", "x$_$1", "x$_$2"], [0, 1, 2], "all of one video"),
    "some videos": (
        ["x$_$0", "x", "x$_$1", "a_b"],
        [0, 1, 0, 2],
        "of 1 video, and 2 whose ids name none",
    ),
    "clips named like others": (
        ["x$_$$_$0", "x$_$0", "$_$1", "$_$2"],
        [0, 1, 2, 3],
        "of 2 videos, and 2",
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_clips_of_a_video_are_one_unit(case):
    ids, index, description = GROUPS[case]
    units = group_by_video(ids)
    assert units.index.tolist() == index and units.describe().startswith(description)
    assert units.number == max(index) + 1
