"""The tables over seeds in `result/normal/`, which all runs share, and how commands print tables."""

from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.run_folder import write_csv
from utils.errors import RunError
from utils.files import lock_folder
from utils.metrics import CORE_METRICS, WIDER_METRICS
from utils.reading import printable

TABLE_METRICS = [*CORE_METRICS, "Loss"]


def append_results(res_save_dir: str | Path, dataset: str, name: str, per_seed: dict[int, dict]) -> Path:
    """Append to `normal/<dataset>.csv` a row of `(mean, std)` cells over the seeds, times 100, as the release does,
    and to `normal/<dataset>-seeds.csv` a row for each seed with all metrics as they are.  -> the former's path"""
    seeds = pd.DataFrame.from_dict(per_seed, orient="index")[["epoch", *TABLE_METRICS, *WIDER_METRICS]]
    cells = {
        metric: str(tuple(round(float(f(values)) * 100, 2) for f in (np.mean, np.std)))
        for metric, values in seeds[TABLE_METRICS].items()
    }
    append(res_save_dir, f"{dataset}-seeds.csv", name, seeds.rename_axis("seed").reset_index())
    return append(res_save_dir, f"{dataset}.csv", name, pd.DataFrame([cells]))


def append(res_save_dir: str | Path, file: str, name: str, rows: pd.DataFrame) -> Path:
    """Append rows of a model to a table in `normal/`, but for those that it has: a run may have been stopped after it
    wrote them.  -> its path. Raises RunError where it cannot be read or written."""
    path, table = Path(res_save_dir) / "normal" / file, rows.copy()
    table.insert(0, "Model", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(path.parent):
            if path.exists():  # as text, so that existing rows stay as they are
                files = (path, StringIO(table.to_csv(index=False)))
                old, new = (pd.read_csv(source, dtype=str, keep_default_na=False) for source in files)
                both = pd.concat([old, new], ignore_index=True).fillna("")
                table = both[(both.index < len(old)) | ~both.duplicated()]
            write_csv(path, table)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise RunError(
            f"{path}: the tables cannot be read or written ({printable(error)}). The runs themselves are complete: "
            "make room, or move a damaged table away; --resume then adds the rows."
        ) from error
    return path


def as_text(table: pd.DataFrame, **how) -> str:
    """A table for reading, with 4 digits; how: as for DataFrame.to_string"""
    return table.to_string(float_format="{:.4f}".format, **{"na_rep": ""} | how)
