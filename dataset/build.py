"""Make a feature pickle of one's own data: a table, and a folder of files for audio and for vision.

python -m dataset.build --text T.csv --audio DIR --vision DIR -o my.pkl
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config.schema import DMDConfig
from dataset.check import check_content
from dataset.features import FIELDS, SPLITS
from dataset.pickles import check_output, write_pickle
from dataset.sources import padded, read_folder, read_table
from models.text_encoder import load_tokenizer, most_tokens
from utils.cli import run_command
from utils.errors import ConfigError, DataError

PRETRAINED = "bert-base-uncased"
TEXT_STEPS = 50
LONGEST = 500  # steps of audio and vision unless the user says otherwise; the longest in the published files


@dataclass
class Built:
    """A data set in the MMSA layout, and what is to be said of it. Lists are of text, audio and vision."""

    content: dict[str, dict]
    feature_dims: list[int]  # with tokens the first is the text encoder's
    seq_lens: list[int]
    cut: dict[str, int]  # by field, how many utterances were longer than the steps
    encoder: object = None  # the configuration of the tokens' encoder, if there are tokens


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
    parts = {split: table[table["split"] == split] for split in SPLITS if (table["split"] == split).any()}
    built = Built({}, [0, 0, 0], [], {})
    for split, part in parts.items():
        built.content[split] = {"id": part["id"].tolist(), "raw_text": part["text"].tolist()}
        if not options.unlabelled:
            built.content[split]["regression_labels"] = part["label"].to_numpy(np.float32)
    for number, (key, folder) in enumerate(folders.items()):
        if not folder:
            continue
        segments = options.average if key != "text" else None
        sequences = read_folder(folder, table["id"].tolist(), segments, silence=key == "audio")
        if not (segments or steps[key]):
            if "train" not in parts:
                raise ConfigError(f"--{key}-steps: without a train split, say how many the checkpoint was trained on.")
            steps[key] = min(max(len(sequences[name]) for name in parts["train"]["id"]), LONGEST)
        steps[key] = segments or steps[key]
        built.cut[key] = sum(len(sequence) > steps[key] for sequence in sequences.values())
        for fields in built.content.values():
            fields[key], lengths = padded([sequences[name] for name in fields["id"]], steps[key])
            if key != "text":
                fields[f"{key}_lengths"] = lengths
        built.feature_dims[number] = fields[key].shape[2]
    built.seq_lens = list(steps.values())
    if options.pretrained or not options.text_features:
        _add_tokens(built, options.pretrained or PRETRAINED, options.text_steps)
    return built


def _add_tokens(built: Built, pretrained: str, steps: int) -> None:
    """Add text_bert (N, 3, steps): input ids, attention mask and segment ids, as [CLS] … [SEP] and padding."""
    tokenizer, config = load_tokenizer(pretrained)
    if not 3 <= steps <= most_tokens(config):
        raise ConfigError(
            f"--text-steps: {steps}, but with the first and the last token '{pretrained}' takes 3 to "
            f"{most_tokens(config)}."
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
    built.encoder = config


def config_entry(path: Path, pretrained: str, built: Built) -> tuple[str, dict]:
    """-> name and section of the data set under datasetCommonParams, with everything that it needs to be trained on"""
    path, root = path.resolve(), Path("dataset").resolve()  # dataset_root_dir, seen from where run.py is called
    feature_path = str(path.relative_to(root) if path.is_relative_to(root) else path)
    section = {"featurePath": feature_path, "feature_dims": built.feature_dims}
    if built.encoder:
        section["pretrained"] = pretrained
        if built.encoder.model_type != "bert":
            section["transformers"] = "roberta" if built.encoder.model_type == "roberta" else "auto"
    for letter, steps in zip("lav", built.seq_lens, strict=True):
        key = f"conv1d_kernel_size_{letter}"
        if steps < DMDConfig.model_fields[key].default:
            section[key] = steps
    variant = "aligned" if len(set(built.seq_lens)) == 1 else "unaligned"
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()), {variant: section}


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
    path, pretrained = check_output(options.output, options.overwrite), options.pretrained or PRETRAINED
    built = build(options)
    sizes = {split: len(fields["id"]) for split, fields in built.content.items()}
    to_predict = options.unlabelled or "train" not in sizes
    tokens = built.encoder and built.encoder.vocab_size
    findings = check_content(str(path), built.content, None, to_predict, pretrained, tokens)
    errors = [text for level, text in findings if level == "error"]
    if errors:
        raise DataError(f"{errors[0]} {len(errors)} errors in all; nothing was written.")
    write_pickle(path, built.content)
    print(*(f"note  {text}\n" for level, text in findings if level == "note"), sep="", end="")
    cut = ", ".join(f"{key} {count}" for key, count in built.cut.items() if count) or "none"
    print(f"{path}: {', '.join(f'{split} {n}' for split, n in sizes.items())} utterances.")
    print(f"Text, audio, vision: {built.seq_lens} steps, {built.feature_dims} wide; longer ones that were cut: {cut}.")
    if to_predict:
        print(f"Predict on it: python test.py CHECKPOINT --features {path} --predictions out.csv")
        return
    name, section = config_entry(path, pretrained, built)
    print('Paste this line into config/config.json, right after "datasetCommonParams": {')
    print(f"{json.dumps(name)}: {json.dumps(section, ensure_ascii=False)},")
    print(f"Train on it: python run.py -d {name}{'' if built.encoder else ' --set use_bert=false'}")


if __name__ == "__main__":
    sys.exit(run_command(main))
