"""Published runs of DMD on the published features: is a run on course?

published.csv has their epochs, as history.csv has ours; docs/analysis.md says where they are from.
"""

from pathlib import Path

import pandas as pd

from analysis.record import RunRecord

SHAPES = {"mosi": [768, 5, 20], "mosei": [768, 74, 35]}  # feature_dims with bert-base


def published_runs(settings: dict) -> dict[str, pd.DataFrame]:
    """The histories of published runs by name, where a run with these settings is to be compared with them."""
    aligned_with_bert = settings["use_bert"] and settings["need_data_aligned"]
    if not aligned_with_bert or settings["feature_dims"] != SHAPES.get(settings["dataset_name"]):
        return {}
    rows = pd.read_csv(Path(__file__).with_name("published.csv"))
    return dict(list(rows[rows["dataset"] == settings["dataset_name"]].groupby("run", sort=False)))


def course(run: RunRecord) -> str:
    """A line that tells where a run lies beside the published ones; "" where there are none."""
    published = published_runs(run.config["settings"])
    lines = [_in_short(name, history) for name, history in {"this run": run.history, **published}.items()]
    return f"Beside published runs: {'; '.join(lines)}." if published else ""


def _in_short(name: str, history: pd.DataFrame) -> str:
    history = history.set_index("epoch")
    best, shown = history.loc[history["best_epoch"].iloc[-1]], history.index.intersection([1, 5, history.index[-1]])
    losses = ", ".join(f"{history.at[epoch, 'loss/total']:.2f} (epoch {epoch})" for epoch in shown)
    scores = f"MAE {best['test/MAE']:.4f}, Acc_2 {best['test/Acc_2']:.4f} (epoch {best.name})"
    return f"{name}: total_loss {losses}, TEST {scores}"
