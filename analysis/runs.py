"""List runs with their settings and metrics, best first.

python -m analysis.runs
python -m analysis.runs result -d mosi --name 'dmd-table3-*' --output runs.csv
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from analysis.tables import as_text
from experiments.run_config import FILE_NAME, NOT_COMPARED
from experiments.run_folder import RunFolder
from utils.cli import ArgumentParser, run_command
from utils.errors import DMDError, RunError
from utils.files import write_csv
from utils.metrics import LOWER_IS_BETTER, METRICS, WIDER_METRICS

VALID = [f"valid_{metric}" for metric in ("Loss", *METRICS)]  # KeyEval is one of these
NUMBERS = [*VALID, *METRICS]
NOT_SETTINGS = ["name", "dataset", "dataset_name", "seeds", "epoch", *NUMBERS]
UNKNOWN = "-"
LONG_NUMBER = re.compile(r"(\.0*[1-9]\d{3})\d+$")  # more than four digits after the point


def read_runs(folder: Path) -> Iterator[dict]:
    """Read the runs in a result folder; a run that cannot be read causes a warning.

    Args:
        folder: The folder that holds the runs' result folders.

    Yields:
        For each run: name, dataset, seeds (its seed), epoch (the best), the settings as text, and
        the metrics that it has.
    """
    for path in sorted(folder.glob(f"*/{FILE_NAME}")):
        try:
            row = _row_of_run(RunFolder(path.parent))
        except DMDError as error:
            print(f"Warning: {error}", file=sys.stderr)
            continue
        yield row


def _row_of_run(run: RunFolder) -> dict:
    metrics = run.metrics or {}
    settings = dict(run.run_config["settings"])
    for key in ("precision", "init_from", "data"):
        settings[key] = run.run_config.get(key)
    dataset = settings["dataset_name"]
    seed = str(run.run_config["seed"])
    row = {
        "name": run.name.removesuffix(f"-{dataset}-{seed}"),
        "dataset": dataset,
        "seeds": seed,
        "epoch": str(metrics.get("epoch", UNKNOWN)),
    }
    for key, value in settings.items():
        if key not in NOT_COMPARED:
            row[key] = str(value)
    for key in NUMBERS:
        if key in metrics:
            row[key] = metrics[key]
    return row


def read_trials(folder: Path) -> Iterator[dict]:
    """Read the trials of sweeps from the tables that --tune writes.

    Args:
        folder: The folder that holds `tune/`.

    Yields:
        For each trial the keys of `read_runs`; its settings are those that the sweep searches.
    """
    for path in sorted(folder.glob("tune/*.csv")):
        try:
            trials = pd.read_csv(path, dtype=str, keep_default_na=False)
            rows = [_row_of_trial(path.stem, trial) for trial in trials.to_dict("records")]
        except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
            print(f"Warning: {path}: not a table of trials ({error}).", file=sys.stderr)
            continue
        yield from rows


def _row_of_trial(study: str, trial: dict[str, str]) -> dict:
    # Tables of older versions do not name the data set; it is then the word after the last hyphen.
    dataset = trial.get("dataset") or study.rpartition("-")[2]
    name = f"{study.removesuffix(f'-{dataset}')} trial {trial['number']}"
    state = trial["state"].lower()
    if state != "complete":
        name += f" ({state})"
    epoch = trial.get("user_attrs_best_epoch", "").removesuffix(".0")
    row = {"name": name, "dataset": dataset, "seeds": UNKNOWN, "epoch": epoch or UNKNOWN}
    for column, value in trial.items():
        if column.startswith("params_"):
            row[column.removeprefix("params_")] = value
        elif column in VALID:
            row[column] = float(value or "nan")
    return row


def table_of(rows: list[dict]) -> pd.DataFrame:
    """Group the runs by configuration, and sort the configurations.

    Args:
        rows: The rows of `read_runs` and `read_trials`.

    Returns:
        A row for each configuration, best first by the value on valid that chose its epoch: name,
        dataset, the settings that differ, seeds, best epochs; mean and standard deviation (`_std`,
        ddof 0, NaN for one seed) over the seeds of that value and of the TEST metrics. Unfinished
        seeds have a row of their own.
    """
    runs = pd.DataFrame(rows)
    numbers = [column for column in NUMBERS if column in runs]
    differing = []
    for key in runs:
        if key not in NOT_SETTINGS and runs[key].nunique() > 1:
            differing.append(key)
    unfinished = (runs["epoch"] == UNKNOWN).rename("unfinished")
    groups = runs.groupby(["name", "dataset", *differing, unfinished], dropna=False, sort=False)

    words = groups[["seeds", "epoch"]].agg(" ".join)
    means = groups[numbers].mean()
    deviations = groups[numbers].std(ddof=0).where(groups.size() > 1).add_suffix("_std")
    table = pd.concat([words, means, deviations], axis=1).reset_index()
    table = table.drop(columns=["unfinished", "data"], errors="ignore")

    valid = [column for column in VALID if column in table]
    ascending = [column.removeprefix("valid_") in LOWER_IS_BETTER for column in valid]
    return table.sort_values(valid, ascending=ascending)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Shorten the table of `table_of` for printing.

    Returns:
        A new table without the wider metrics, with "mean ± std" in one cell, and with the numbers
        that a sweep has drawn cut to four significant digits.
    """
    shown = {}
    for name, column in table.items():
        if name.removesuffix("_std") in WIDER_METRICS or name.endswith("_std"):
            continue
        deviations = table.get(f"{name}_std")
        if deviations is not None:
            column = _mean_and_deviation(column, deviations)
        shown[name] = column.map(_shorten)
    return pd.DataFrame(shown)


def _shorten(cell: object) -> object:
    """Cut a long number in a string, such as '0.000123456' to '0.0001234…'."""
    return LONG_NUMBER.sub(r"\1…", cell) if isinstance(cell, str) else cell


def _mean_and_deviation(means: pd.Series, deviations: pd.Series) -> pd.Series:
    """'0.8147 ± 0.0120', '0.8147' without a deviation, NaN without a mean."""
    numbers = means.map("{:.4f}".format, na_action="ignore")
    return numbers + deviations.map(_deviation)


def _deviation(value: float) -> str:
    return "" if pd.isna(value) else f" ± {value:.4f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        RunError: No run matches data set and name.
    """
    options = _read_flags(argv)
    rows = []
    for row in [*read_runs(options.folder), *read_trials(options.folder)]:
        if fnmatch(row["dataset"], options.dataset) and fnmatch(row["name"], options.name):
            rows.append(row)
    if not rows:
        raise RunError(f"{options.folder}: contains no runs that match --dataset and --name.")
    table = table_of(rows)
    print(as_text(readable(table), missing=UNKNOWN, index=False))
    if options.output:
        write_csv(Path(options.output), table)


def _read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m analysis.runs", description="List runs, best on valid first."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default="result", help="the runs' folder (default: result)"
    )
    parser.add_argument(
        "-d", "--dataset", metavar="GLOB", default="*", help="only runs on this data set"
    )
    parser.add_argument(
        "--name", metavar="GLOB", default="*", help="only runs of these names, e.g. 'dmd-table3-*'"
    )
    parser.add_argument(
        "--output", metavar="FILE.csv", help="also write the table to a file, with all metrics"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
