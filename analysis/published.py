"""Published runs of DMD on the published features, to see whether a run is on course.

published.csv has their epochs in the columns of history.csv; docs/analysis.md names the sources.
"""

from pathlib import Path

import pandas as pd

from analysis.record import RunRecord

SHAPES = {"mosi": [768, 5, 20], "mosei": [768, 74, 35]}  # feature_dims with bert-base


def published_runs(settings: dict) -> dict[str, pd.DataFrame]:
    """Find the published runs that a run can be compared with.

    Args:
        settings: The resolved settings of the run.

    Returns:
        Their histories by name; empty where data set, alignment or widths are other ones.
    """
    dataset = settings["dataset_name"]
    if not (settings["use_bert"] and settings["need_data_aligned"]):
        return {}
    if settings["feature_dims"] != SHAPES.get(dataset):
        return {}
    rows = pd.read_csv(Path(__file__).with_name("published.csv"))
    rows = rows[rows["dataset"] == dataset]
    return dict(list(rows.groupby("run", sort=False)))


def course(run: RunRecord) -> str:
    """Compare a run with the published ones in one line; "" where there are none."""
    published = published_runs(run.config["settings"])
    if not published:
        return ""
    parts = [_summary("this run", run.history)]
    for name, history in published.items():
        parts.append(_summary(name, history))
    return f"Beside published runs: {'; '.join(parts)}."


def _summary(name: str, history: pd.DataFrame) -> str:
    """The total loss of epochs 1, 5 and the last one, and the TEST scores of the best epoch."""
    history = history.set_index("epoch")
    epochs = history.index.intersection([1, 5, history.index[-1]])
    losses = ", ".join(f"{history.at[epoch, 'loss/total']:.2f} (epoch {epoch})" for epoch in epochs)
    best = history.loc[history["best_epoch"].iloc[-1]]
    scores = f"MAE {best['test/MAE']:.4f}, Acc_2 {best['test/Acc_2']:.4f} (epoch {best.name})"
    return f"{name}: total_loss {losses}, TEST {scores}"
