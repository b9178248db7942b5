"""Suites: several configurations over several seeds, for one table."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from easydict import EasyDict

from config.variations import Suite, load_suite
from dataset.features import DATA_SETTINGS, FeatureSet, prepare_features
from experiments.options import RunOptions
from experiments.restore import CheckpointSettings, build_model, restore
from experiments.run_folder import RunFolder, check_existing_runs, discard_runs, run_folders
from experiments.train import train_seeds
from models.dmd import MODALITIES
from trainers.distributed import barrier, init_processes
from trainers.evaluate import HEADS, inspect
from utils.errors import ConfigError, RunError
from utils.files import write_atomically, write_csv
from utils.log import logger
from utils.metrics import CORE_METRICS, METRICS
from utils.ranks import is_first_rank


@dataclass
class Row:
    """A row of a suite: one configuration, which is trained over all seeds.

    Attributes:
        name: Its name in the table.
        options: The options of its runs.
        settings: Its hyper-parameters.
        folders: The folder of each seed's run.
        features: Its data, once they have been read.
    """

    name: str
    options: RunOptions
    settings: EasyDict
    folders: dict[int, RunFolder]
    features: FeatureSet | None = None


def run_suite(options: RunOptions, suite_name: str) -> Path:
    """Train every row of a suite over the seeds, as runs named `<name>-<suite>-<row>`.

    Args:
        options: The options of the command.
        suite_name: A built-in suite, or the path of a JSON file.

    Returns:
        The table, `<res_save_dir>/suites/<name>-<suite>-<dataset>.md`, which is rewritten after
        every row; next to it the metrics of every run as CSV.

    Raises:
        DMDError: A problem that the user can fix; rows are trained only if all of them are valid.
    """
    suite = load_suite(suite_name)
    for head in suite.heads:
        if head not in HEADS:
            known = ", ".join(HEADS)
            raise ConfigError(f"{suite_name}: heads: '{head}' is unknown; expected any of {known}.")
    name = f"{options.name}-{Path(suite_name).stem}"
    rows = _make_rows(options, suite, suite_name, name)
    dataset_name = rows[0].settings.dataset_name
    table = Path(options.res_save_dir) / "suites" / f"{name}-{dataset_name}.md"
    _check_existing(rows, table, options)
    device = init_processes(options.device)
    _read_features(rows)
    for row in rows:
        build_model(row.settings, row.features)  # raises if settings and data are incompatible
    if options.overwrite and is_first_rank():
        discard_runs(folder for row in rows for folder in row.folders.values())
    barrier()

    results, scores = [], []
    for number, row in enumerate(rows, start=1):
        logger.info(f"Row {number} of {len(rows)}: {row.name}")
        trained = train_seeds(row.options, row.settings, row.features)
        for seed, metrics in trained.metrics.items():
            results.append({"row": row.name, "seed": seed, **metrics})
        if is_first_rank():
            if suite.heads:
                scores += _score_heads(suite, row, device)
            _write_table(table, suite, rows, pd.DataFrame(results), pd.DataFrame(scores))
        barrier()
    logger.info(f"The table of {len(rows)} rows is in {table}.")
    return table


def _check_existing(rows: list[Row], table: Path, options: RunOptions) -> None:
    """Raise RunError if the runs or the table exist, unless the options allow it."""
    for row in rows:
        check_existing_runs(row.folders.values(), row.options)
    if table.exists() and not (options.resume or options.overwrite):
        raise RunError(
            f"{table}: already exists. Replace it with --overwrite, continue with --resume, or "
            "choose another --name."
        )


def _make_rows(options: RunOptions, suite: Suite, suite_name: str, name: str) -> list[Row]:
    rows = []
    for row_name, overrides in suite.rows.items():
        where = f"{suite_name}: rows.{row_name}"
        row_options = options.with_overrides(where, overrides, name=f"{name}-{row_name}")
        settings = row_options.load_settings()
        folders = run_folders(row_options, settings.dataset_name, writable=is_first_rank())
        rows.append(Row(row_name, row_options, settings, folders))
    return rows


def _read_features(rows: list[Row]) -> None:
    """Read the features of every row; rows on the same data share them."""
    known: dict[str, FeatureSet] = {}
    for row in rows:
        key = str([row.settings[name] for name in DATA_SETTINGS])
        if key not in known:
            known[key] = prepare_features(row.settings, **row.options.feature_overrides)
        row.features = known[key]


def _score_heads(suite: Suite, row: Row, device) -> list[dict]:
    """Score each head on test with each set of modalities, at the best epoch of each seed."""
    trained = CheckpointSettings(row.settings, row.options.feature_overrides, {})
    scores = []
    for seed, folder in row.folders.items():
        run = restore(folder.best_file, trained, "test", device, row.features)
        for modalities in suite.modalities:
            inspection = inspect(run.model, run.loader, device, row.options.precision, modalities)
            metrics = inspection.head_metrics()
            for head in suite.heads:
                score = {
                    "row": row.name,
                    "modalities": modalities,
                    "head": head,
                    "seed": seed,
                    **metrics[head],
                }
                scores.append(score)
    return scores


def _write_table(
    file: Path, suite: Suite, rows: list[Row], results: pd.DataFrame, scores: pd.DataFrame
) -> None:
    """Write the results so far to the Markdown file, and to `.csv` and `-heads.csv` next to it."""
    write_csv(file.with_suffix(".csv"), results[["row", "seed", "epoch", *METRICS]])
    seeds = results["seed"].unique()
    done = results["row"].nunique()
    parts = [f"# {file.stem}"]
    if suite.description:
        parts.append(suite.description)
    parts.append(
        "TEST metrics of the epoch that is best on *valid*: mean ± standard deviation over the "
        f"seeds {', '.join(map(str, seeds))}."
    )
    if len(seeds) == 1:
        parts.append("A single seed does not rank the rows.")
    if done < len(rows):
        parts.append(f"**{done} of {len(rows)} rows so far.**")
    published = _published_rows(suite, rows, done_rows=set(results["row"]))
    parts.append(_markdown([results.assign(of="this program"), published], "row", "of"))
    parts.append("## Settings of the rows")
    parts.append(_settings_table(suite))
    if not scores.empty:
        write_csv(file.with_name(f"{file.stem}-heads.csv"), scores)
        parts += _head_tables(scores)
    text = "\n\n".join(parts) + "\n"
    write_atomically(file, lambda binary: binary.write(text.encode()))


def _published_rows(suite: Suite, rows: list[Row], done_rows: set[str]) -> pd.DataFrame:
    """Published numbers of the trained rows, if they are for the same settings."""
    settings = {row.name: row.settings for row in rows}
    lines = []
    for published in suite.published:
        for name, numbers in published.rows.items():
            if name in done_rows and published.when.items() <= settings[name].items():
                lines.append({"row": name, "of": published.source, **numbers})
    return pd.DataFrame(lines, columns=["row", "of", *METRICS])


def _settings_table(suite: Suite) -> str:
    lines = []
    for name, overrides in suite.rows.items():
        words = [f"`{key}={value}`" for key, value in overrides.items()]
        lines.append({"row": name, "overrides": ", ".join(words)})
    return pd.DataFrame(lines).to_markdown(index=False)


def _head_tables(scores: pd.DataFrame) -> list[str]:
    """Two tables: each head with all modalities; the prediction with each set of modalities."""
    parts = []
    all_modalities = scores[scores["modalities"].str.len() == len(MODALITIES)]
    if not all_modalities.empty:
        parts += ["## Each output, with all modalities", _markdown([all_modalities], "head", "row")]
    prediction = scores[scores["head"] == HEADS[0]]
    if not prediction.empty:
        names = [" + ".join(MODALITIES[m] for m in letters) for letters in prediction["modalities"]]
        prediction = prediction.assign(modalities=names)
        parts += [
            "## The prediction with some modalities only",
            _markdown([prediction], "modalities", "row"),
        ]
    return parts


def _markdown(tables: list[pd.DataFrame], *columns: str) -> str:
    """A line for each combination of values in the columns, in the order of the first one."""
    lines = pd.concat(tables)
    order = pd.Series(pd.factorize(lines[columns[0]])[0], index=lines.index)
    lines = lines.iloc[order.to_numpy().argsort(kind="stable")]
    groups = lines.groupby(list(columns), sort=False, as_index=False)
    return (
        groups[list(CORE_METRICS)]
        .agg(_mean_and_std)
        .to_markdown(index=False, disable_numparse=True)
    )


def _mean_and_std(values: pd.Series) -> str:
    """'0.8147 ± 0.0120', or the number if there is only one."""
    mean = values.mean(skipna=False)
    if pd.isna(mean):
        return "-"
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {values.std(ddof=0):.4f}"
