"""The command that trains the rows of a suite, and writes one table of them."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from config.variations import Suite, load_suite, resolve
from dataset.features import DATA_SETTINGS, FeatureSet, prepare_features
from models.dmd import MODALITIES
from trainers.distributed import start_process, wait_for_all
from trainers.heads import HEADS, inspect
from experiments.options import RunOptions
from experiments.run_config import check_earlier_runs
from experiments.run_folder import RunFolder, write_csv
from experiments.train import run_folders, train
from experiments.restore import build_model, restore
from utils.device import choose_device
from utils.errors import ConfigError, RunError
from utils.files import write_atomically
from utils.log import is_first_rank, logger
from utils.metrics import CORE_METRICS, METRICS


def run_suite(options: RunOptions, suite_name: str) -> Path:
    """Train every row over the seeds, under the name `<name>-<suite>-<row>`, and write the table anew after each.

    -> the table, `<res_save_dir>/suites/<name>-<suite>-<dataset>.md`; beside it the metrics of every run as CSV
    """
    suite, dataset = load_suite(suite_name), options.settings().dataset_name
    if not set(suite.heads) <= set(HEADS):
        raise ConfigError(f"{suite_name}: heads: expected some of {', '.join(HEADS)}.")
    name = f"{options.name}-{Path(suite_name).stem}"
    settings = {row: resolve(f"{suite_name}: rows.{row}", changes, options) for row, changes in suite.rows.items()}
    rows = {
        row: replace(options, config=options.config | changes, name=f"{name}-{row}")
        for row, changes in suite.rows.items()
    }
    runs = {row: run_folders(of_row, dataset) for row, of_row in rows.items()}
    every_run = [run for of_row in runs.values() for run in of_row.values()]
    check_earlier_runs(every_run, options)
    table = Path(options.res_save_dir) / "suites" / f"{name}-{dataset}.md"
    if table.exists() and not (options.resume or options.overwrite):
        raise RunError(f"{table}: exists. Replace it with --overwrite, continue with --resume, or take another --name.")
    start_process(options.device)
    features, read = {}, {}  # rows on the same data share what was read
    for row, args in settings.items():
        data = str([args[key] for key in DATA_SETTINGS])
        features[row] = read[data] = read.get(data) or prepare_features(args, **options.replaced)
        build_model(args, features[row])
    if options.overwrite and is_first_rank():  # as for the seeds of a run
        for run in every_run:
            run.discard()
    wait_for_all()
    results, scores = [], []
    for number, (row, of_row) in enumerate(rows.items(), start=1):
        logger.info(f"Row {number} of {len(rows)}: {row}")
        results += [{"row": row, "seed": seed} | result for seed, result in train(of_row, features[row]).items()]
        if is_first_rank():
            if suite.heads:
                scores += _score_heads(suite, row, settings[row], runs[row], options, features[row])
            _write(table, suite, settings, pd.DataFrame(results), pd.DataFrame(scores))
        wait_for_all()
    logger.info(f"The table of {len(rows)} rows is in {table}.")
    return table


def _score_heads(
    suite: Suite, row: str, args, runs: dict[int, RunFolder], options: RunOptions, features: FeatureSet
) -> list[dict]:
    """Metrics of each head on test with each set of modalities, at the best epoch of each seed."""
    device, scores = choose_device(options.device), []
    for seed, run in runs.items():
        model, _, loader = restore(run.best, args, options.replaced, "test", device, known=features)
        for kept in suite.kept:
            metrics = inspect(model, loader, device, options.precision, kept).head_metrics()
            scores += [{"row": row, "kept": kept, "head": h, "seed": seed} | metrics[h] for h in suite.heads]
    return scores


def _write(file: Path, suite: Suite, settings: dict[str, dict], results: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Write what is known so far to the Markdown file, and beside it to `.csv` and `-heads.csv`."""
    published = [
        {"row": row, "of": published.source} | numbers
        for published in suite.published
        for row, numbers in published.rows.items()
        if row in results["row"].values and published.when.items() <= settings[row].items()
    ]
    published = pd.DataFrame(published, columns=["row", "of", *METRICS])
    write_csv(file.with_suffix(".csv"), results[["row", "seed", "epoch", *METRICS]])
    seeds, done = results["seed"].unique(), results["row"].nunique()
    settings = [", ".join(f"`{key}={value}`" for key, value in changes.items()) for changes in suite.rows.values()]
    parts = [
        f"# {file.stem}",
        suite.description,
        "TEST metrics of the epoch that is best on *valid*: mean ± standard deviation over the seeds "
        f"{', '.join(map(str, seeds))}.",
        "One seed alone ranks nothing: another may turn the order round." * (len(seeds) == 1),
        f"**{done} of {len(suite.rows)} rows so far.**" * (done < len(suite.rows)),
        _markdown([results.assign(of="ours"), published], "row", "of"),
        "## Settings of the rows",
        pd.DataFrame({"row": list(suite.rows), "overrides": settings}).to_markdown(index=False),
    ]
    if not scores.empty:
        write_csv(file.with_name(f"{file.stem}-heads.csv"), scores)
        all_kept, prediction = scores["kept"].map(len) == len(MODALITIES), scores["head"] == HEADS[0]
        names = scores["kept"].map(lambda kept: " + ".join(MODALITIES[m] for m in kept))
        if all_kept.any():
            parts += ["## Each output by itself, with all modalities", _markdown([scores[all_kept]], "head", "row")]
        if prediction.any():
            shown = scores.assign(kept=names)[prediction]
            parts += ["## The prediction with some modalities only", _markdown([shown], "kept", "row")]
    write_atomically(file, lambda binary: binary.write(("\n\n".join(filter(None, parts)) + "\n").encode()))


def _markdown(tables: list[pd.DataFrame], *columns: str) -> str:
    """A line for each combination of values in the columns: '0.8147 ± 0.0120', or the number where there is one."""

    def shown(values: pd.Series) -> str:
        mean, std = values.mean(skipna=False), values.std(ddof=0)
        return "-" if pd.isna(mean) else f"{mean:.4f} ± {std:.4f}" if len(values) > 1 else f"{mean:.4f}"

    lines = pd.concat(tables).sort_values(columns[0], key=lambda values: pd.factorize(values)[0], kind="stable")
    groups = lines.groupby(list(columns), sort=False, as_index=False)
    return groups[list(CORE_METRICS)].agg(shown).to_markdown(index=False, disable_numparse=True)
