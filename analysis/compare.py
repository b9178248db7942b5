"""Compare two runs on the same test utterances, or summarize the seeds of one configuration.

python -m analysis.compare result/dmd-mosi-1111 result/paper-mosi-1111
python -m analysis.compare --seeds result/dmd-mosi-1111 result/dmd-mosi-1112 result/dmd-mosi-1113
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.statistics import RESAMPLES, Units, compare, group_by_video, over_seeds
from analysis.tables import append, as_text
from experiments.run_config import NOT_COMPARED, describe_differences
from experiments.run_folder import RunFolder
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DMDError, RunError
from utils.files import write_csv
from utils.log import logger
from utils.reading import printable

COMPARISON_NOTE = """\
low, high: 95 % interval of the difference, from {resamples:,} resamples of the {unit}s.
p: randomization test, which swaps A and B in random {unit}s, {resamples:,} times.
better: significant at 5 % by p, for each metric alone: choose the metric beforehand.
This compares two trained models. To compare their settings, train several seeds of each."""
FEW_UNITS_NOTE = "Only {number} {unit}s: p cannot fall below 5 %, and the intervals are too narrow."
SEEDS_NOTE = """\
std: over the seeds (ddof 0). low, high: 95 % interval of the mean,
from {resamples:,} resamples of the {unit}s; it does not include the variation between seeds."""
FEW_UNITS = 6  # with fewer, even the most extreme of all swaps has p > 5 %: 2 / 2^5


@dataclass(frozen=True)
class PairedPredictions:
    """The predictions of several runs for the test utterances that all of them share.

    Attributes:
        predictions: (S, N) of S runs.
        labels: (N,) true sentiment.
        units: The videos of the utterances.
        description: A sentence with the numbers of utterances and videos.
    """

    predictions: np.ndarray
    labels: np.ndarray
    units: Units
    description: str


def pair(runs: Sequence[RunFolder]) -> PairedPredictions:
    """Join the predictions of several runs by the utterances' ids, in the order of the first run.

    Raises:
        RunError: The runs share fewer than two utterances, or differ in a label.
    """
    tables = []
    for run in runs:
        table = run.predictions
        # An id may occur several times: the first of one run belongs to the first of another.
        repetition = table.groupby("id").cumcount()
        tables.append(table.set_index(["id", repetition]))
    joined = pd.concat(tables, axis=1, join="inner")
    labels = joined["label"].to_numpy()
    predictions = joined["prediction"].to_numpy()
    if len(joined) < 2 or (labels != labels[:, :1]).any():
        folders = ", ".join(str(run.results) for run in runs)
        raise RunError(
            f"{folders}: fewer than 2 shared test utterances, or different labels for them. Name "
            "runs on the same data."
        )
    units = group_by_video(joined.index.get_level_values(0))
    sizes = ", ".join(str(len(table)) for table in tables)
    description = (
        f"{len(joined)} test utterances that all runs share (of {sizes}), {units.describe()}."
    )
    return PairedPredictions(predictions.T, labels[:, 0], units, description)


def report_seeds(
    runs: dict[int, RunFolder], res_save_dir: str | Path, dataset: str, name: str
) -> None:
    """Log the metrics of several seeds with intervals, and append them to a table.

    The table is `<res_save_dir>/normal/<dataset>-intervals.csv`. A failure is a warning: the runs
    themselves are complete.

    Args:
        runs: The runs by seed.
        res_save_dir: The folder that holds `normal/`.
        dataset: Name of the data set.
        name: Name of the runs, for the column Model.
    """
    try:
        paired = pair(list(runs.values()))
    except DMDError as error:
        logger.warning(f"No intervals over the seeds: {error}")
        return
    table = over_seeds(paired.predictions, paired.labels, list(runs), paired.units.index)
    summary = table.loc[["mean", "std", "low", "high"]]
    rows = summary.T.round(4).rename_axis("metric").reset_index()
    rows.insert(0, "seeds", " ".join(map(str, runs)))
    path = append(res_save_dir, f"{dataset}-intervals.csv", name, rows)
    for line in as_text(table).splitlines():
        logger.info(line)
    logger.info(f"low, high: 95 % interval of the mean; in {path}.")
    logger.info(f"The interval is over {paired.description}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        DMDError: Runs or flags are incompatible.
    """
    options = _read_flags(argv)
    runs = [RunFolder(folder) for folder in options.runs]
    for run in runs:
        run.check_exists()
    if len(runs) < 2 or (len(runs) > 2 and not options.seeds):
        raise ConfigError(
            f"{len(runs)} runs: expected two to compare. Use --seeds for seeds of a configuration."
        )
    paired = pair(runs)
    table = _sum_up(runs, paired) if options.seeds else _compare_two(runs, paired)
    if options.output:
        write_csv(Path(options.output), table.reset_index())


def _read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m analysis.compare", description="Compare two runs, or summarize seeds."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="result folder of a run, such as result/dmd-mosi-1111",
    )
    parser.add_argument(
        "--seeds", action="store_true", help="the runs are seeds of one configuration"
    )
    parser.add_argument("--output", metavar="FILE.csv", help="also write the table to a file")
    return parser.parse_intermixed_args(argv)


def check_same_configuration(runs: Sequence[RunFolder]) -> None:
    """Check that runs differ in nothing but their seeds.

    Raises:
        ConfigError: The settings, data or precision of a run differ from those of the first one,
            or two runs have the same seed.
    """
    first = runs[0]
    seeds = [run.run_config["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"the runs have the seeds {seeds}: name each seed once.")
    for run in runs:
        differences = describe_differences(run.run_config, first.run_config, NOT_COMPARED)
        for difference in differences:
            raise ConfigError(
                f"{run.results} has {difference.key} {printable(difference.first)}, but "
                f"{first.results} has {printable(difference.second)}. Name seeds of one "
                "configuration, or compare two runs with python -m analysis.compare without "
                "--seeds."
            )


def _sum_up(runs: list[RunFolder], paired: PairedPredictions) -> pd.DataFrame:
    """Print the table of `over_seeds`, and return it."""
    check_same_configuration(runs)
    seeds = [run.run_config["seed"] for run in runs]
    table = over_seeds(paired.predictions, paired.labels, seeds, paired.units.index)
    print(paired.description)
    print(as_text(table))
    print(SEEDS_NOTE.format(resamples=RESAMPLES, unit=paired.units.name))
    return table.rename_axis("seed")


def _compare_two(runs: list[RunFolder], paired: PairedPredictions) -> pd.DataFrame:
    """Print the table of `compare`, and return it with the runs and sizes that it compares."""
    a, b = runs
    table = compare(*paired.predictions, paired.labels, paired.units.index)
    print(f"A: {a.results}")
    print(f"B: {b.results}")
    print(paired.description)
    print(as_text(table))
    print(COMPARISON_NOTE.format(resamples=RESAMPLES, unit=paired.units.name))
    if paired.units.number < FEW_UNITS:
        print(FEW_UNITS_NOTE.format(number=paired.units.number, unit=paired.units.name))
    table["run_A"] = str(a.results)
    table["run_B"] = str(b.results)
    table["utterances"] = len(paired.labels)
    table["videos"] = paired.units.videos
    return table.rename_axis("metric")


if __name__ == "__main__":
    sys.exit(run_command(main))
