"""List runs with their settings and metrics, best first.

python -m analysis.runs
python -m analysis.runs result -d mosi --name 'dmd-table3-*' --output runs.csv
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.record import RunRecord
from analysis.tables import write_output
from trainers.run_settings import INCONSEQUENTIAL, different_settings
from utils.cli import run_command
from utils.errors import DMDError, RunError
from utils.metrics import LOWER_IS_BETTER, METRICS, WIDER_METRICS

HIDDEN = ("data", "dataset_name", *INCONSEQUENTIAL)  # settings without a column of their own


@dataclass(frozen=True)
class Entry:
    """A line of the list: the seeds of one setting, all of them finished or none; or a trial of a sweep."""

    name: str
    dataset: str
    config: dict  # config.json of the first seed; of a trial, the settings that were searched
    seeds: list[int]
    results: list[dict]  # metrics.json of each seed


def read_entries(folder: Path) -> list[Entry]:
    """The runs below a result folder, then the trials of its sweeps. What cannot be read is a warning."""
    entries = []
    for path in sorted(folder.glob("*/config.json")):
        try:
            run = RunRecord(path.parent)
        except DMDError as error:
            print(f"Warning: {error}", file=sys.stderr)
            continue
        dataset, seed = run.config["settings"]["dataset_name"], run.config["seed"]
        entry = Entry(run.name.removesuffix(f"-{dataset}-{seed}"), dataset, run.config, [seed], [run.metrics or {}])
        for other in entries:
            same = (entry.name, dataset, any(entry.results)) == (other.name, other.dataset, any(other.results))
            if same and not any(different_settings(run.config, other.config, INCONSEQUENTIAL)):
                other.seeds.append(seed)
                other.results.extend(entry.results)
                break
        else:
            entries.append(entry)
    return entries + [trial for path in sorted(folder.glob("tune/*.csv")) for trial in _trials(path)]


def _trials(path: Path) -> Iterator[Entry]:
    """The trials in the table that trainers/sweep.py writes of a study `<name>-<dataset>`."""
    study, _, dataset = path.stem.rpartition("-")
    for row in pd.read_csv(path).to_dict("records"):
        valid = {key: row.pop(key) for key in list(row) if key.startswith("valid_")}
        number, state, epoch, seed, _ = (row.pop(key) for key in ("trial", "state", "best_epoch", "seed", "seconds"))
        name = f"{study} trial {number}" + ("" if state == "complete" else f" ({state})")
        yield Entry(name, dataset, {"settings": row}, [seed], [valid | {"epoch": epoch}])


def _order(entry: Entry) -> tuple:
    """Best valid value first, each KeyEval by itself; then what has none."""
    column = next((name for name in entry.results[0] if name.startswith("valid_")), "")
    value = np.mean([result.get(column, math.nan) for result in entry.results])
    lower_is_better = column.removeprefix("valid_") in LOWER_IS_BETTER
    return math.isnan(value), column, value if lower_is_better else -value


def table_of(entries: list[Entry]) -> pd.DataFrame:
    """A row an entry, best first: name, data set, seeds, the settings that differ, best epochs; then mean and standard
    deviation (ddof 0) of the valid value that the epochs were chosen by, and of the TEST metrics."""
    runs, trials = ([e.config for e in entries if ("seed" in e.config) == of_run] for of_run in (True, False))
    differing = {key for config in runs for key, *_ in different_settings(config, runs[0], HIDDEN)}
    differing |= {key for config in trials for key in config["settings"]}
    rows = []
    for entry in sorted(entries, key=_order):
        settings, results = entry.config | entry.config["settings"], pd.DataFrame(entry.results)
        row = {"name": entry.name, "dataset": entry.dataset, "seeds": " ".join(map(str, entry.seeds))}
        row |= {key: settings.get(key) for key in sorted(differing)}
        row["epoch"] = " ".join(f"{epoch:.0f}" for epoch in results.get("epoch", ()) if not math.isnan(epoch)) or None
        for column in results:
            if column.startswith("valid_") or column in METRICS:
                row[column], std = results[column].mean(), results[column].std(ddof=0)
                row[f"{column}_std"] = std if len(results) > 1 else None
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def as_text(table: pd.DataFrame) -> str:
    """The table for reading: 'mean ± std' in one cell, and '-' where there is nothing."""
    shown = table.drop(columns=list(WIDER_METRICS), errors="ignore").astype(object)
    for column in [name for name in shown if f"{name}_std" in shown]:
        deviations = shown.pop(f"{column}_std").map(lambda std: "" if pd.isna(std) else f" ± {std:.4f}")
        shown[column] = table[column].map("{:.4f}".format, na_action="ignore") + deviations
    shown = shown[[column for column in shown if not column.endswith("_std")]]
    return shown.where(shown.notna(), "-").to_string(index=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.runs", description="List runs, best on valid first.")
    parser.add_argument("folder", nargs="?", type=Path, default="result", help="where the runs are (default: result)")
    parser.add_argument("-d", "--dataset", help="only runs on this data set")
    parser.add_argument("--name", metavar="GLOB", default="*", help="only runs of these names, such as 'dmd-table3-*'")
    parser.add_argument("--output", metavar="FILE.csv", help="write the table there too, with all metrics")
    options = parser.parse_args(argv)
    entries = [entry for entry in read_entries(options.folder) if options.dataset in (None, entry.dataset)]
    entries = [entry for entry in entries if fnmatch(entry.name, options.name)]
    if not entries:
        raise RunError(f"{options.folder}: no such runs. Name the folder that holds runs, such as result.")
    table = table_of(entries)
    if options.output:
        write_output(options.output, table)
    print(as_text(table))


if __name__ == "__main__":
    sys.exit(run_command(main))
