"""Text features of GloVe vectors, made from the raw_text of a feature pickle: for use_bert = false.

python -m dataset.glove --vectors vectors/glove.840B.300d.txt --pickle IN.pkl -o OUT.pkl

A text is split much as the texts were that GloVe learned from: at spaces, with every punctuation mark by itself and
English contractions in two ("don't" is do, n't). A word takes the vector that is listed for it as it is written, or
else the one of its lower case, or else zeros, which count as padding. One word is one step; what is longer loses its
end, what is shorter is padded with zeros after it. All else in the pickle stays.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from easydict import EasyDict

from dataset.features import SPLITS, strings_of, take_features
from dataset.pickles import check_output, load_pickle, write_pickle
from utils.cli import ArgumentParser, run_command
from utils.errors import DataError
from utils.reading import printable

STEPS = 50  # where the pickle has no text yet
WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+|[^\w\s]", re.IGNORECASE)


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, each as it is written."""
    return WORD.findall(text.replace("’", "'"))


def read_vectors(path: str | Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """The vectors (width,) of those of the words that are listed, in one pass that keeps nothing else. DataError."""
    wanted, vectors = {word.encode(): word for word in words}, {}
    with open(path, "rb") as file:
        width = len(file.readline().split()) - 1
        file.seek(0)
        for line in file:
            if line.partition(b" ")[0] not in wanted:
                continue
            name, *numbers = line.rstrip().rsplit(b" ", width)  # some words hold spaces
            try:
                if name in wanted:
                    vectors.setdefault(wanted[name], np.array(numbers, np.float32).reshape(width))
            except ValueError as error:
                raise DataError(f"{path}: not a word and {width} numbers a line ({error}).") from error
    if not vectors:
        raise DataError(f"{path}: none of the {len(words)} words that are needed is listed with {width} numbers.")
    return vectors


def add_glove(content: dict, path: str | Path, vectors_file: str | Path) -> str:
    """Give each split of a pickle's content (read from `path`) a field `text` (N, steps, width), in place of one that
    it may have, of as many steps.
    -> how many words of the texts have no vector, and how many texts were cut

    Raises DataError.
    """
    splits = {name: content[name] for name in SPLITS if isinstance(content.get(name), dict)}
    first = next(iter(splits.values()), {})
    axes = {"text_bert": 2, "text": 1}
    steps = next((np.shape(first[key])[axis] for key, axis in axes.items() if np.ndim(first.get(key)) == 3), STEPS)
    texts = {
        name: [words_of(text) for text in strings_of(fields.get("raw_text"), str(path), name, "raw_text")]
        for name, fields in splits.items()
    }
    counts = Counter(word for split in texts.values() for words in split for word in words)
    vectors = read_vectors(vectors_file, {form for word in counts for form in (word, word.lower())})
    zeros = np.zeros_like(next(iter(vectors.values())))
    for name, split in texts.items():
        splits[name]["text"] = array = np.zeros((len(split), steps, len(zeros)), np.float32)
        for row, words in zip(array, split, strict=True):
            for step, word in enumerate(words[:steps]):
                row[step] = vectors.get(word, vectors.get(word.lower(), zeros))
    unknown = Counter({word: n for word, n in counts.items() if not {word, word.lower()} & vectors.keys()})
    frequent = ", ".join(f"{printable(word)} {count}" for word, count in unknown.most_common(10)) or "none"
    cut = sum(len(words) > steps for split in texts.values() for words in split)
    return (
        f"Without a vector: {unknown.total()} of {counts.total()} words ({unknown.total() / counts.total():.1%}); most "
        f"frequent: {frequent}. Texts longer than the steps, and cut: {cut}."
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m dataset.glove", description="Make text features of GloVe vectors.")
    parser.add_argument("--vectors", required=True, metavar="FILE.txt", help="a word and its numbers a line")
    parser.add_argument("--pickle", required=True, metavar="IN.pkl", help="feature pickle with raw_text")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.pkl", help="the same with the field text")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    options = parser.parse_args(argv)
    path = check_output(options.output, options.overwrite)
    content = load_pickle(options.pickle)
    coverage = add_glove(content, options.pickle, options.vectors)
    args = EasyDict(featurePath=str(path), use_bert=False, need_data_aligned=False, feature_dims=[0, 0, 0])
    copies = {split: dict(fields) for split, fields in content.items() if split in SPLITS}
    widths = take_features({str(path): copies}, args, [str(path)] * 3, list(copies), to_predict=True).feature_dims
    write_pickle(path, content)
    print(coverage)
    settings = ["use_bert=false", f"feature_dims={str(widths).replace(' ', '')}", f"featurePath={path.resolve()}"]
    print(f"{path}: train with {shlex.join(word for item in settings for word in ('--set', item))}")


if __name__ == "__main__":
    sys.exit(run_command(main))
