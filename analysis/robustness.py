"""Score runs on test with some of the steps removed, and with subsets of the modalities.

python -m analysis.robustness result/dmd-mosi-1111
python -m analysis.robustness result/dmd-mosi-1111 result/dmd-mosi-1112 --kind span --draws 5
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.compare import check_same_configuration
from analysis.figures import add_robustness, check_owner
from analysis.tables import ALL_MODALITIES, SCORES, SCORING_COLUMNS, as_text, mean_scores
from dataset.features import FeatureSet, Split, prepare_features
from dataset.loaders import make_loaders
from experiments.restore import (
    LoadedRun,
    describe_changes,
    load_run_settings,
    restore,
)
from experiments.run_folder import ROBUSTNESS, RunFolder
from models.dmd import ARGUMENT_ORDER
from models.text_encoder import load_tokenizer
from trainers.checkpoint import read_checkpoint
from trainers.evaluate import keep_modalities, predict
from utils.cli import ArgumentParser, run_command
from utils.device import choose_device, keep_freed_memory
from utils.errors import ConfigError
from utils.files import write_csv
from utils.log import progress

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SUBSETS = ("lv", "la", "va", "l", "v", "a")  # without all three, which is rate 0


@dataclass(frozen=True)
class Scoring:
    """The steps and modalities that one scoring removes from the test split.

    Attributes:
        rate: Share of the real steps to remove from each modality.
        draw: Number of the random draw; 0 if nothing is drawn.
        modalities: Letters of the modalities to use; the others are replaced by zeros.
    """

    rate: float = 0.0
    draw: int = 0
    modalities: str = ALL_MODALITIES


@dataclass(frozen=True)
class TokenIds:
    """The token ids that are needed to remove tokens.

    Attributes:
        unknown: The id that replaces a removed token.
        fixed: Ids that are never removed, such as those of [CLS], [SEP] and padding.
    """

    unknown: int
    fixed: tuple[int, ...]


def list_scorings(draws: int) -> list[Scoring]:
    """List all scorings of a run: rate 0, every draw of every rate, and the subsets.

    Args:
        draws: Number of draws for each rate.
    """
    scorings = [Scoring()]
    for rate in RATES:
        for draw in range(1, draws + 1):
            scorings.append(Scoring(rate, draw))
    for modalities in SUBSETS:
        scorings.append(Scoring(modalities=modalities))
    return scorings


def load_token_ids(settings) -> TokenIds | None:
    """Load the ids from the tokenizer of the text encoder.

    Args:
        settings: Settings of the run; `use_bert`, `pretrained` and `transformers` are used.

    Returns:
        The ids; None without a text encoder.

    Raises:
        ConfigError: The tokenizer cannot be loaded, or has no unknown token.
    """
    if not settings.use_bert:
        return None
    tokenizer, _ = load_tokenizer(settings.pretrained, settings.transformers)
    if tokenizer.unk_token_id is None:
        raise ConfigError(
            f"pretrained: the tokenizer of '{settings.pretrained}' has no unknown token to replace "
            "removed tokens with. Choose runs with another text encoder, or without one "
            "(use_bert=false)."
        )
    fixed = set()
    for name in ("cls", "sep", "pad", "bos", "eos"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None:
            fixed.add(token_id)
    return TokenIds(tokenizer.unk_token_id, tuple(sorted(fixed)))


def removable_steps(split: Split, tokens: TokenIds | None) -> dict[str, np.ndarray]:
    """Find the real steps: those that are neither padding nor special tokens.

    Args:
        split: The utterances.
        tokens: Ids of the tokenizer; None if the text is features.

    Returns:
        (N, T) booleans by modality letter. Feature vectors that are all zero are padding.
    """
    steps = {}
    for m, x in zip(ARGUMENT_ORDER, (split.text, split.audio, split.vision), strict=True):
        if m == "l" and tokens is not None:
            ids, mask = x[:, 0], x[:, 1]
            steps[m] = (mask == 1) & ~np.isin(ids, tokens.fixed)
        else:
            steps[m] = (x != 0).any(axis=2)
    return steps


def choose_steps(
    removable: np.ndarray, rate: float, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """Choose the steps to remove from one modality.

    With equal draws, the steps of a lower rate are among those of a higher one.

    Args:
        removable: (N, T) booleans.
        rate: Share of each utterance's removable steps, rounded to the nearest number of steps.
        kind: "random", or "span" for consecutive removable steps.
        rng: A new generator; it draws the same numbers for every rate.

    Returns:
        (N, T) booleans.
    """
    available = removable.sum(axis=1, keepdims=True)  # (N, 1)
    count = np.floor(rate * available + 0.5)
    if kind == "random":
        order = rng.random(removable.shape)
        order[~removable] = np.inf  # last
        place = order.argsort(axis=1).argsort(axis=1)
        first = 0
    else:
        place = removable.cumsum(axis=1) - 1  # number of the step among the removable ones
        first = np.floor(rng.random(available.shape) * (available - count + 1))
    return removable & (place >= first) & (place < first + count)


def remove_steps(split: Split, scoring: Scoring, kind: str, tokens: TokenIds | None) -> Split:
    """Remove steps from each modality, independently of each other.

    Args:
        split: The utterances.
        scoring: The rate and the number of the draw, which determines the steps.
        kind: "random" or "span".
        tokens: Ids of the tokenizer; None if the text is features.

    Returns:
        The split with new arrays: removed tokens become the unknown token, other removed steps 0.
    """
    removable = removable_steps(split, tokens)
    arrays = []
    fields = (split.text, split.audio, split.vision)
    for number, (m, x) in enumerate(zip(ARGUMENT_ORDER, fields, strict=True)):
        # PCG64 by name, since a later NumPy may change the generator of default_rng.
        rng = np.random.Generator(np.random.PCG64([scoring.draw, number]))
        removed = choose_steps(removable[m], scoring.rate, kind, rng)
        x = x.copy()
        if m == "l" and tokens is not None:
            x[:, 0][removed] = tokens.unknown
        else:
            x[removed] = 0
        arrays.append(x)
    text, audio, vision = arrays
    return dataclasses.replace(split, text=text, audio=audio, vision=vision)


def score(run: LoadedRun, scoring: Scoring, kind: str, tokens: TokenIds | None) -> dict[str, float]:
    """Score a model on the test split after removing steps and modalities.

    Args:
        run: The model and its test split.
        scoring: The steps and modalities to remove.
        kind: "random" or "span".
        tokens: Ids of the tokenizer; None if the text is features.

    Returns:
        The metrics of metrics.json.

    Raises:
        NumericalError: A prediction is not finite.
    """
    loader = run.loader
    if scoring.rate > 0:
        split = remove_steps(run.split, scoring, kind, tokens)
        features = dataclasses.replace(run.features, splits={"test": split})
        sizes = run.settings.batch_size, run.settings.eval_batch_size
        loader = make_loaders(features, *sizes, seed=0, device=run.device)["test"]
    description = f"test, rate {scoring.rate}, draw {scoring.draw}, {scoring.modalities}"
    with keep_modalities(run.model, scoring.modalities):
        return predict(run.model, loader, run.device, description, run.precision).metrics()


def score_runs(
    runs: Sequence[RunFolder],
    features: FeatureSet,
    kind: str,
    draws: int,
    tokens: TokenIds | None,
    device: torch.device,
) -> pd.DataFrame:
    """Score the best checkpoints of several seeds of one configuration.

    Args:
        runs: The seeds.
        features: Their data, with the test split.
        kind: "random" or "span".
        draws: Number of draws for each rate.
        tokens: Ids of the tokenizer; None if the text is features.
        device: Device to run the models on.

    Returns:
        A row for each scoring: kind, rate, modalities, draw, seed and the metrics of metrics.json.
    """
    rows = []
    for run in runs:
        seed = run.run_config["seed"]
        trained = load_run_settings(run.run_config)
        loaded = restore(run.best_file, trained, "test", device, features)
        for scoring in progress(list_scorings(draws), f"seed {seed}"):
            row = {"kind": kind, "seed": seed, **dataclasses.asdict(scoring)}
            row.update(score(loaded, scoring, kind, tokens))
            rows.append(row)
    return pd.DataFrame(rows)[SCORING_COLUMNS]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Nothing is written before everything is scored and drawn.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        DMDError: A run cannot be scored, or runs or flags are incompatible.
    """
    options = _read_flags(argv)
    keep_freed_memory()
    device = choose_device(options.device)
    runs = []
    for folder in options.runs:
        checkpoints = None
        if options.checkpoint_dir:
            checkpoints = options.checkpoint_dir / folder.resolve().name
        runs.append(RunFolder(folder, checkpoints))
    _check_runs(runs)
    if options.output and options.output.is_dir():
        raise ConfigError(f"--output: {options.output} is a folder; expected a file.")
    first = runs[0]
    trained = load_run_settings(first.run_config)
    tokens = load_token_ids(trained.settings)
    features = prepare_features(trained.settings, **trained.feature_overrides, splits=("test",))
    for change in describe_changes(trained):
        print(f"Warning: {change}", file=sys.stderr)

    scorings = score_runs(runs, features, options.kind, options.draws, tokens, device)
    _compare_with_metrics(runs, scorings)
    if options.output:
        write_csv(options.output, scorings)
    write_csv(first.results / ROBUSTNESS, scorings)
    for path in [first.results / ROBUSTNESS, *add_robustness(first, scorings)]:
        print(path)
    seeds = ", ".join(str(run.run_config["seed"]) for run in runs)
    setup = f"kind: {options.kind}, draws: {options.draws}, seeds: {seeds}"
    print(f"Means over draws and seeds ({setup}):")
    print(as_text(mean_scores(scorings), missing="-"))
    print("rate: share of the steps removed from each modality; area: under the curve over the")
    print("rates, divided by their range; below: with these modalities only, the others zeros.")


def _check_runs(runs: Sequence[RunFolder]) -> None:
    """Raise a DMDError, before anything is scored, if a run cannot be scored or written to."""
    for run in runs:
        run.check_exists()
    check_same_configuration(runs)
    for run in runs:
        check_owner(run, run.best_file)
        read_checkpoint(run.best_file)  # now: a damaged one of the last seed would be found late
    runs[0].history  # noqa: B018  (the report needs it)


def _compare_with_metrics(runs: Sequence[RunFolder], scorings: pd.DataFrame) -> None:
    """Warn if the scores at rate 0 differ from metrics.json."""
    own = scorings[(scorings["rate"] == 0) & (scorings["modalities"] == ALL_MODALITIES)]
    for run, row in zip(runs, own.to_dict("records"), strict=True):
        for name in SCORES:
            recorded = (run.metrics or row)[name]
            if not np.array_equal(row[name], recorded, equal_nan=True):
                print(
                    f"Warning: {run.results}: {name} is {row[name]} without removal, but "
                    f"{recorded} in metrics.json, from another machine or version.",
                    file=sys.stderr,
                )
                break


def _read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m analysis.robustness",
        description="Score runs on test with missing steps and missing modalities.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="result folder of a run, such as result/dmd-mosi-1111; several: seeds of one "
        "configuration",
    )
    parser.add_argument(
        "--kind",
        choices=("random", "span"),
        default="random",
        help="remove steps at random (default), or as one span per modality",
    )
    parser.add_argument(
        "--draws", type=int, default=3, metavar="N", help="random draws for each rate (default: 3)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.csv",
        help="also write the scores here (always: robustness.csv in the folder of the first run)",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        metavar="FOLDER",
        help="folder that holds <run>/best.pth (default: pt/, next to result/)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    options = parser.parse_intermixed_args(argv)
    if options.draws < 1:
        raise ConfigError(f"--draws: {options.draws} is too small; expected 1 or more.")
    return options


if __name__ == "__main__":
    sys.exit(run_command(main))
