"""Build a feature pickle from your own data: a table, and one folder each of audio and vision.

python -m dataset.build --text T.csv --audio DIR --vision DIR -o my.pkl
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from config.schema import DMDConfig
from dataset.check import BERT_BASE, check_content
from dataset.features import SPLITS, shorten
from dataset.pickles import load_pickle, write_pickle
from dataset.sources import (
    TRANSCRIPTS,
    fit_scaling,
    pad,
    pool,
    read_folder,
    read_table,
    standardize,
)
from dataset.tokens import TEXT_STEPS, add_tokens, encoder_kind
from models.text_encoder import load_tokenizer
from utils.cli import ArgumentParser, RenamedFlag, run_command
from utils.errors import ConfigError, DataError
from utils.files import check_output
from utils.reading import read_json

MOST_STEPS = 500  # default limit of audio and vision; the longest of the published files


@dataclass
class BuiltData:
    """Features that are being built."""

    content: dict[str, dict]  # {split: {field: values}}, the MMSA layout
    cut: dict[str, int] = field(default_factory=dict)  # number of truncated utterances, by field
    scalings: dict[str, dict] = field(default_factory=dict)  # mean and scale (d,), by modality
    encoder: object = None  # configuration of the text encoder, if there are tokens

    @property
    def first(self) -> dict:
        """The fields of the first split; the sizes of all splits are the same."""
        return next(iter(self.content.values()))

    @property
    def steps(self) -> list[int]:
        """The steps of text, audio and vision."""
        text = self.first["text_bert" if self.encoder else "text"]  # (N, 3, steps) or (N, steps, d)
        text_steps = text.shape[2 if self.encoder else 1]
        return [text_steps, self.first["audio"].shape[1], self.first["vision"].shape[1]]

    @property
    def feature_dims(self) -> list[int]:
        """The widths of text, audio and vision; for tokens, the width of the text encoder."""
        text_width = self.encoder.hidden_size if self.encoder else self.first["text"].shape[2]
        return [text_width, self.first["audio"].shape[2], self.first["vision"].shape[2]]


def build(options: argparse.Namespace) -> BuiltData:
    """Read the table and the folders, and pad or cut all sequences; tokens are added later.

    Args:
        options: Options of the command.

    Returns:
        The features.

    Raises:
        ConfigError: The options are invalid.
        DataError: A file is invalid.
    """
    for steps in (options.text_steps, options.audio_steps, options.vision_steps, options.pool_to):
        if steps is not None and steps < 1:
            raise ConfigError(
                "--text-steps, --audio-steps, --vision-steps and --pool-to must be at least 1."
            )
    table = read_table(options.text, options.unlabeled)
    data = BuiltData(_split_rows(table))
    trained = _scalings_trained_on(options.standardize, data.content)
    if options.text_features:
        _add_text(data, options.text_features, options.text_steps)
    _add_modality(data, "audio", options.audio, options.audio_steps, trained, options)
    _add_modality(data, "vision", options.vision, options.vision_steps, trained, options)
    return data


def _split_rows(table: pd.DataFrame) -> dict[str, dict]:
    """id, raw_text and labels of the splits that the table has."""
    fields = {"id": "id", "text": "raw_text", "label": "regression_labels"}  # by column
    content = {}
    for split in SPLITS:
        rows = table[table["split"] == split]
        if rows.empty:
            continue
        content[split] = {}
        for column, name in fields.items():
            if column in rows:
                content[split][name] = rows[column].tolist()
    return content


def _scalings_trained_on(file: str | None, content: dict) -> dict[str, dict]:
    """Read mean and scale of each modality from the file of --standardize; {} without a file."""
    if not file:
        if file is not None and "train" not in content:
            raise ConfigError(
                "--standardize: the table has no train split. Add one, or give the FILE.pkl that "
                "the model was trained on."
            )
        return {}
    trained = load_pickle(file)
    # Files of earlier versions have the British spelling.
    scalings = trained.get("standardized") or trained.get("standardised")
    if not scalings:
        raise ConfigError(
            f"--standardize: {file} is not standardized. Give the FILE.pkl that the model was "
            "trained on, or no file to use mean and scale of the train split."
        )
    return scalings


def _add_text(data: BuiltData, folder: str, steps: int) -> None:
    """Add precomputed text features, which are neither standardized nor pooled."""
    sequences = read_folder(folder, _all_ids(data.content))
    _add_padded(data, "text", sequences, steps)


def _add_modality(
    data: BuiltData,
    key: str,
    folder: str,
    steps: int | None,
    trained: dict[str, dict],
    options: argparse.Namespace,
) -> None:
    """Read audio or vision, standardize it, pool it, and pad or cut it to one length."""
    scaling = trained.get(key)
    width = len(scaling["mean"]) if scaling else None
    sequences = read_folder(folder, _all_ids(data.content), key == "audio", width)
    if options.standardize is not None:
        if scaling is None:
            scaling = fit_scaling(sequences[name] for name in data.content["train"]["id"])
        data.scalings[key] = scaling
        for name, sequence in sequences.items():
            sequences[name] = standardize(sequence, scaling)
    if options.pool_to:
        for name, sequence in sequences.items():
            sequences[name] = pool(sequence, options.pool_to)
        steps = steps or options.pool_to
    if not steps:
        if "train" not in data.content:
            raise ConfigError(
                f"--{key}-steps: missing, and the table has no train split to take it from. Give "
                "the number of steps used in training."
            )
        longest = max(len(sequences[name]) for name in data.content["train"]["id"])
        steps = min(longest, MOST_STEPS)
    _add_padded(data, key, sequences, steps)


def _all_ids(content: dict[str, dict]) -> list[str]:
    """The ids of all splits."""
    ids = []
    for fields in content.values():
        ids += fields["id"]
    return ids


def _add_padded(data: BuiltData, key: str, sequences: dict[str, np.ndarray], steps: int) -> None:
    """Add a field of sequences, and one of their lengths, to all splits."""
    data.cut[key] = sum(len(sequence) > steps for sequence in sequences.values())
    for fields in data.content.values():
        array, lengths = pad([sequences[name] for name in fields["id"]], steps)
        fields[key] = array
        fields[f"{key}_lengths"] = lengths


def _add_text_bert(data: BuiltData, pretrained: str, steps: int) -> None:
    """Add the tokens of the texts, and the configuration of the encoder."""
    _check_texts(data.content)
    try:
        tokenizer, config = load_tokenizer(pretrained)
    except ConfigError as error:
        raise ConfigError(
            f"--{error} To try it without: --pretrained dataset/synthetic_bert."
        ) from error
    data.cut["text_bert"] = add_tokens(data.content, tokenizer, config, steps)
    data.encoder = config


def _check_texts(content: dict[str, dict]) -> None:
    """Raise DataError for empty texts."""
    blank = []
    for fields in content.values():
        for name, text in zip(fields["id"], fields["raw_text"], strict=True):
            if not text.strip():
                blank.append(name)
    if blank:
        raise DataError(f"--text: no text in {len(blank)} rows ({shorten(blank)}). {TRANSCRIPTS}")


def describe_provenance(data: BuiltData, options: argparse.Namespace) -> str:
    """Describe how features were built; features to predict on must be built in the same way.

    Args:
        data: The features.
        options: Options of the command.

    Returns:
        One line, with the rates of dataset.extract if its features.json is next to the folder of
        audio.
    """
    vocabulary = data.encoder.vocab_size if data.encoder else None
    provenance = (
        f"--pool-to {options.pool_to}, standardized {bool(data.scalings)}, vocabulary {vocabulary}"
    )
    extracted = Path(options.audio).resolve().parent / "features.json"
    if extracted.exists():
        provenance += f", rates {read_json(extracted).get('rates (Hz)')}"
    return provenance


def config_entry(path: Path, data: BuiltData, pretrained: str) -> tuple[str, dict]:
    """Make the entry of a data set for config.json.

    Args:
        path: The feature pickle.
        data: The features.
        pretrained: The text encoder of the tokens.

    Returns:
        The name of the data set, and its section of datasetCommonParams.
    """
    path = path.resolve()
    root = Path(
        "dataset"
    ).resolve()  # dataset_root_dir, relative to the working directory of run.py
    feature_path = path.relative_to(root) if path.is_relative_to(root) else path
    section = {"featurePath": str(feature_path), "feature_dims": data.feature_dims}
    if data.encoder:
        section["pretrained"] = pretrained
        section["transformers"] = encoder_kind(data.encoder)
    for letter, steps in zip("lav", data.steps, strict=True):
        key = f"conv1d_kernel_size_{letter}"
        if steps < DMDConfig.model_fields[key].default:
            section[key] = steps
    variant = "aligned" if len(set(data.steps)) == 1 else "unaligned"
    name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower())
    return name, {variant: section}


def make_parser() -> ArgumentParser:
    """The flags of the command."""
    description = "Build a feature pickle from your data."
    parser = ArgumentParser(prog="python -m dataset.build", description=description)
    add = parser.add_argument
    add("--text", required=True, metavar="T.csv", help="table: columns id, split, label, text")
    for key in ("audio", "vision"):
        add(f"--{key}", required=True, metavar="DIR", help="one <id>.npy or <id>.csv per utterance")
        default = f"default: the longest sequence of train, at most {MOST_STEPS}"
        add(f"--{key}-steps", type=int, metavar="N", help=default)
    add("-o", "--output", required=True, metavar="FILE.pkl")
    add(
        "--text-features", default="", metavar="DIR", help="precomputed text features, as for audio"
    )
    add("--pretrained", default="", help=f"encoder whose tokenizer is used (default: {BERT_BASE})")
    add("--text-steps", type=int, default=TEXT_STEPS, metavar="N", help=f"default: {TEXT_STEPS}")
    add("--pool-to", type=int, metavar="N", help="average audio and vision over N segments")
    add(
        "--standardize",
        nargs="?",
        const="",
        metavar="FILE.pkl",
        help="standardize audio and vision by mean and scale of train, or those of a training file",
    )
    add("--unlabeled", action="store_true", help="omit the labels, for a file to predict on")
    add("--overwrite", action="store_true", help="replace an existing file")
    renamed = {
        "--average": "--pool-to",
        "--standardise": "--standardize",
        "--unlabelled": "--unlabeled",
    }
    for old, new in renamed.items():
        add(old, action=RenamedFlag, nargs="?", const=new, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        ConfigError: If the options are invalid.
        DataError: A file is invalid; then nothing is written.
    """
    options = make_parser().parse_args(argv)
    path = check_output(options.output, options.overwrite)
    pretrained = options.pretrained or BERT_BASE
    data = build(options)
    if options.pretrained or not options.text_features:
        _add_text_bert(data, pretrained, options.text_steps)
    to_predict = options.unlabeled or "train" not in data.content
    _check(path, data, to_predict, pretrained)

    content = dict(data.content)
    content["provenance"] = describe_provenance(data, options)
    content["standardized"] = data.scalings
    write_pickle(path, content)
    _report(path, data, to_predict, pretrained)


def _check(path: Path, data: BuiltData, to_predict: bool, pretrained: str) -> None:
    """Print the notes of dataset.check on the features. Raises DataError for its errors."""
    size = data.encoder.vocab_size if data.encoder else None
    findings = list(check_content(str(path), data.content, None, to_predict, pretrained, size))
    errors = [finding.text for finding in findings if finding.level == "error"]
    if errors:
        raise DataError(f"{errors[0]} {len(errors)} errors in all; nothing was written.")
    for finding in findings:
        if finding.level == "note":
            print(f"note  {finding.text}")


def _report(path: Path, data: BuiltData, to_predict: bool, pretrained: str) -> None:
    """Print the sizes of the features, and how to use them."""
    sizes = ", ".join(f"{split} {len(fields['id'])}" for split, fields in data.content.items())
    cut = ", ".join(f"{key} {count}" for key, count in data.cut.items() if count) or "none"
    print(f"{path}: {sizes} utterances.", end=" ")
    print(f"Text, audio, vision: {data.steps} steps, {data.feature_dims} wide.")
    print(f"Longer sequences that were cut: {cut}.")
    if to_predict:
        print(f"Predict on it: python test.py CHECKPOINT --features {path} --predictions out.csv")
        return
    name, section = config_entry(path, data, pretrained)
    print('Paste this line into config/config.json, right after "datasetCommonParams": {')
    print(f"{json.dumps(name)}: {json.dumps(section, ensure_ascii=False)},")
    without_bert = "" if data.encoder else " --set use_bert=false"
    print(f"Train on it: python run.py -d {name}{without_bert}")


if __name__ == "__main__":
    sys.exit(run_command(main))
