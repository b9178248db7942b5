"""The command that trains the rows of a suite, and writes one table of them."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

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


def run_suite(options: RunOptions, suite_name: str) -> Path:
    """Train every row over the seeds, and write the table anew after each.

    options    of all rows; a row's runs are those of the name `<name>-<suite>-<row>`
    suite_name in config/suites, or a JSON file

    -> the table, `<res_save_dir>/suites/<name>-<suite>-<dataset>.md`; beside it the same as CSV
    Raises a DMDError for what the caller can mend; of the suite itself, before anything is trained.
    """
    fixed, dataset = options.config, options.settings().dataset_name
    suite = load_suite(suite_name, fixed, HEADS, lambda overrides: replace(options, config=overrides).settings())
    name = f"{options.name}-{Path(suite_name).stem}"
    rows = {row: replace(options, config=fixed | changes, name=f"{name}-{row}") for row, changes in suite.rows.items()}
    settings = {row: of_row.settings() for row, of_row in rows.items()}
    runs = {row: run_folders(of_row, dataset) for row, of_row in rows.items()}
    for of_row in runs.values():
        check_earlier_runs(of_row.values(), options.resume, options.overwrite)
    table = SuiteTable(suite, settings, Path(options.res_save_dir) / "suites" / f"{name}-{dataset}")
    if table.markdown_file.exists() and not (options.resume or options.overwrite):
        raise RunError(
            f"{table.markdown_file}: a table of this suite is there. Replace it with --overwrite, go on with --resume, "
            "or keep both by another --name."
        )
    ranks = find_ranks(options.device)
    _check_models(settings.values(), options.replaced)
    if options.overwrite and ranks.rank == 0:  # as for the seeds of a run
        for run_of_seed in (r for of_row in runs.values() for r in of_row.values()):
            run_of_seed.discard()
    ranks.wait()
    for number, (row, of_row) in enumerate(rows.items(), start=1):
        logger.info(f"Row {number} of {len(rows)}: {row}")
        per_seed = train(of_row)
        if ranks.rank == 0:
            scored = _score_heads(suite, settings[row], runs[row], options) if suite.heads else []
            table.add(row, per_seed, scored)
            table.write()
        ranks.wait()
    logger.info(f"The table of {len(suite.rows)} rows is in {table.markdown_file}.")
    return table.markdown_file


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


def _score_heads(suite: Suite, args, runs: dict[int, RunFolder], options: RunOptions) -> list[dict]:
    """Metrics of each head on test with each set of modalities, at the best epoch of each seed."""
    device, scores = choose_device(options.device), []
    for seed, run in runs.items():
        model, _, loader = restore(read_checkpoint(run.best), run.best, args, options.replaced, "test", device)
        for kept in suite.kept:
            metrics = inspect(model, loader, device, options.precision, kept).head_metrics()
            scores += [{"kept": kept, "head": head, "seed": seed} | metrics[head] for head in suite.heads]
    return scores


class SuiteTable:
    """What is known of the rows so far, in `<path>.csv`, `<path>-heads.csv` and, for reading, `<path>.md`.

    settings: the resolved settings of each row
    """

    def __init__(self, suite: Suite, settings: dict[str, dict], path: Path):
        self.suite, self.settings, self.path = suite, settings, path
        self.markdown_file = path.with_name(f"{path.name}.md")
        self.results: dict[str, dict[int, dict]] = {}  # by row and seed
        self.scores: list[dict] = []  # of heads, a dict each

    def add(self, row: str, per_seed: dict[int, dict], scores: Sequence[dict] = ()) -> None:
        """per_seed: TEST metrics of the best epoch; scores: the heads', with kept, head and seed."""
        self.results[row] = per_seed
        self.scores += [{"row": row} | score for score in scores]

    def write(self) -> None:
        """Write the files. Raises RunError where that fails."""
        try:
            write_csv(self.path.with_name(f"{self.path.name}.csv"), pd.DataFrame(list(self._lines())))
            if self.scores:
                write_csv(self.path.with_name(f"{self.path.name}-heads.csv"), pd.DataFrame(self.scores))
            write_atomically(self.markdown_file, lambda file: file.write(self.markdown().encode()))
        except OSError as error:
            raise RunError(f"{error.filename or self.path}: cannot be written ({error.strerror}).") from error

    def _lines(self) -> Iterator[dict]:
        """The table by row: a line for each seed, the mean, the standard deviation, what was published."""
        for row, per_seed in self.results.items():
            for seed, result in per_seed.items():
                yield {"row": row, "of": f"seed {seed}", "epoch": result["epoch"]} | _only(METRICS, result)
            values = pd.DataFrame([_only(METRICS, result) for result in per_seed.values()])
            yield {"row": row, "of": "mean"} | values.mean(skipna=False).to_dict()
            yield {"row": row, "of": "std"} | values.std(ddof=0, skipna=False).to_dict()
            for source, numbers in self._published(row):
                yield {"row": row, "of": source} | numbers

    def _published(self, row: str) -> Iterator[tuple[str, dict[str, float]]]:
        settings = self.settings[row]
        for published in self.suite.published:
            fits = all(settings.get(key) == value for key, value in published.when.items())
            if fits and row in published.rows:
                yield published.source, published.rows[row]

    def markdown(self) -> str:
        """Mean ± standard deviation over the seeds of each row, published numbers below ours, then every seed."""
        rows, seeds = len(self.suite.rows), sorted({seed for of_row in self.results.values() for seed in of_row})
        over = f"mean ± standard deviation over the seeds {', '.join(map(str, seeds))}" if seeds[1:] else (
            f"seed {seeds[0]} alone, which ranks nothing: another seed may turn the order round"
        )  # fmt: skip
        done = "" if len(self.results) == rows else f" **{len(self.results)} of {rows} rows so far.**"
        means = []
        for row, per_seed in self.results.items():
            means.append([row, "ours", *(_mean_and_std([r[m] for r in per_seed.values()]) for m in CORE_METRICS)])
            means += [["", source, *map(_number, _only(CORE_METRICS, numbers).values())]
                      for source, numbers in self._published(row)]  # fmt: skip
        each = [
            [row, seed, result["epoch"], *map(_number, _only(CORE_METRICS, result).values())]
            for row, per_seed in self.results.items()
            for seed, result in per_seed.items()
        ]
        parts = [
            f"# {self.path.name}",
            self.suite.description,
            f"TEST metrics of the epoch that is best on *valid*: {over}.{done}",
            _markdown_table(["row", "of", *CORE_METRICS], means),
            "## Settings of the rows",
            _markdown_table(["row", "overrides"], [[row, _shown(o)] for row, o in self.suite.rows.items()]),
            "## Every seed",
            _markdown_table(["row", "seed", "epoch", *CORE_METRICS], each),
        ]
        return "\n\n".join(part for part in [*parts, *self._heads()] if part) + "\n"

    def _heads(self) -> Iterator[str]:
        """The heads' part of the page."""
        if not self.scores:
            return
        scores = pd.DataFrame(self.scores)
        everything = "".join(MODALITIES)
        groups = {
            "head": (
                "## Each output by itself, with all modalities",
                scores[scores["kept"].map(len) == len(everything)],
            ),
            "kept": ("## The prediction with some modalities only", scores[scores["head"] == HEADS[0]]),
        }
        for column, (title, part) in groups.items():
            if not part.empty:
                yield title
                yield _markdown_table([column, "row", *CORE_METRICS], list(_grouped(part, column)))
        yield (
            "An output named `logits_<m>_homo` reads the common part of text (l), vision (v) or audio (a), "
            "`logits_<m>_hetero` its specific part after it has read the two others', `logits_c` the three common "
            "parts, and `output_logit`, the prediction, everything. Of a modality that is not there all features "
            "are 0; the model was trained with all three."
        )


def _grouped(part: pd.DataFrame, column: str) -> Iterator[list]:
    """The lines of a table by `column`, then row, in the order in which they come."""
    for value, of_value in part.groupby(column, sort=False):
        shown = " + ".join(MODALITIES[m] for m in value) if column == "kept" else f"`{value}`"
        for row, of_row in of_value.groupby("row", sort=False):
            yield [shown, row, *(_mean_and_std(of_row[metric]) for metric in CORE_METRICS)]
            shown = ""


def _only(names: Sequence[str], result: dict) -> dict[str, float]:
    return {name: result.get(name, float("nan")) for name in names}


def _shown(overrides: dict) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in overrides.items()) or "as configured"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _mean_and_std(values: Sequence[float]) -> str:
    values = np.asarray(values, float)
    return _number(values.mean()) + (f" ± {values.std():.4f}" if len(values) > 1 and not np.isnan(values).any() else "")


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
