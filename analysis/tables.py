"""Tables over seeds in `result/normal/`, which all runs share, and tables of robustness."""

from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from models.dmd import MODALITIES
from utils.errors import RunError
from utils.files import lock_folder, write_csv
from utils.metrics import CORE_METRICS, METRICS, WIDER_METRICS
from utils.reading import printable

TABLE_METRICS = [*CORE_METRICS, "Loss"]
SCORES = [*METRICS, "Loss"]
# The columns of robustness.csv, which has a row for each scoring.
SCORING_COLUMNS = ["kind", "rate", "modalities", "draw", "seed", *SCORES]
ALL_MODALITIES = "".join(MODALITIES)


def append_results(
    res_save_dir: str | Path, dataset: str, name: str, per_seed: dict[int, dict]
) -> Path:
    """Append the results of a command to the two tables of its data set.

    `normal/<dataset>.csv` gets a row of `(mean, std)` cells over the seeds, times 100, as in the
    release; `normal/<dataset>-seeds.csv` gets a row for each seed with all metrics, unscaled.

    Args:
        res_save_dir: The folder that holds `normal/`.
        dataset: Name of the data set.
        name: Name of the runs, for the column Model.
        per_seed: TEST metrics and best epoch by seed.

    Returns:
        The path of `<dataset>.csv`.

    Raises:
        RunError: A table cannot be read or written.
    """
    seeds = pd.DataFrame.from_dict(per_seed, orient="index")
    seeds = seeds[["epoch", *TABLE_METRICS, *WIDER_METRICS]]
    append(res_save_dir, f"{dataset}-seeds.csv", name, seeds.rename_axis("seed").reset_index())

    cells = {}
    for metric in TABLE_METRICS:
        mean = round(float(np.mean(seeds[metric])) * 100, 2)
        std = round(float(np.std(seeds[metric])) * 100, 2)
        cells[metric] = str((mean, std))
    return append(res_save_dir, f"{dataset}.csv", name, pd.DataFrame([cells]))


def append(res_save_dir: str | Path, file: str, name: str, rows: pd.DataFrame) -> Path:
    """Append rows to a table in `normal/`, except those that it already contains.

    It contains them if a command was stopped after writing them, and then resumed.

    Args:
        res_save_dir: The folder that holds `normal/`.
        file: Name of the table.
        name: Value of the first column, Model.
        rows: The other columns.

    Returns:
        The path of the table.

    Raises:
        RunError: It cannot be read or written.
    """
    path = Path(res_save_dir) / "normal" / file
    table = rows.copy()
    table.insert(0, "Model", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(path.parent):
            if path.exists():
                table = _joined(path, table)
            write_csv(path, table)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise RunError(
            f"{path}: the tables cannot be read or written ({printable(error)}). The runs "
            "themselves are complete: free disk space, or move a damaged table away; --resume then "
            "adds the rows."
        ) from error
    return path


def _joined(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The table of a file with the rows that it lacks; as text, so that old rows do not change."""
    old = _read_as_text(path)
    new = _read_as_text(StringIO(rows.to_csv(index=False)))
    both = pd.concat([old, new], ignore_index=True).fillna("")
    is_old = both.index < len(old)
    return both[is_old | ~both.duplicated()]


def _read_as_text(source: Path | StringIO) -> pd.DataFrame:
    return pd.read_csv(source, dtype=str, keep_default_na=False)


def as_text(table: pd.DataFrame, missing: str = "", index: bool = True) -> str:
    """Format a table for reading, with 4 digits.

    Args:
        table: The table.
        missing: Text for NaN.
        index: Whether to show the index.
    """
    return table.to_string(float_format="{:.4f}".format, na_rep=missing, index=index)


def read_scorings(path: Path) -> pd.DataFrame | None:
    """Read the table that analysis.robustness wrote.

    Args:
        path: The run's robustness.csv.

    Returns:
        Its rows; None if the file does not exist.

    Raises:
        RunError: It cannot be read, or has other columns.
    """
    if not path.exists():
        return None
    try:
        table = pd.read_csv(path)
        return table[SCORING_COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: cannot be read ({printable(error)}). Delete it, or write it again: python -m "
            "analysis.robustness"
        ) from error


def mean_scores(scorings: pd.DataFrame) -> pd.DataFrame:
    """Average the scorings of analysis.robustness over draws and seeds.

    Args:
        scorings: The rows of robustness.csv.

    Returns:
        A row for each rate; a row with the area under each metric's curve over the rates
        (trapezoidal rule, divided by the range of the rates); a row for each subset of modalities.
        NaN if a metric is undefined in one of the scorings.
    """
    is_whole = scorings["modalities"] == ALL_MODALITIES
    curve = {}
    for rate, group in scorings[is_whole].groupby("rate"):
        curve[rate] = group[SCORES].mean(skipna=False)
    means = pd.DataFrame(curve).T
    rates = means.index.to_numpy()
    table = means.rename(index="rate {:.1f}".format)
    table.loc["area"] = trapezoid(means, rates, axis=0) / (rates[-1] - rates[0])
    for letters, group in scorings[~is_whole].groupby("modalities", sort=False):
        name = " + ".join(MODALITIES[m] for m in letters)
        table.loc[name] = group[SCORES].mean(skipna=False)
    return table
