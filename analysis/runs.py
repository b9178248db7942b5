"""List runs with their settings and metrics, best first.

python -m analysis.runs
python -m analysis.runs result -d mosi --name 'dmd-table3-*' --output runs.csv
"""

import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from analysis.record import RunRecord
from analysis.tables import as_text
from experiments.run_config import INCONSEQUENTIAL
from experiments.run_folder import write_csv
from utils.cli import ArgumentParser, run_command
from utils.errors import DMDError, RunError
from utils.metrics import LOWER_IS_BETTER, METRICS, WIDER_METRICS

VALID = [f"valid_{metric}" for metric in ("Loss", *METRICS)]  # what KeyEval may choose an epoch by
NUMBERS = [*VALID, *METRICS]
NO_SETTINGS = ["name", "dataset", "dataset_name", "seeds", "epoch", *NUMBERS]


def read_runs(folder: Path) -> Iterator[dict]:
    """Name, dataset, seeds, epoch, metrics, and settings as text, of the runs below a result folder. A run that cannot
    be read is a warning."""
    for path in sorted(folder.glob("*/config.json")):
        try:
            run = RunRecord(path.parent)
        except DMDError as error:
            print(f"Warning: {error}", file=sys.stderr)
            continue
        settings = run.config["settings"] | {key: run.config.get(key) for key in ("precision", "init", "data")}
        dataset, seed, metrics = settings["dataset_name"], str(run.config["seed"]), run.metrics or {}
        row = {"name": run.name.removesuffix(f"-{dataset}-{seed}"), "dataset": dataset, "seeds": seed}
        row["epoch"] = str(metrics.get("epoch", "-"))
        row |= {key: str(value) for key, value in settings.items() if key not in INCONSEQUENTIAL}
        yield row | {key: metrics[key] for key in NUMBERS if key in metrics}


def read_trials(folder: Path) -> Iterator[dict]:
    """The same of the trials of sweeps, from the tables that --tune writes."""
    for path in sorted(folder.glob("tune/*.csv")):
        study, _, dataset = path.stem.rpartition("-")
        trials = pd.read_csv(path, dtype=str, keep_default_na=False).rename(columns=lambda s: s.removeprefix("params_"))
        for row in trials.to_dict("records"):
            state, number = row.pop("state").lower(), row.pop("number")
            name = f"{study} trial {number}" + ("" if state == "complete" else f" ({state})")
            epoch = row.pop("user_attrs_best_epoch", "").removesuffix(".0") or "-"
            numbers = {key: float(row[key] or "nan") for key in VALID if key in row}
            yield row | {"name": name, "dataset": dataset, "seeds": "-", "epoch": epoch} | numbers


def table_of(rows: list[dict]) -> pd.DataFrame:
    """A row a setting, best first: name, dataset, the settings that differ, seeds, best epochs; and over the seeds mean
    and standard deviation (ddof 0) of the valid value that the epoch was chosen by, and of the TEST metrics."""
    runs = pd.DataFrame(rows)
    numbers = [column for column in NUMBERS if column in runs]
    differing = [key for key in runs if key not in NO_SETTINGS and runs[key].nunique() > 1]
    unfinished = (runs["epoch"] == "-").rename("unfinished")
    groups = runs.groupby(["name", "dataset", *differing, unfinished], dropna=False, sort=False)
    deviations = groups[numbers].std(ddof=0).where(groups.size() > 1).add_suffix("_std")
    parts = groups[["seeds", "epoch"]].agg(" ".join), groups[numbers].mean(), deviations
    table = pd.concat(parts, axis=1).reset_index().drop(columns=["unfinished", "data"], errors="ignore")
    valid = [column for column in VALID if column in table]
    return table.sort_values(valid, ascending=[column.removeprefix("valid_") in LOWER_IS_BETTER for column in valid])


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the wider metrics, 'mean ± std' in one cell, and the numbers that a sweep draws cut short."""
    table = table[[column for column in table if column.removesuffix("_std") not in WIDER_METRICS]]
    for name in [column for column in table if f"{column}_std" in table]:
        deviations = table.pop(f"{name}_std").map(lambda std: "" if pd.isna(std) else f" ± {std:.4f}")
        table[name] = table[name].map("{:.4f}".format, na_action="ignore") + deviations
    return table.replace(r"(\.0*[1-9]\d{3})\d+$", r"\1…", regex=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m analysis.runs", description="List runs, best on valid first.")
    parser.add_argument("folder", nargs="?", type=Path, default="result", help="where the runs are (default: result)")
    parser.add_argument("-d", "--dataset", metavar="GLOB", default="*", help="only runs on this data set")
    parser.add_argument("--name", metavar="GLOB", default="*", help="only runs of these names, such as 'dmd-table3-*'")
    parser.add_argument("--output", metavar="FILE.csv", help="write the table there too, with all metrics")
    options = parser.parse_args(argv)
    rows = [*read_runs(options.folder), *read_trials(options.folder)]
    rows = [row for row in rows if fnmatch(row["dataset"], options.dataset) and fnmatch(row["name"], options.name)]
    if not rows:
        raise RunError(f"{options.folder}: no runs here, or none of that --dataset and --name.")
    table = table_of(rows)
    print(as_text(readable(table), na_rep="-", index=False))
    if options.output:
        write_csv(Path(options.output), table)


if __name__ == "__main__":
    sys.exit(run_command(main))
