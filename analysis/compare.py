"""Compare two runs on the same test utterances, or sum up the seeds of one configuration.

python -m analysis.compare result/dmd-mosi-1111 result/paper-mosi-1111
python -m analysis.compare --seeds result/dmd-mosi-1111 result/dmd-mosi-1112 result/dmd-mosi-1113
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.record import RunRecord
from analysis.statistics import RESAMPLES, compare, over_seeds
from analysis.tables import append, as_text
from experiments.run_config import INCONSEQUENTIAL, different_settings
from experiments.run_folder import write_csv
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DMDError, RunError
from utils.log import logger
from utils.reading import printable

COMPARISON_NOTE = """\
better: at 5 %, by p for Acc_2 and Acc_7 (McNemar's exact test), by the interval from low to high for F1_score and MAE.
This is about these two trained models: whether their settings differ takes several seeds of each."""
SEEDS_NOTE = f"""\
std: over the seeds (ddof 0). low, high: 95 % interval of the mean, by {RESAMPLES:,} resamples of the utterances;
the choice of seeds is not in it."""


def pair(runs: Sequence[RunRecord]) -> tuple[np.ndarray, np.ndarray, str]:
    """Bring together what several runs predict for the utterances that all of them have, in the first one's order.

    -> (predictions (S, N), labels (N), a line that says how many utterances these are)
    Raises RunError where runs share less than two utterances, or disagree about a label.
    """
    # An id may occur several times: the first of one run belongs to the first of another.
    tables = [run.predictions.set_index(["id", run.predictions.groupby("id").cumcount()]) for run in runs]
    joined = pd.concat(tables, axis=1, join="inner")
    labels, predictions = joined["label"].to_numpy(), joined["prediction"].to_numpy()
    if len(joined) < 2 or (labels != labels[:, :1]).any():
        folders = ", ".join(str(run.folder) for run in runs)
        raise RunError(f"{folders}: they share less than 2 utterances of test, or have other labels for these.")
    sizes = ", ".join(str(len(table)) for table in tables)
    return predictions.T, labels[:, 0], f"{len(joined)} utterances of test that all runs have (of {sizes})."


def report_seeds(runs: dict[int, Path], res_save_dir: str | Path, dataset: str, name: str) -> None:
    """Log how sure the metrics of test are over the seeds, and append it to `normal/<dataset>-intervals.csv`.

    runs: result folders by seed. What cannot be summed up is a warning: the runs themselves are complete.
    """
    try:
        predictions, labels, _ = pair([RunRecord(folder) for folder in runs.values()])
    except DMDError as error:
        logger.warning(f"No intervals over the seeds: {error}")
        return
    table = over_seeds(predictions, labels, list(runs))
    rows = table.tail(4).T.round(4).rename_axis("metric").reset_index()  # mean, std, low, high
    rows.insert(0, "seeds", " ".join(map(str, runs)))
    path = append(res_save_dir, f"{dataset}-intervals.csv", name, rows)
    for line in as_text(table).splitlines():
        logger.info(line)
    logger.info(f"low, high: 95 % interval of the mean over {len(labels)} test utterances; in {path}.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m analysis.compare", description="Compare two runs, or sum up several seeds.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="result folder of a run, such as result/dmd-mosi-1111")
    parser.add_argument("--seeds", action="store_true", help="the runs are seeds of one configuration")
    parser.add_argument("--output", metavar="FILE.csv", help="write the table there too")
    options = parser.parse_intermixed_args(argv)
    runs = [RunRecord(folder) for folder in options.runs]
    if len(runs) < 2 or (len(runs) > 2 and not options.seeds):
        raise ConfigError(f"{len(runs)} runs: a comparison needs two; seeds of one configuration take --seeds.")
    predictions, labels, sizes = pair(runs)
    if options.seeds:
        for run in runs:
            for key, value, first in different_settings(run.config, runs[0].config, INCONSEQUENTIAL):
                raise ConfigError(
                    f"--seeds: {run.folder} has {key} {printable(value)}, but {runs[0].folder} has {printable(first)}. "
                    "Name seeds of one configuration; two configurations are compared without --seeds."
                )
        table = over_seeds(predictions, labels, [run.config["seed"] for run in runs])
        print(sizes, as_text(table), SEEDS_NOTE, sep="\n")
    else:
        table, (a, b) = compare(*predictions, labels), (str(run.folder) for run in runs)
        print(f"A: {a}", f"B: {b}", sizes, as_text(table), COMPARISON_NOTE, sep="\n")
        table = table.assign(run_A=a, run_B=b, utterances=len(labels))
    if options.output:
        write_csv(Path(options.output), table.rename_axis("seed" if options.seeds else "metric").reset_index())


if __name__ == "__main__":
    sys.exit(run_command(main))
