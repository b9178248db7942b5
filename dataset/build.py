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
from dataset.features import SPLITS
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
    """A data set in the MMSA layout, and what is to be said of it.

    feature_dims, seq_lens  [text, audio, vision] widths and steps; with tokens the first width is BERT's
    cut                     by field, how many utterances were longer than the steps there are
    vocabulary              size and name of the tokens', or None without tokens
    """

    content: dict[str, dict]
    feature_dims: list[int]
    seq_lens: list[int]
    cut: dict[str, int] = field(default_factory=dict)
    vocabulary: tuple[int, str] | None = None


def build(
    table: str | Path,
    audio: str | Path,
    vision: str | Path,
    text_features: str | Path = "",
    pretrained: str = "",
    unlabelled: bool = False,
    text_steps: int = TEXT_STEPS,
    audio_steps: int | None = None,
    vision_steps: int | None = None,
    segments: int | None = None,
) -> Built:
    """Read and check everything, tokenise, cut or pad.

    text_features  a folder of text features, for use_bert = false; then tokens are made only with `pretrained`
    pretrained     whose tokenizer makes text_bert
    unlabelled     leave the labels out: a file to predict on
    *_steps        what is longer loses its end, what is shorter is padded with zeros behind. None, of audio and
                   vision: as long as the longest of train, but no longer than LONGEST
    segments       average each audio and vision sequence over so many about equal parts first

    Raises ConfigError for the arguments, DataError for the files.
    """
    if min(text_steps, *(n for n in (audio_steps, vision_steps, segments) if n is not None), 1) < 1:
        raise ConfigError("--text-steps, --audio-steps, --vision-steps and --average must be at least 1.")
    if segments and (audio_steps or vision_steps):
        raise ConfigError(
            f"--average {segments} says how many steps there are: leave out --audio-steps, --vision-steps."
        )
    rows = read_table(table, unlabelled)
    folders = {"text": text_features, "audio": audio, "vision": vision}
    opened = {key: open_folder(path, rows["id"].tolist(), table) for key, path in folders.items() if str(path)}
    steps = {"text": text_steps, "audio": segments or audio_steps, "vision": segments or vision_steps}
    train = rows["id"][rows["split"] == "train"]
    for key in ("audio", "vision"):
        if not steps[key] and train.empty:
            raise ConfigError(
                f"--{key}-steps: say how many steps the checkpoint was trained on; without a train split it is not "
                "known."
            )
        steps[key] = steps[key] or min(max(opened[key].lengths[name] for name in train), LONGEST)
    built = Built({}, [opened[key].width if key in opened else 0 for key in folders], list(steps.values()))

    for split in SPLITS:
        part = rows[rows["split"] == split]
        if part.empty:
            continue
        fields = built.content[split] = {"id": part["id"].tolist(), "raw_text": part["text"].tolist()}
        if not unlabelled:
            fields["regression_labels"] = part["label"].to_numpy(np.float32)
    if pretrained or not text_features:
        _add_tokens(built, pretrained or PRETRAINED, text_steps)
    for key, folder in opened.items():
        averaged = segments if key != "text" else None
        for fields in built.content.values():
            fields[key], lengths = folder.padded(fields["id"], steps[key], averaged, silence=key == "audio")
            if key != "text":
                fields[f"{key}_lengths"] = lengths
        if not averaged:
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
    root = Path("dataset").resolve()  # dataset_root_dir, seen from the folder that run.py is called in
    inside = path.resolve().is_relative_to(root)
    section = {
        "featurePath": str(path.resolve().relative_to(root) if inside else path.resolve()),
        "feature_dims": built.feature_dims,
    }
    if built.vocabulary:
        section["pretrained"] = built.vocabulary[1]
    for letter, steps in zip("lav", built.seq_lens, strict=True):
        key = f"conv1d_kernel_size_{letter}"
        if steps < DMDConfig.model_fields[key].default:
            section[key] = steps
    variant = "aligned" if len(set(built.seq_lens)) == 1 else "unaligned"
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()), {variant: section}


def _report(path: Path, built: Built, sizes: dict[str, int], notes: list[str], to_predict: bool) -> None:
    print(*notes, sep="\n", end="\n" if notes else "")
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
    built = build(
        options.text, options.audio, options.vision, options.text_features, options.pretrained, options.unlabelled,
        options.text_steps, options.audio_steps, options.vision_steps, options.average,
    )  # fmt: skip
    sizes = {split: len(fields["id"]) for split, fields in built.content.items()}
    to_predict = options.unlabelled or "train" not in sizes
    notes = write_checked(path, built.content, lambda written: verify(written, built, to_predict))
    _report(path, built, sizes, notes, to_predict)


if __name__ == "__main__":
    sys.exit(run_command(main))
