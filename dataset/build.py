"""Make a feature pickle of one's own data: a table, and a folder of files for audio and for vision.

python -m dataset.build --text T.csv --audio DIR --vision DIR -o my.pkl
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config.schema import DMDConfig
from dataset.check import BERT_BASE, check_content
from dataset.features import FIELDS, SPLITS, shorten
from dataset.pickles import check_output, load_pickle, write_pickle
from dataset.sources import TRANSCRIPTS, averaged, padded, read_folder, read_table, scaling_of, standardised
from models.text_encoder import load_tokenizer, most_tokens
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DataError
from utils.reading import read_json

TEXT_STEPS = 50
LONGEST = 500  # steps of audio and vision unless the user says otherwise; the longest in the published files

Content = dict[str, dict]  # {split: {field: values}}, the MMSA layout


def build(options: argparse.Namespace) -> tuple[Content, dict[str, int], dict]:
    """Read everything and cut or pad it, as the options of the command say; without tokens.
    -> content; by field, how many utterances were longer than its steps; mean and scale (d,) where they were applied

    Raises ConfigError for the options, DataError for the files.
    """
    given = {"text": options.text_steps, "audio": options.audio_steps, "vision": options.vision_steps}
    if min(n for n in (options.average, *given.values()) if n is not None) < 1:
        raise ConfigError("--text-steps, --audio-steps, --vision-steps and --average must be at least 1.")
    table = read_table(options.text, options.unlabelled)
    fields_of = {"id": "id", "text": "raw_text", "label": "regression_labels"}  # by column
    content = {
        split: {field: part[column].tolist() for column, field in fields_of.items() if column in part}
        for split in SPLITS
        if len(part := table[table["split"] == split])
    }
    known = load_pickle(options.standardise).get("standardised", {}) if options.standardise else {}
    if options.standardise is not None and not known and (options.standardise or "train" not in content):
        raise ConfigError("--standardise: needs a train split, or the FILE.pkl trained on, if it was standardised.")
    cut, scalings = {}, {}
    for key, folder in zip(FIELDS, (options.text_features, options.audio, options.vision), strict=True):
        if not folder:
            continue
        segments = options.average if key != "text" else None
        scaling = known.get(key)
        sequences = read_folder(folder, table["id"].tolist(), key == "audio", scaling and len(scaling["mean"]))
        if options.standardise is not None and key != "text":
            scalings[key] = scaling or scaling_of(sequences[name] for name in content["train"]["id"])
            sequences = {name: standardised(sequence, scalings[key]) for name, sequence in sequences.items()}
        if segments:
            sequences = {name: averaged(sequence, segments) for name, sequence in sequences.items()}
        steps = given[key] or segments
        if not steps:
            if "train" not in content:
                raise ConfigError(f"--{key}-steps: without a train split, say how many the checkpoint was trained on.")
            steps = min(max(len(sequences[name]) for name in content["train"]["id"]), LONGEST)
        cut[key] = sum(len(sequence) > steps for sequence in sequences.values())
        for fields in content.values():
            fields[key], fields[f"{key}_lengths"] = padded([sequences[name] for name in fields["id"]], steps)
    return content, cut, scalings


def add_tokens(content: Content, pretrained: str, steps: int) -> tuple[object, int]:
    """Add text_bert (N, 3, steps): input ids, attention mask and segment ids, as [CLS] … [SEP] and padding.
    -> configuration of the encoder; how many texts were longer

    Raises ConfigError, and DataError where a text is empty.
    """
    texts = {name: text for part in content.values() for name, text in zip(part["id"], part["raw_text"], strict=True)}
    if blank := [name for name, text in texts.items() if not text.strip()]:
        raise DataError(f"--text: no text in {len(blank)} rows ({shorten(blank)}). {TRANSCRIPTS}")
    try:
        tokenizer, config = load_tokenizer(pretrained)
    except ConfigError as error:
        raise ConfigError(f"--{error} To try it without: --pretrained dataset/synthetic_bert.") from error
    if not 3 <= steps <= most_tokens(config):
        raise ConfigError(
            f"--text-steps: {steps}, but with the first and the last token '{pretrained}' takes 3 to "
            f"{most_tokens(config)}."
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    cut = 0
    for fields in content.values():
        cut += sum(len(ids) > steps for ids in tokenizer(fields["raw_text"], verbose=False)["input_ids"])
        tokens = tokenizer(fields["raw_text"], padding="max_length", truncation=True, max_length=steps)
        ids = np.array(tokens["input_ids"], np.float32)
        segments = tokens.get("token_type_ids", np.zeros_like(ids))  # not every tokenizer has them
        fields["text_bert"] = np.stack([ids, tokens["attention_mask"], segments], axis=1).astype(np.float32)
    return config, cut


def config_entry(path: Path, dims: list[int], steps: list[int], pretrained: str, encoder) -> tuple[str, dict]:
    """-> name and section of the data set under datasetCommonParams, with everything that it needs to be trained on"""
    path, root = path.resolve(), Path("dataset").resolve()  # dataset_root_dir, seen from where run.py is called
    feature_path = str(path.relative_to(root) if path.is_relative_to(root) else path)
    section = {"featurePath": feature_path, "feature_dims": dims}
    if encoder:
        kind = encoder.model_type
        section |= {"pretrained": pretrained, "transformers": kind if kind in ("bert", "roberta") else "auto"}
    for letter, count in zip("lav", steps, strict=True):
        key = f"conv1d_kernel_size_{letter}"
        if count < DMDConfig.model_fields[key].default:
            section[key] = count
    variant = "aligned" if len(set(steps)) == 1 else "unaligned"
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()), {variant: section}


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m dataset.build", description="Make a feature pickle of your data.")
    parser.add_argument("--text", required=True, metavar="T.csv", help="table with the columns id, split, label, text")
    for key in ("audio", "vision"):
        parser.add_argument(f"--{key}", required=True, metavar="DIR", help="a file <id>.npy or <id>.csv an utterance")
        helps = f"default: the longest of train, at most {LONGEST}"
        parser.add_argument(f"--{key}-steps", type=int, metavar="N", help=helps)
    parser.add_argument("-o", "--output", required=True, metavar="FILE.pkl")
    parser.add_argument("--text-features", default="", metavar="DIR", help="ready-made text features, as for audio")
    parser.add_argument("--pretrained", default="", help=f"BERT whose tokenizer is used (default: {BERT_BASE})")
    parser.add_argument("--text-steps", type=int, default=TEXT_STEPS, metavar="N", help=f"default: {TEXT_STEPS}")
    parser.add_argument("--average", type=int, metavar="N", help="average audio and vision over N parts each")
    helps = "make audio and vision of mean 0 and scale 1 on train, or as in the file trained on"
    parser.add_argument("--standardise", nargs="?", const="", metavar="FILE.pkl", help=helps)
    parser.add_argument("--unlabelled", action="store_true", help="leave the labels out: a file to predict on")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    options = parser.parse_args(argv)
    path, pretrained, encoder = check_output(options.output, options.overwrite), options.pretrained or BERT_BASE, None
    content, cut, scalings = build(options)
    if options.pretrained or not options.text_features:
        encoder, cut["text_bert"] = add_tokens(content, pretrained, options.text_steps)
    to_predict = options.unlabelled or "train" not in content
    findings = list(check_content(str(path), content, None, to_predict, pretrained, encoder and encoder.vocab_size))
    errors = [text for level, text in findings if level == "error"]
    if errors:
        raise DataError(f"{errors[0]} {len(errors)} errors in all; nothing was written.")
    made = f"--average {options.average}, standardised {bool(scalings)}, vocabulary {encoder and encoder.vocab_size}"
    if (beside := Path(options.audio).resolve().parent / "features.json").exists():  # as dataset.extract leaves it
        made += f", rates {read_json(beside).get('rates (Hz)')}"
    write_pickle(path, content | {"made": made, "standardised": scalings})
    print(*(f"note  {text}\n" for level, text in findings if level == "note"), sep="", end="")
    fields = next(iter(content.values()))
    steps = [options.text_steps, fields["audio"].shape[1], fields["vision"].shape[1]]
    dims = [encoder.hidden_size if encoder else fields["text"].shape[2], *(fields[k].shape[2] for k in FIELDS[1:])]
    counts = ", ".join(f"{key} {count}" for key, count in cut.items() if count) or "none"
    sizes = ", ".join(f"{split} {len(fields['id'])}" for split, fields in content.items())
    print(f"{path}: {sizes} utterances. Text, audio, vision: {steps} steps, {dims} wide.")
    print(f"Longer ones that were cut: {counts}.")
    if to_predict:
        print(f"Predict on it: python test.py CHECKPOINT --features {path} --predictions out.csv")
        return
    name, section = config_entry(path, dims, steps, pretrained, encoder)
    print('Paste this line into config/config.json, right after "datasetCommonParams": {')
    print(f"{json.dumps(name)}: {json.dumps(section, ensure_ascii=False)},")
    print(f"Train on it: python run.py -d {name}{'' if encoder else ' --set use_bert=false'}")


if __name__ == "__main__":
    sys.exit(run_command(main))
