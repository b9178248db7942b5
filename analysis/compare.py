"""Compare two runs on the same test utterances, or sum up the seeds of one configuration.

python -m analysis.compare result/dmd-mosi-1111 result/paper-mosi-1111
python -m analysis.compare --seeds result/dmd-mosi-1111 result/dmd-mosi-1112 result/dmd-mosi-1113
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.record import ScoredRun, read_scored_run
from analysis.statistics import RESAMPLES, compare, over_seeds
from analysis.tables import append_intervals
from trainers.run_settings import INCONSEQUENTIAL, different_settings
from trainers.runs import write_csv
from utils.cli import run_command
from utils.errors import ConfigError, DMDError, RunError
from utils.log import logger
from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, regression_metrics
from utils.reading import printable

LEVEL = 0.05
CIRCUMSTANCES = ("device", "versions", "compile", "deterministic", "ranks")  # in config.json, and no settings


@dataclass(frozen=True)
class PairedRuns:
    """What several runs predict for the utterances that all of them have."""

    labels: np.ndarray  # (N)
    predictions: np.ndarray  # (S, N)
    left_out: list[int]  # (S) how many utterances of each run are not in all


def pair(runs: Sequence[ScoredRun]) -> PairedRuns:
    """Bring the predictions of several runs together by utterance, in the first one's order.

    An id may occur twice where all runs have the same utterances in the same order.
    Raises RunError where runs share less than two utterances, or disagree about a label.
    """
    tables = [run.predictions for run in runs]
    if any(not table["id"].equals(tables[0]["id"]) for table in tables):
        for run in runs:
            repeated = run.predictions["id"][run.predictions["id"].duplicated()]
            if len(repeated):
                raise RunError(
                    f"{run.folder}: utterance '{printable(repeated.iloc[0])}' occurs twice, and the other run has "
                    "other utterances, or another order: which belong together cannot be told."
                )
        common = set.intersection(*(set(table["id"]) for table in tables))
        order = [utterance for utterance in tables[0]["id"] if utterance in common]
        tables = [table.set_index("id").loc[order].reset_index() for table in tables]
    if len(tables[0]) < 2:
        shared = len(tables[0]) or "no"
        folders = ", ".join(str(run.folder) for run in runs)
        raise RunError(f"{folders}: they share {shared} utterance of test; at least 2 are needed. Are they of one set?")
    for run, table in zip(runs, tables, strict=True):
        for row in np.flatnonzero(table["label"] != tables[0]["label"])[:1]:
            raise RunError(
                f"{run.folder}: the label of utterance '{printable(table['id'][row])}' is {table['label'][row]}, but "
                f"{tables[0]['label'][row]} in {runs[0].folder}. Compare runs of the same labels."
            )
    labels, predictions = tables[0]["label"].to_numpy(), np.stack([table["prediction"] for table in tables])
    return PairedRuns(labels, predictions, [len(run.predictions) - len(labels) for run in runs])


def report_seeds(runs: dict[int, Path], res_save_dir: str | Path, dataset: str, name: str, once: bool) -> None:
    """Log how sure the metrics of test are over the seeds, and append it to `normal/<dataset>-intervals.csv`.

    runs: result folders by seed, of one configuration; once: as for append_results
    What cannot be summed up is a warning: the runs themselves are complete.
    """
    try:
        paired = pair([read_scored_run(folder) for folder in runs.values()])
    except DMDError as error:
        logger.warning(f"No intervals over the seeds: {error}")
        return
    table = over_seeds(paired.predictions, paired.labels, list(runs))
    path = append_intervals(res_save_dir, dataset, name, table, once)
    for line in _shown(table).splitlines():
        logger.info(line)
    logger.info(f"low, high: 95 % interval of the mean over {len(paired.labels)} test utterances; in {path}.")


def sum_up_seeds(runs: Sequence[ScoredRun]) -> tuple[pd.DataFrame, list[str]]:
    """-> (the table, lines to print) of the seeds of one configuration

    Raises ConfigError or RunError where they are not that.
    """
    _check_one_configuration(runs)
    paired = pair(runs)
    table = over_seeds(paired.predictions, paired.labels, [run.config["seed"] for run in runs])
    lines = [
        _sizes(runs, paired),
        *_shown(table).splitlines(),
        f"std: over the seeds (ddof 0). low, high: 95 % interval of the mean, by {RESAMPLES:,} resamples of the "
        "utterances; the choice of seeds is not in it.",
    ]
    return table.rename_axis("seed").reset_index(), lines


def compare_two(a: ScoredRun, b: ScoredRun) -> tuple[pd.DataFrame, list[str]]:
    """-> (the table, lines to print) of run A against run B. Raises RunError where they cannot be paired."""
    paired = pair([a, b])
    table = compare(*paired.predictions, paired.labels)
    shown = table.rename(columns={"difference": "A - B", "only_A": "only A right", "only_B": "only B right"})
    shown["p"] = [None if np.isnan(p) else f"{p:.2g}" for p in table["p"]]
    names = [f"A: {a.folder}", f"B: {b.folder}"]
    lines = [*names, _sizes([a, b], paired), *_shown(shown).splitlines(), *verdicts(table)]
    named = {"run_A": str(a.folder), "run_B": str(b.folder), "utterances": len(paired.labels)}
    return table.rename_axis("metric").reset_index().assign(**named), lines


def verdicts(table: pd.DataFrame) -> Iterator[str]:
    """In words, for each metric of the table of `compare`, whether the runs differ; and what that does not say."""
    tested = 0
    for metric, row in table.iterrows():
        if np.isnan(row["low"]) and np.isnan(row["p"]):
            yield f"{metric}: no verdict; it is not defined here, or not in each resample."
            continue
        tested += 1
        if np.isnan(row["p"]):
            differ, reason = row["low"] > 0 or row["high"] < 0, f"interval {row['low']:.4f} to {row['high']:.4f}"
        else:
            differ, reason = row["p"] < LEVEL, f"McNemar's p = {row['p']:.2g}"
        better = "B" if (row["difference"] > 0) == (metric in LOWER_IS_BETTER) else "A"
        found = f"{better} is better by {abs(row['difference']):.4f}" if differ else "no difference is shown"
        yield f"{metric}: {found} at 5 % ({reason})."
    yield (
        f"{tested} metrics are tested at 5 % each, without correction: of pairs of equally good runs, up to "
        f"{5 * tested} % would show a difference somewhere. Go by the metric that was chosen beforehand."
    )
    yield "This is about these two trained models. Whether their settings differ takes several seeds of each."


def _check_one_configuration(runs: Sequence[ScoredRun]) -> None:
    """Raise ConfigError or RunError unless the runs differ in their seed, and in nothing else that changes numbers."""
    first, seeds = runs[0], {}
    for run in runs:
        seed = run.config.get("seed")
        if not isinstance(seed, int):
            raise RunError(f"{run.folder}: config.json names no seed.")
        if seed in seeds:
            raise ConfigError(f"--seeds: {run.folder} has the seed {seed}, as {seeds[seed]} has. Name each seed once.")
        seeds[seed] = run.folder
        for key, value, other in different_settings(run.config, first.config, INCONSEQUENTIAL):
            raise ConfigError(
                f"--seeds: {run.folder} has {key} {printable(value)}, but {first.folder} has {printable(other)}. "
                "Name seeds of one configuration; two configurations are compared without --seeds."
            )


def _other_circumstances(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """A line for each way in which seeds of one configuration were not trained as the first one was."""
    for run in runs[1:]:
        for key in CIRCUMSTANCES:
            value, first = (printable(one.config.get(key), 300) for one in (run, runs[0]))
            if value != first:
                yield f"{run.folder}: {key} is {value}, but {first} in {runs[0].folder}."


def _other_metrics(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """A line for each run whose predictions and metrics are not of one evaluation."""
    for run in runs:
        scored = regression_metrics(run.predictions["prediction"], run.predictions["label"])
        for metric in CORE_METRICS:
            stored = run.metrics.get(metric)
            if isinstance(stored, float) and not np.isnan(stored) and stored != scored[metric]:
                yield f"{run.folder}: predictions.csv gives {metric} {scored[metric]}, but metrics.json says {stored}."
                break


def _sizes(runs: Sequence[ScoredRun], paired: PairedRuns) -> str:
    left_out = [f"{number} of {run.folder}" for run, number in zip(runs, paired.left_out, strict=True) if number]
    rest = f"; not in all runs: {', '.join(left_out)}" if left_out else ""
    return f"{len(paired.labels)} utterances of test{rest}."


def _shown(table: pd.DataFrame) -> str:
    texts = table.astype(object).map(lambda v: "" if pd.isna(v) else f"{v:.4f}" if isinstance(v, float) else str(v))
    return texts.to_string()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare", description="Compare two runs, or sum up several seeds of one configuration."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="result folder of a run, such as result/dmd-mosi-1111")
    parser.add_argument("--seeds", action="store_true", help="the runs are seeds of one configuration")
    parser.add_argument("--output", metavar="FILE.csv", help="write the table there too")
    options = parser.parse_intermixed_args(argv)
    if options.seeds and len(options.runs) < 2:
        raise ConfigError(f"--seeds: runs of at least two seeds are needed, not {len(options.runs)}.")
    if not options.seeds and len(options.runs) != 2:
        raise ConfigError(f"A comparison needs two runs, not {len(options.runs)}. Several seeds of one take --seeds.")
    resolved = [Path(folder).resolve() for folder in options.runs]
    for folder, path in zip(options.runs, resolved, strict=True):
        if resolved.count(path) > 1:
            raise ConfigError(f"{folder}: the same run is named twice.")
    runs = [read_scored_run(folder) for folder in options.runs]
    table, lines = sum_up_seeds(runs) if options.seeds else compare_two(*runs)
    if options.output:
        try:
            write_csv(Path(options.output), table)
        except OSError as error:
            raise ConfigError(f"--output: cannot write {options.output} ({error.strerror}).") from error
    for warning in [*_other_metrics(runs), *(_other_circumstances(runs) if options.seeds else ())]:
        print(f"Warning: {warning}", file=sys.stderr)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command(main))
