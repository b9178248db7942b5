"""The tables over seeds in `result/normal/`, which all runs share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from analysis.statistics import STATISTICS
from trainers.runs import write_csv
from utils.errors import RunError
from utils.metrics import CORE_METRICS, WIDER_METRICS
from utils.reading import printable

TABLE_METRICS = (*CORE_METRICS, "Loss")


def append_results(
    res_save_dir: str | Path, dataset: str, name: str, per_seed: dict[int, dict], once: bool = False
) -> Path:
    """Append to `normal/<dataset>.csv` a row of `(mean, std)` cells over the seeds, times 100, as the release does,
    and to `normal/<dataset>-seeds.csv` a row for each seed with all metrics as they are.  -> the former's path

    With `once`, rows that are there already are left out: a resumed run may have been stopped behind them.
    """
    values = {metric: np.array([result[metric] for result in per_seed.values()]) for metric in TABLE_METRICS}
    row = {"Model": name} | {
        metric: str((round(float(v.mean()) * 100, 2), round(float(v.std()) * 100, 2))) for metric, v in values.items()
    }
    columns = ("epoch", *TABLE_METRICS, *WIDER_METRICS)
    per_seed_rows = [
        {"Model": name, "seed": seed} | {c: result[c] for c in columns} for seed, result in per_seed.items()
    ]
    with _locked(res_save_dir) as folder:
        table = folder / f"{dataset}.csv"
        _append_rows(table, [row], once)
        _append_rows(folder / f"{dataset}-seeds.csv", per_seed_rows, once)
    return table


def append_intervals(
    res_save_dir: str | Path, dataset: str, name: str, summary: pd.DataFrame, once: bool = False
) -> Path:
    """Append to `normal/<dataset>-intervals.csv` a row for each metric over the seeds.  -> its path

    summary: the table of analysis.statistics.over_seeds, rows by seed; once: as for append_results
    """
    seeds = " ".join(str(row) for row in summary.index if row not in STATISTICS)
    rows = [
        {"Model": name, "seeds": seeds, "metric": metric}
        | {statistic: round(float(summary.loc[statistic, metric]), 4) for statistic in STATISTICS}
        for metric in summary.columns
    ]
    with _locked(res_save_dir) as folder:
        table = folder / f"{dataset}-intervals.csv"
        _append_rows(table, rows, once)
    return table


@contextlib.contextmanager
def _locked(res_save_dir: str | Path) -> Iterator[Path]:
    """The folder of the tables, which no other process writes to meanwhile.

    Raises RunError where a table cannot be read or written.
    """
    folder = Path(res_save_dir) / "normal"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield folder
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = getattr(error, "strerror", None) or printable(error)
        raise RunError(
            f"{folder}: the tables cannot be read or written ({reason}). The runs themselves are complete, in "
            f"{res_save_dir}. Make room, or move a damaged table away; --resume then adds the rows."
        ) from error


def _append_rows(path: Path, rows: list[dict], once: bool) -> None:
    new = pd.DataFrame(rows)
    if path.exists():
        there = pd.read_csv(path, dtype=str, keep_default_na=False)  # as text: what stands there stays as it is
        if once:
            known = {tuple(row) for row in there.reindex(columns=new.columns).itertuples(index=False)}
            texts = new.astype(object).where(new.notna(), "").map(str)
            new = new[[tuple(row) not in known for row in texts.itertuples(index=False)]]
        new = pd.concat([there, new], ignore_index=True)
    write_csv(path, new)
