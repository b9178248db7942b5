"""Tokenize the texts of a feature pickle for another text encoder.

python -m dataset.tokenize IN.pkl --pretrained roberta-base -o OUT.pkl

text_bert is computed from raw_text, and all other fields are copied. In an aligned pickle, audio
and vision are aligned with the tokens of the original tokenizer. Another tokenizer splits the words
differently, so the alignment with its tokens is only approximate.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import format_overrides
from dataset.features import SPLITS, read_provenance, to_strings
from dataset.pickles import load_pickle, write_pickle
from dataset.tokens import add_tokens, count_text_steps, encoder_kind
from models.text_encoder import load_tokenizer
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DataError
from utils.files import check_output

NO_TEXTS = "Tokens are made from raw_text, which MMSA's pickles and those of dataset.build have."


@dataclass(frozen=True)
class Result:
    """The settings to train with after `tokenize`, and counts."""

    settings: dict  # all but featurePath
    steps: int  # of text
    truncated: int  # texts that were longer
    empty: int  # texts


def take_texts(content: dict, path: str | Path) -> dict[str, dict]:
    """Take the texts of each split, and check that they fit the other fields.

    Args:
        content: Content of a feature pickle.
        path: The pickle, for error messages.

    Returns:
        {split: {"raw_text": N strings}}

    Raises:
        DataError: Texts are missing, or their number differs from that of audio or vision.
    """
    texts = {}
    for split in SPLITS:
        fields = content.get(split)
        if not isinstance(fields, dict):
            continue
        if "raw_text" not in fields:
            raise DataError(f"{path}: split '{split}' lacks the field 'raw_text'. {NO_TEXTS}")
        strings = to_strings(fields["raw_text"], str(path), split, "raw_text")
        for key in ("audio", "vision"):
            shape = np.shape(fields.get(key, ()))
            if len(shape) != 3 or shape[0] != len(strings):
                raise DataError(
                    f"{path}: '{key}' of split '{split}' is {shape}; expected (N, steps, width) "
                    f"with N = {len(strings)}, as 'raw_text' has."
                )
        texts[split] = {"raw_text": strings}
    if not texts:
        raise DataError(f"{path}: has none of the splits {', '.join(SPLITS)}. {NO_TEXTS}")
    spoken = 0
    for fields in texts.values():
        spoken += sum(bool(text.strip()) for text in fields["raw_text"])
    if spoken == 0:
        raise DataError(f"{path}: 'raw_text' is empty in all utterances. {NO_TEXTS}")
    return texts


def tokenize(content: dict, path: str | Path, pretrained: str, steps: int | None = None) -> Result:
    """Replace text_bert (N, 3, steps) in each split.

    Args:
        content: Content of a feature pickle, which is changed.
        path: The pickle, for error messages.
        pretrained: The text encoder: a folder, or a name on the Hugging Face hub.
        steps: Text steps (default: as many as the pickle has).

    Returns:
        The settings to train with, and counts.

    Raises:
        ConfigError: The tokenizer cannot be loaded, or the encoder does not support so many steps.
        DataError: Texts are missing.
    """
    texts = take_texts(content, path)
    try:
        tokenizer, config = load_tokenizer(pretrained)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from error
    first = content[next(iter(texts))]
    if steps is None:
        steps = count_text_steps(first)
    truncated = add_tokens(texts, tokenizer, config, steps)
    empty = 0
    for split, fields in texts.items():
        content[split]["text_bert"] = fields["text_bert"]
        for text in fields["raw_text"]:
            empty += not text.strip()
    if "provenance" in content:  # test.py compares it, with the size of the vocabulary
        vocabulary = f"vocabulary {config.vocab_size}"
        content["provenance"] = re.sub(r"vocabulary \w+", vocabulary, read_provenance(content))

    audio, vision = np.shape(first["audio"]), np.shape(first["vision"])
    return Result(
        settings={
            "need_data_aligned": steps == audio[1] == vision[1],
            "transformers": encoder_kind(config),
            "pretrained": pretrained,
            "feature_dims": [config.hidden_size, audio[2], vision[2]],
        },
        steps=steps,
        truncated=truncated,
        empty=empty,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        ConfigError: The output exists, or the options are invalid.
        DataError: The pickle is invalid; then nothing is written.
    """
    options = make_parser().parse_args(argv)
    path = check_output(options.output, options.overwrite)
    content = load_pickle(options.pickle)
    result = tokenize(content, options.pickle, options.pretrained, options.text_steps)
    write_pickle(path, content)
    settings = {**result.settings, "featurePath": str(path.resolve())}
    print(
        f"{path}: {result.steps} text steps. Longer texts, which were truncated: "
        f"{result.truncated}. Empty texts: {result.empty}."
    )
    print(f"{path}: train with {format_overrides(settings)}")


def make_parser() -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(
        prog="python -m dataset.tokenize",
        description="Tokenize the texts of a feature pickle for another text encoder.",
        epilog="In an aligned pickle, audio and vision stay aligned with the tokens of the "
        "original tokenizer; their alignment with the new tokens is only approximate.",
    )
    add = parser.add_argument
    add("pickle", metavar="IN.pkl", help="feature pickle with raw_text")
    add("--pretrained", required=True, help="text encoder: a folder, or a name on the hub")
    add("-o", "--output", required=True, metavar="OUT.pkl", help="copy with new tokens")
    default = "default: as many as IN.pkl has, which aligned data need"
    add("--text-steps", type=int, metavar="N", help=default)
    add("--overwrite", action="store_true", help="replace an existing file")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
