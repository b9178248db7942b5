"""The tables over seeds in `result/normal/`, which all runs share."""

import io
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

    With `once`, rows that are there already are left out: a continued run may have been stopped after it wrote them.
    """
    row = {"Model": name}
    for metric in TABLE_METRICS:
        values = np.array([result[metric] for result in per_seed.values()])
        row[metric] = str((round(float(values.mean()) * 100, 2), round(float(values.std()) * 100, 2)))
    columns = ("epoch", *TABLE_METRICS, *WIDER_METRICS)
    seeds = [{"Model": name, "seed": seed} | {c: result[c] for c in columns} for seed, result in per_seed.items()]
    _append(res_save_dir, f"{dataset}-seeds.csv", pd.DataFrame(seeds), once)
    return _append(res_save_dir, f"{dataset}.csv", pd.DataFrame([row]), once)


def append_intervals(
    res_save_dir: str | Path, dataset: str, name: str, summary: pd.DataFrame, once: bool = False
) -> Path:
    """Append to `normal/<dataset>-intervals.csv` a row for each metric over the seeds.  -> its path

    summary: the table of analysis.statistics.over_seeds, rows by seed; once: as for append_results
    """
    table = summary.loc[list(STATISTICS)].T.round(4).rename_axis("metric").reset_index()
    table.insert(0, "seeds", " ".join(str(row) for row in summary.index if row not in STATISTICS))
    table.insert(0, "Model", name)
    return _append(res_save_dir, f"{dataset}-intervals.csv", table, once)


def _append(res_save_dir: str | Path, file: str, new: pd.DataFrame, once: bool) -> Path:
    """Raises RunError where the table cannot be read or written."""
    path = Path(res_save_dir) / "normal" / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            if path.exists():
                # As text, so that existing rows stay as they are.
                there, new = (pd.read_csv(file, dtype=str, keep_default_na=False)
                              for file in (path, io.StringIO(new.to_csv(index=False))))  # fmt: skip
                known = set(there.reindex(columns=new.columns).itertuples(index=False, name=None)) if once else ()
                new = new[[row not in known for row in new.itertuples(index=False, name=None)]]
                new = pd.concat([there, new], ignore_index=True)
            write_csv(path, new)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = getattr(error, "strerror", None) or printable(error)
        raise RunError(
            f"{path}: the tables cannot be read or written ({reason}). The runs themselves are complete, in "
            f"{res_save_dir}. Make room, or move a damaged table away; --resume then adds the rows."
        ) from error
    return path


def as_text(table: pd.DataFrame, missing: str = "", **how) -> str:
    """A table for reading, with 4 digits; how: as for DataFrame.to_string"""
    texts = table.map(lambda v: missing if pd.isna(v) else f"{v:.4f}" if isinstance(v, float) else str(v))
    return texts.to_string(**how)


def write_output(file: str | None, table: pd.DataFrame) -> None:
    """Write a command's table where --output says, if it was given. Raises RunError."""
    try:
        if file:
            write_csv(Path(file), table)
    except OSError as error:
        raise RunError(f"--output: cannot write {file} ({error.strerror}).") from error
