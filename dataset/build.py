"""Make a feature pickle of one's own data: a table, and a folder of files for audio and for vision.

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

from config.schema import DMDConfig
from dataset.check import check_file
from dataset.features import FIELDS, SPLITS
from dataset.sources import open_folder, read_table
from dataset.writing import check_output, write_checked
from models.text_encoder import load_tokenizer
from utils.cli import run_command
from utils.errors import ConfigError, DataError

PRETRAINED = "bert-base-uncased"
TEXT_STEPS = 50
LONGEST = 500  # steps of audio and vision unless the user says otherwise; the longest in the published files


@dataclass
class Built:
    """A data set in the MMSA layout, and what is to be said of it. Lists are of text, audio and vision."""

    content: dict[str, dict]
    feature_dims: list[int]  # with tokens the first is BERT's
    seq_lens: list[int]
    cut: dict[str, int] = field(default_factory=dict)  # by field, how many utterances were longer than the steps
    vocabulary: tuple[int, str] | None = None  # size and name of the tokens', or None without tokens


def build(options: argparse.Namespace) -> Built:
    """Read and check everything, tokenise, cut or pad, as the options of the command say.

    Raises ConfigError for the options, DataError for the files.
    """
    folders = {"text": options.text_features, "audio": options.audio, "vision": options.vision}
    steps = {key: vars(options)[f"{key}_steps"] for key in FIELDS}
    given = [n for n in (options.average, *steps.values()) if n is not None]
    if min(given) < 1 or (options.average and (steps["audio"] or steps["vision"])):
        raise ConfigError("--text-steps, --audio-steps and --vision-steps, or --average for the two, are at least 1.")
    table = read_table(options.text, options.unlabelled)
    opened = {key: open_folder(path, table["id"].tolist(), options.text) for key, path in folders.items() if path}
    train = table["id"][table["split"] == "train"]
    for key in ("audio", "vision"):
        steps[key] = options.average or steps[key] or min(max(map(opened[key].lengths.get, train), default=0), LONGEST)
        if not steps[key]:
            raise ConfigError(f"--{key}-steps: without a train split, say how many the checkpoint was trained on.")
    built = Built({}, [opened[key].width if key in opened else 0 for key in FIELDS], list(steps.values()))

    for split in [split for split in SPLITS if split in set(table["split"])]:
        part = table[table["split"] == split]
        built.content[split] = {"id": part["id"].tolist(), "raw_text": part["text"].tolist()}
        if not options.unlabelled:
            built.content[split]["regression_labels"] = part["label"].to_numpy(np.float32)
    if options.pretrained or not options.text_features:
        _add_tokens(built, options.pretrained or PRETRAINED, options.text_steps)
    for key, folder in opened.items():
        segments = options.average if key != "text" else None
        for fields in built.content.values():
            fields[key], lengths = folder.padded(fields["id"], steps[key], segments, silence=key == "audio")
            if key != "text":
                fields[f"{key}_lengths"] = lengths
        if not segments:
            built.cut[key] = sum(length > steps[key] for length in folder.lengths.values())
    return built


def _add_tokens(built: Built, pretrained: str, steps: int) -> None:
    """Add text_bert (N, 3, steps): input ids, attention mask and segment ids, as [CLS] … [SEP] and padding."""
    tokenizer, config = load_tokenizer(pretrained)
    if not 3 <= steps <= config.max_position_embeddings:
        raise ConfigError(
            f"--text-steps: {steps}, but with the first and the last token '{pretrained}' takes 3 to "
            f"{config.max_position_embeddings}."
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    built.cut["text_bert"] = 0
    for fields in built.content.values():
        whole = tokenizer(fields["raw_text"], verbose=False)["input_ids"]
        built.cut["text_bert"] += sum(len(ids) > steps for ids in whole)
        tokens = tokenizer(fields["raw_text"], padding="max_length", truncation=True, max_length=steps)
        ids = np.array(tokens["input_ids"], np.float32)
        segments = tokens.get("token_type_ids", np.zeros_like(ids))  # not every tokenizer has them
        fields["text_bert"] = np.stack([ids, tokens["attention_mask"], segments], axis=1).astype(np.float32)
    built.feature_dims[0] = config.hidden_size
    built.vocabulary = (config.vocab_size, pretrained)


def verify(path: str, built: Built, to_predict: bool) -> list[str]:
    """Read the pickle back as a user's would be.  -> what is odd about it. Raises DataError where it is wrong."""
    findings = check_file(path, "", to_predict, built.vocabulary)
    errors = [finding.text for finding in findings if finding.level == "error"]
    if errors:
        raise DataError(f"{errors[0]} {len(errors)} errors in all; nothing was written.")
    # That a new file was not published, and which fields were not asked for, is known.
    known = ("SHA-256", "no field")
    return [str(f) for f in findings if f.level == "note" and not any(words in f.text for words in known)]


def config_entry(path: Path, built: Built) -> tuple[str, dict]:
    """-> name and section of the data set under datasetCommonParams, with everything that it needs to be trained on"""
    path, root = path.resolve(), Path("dataset").resolve()  # dataset_root_dir, seen from where run.py is called
    feature_path = str(path.relative_to(root) if path.is_relative_to(root) else path)
    section = {"featurePath": feature_path, "feature_dims": built.feature_dims}
    if built.vocabulary:
        section["pretrained"] = built.vocabulary[1]
    for letter, steps in zip("lav", built.seq_lens, strict=True):
        key = f"conv1d_kernel_size_{letter}"
        if steps < DMDConfig.model_fields[key].default:
            section[key] = steps
    variant = "aligned" if len(set(built.seq_lens)) == 1 else "unaligned"
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()), {variant: section}


def _report(path: Path, built: Built, sizes: dict[str, int], to_predict: bool) -> None:
    cut = ", ".join(f"{key} {count}" for key, count in built.cut.items() if count) or "none"
    print(f"{path}: {', '.join(f'{split} {n}' for split, n in sizes.items())} utterances.")
    print(f"Text, audio, vision: {built.seq_lens} steps, {built.feature_dims} wide; longer ones that were cut: {cut}.")
    if to_predict:
        print(f"Predict on it: python test.py CHECKPOINT --features {path} --predictions out.csv")
        return
    name, section = config_entry(path, built)
    print('Paste this line into config/config.json, right after "datasetCommonParams": {')
    print(f"{json.dumps(name)}: {json.dumps(section, ensure_ascii=False)},")
    print(f"Train on it: python run.py -d {name}{'' if built.vocabulary else ' --set use_bert=false'}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dataset.build", description="Make a feature pickle of your data.")
    parser.add_argument("--text", required=True, metavar="T.csv", help="table with the columns id, split, label, text")
    for key in ("audio", "vision"):
        parser.add_argument(f"--{key}", required=True, metavar="DIR", help="a file <id>.npy or <id>.csv an utterance")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.pkl")
    parser.add_argument("--text-features", default="", metavar="DIR", help="ready-made text features, as for audio")
    parser.add_argument("--pretrained", default="", help=f"BERT whose tokenizer is used (default: {PRETRAINED})")
    parser.add_argument("--text-steps", type=int, default=TEXT_STEPS, metavar="N", help=f"default: {TEXT_STEPS}")
    for key in ("audio", "vision"):
        helps = f"default: the longest of train, at most {LONGEST}"
        parser.add_argument(f"--{key}-steps", type=int, metavar="N", help=helps)
    parser.add_argument("--average", type=int, metavar="N", help="average audio and vision over N parts each")
    parser.add_argument("--unlabelled", action="store_true", help="leave the labels out: a file to predict on")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    options = parser.parse_args(argv)
    path = check_output(options.output, options.overwrite)
    built = build(options)
    sizes = {split: len(fields["id"]) for split, fields in built.content.items()}
    to_predict = options.unlabelled or "train" not in sizes
    for note in write_checked(path, built.content, lambda written: verify(written, built, to_predict)):
        print(note)
    _report(path, built, sizes, to_predict)


if __name__ == "__main__":
    sys.exit(run_command(main))
