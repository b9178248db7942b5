"""The command that trains the rows of a suite, and writes one table of them."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from config.loading import check_names
from config.override_files import resolve
from config.suite import Suite, load_suite
from models.dmd import MODALITIES
from trainers.checkpoint import read_checkpoint
from trainers.distributed import find_ranks
from trainers.heads import HEADS, inspect
from trainers.options import RunOptions
from trainers.runs import RunFolder, check_earlier_runs, write_csv
from trainers.session import run_folders, train
from trainers.setup import build_model, prepare_features, restore
from utils.device import choose_device
from utils.errors import RunError
from utils.files import write_atomically
from utils.log import logger
from utils.metrics import CORE_METRICS, METRICS

EXPLANATION = """\
An output named `logits_<m>_homo` reads the common part of text (l), vision (v) or audio (a), `logits_<m>_hetero` its
specific part after it has read the two others', `logits_c` the three common parts, and `output_logit`, the prediction,
everything. Of a modality that is not there all features are 0; the model was trained with all three."""


def run_suite(options: RunOptions, suite_name: str) -> Path:
    """Train every row over the seeds, and write the table anew after each.

    options    of all rows; a row's runs are those of the name `<name>-<suite>-<row>`
    suite_name in config/suites, or a JSON file

    -> the table, `<res_save_dir>/suites/<name>-<suite>-<dataset>.md`; beside it the same as CSV
    Raises a DMDError for what the caller can fix; of the suite itself, before anything is trained.
    """
    suite, dataset = load_suite(suite_name), options.settings().dataset_name
    check_names(dict.fromkeys(suite.heads), HEADS, f"heads of {suite_name}", suite_name, "head")
    name = f"{options.name}-{Path(suite_name).stem}"
    rows, settings = {}, {}
    for row, overrides in suite.rows.items():
        rows[row] = replace(options, config=options.config | overrides, name=f"{name}-{row}")
        where = f"{suite_name}: rows.{row}"
        settings[row] = resolve(where, overrides, options.config, lambda _, of_row=rows[row]: of_row.settings())
    runs = {row: run_folders(of_row, dataset) for row, of_row in rows.items()}
    for of_row in runs.values():
        check_earlier_runs(of_row.values(), options.resume, options.overwrite)
    table = Path(options.res_save_dir) / "suites" / f"{name}-{dataset}.md"
    if table.exists() and not (options.resume or options.overwrite):
        raise RunError(f"{table}: exists. Replace it with --overwrite, continue with --resume, or take another --name.")
    ranks = find_ranks(options.device)
    _check_models(settings.values(), options.replaced)
    if options.overwrite and ranks.rank == 0:  # as for the seeds of a run
        for run_of_seed in (r for of_row in runs.values() for r in of_row.values()):
            run_of_seed.discard()
    ranks.wait()
    results, scores = [], []
    for number, (row, of_row) in enumerate(rows.items(), start=1):
        logger.info(f"Row {number} of {len(rows)}: {row}")
        results += [{"row": row, "seed": seed} | result for seed, result in train(of_row).items()]
        if ranks.rank == 0:
            scores += _score_heads(suite, row, settings[row], runs[row], options) if suite.heads else []
            _write(table, suite, settings, pd.DataFrame(results), pd.DataFrame(scores))
        ranks.wait()
    logger.info(f"The table of {len(suite.rows)} rows is in {table}.")
    return table


def _check_models(settings: Iterable, replaced: dict[str, str]) -> None:
    """Raise a DMDError where data or model of a row cannot be had."""
    features, read = None, None
    for args in settings:
        args = copy.deepcopy(args)  # reading the features tells them their sizes
        asked = [args[key] for key in ("featurePath", "feature_dims", "use_bert", "need_data_aligned")]
        if asked != read:
            features, read = prepare_features(args, **replaced), asked
        args.feature_dims, args.seq_lens = features.feature_dims, features.seq_lens
        build_model(args, features)


def _score_heads(suite: Suite, row: str, args, runs: dict[int, RunFolder], options: RunOptions) -> list[dict]:
    """Metrics of each head on test with each set of modalities, at the best epoch of each seed."""
    device, scores = choose_device(options.device), []
    for seed, run in runs.items():
        model, _, loader = restore(read_checkpoint(run.best), run.best, args, options.replaced, "test", device)
        for kept in suite.kept:
            metrics = inspect(model, loader, device, options.precision, kept).head_metrics()
            scores += [{"row": row, "kept": kept, "head": h, "seed": seed} | metrics[h] for h in suite.heads]
    return scores


def _write(file: Path, suite: Suite, settings: dict[str, dict], results: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Write what is known so far to the Markdown file, and beside it to `.csv` and `-heads.csv`.

    results: TEST metrics of the best epoch, by row and seed; scores: those of the heads, by row, kept, head and seed
    """
    of_seeds = results.rename(columns={"seed": "of"}).assign(of=results["seed"].map("seed {}".format))
    grouped = results.groupby("row", sort=False)[list(METRICS)]
    mean, std = grouped.mean(skipna=False), grouped.agg(lambda values: values.std(ddof=0, skipna=False))
    lines, compared = [], []
    for row, shown in _mean_and_std(results, "row").iterrows():
        published = [
            {"row": row, "of": p.source} | p.rows[row]
            for p in suite.published
            if row in p.rows and all(settings[row].get(key) == value for key, value in p.when.items())
        ]
        lines += of_seeds[of_seeds["row"] == row].to_dict("records")
        lines += [{"row": row, "of": "mean"} | dict(mean.loc[row]), {"row": row, "of": "std"} | dict(std.loc[row])]
        lines += published
        compared += [{"row": row, "of": "ours"} | dict(shown), *published]
    write_csv(file.with_suffix(".csv"), pd.DataFrame(lines, columns=["row", "of", "epoch", *METRICS]))
    if not scores.empty:
        write_csv(file.with_name(f"{file.stem}-heads.csv"), scores)
    seeds, done = results["seed"].unique(), results["row"].nunique()
    over = f"mean ± standard deviation over the seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else (
        f"seed {seeds[0]} alone, which ranks nothing: another seed may turn the order round"
    )  # fmt: skip
    overrides = {row: ", ".join(f"`{key}={value}`" for key, value in o.items()) for row, o in suite.rows.items()}
    parts = [
        f"# {file.stem}",
        suite.description,
        f"TEST metrics of the epoch that is best on *valid*: {over}.",
        f"**{done} of {len(suite.rows)} rows so far.**" * (done < len(suite.rows)),
        _markdown(pd.DataFrame(compared), "row", "of"),
        "## Settings of the rows",
        pd.DataFrame({"row": overrides.keys(), "overrides": overrides.values()}).to_markdown(index=False),
        "## Every seed",
        _markdown(results, "row", "seed", "epoch"),
        *(_heads(scores) if not scores.empty else ()),
    ]
    write_atomically(file, lambda binary: binary.write(("\n\n".join(filter(None, parts)) + "\n").encode()))


def _heads(scores: pd.DataFrame) -> Iterator[str]:
    """The heads' part of the page."""
    whole = scores[scores["kept"].map(set) == set(MODALITIES)]
    if not whole.empty:
        yield "## Each output by itself, with all modalities"
        yield _markdown(_mean_and_std(whole, "head", "row").reset_index(), "head", "row")
    prediction = scores[scores["head"] == HEADS[0]]
    if not prediction.empty:
        names = prediction["kept"].map(lambda kept: " + ".join(MODALITIES[m] for m in kept))
        yield "## The prediction with some modalities only"
        yield _markdown(_mean_and_std(prediction.assign(kept=names), "kept", "row").reset_index(), "kept", "row")
    yield EXPLANATION


def _mean_and_std(results: pd.DataFrame, *by: str) -> pd.DataFrame:
    """'0.8147 ± 0.0120' for each metric, grouped."""

    def shown(values: pd.Series) -> str:
        mean, std = (_number(values.mean(skipna=False)), _number(values.std(ddof=0, skipna=False)))
        return mean if len(values) == 1 or mean == "-" else f"{mean} ± {std}"

    return results.groupby(list(by), sort=False)[list(CORE_METRICS)].agg(shown)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else "-" if pd.isna(value) else f"{value:.4f}"


def _markdown(table: pd.DataFrame, *columns: str) -> str:
    shown = table.reindex(columns=[*columns, *CORE_METRICS])
    shown[list(CORE_METRICS)] = shown[list(CORE_METRICS)].map(_number)
    return shown.to_markdown(index=False, disable_numparse=True)
