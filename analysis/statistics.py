"""Uncertainty of test metrics, over several seeds and between two runs.

Clips of one video share speaker, topic and microphone, so they are not independent. Therefore
*units* are resampled, or swapped between two runs: all clips of a video together, or a single
utterance if its id names no video (`group_by_video`).

Intervals come from the cluster bootstrap: each resample draws all U units with replacement, and the
interval contains the middle 95 % of the resampled metrics. (Plain percentiles, because BCa divides
zero by zero for two runs with the same predictions.) The p-value comes from a paired randomization
test: if neither run is better, swapping the predictions of A and B in any unit makes no difference.

Every metric is a function of seven sums over utterances. They are computed once for each unit, and
one matrix product then gives them for many resamples or swaps at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dataset.features import video_of
from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, regression_metrics, sentiment_classes

LEVEL = 0.05  # significance level of the test; intervals have confidence 1 - LEVEL
RESAMPLES = 10_000
BATCH = 500  # resamples that are in memory at a time
ROUNDING = 1e-12  # two differences of metrics that are closer than this are equal


@dataclass(frozen=True)
class Units:
    """Groups of utterances that are drawn, and swapped, together.

    Attributes:
        index: (N,) the number of each utterance's unit, from 0.
        videos: Number of videos that the ids name.
        without_video: Number of utterances whose id names no video.
    """

    index: np.ndarray
    videos: int
    without_video: int

    @property
    def number(self) -> int:
        """Number of units."""
        return int(self.index.max()) + 1

    @property
    def name(self) -> str:
        """Name of a unit: "video" or "utterance"."""
        return "video" if self.number < len(self.index) else "utterance"

    def describe(self) -> str:
        """Describe the units, as the end of a sentence about the utterances."""
        if self.videos == 0:
            return "whose ids name no videos: utterances are taken as independent"
        if self.videos == 1 and not self.without_video:
            return "all of one video: the results hold for its clips, not for other videos"
        videos = f"of {self.videos} video{'s' if self.videos > 1 else ''}"
        if self.without_video:
            return f"{videos}, and {self.without_video} whose ids name none"
        return videos


def group_by_video(ids: Sequence[str]) -> Units:
    """Make one unit for each video, and for each utterance whose id is not video$_$clip.

    A single video is not a sample of videos. If all utterances belong to one, each is a unit; the
    results then hold only for clips of this video, as `Units.describe` reports.

    Args:
        ids: (N,) of the utterances, as in predictions.csv; N is at least 1.
    """
    units = []
    videos = set()
    for position, utterance in enumerate(ids):
        video = video_of(utterance)
        if video:
            videos.add(video)
            units.append(video)
        else:
            units.append(position)  # also if the id occurs twice
    without_video = sum(isinstance(unit, int) for unit in units)
    if len(videos) == 1 and not without_video:
        index = np.arange(len(units))
    else:
        index, _ = pd.factorize(pd.Series(units, dtype=object))
    return Units(index, len(videos), without_video)


def over_seeds(
    predictions: np.ndarray,
    labels: np.ndarray,
    names: list,
    units: np.ndarray,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Summarize several seeds of one configuration on the same utterances.

    Args:
        predictions: (S, N) of S seeds, in [-3, 3] or beyond; N is at least 2.
        labels: (N,) true sentiment.
        names: (S,) of the seeds.
        units: (N,) number of each utterance's unit, from 0 (`Units.index`).
        resamples: Number of bootstrap resamples.

    Returns:
        A column for each of CORE_METRICS. Rows: the seeds by name, their `mean` and `std` (ddof 0),
        `low` and `high` of the 95 % interval of the mean for these seeds. NaN if a metric, or one
        of its resamples, is undefined.
    """
    scores = [regression_metrics(predicted, labels) for predicted in predictions]
    per_seed = pd.DataFrame(scores, index=names)[list(CORE_METRICS)]
    resampled = _bootstrap(_sums_of_units(predictions, labels, units), resamples)
    low, high = _interval(resampled.mean(axis=0))
    summary = {
        "mean": per_seed.mean(skipna=False),
        "std": per_seed.std(ddof=0, skipna=False),
        "low": low,
        "high": high,
    }
    return pd.concat([per_seed, pd.DataFrame(summary, index=per_seed.columns).T])


def compare(
    a: np.ndarray,
    b: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Compare two runs A and B on the same utterances.

    Args:
        a: (N,) predictions of A; N is at least 2.
        b: (N,) predictions of B.
        labels: (N,) true sentiment.
        units: (N,) number of each utterance's unit, from 0 (`Units.index`).
        resamples: Number of bootstrap resamples, and of random swaps.

    Returns:
        A row for each of CORE_METRICS with the columns `A`, `B`; `difference`, which is A - B, and
        its 95 % interval `low`, `high`; `p` of the randomization test; `better`: A, B or neither at
        5 %, by p. NaN if a metric is undefined (then neither is better).
    """
    sums_a, sums_b = _sums_of_units(np.stack([a, b]), labels, units)
    score_a = _metrics(sums_a.sum(axis=0))
    score_b = _metrics(sums_b.sum(axis=0))
    difference = score_a - score_b

    resampled_a, resampled_b = _bootstrap(np.stack([sums_a, sums_b]), resamples)
    low, high = _interval(resampled_a - resampled_b)
    p = _p_value(difference, _differences_after_swaps(sums_a, sums_b, resamples))

    lower_is_better = np.isin(CORE_METRICS, LOWER_IS_BETTER)
    b_is_better = (difference > 0) == lower_is_better
    better = np.where(p < LEVEL, np.where(b_is_better, "B", "A"), "neither")
    columns = {
        "A": score_a,
        "B": score_b,
        "difference": difference,
        "low": low,
        "high": high,
        "p": p,
        "better": better,
    }
    return pd.DataFrame(columns, index=list(CORE_METRICS))


def _bootstrap(sums: np.ndarray, resamples: int) -> np.ndarray:
    """CORE_METRICS of S runs in the same R resamples of the units.  (S, U, 7) -> (S, R, M)"""
    generator = np.random.default_rng(0)  # the same resamples at every call
    number = sums.shape[1]
    metrics = []
    for start in range(0, resamples, BATCH):
        size = min(BATCH, resamples - start)
        drawn = generator.integers(0, number, (size, number))
        times_drawn = np.apply_along_axis(np.bincount, 1, drawn, minlength=number)  # (size, U)
        metrics.append(_metrics(times_drawn.astype(float) @ sums))
    return np.concatenate(metrics, axis=1)


def _interval(resampled: np.ndarray) -> np.ndarray:
    """Low and high of the metrics' 95 % intervals.  (R, M) -> (2, M)"""
    return np.quantile(resampled, [LEVEL / 2, 1 - LEVEL / 2], axis=0)


def _differences_after_swaps(sums_a: np.ndarray, sums_b: np.ndarray, resamples: int) -> np.ndarray:
    """A - B of CORE_METRICS after swapping A and B in random units.  (U, 7) each -> (R, M)"""
    generator = np.random.default_rng(0)
    differences = []
    for start in range(0, resamples, BATCH):
        size = min(BATCH, resamples - start)
        swapped = generator.integers(0, 2, (size, len(sums_a)))  # 1: A and B change places
        moved = swapped.astype(float) @ (sums_b - sums_a)  # A gains these sums, and B loses them
        metrics_a = _metrics(sums_a.sum(axis=0) + moved)
        metrics_b = _metrics(sums_b.sum(axis=0) - moved)
        differences.append(metrics_a - metrics_b)
    return np.concatenate(differences)


def _p_value(difference: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """Two-sided p of a randomization test; NaN if the metric is.  (M,), (R, M) -> (M,)"""
    as_large = np.abs(swapped) >= np.abs(difference) - ROUNDING
    # The original runs count as one of the swaps, so that p is never 0.
    p = (1 + as_large.sum(axis=0)) / (1 + len(swapped))
    return np.where(np.isnan(difference), np.nan, p)


def _sums_of_units(predictions: np.ndarray, labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The seven sums that `_metrics` needs.  (S, N), (N,), (N,) -> (S, U, 7)"""
    predictions = np.asarray(predictions, float)
    labels = np.broadcast_to(np.asarray(labels, float), predictions.shape)
    called_positive = predictions > 0
    positive = labels > 0
    negative = labels < 0
    of_utterances = np.stack(
        [
            called_positive & positive,
            ~called_positive & negative,
            positive,
            negative,
            sentiment_classes(predictions, 3) == sentiment_classes(labels, 3),
            np.abs(predictions - labels),
            np.ones_like(labels),
        ],
        axis=-1,
    )
    of_units = np.zeros((len(predictions), units.max() + 1, of_utterances.shape[-1]))
    for run, values in enumerate(of_utterances):
        np.add.at(of_units[run], units, values)
    return of_units


def _metrics(sums: np.ndarray) -> np.ndarray:
    """CORE_METRICS from the seven sums, without rounding.  (..., 7) -> (..., M)"""
    right_positive, right_negative, positive, negative, right_class, error, count = np.moveaxis(
        sums, -1, 0
    )
    right = right_positive + right_negative
    polar = positive + negative
    wrong = polar - right
    # F1 of a class, weighted by its support; 0 for a class without labels or predictions.
    f1_positive = 2 * right_positive / np.maximum(2 * right_positive + wrong, 1)
    f1_negative = 2 * right_negative / np.maximum(2 * right_negative + wrong, 1)
    weighted_f1 = positive * f1_positive + negative * f1_negative
    with np.errstate(invalid="ignore"):  # NaN if every label is 0
        metrics = [right / polar, weighted_f1 / polar, right_class / count, error / count]
    return np.stack(metrics, axis=-1)
