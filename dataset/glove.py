"""Make text features for use_bert=false: GloVe vectors of the raw_text of a feature pickle.

python -m dataset.glove --vectors vectors/glove.840B.300d.txt --pickle IN.pkl -o OUT.pkl

Texts are split much like GloVe's training texts: at spaces, every punctuation mark is a word, and
English contractions are two words ("don't" is do, n't). A word gets the vector of its exact
spelling, or else of its lower case, or else zeros, which count as padding. One word is one step;
longer texts are cut at the end, shorter ones padded with zeros. All other fields are copied.
"""

import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from easydict import EasyDict

from config import format_overrides
from dataset.features import SPLITS, take_features, to_strings
from dataset.pickles import load_pickle, write_pickle
from dataset.tokens import TEXT_STEPS, count_text_steps
from utils.cli import ArgumentParser, run_command
from utils.errors import DataError
from utils.files import check_output
from utils.reading import printable

WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+|[^\w\s]", re.IGNORECASE)


def split_words(text: str) -> list[str]:
    """Split a text into words and punctuation marks.

    Args:
        text: A text in English.

    Returns:
        The words in their original case.
    """
    return WORD.findall(text.replace("’", "'"))


def read_vectors(path: str | Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """Read the vectors of these words, in one pass that keeps no others in memory.

    Args:
        path: A text file with a word and its numbers on each line.
        words: The words.

    Returns:
        {word: vector (width,)} of the words that the file has.

    Raises:
        DataError: A line is invalid, or the file has none of the words.
    """
    wanted = {word.encode(): word for word in words}
    vectors = {}
    with open(path, "rb") as file:
        width = len(file.readline().split()) - 1
        file.seek(0)
        for line in file:
            if line.partition(b" ")[0] not in wanted:
                continue
            name, *numbers = line.rstrip().rsplit(b" ", width)  # some words contain spaces
            if name not in wanted:
                continue
            try:
                vector = np.array(numbers, np.float32).reshape(width)
            except ValueError as error:
                raise DataError(
                    f"{path}: expected a word and {width} numbers on each line ({error})."
                ) from error
            vectors.setdefault(wanted[name], vector)
    if not vectors:
        raise DataError(
            f"{path}: contains none of the {len(words)} words of the texts. Expected a word and "
            f"{width} numbers on each line."
        )
    return vectors


def add_glove(content: dict, path: str | Path, vectors_file: str | Path) -> str:
    """Add the field `text` (N, steps, width) to each split, or replace it.

    Args:
        content: Content of a feature pickle, which is changed. The steps are those of text_bert or
            text.
        path: The pickle, for errors.
        vectors_file: The vectors, as for read_vectors.

    Returns:
        A sentence about words without a vector, and texts that were cut.

    Raises:
        DataError: Texts or vectors are invalid.
    """
    words = {}  # of each text, by split
    for split in SPLITS:
        if isinstance(content.get(split), dict):
            raw_text = to_strings(content[split].get("raw_text"), str(path), split, "raw_text")
            words[split] = [split_words(text) for text in raw_text]
    steps = count_text_steps(content[next(iter(words))]) if words else TEXT_STEPS

    counts = Counter()
    cut = 0
    for texts in words.values():
        for text in texts:
            counts.update(text)
            cut += len(text) > steps
    spellings = counts.keys() | {word.lower() for word in counts}
    vectors = read_vectors(vectors_file, spellings)
    for split, texts in words.items():
        content[split]["text"] = _embed(texts, vectors, steps)
    return f"{_describe_coverage(counts, vectors)} Texts longer than the steps, and cut: {cut}."


def _embed(texts: list[list[str]], vectors: dict[str, np.ndarray], steps: int) -> np.ndarray:
    """N lists of words -> (N, steps, width)"""
    width = len(next(iter(vectors.values())))
    array = np.zeros((len(texts), steps, width), np.float32)
    for row, words in zip(array, texts, strict=True):
        for step, word in enumerate(words[:steps]):
            if word in vectors:
                row[step] = vectors[word]
            elif word.lower() in vectors:
                row[step] = vectors[word.lower()]
    return array


def _describe_coverage(counts: Counter, vectors: dict[str, np.ndarray]) -> str:
    """How many words have no vector, and the most frequent of them."""
    unknown = Counter()
    for word, count in counts.items():
        if word not in vectors and word.lower() not in vectors:
            unknown[word] = count
    total = counts.total()
    frequent = [f"{printable(word)} {count}" for word, count in unknown.most_common(10)]
    return (
        f"Without a vector: {unknown.total()} of {total} words ({unknown.total() / total:.1%}); "
        f"most frequent: {', '.join(frequent) or 'none'}."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        ConfigError: The output exists.
        DataError: A file is invalid; then nothing is written.
    """
    description = "Make text features from GloVe vectors."
    parser = ArgumentParser(prog="python -m dataset.glove", description=description)
    add = parser.add_argument
    add("--vectors", required=True, metavar="FILE.txt", help="a word and its numbers on each line")
    add("--pickle", required=True, metavar="IN.pkl", help="feature pickle with raw_text")
    add("-o", "--output", required=True, metavar="OUT.pkl", help="copy with the field text")
    add("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(argv)
    path = check_output(options.output, options.overwrite)
    content = load_pickle(options.pickle)
    coverage = add_glove(content, options.pickle, options.vectors)
    widths = _check(content, str(path))
    write_pickle(path, content)
    print(coverage)
    settings = {
        "use_bert": False,
        "feature_dims": widths,
        "featurePath": str(path.resolve()),
    }
    print(f"{path}: train with {format_overrides(settings)}")


def _check(content: dict, path: str) -> list[int]:
    """The widths of the features. Raises DataError if they are invalid."""
    args = EasyDict(
        featurePath=path, use_bert=False, need_data_aligned=False, feature_dims=[0, 0, 0]
    )
    copies = {split: dict(fields) for split, fields in content.items() if split in SPLITS}
    features = take_features({path: copies}, args, [path] * 3, list(copies), to_predict=True)
    return features.feature_dims


if __name__ == "__main__":
    sys.exit(run_command(main))
