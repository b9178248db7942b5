"""What is in a feature pickle, and what is wrong or odd about it.

python -m dataset.check dataset/MOSI/aligned_50.pkl -d mosi
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from easydict import EasyDict

from config import load_config, parse_overrides
from dataset.features import FIELDS, PUBLISHED_SHA256, SPLITS, load_published, shorten, take_features
from dataset.pickles import load_pickle
from dataset.tokens import check_tokens, local_folder
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DataError, DMDError
from utils.files import sha256_of
from utils.reading import printable, read_json

BERT_BASE = "bert-base-uncased"
VOCABULARIES = {BERT_BASE: 30522}  # sizes that are known without the hub

Finding = tuple[str, str]  # 'ok', 'note' (may be as it should) or 'error' (training would be wrong or fail); and a text


def check_content(
    path: str, content: dict, settings: EasyDict | None, to_predict: bool, pretrained: str = "", size: int | None = None
) -> Iterator[Finding]:
    """Everything there is to say about the content of a feature pickle that is, or will be, at `path`.

    settings          a data set's, which the file should fit
    to_predict        the file is not trained on: any of the splits will do, and labels may be absent
    pretrained, size  whose tokens the text has (default: the settings'), and the size of that vocabulary
    """
    splits = {name: content[name] for name in SPLITS if isinstance(content.get(name), dict)}
    for name, fields in splits.items():
        shapes = [f"{k} {getattr(x, 'shape', '')} {getattr(x, 'dtype', type(x).__name__)}" for k, x in fields.items()]
        yield "ok", f"{name}: {printable(', '.join(shapes), 1000)}."
    names = (tuple(splits) or SPLITS) if to_predict else SPLITS
    first = splits.get(names[0], {})
    dims = [first[key].shape[2] if getattr(first.get(key), "ndim", 0) == 3 else 1 for key in FIELDS]
    expected = settings.feature_dims if settings else dims
    args = EasyDict(featurePath=path, need_data_aligned=False)
    parts, arrays = {}, {}
    modes = {"text_bert": True, "text": False}
    for text in [key for key in modes if key in first] or modes:
        args.use_bert, mode = modes[text], f"use_bert={str(modes[text]).lower()}"
        args.feature_dims = [expected[0] if args.use_bert else dims[0], *expected[1:]]
        # Copied two levels deep: taking a field out leaves it to the next round.
        raw = {name: dict(fields) for name, fields in splits.items()}
        try:
            features = take_features({path: raw}, args, [path] * 3, names, to_predict)
        except DataError as error:
            yield "error", f"{mode}: {error}"
            continue
        parts = features.splits
        if settings and args.use_bert:
            foreign = check_tokens(features, settings)
            if foreign:
                yield "error", foreign
        dims_needed = "" if args.use_bert else f", with feature_dims={dims}"
        yield "ok", f"{mode}: can be {'predicted' if to_predict else 'trained'} on{dims_needed}."
        for name, part in parts.items():
            arrays |= {(name, text): part.text, (name, "audio"): part.audio, (name, "vision"): part.vision}
    for name, part in parts.items():
        if part.labelled:
            counts = sorted(Counter(np.rint(part.labels).astype(int).tolist()).items())
            yield "ok", f"{name}: labels, rounded: {', '.join(f'{value:+d}: {n}' for value, n in counts)}."
    for (name, key), array in arrays.items():
        where = f"{name}: '{key}'"
        if key == "text_bert":
            yield _padding(where, array[:, 1] != 0)
            yield _vocabulary(where, array[:, 0], pretrained or (settings.pretrained if settings else BERT_BASE), size)
            continue
        yield _padding(where, (array != 0).any(axis=2))
        constant = np.flatnonzero(array.min((0, 1)) == array.max((0, 1)))
        if len(constant):
            kind = "never change" if array.any() else "are all zero, so that nothing can be learned from them"
            yield "note", f"{where}: {len(constant)} of {array.shape[2]} features {kind}: {constant[:8].tolist()}."
    yield from _identities({name: part.ids for name, part in parts.items()})


def _vocabulary(where: str, ids: np.ndarray, pretrained: str, size: int | None) -> Finding:
    if size is None:
        folder = local_folder(pretrained)
        if folder and (folder / "config.json").is_file():
            size = read_json(folder / "config.json").get("vocab_size")
        else:
            size = VOCABULARIES.get(pretrained)
    if size is None:
        return "note", f"{where}: ids up to {ids.max():g}; the vocabulary of {pretrained} is not known here."
    outside = (ids >= size).sum()
    level = "error" if outside else "ok"
    told = f"the vocabulary of {pretrained} is of {size}, and {outside} are outside it"
    return level, f"{where}: ids up to {ids.max():g}; {told}."


def _padding(where: str, real: np.ndarray) -> Finding:
    """real (N, T): steps that are not padding."""
    filled = real.any(axis=1)
    before, after = (np.where(filled, side.argmax(axis=1), 0) for side in (real, real[:, ::-1]))
    lengths = np.where(filled, real.shape[1] - before - after, 0)
    return "note" if before.any() and after.any() else "ok", (
        f"{where}: {lengths.min()} to {lengths.max()} of {real.shape[1]} steps, median {np.median(lengths):g}; padded "
        f"in front in {(before > 0).sum()} and after in {(after > 0).sum()} utterances; {(~filled).sum()} empty."
    )


def _identities(ids: dict[str, list[str]]) -> Iterator[Finding]:
    """Utterances that occur twice, and videos of which splits share utterances."""
    for name, names in ids.items():
        twice = [item for item, count in Counter(names).items() if count > 1]
        if twice:
            yield "note", f"{name}: {len(twice)} ids occur more than once ({shorten(twice)}); they weigh more."
    for (first, one), (second, other) in combinations(ids.items(), 2):
        both, shared = f"{first} and {second} share", set(one) & set(other)
        if shared:
            remedy = "scores would be of what was trained on. Remove them from one of the two"
            yield "error", f"{both} {len(shared)} utterances ({shorten(shared)}): {remedy}."
        # MOSI's and MOSEI's ids are video$_$clip.
        videos = set.intersection(*({i.split("$_$")[0] for i in {*s} - shared if "$_$" in i} for s in (one, other)))
        if videos:
            yield "note", f"{both} {len(videos)} videos ({shorten(videos)}): the same speaker is in both."


def _digest(path: str, dataset_name: str) -> Finding:
    digest = sha256_of(path)
    for (name, aligned), published in PUBLISHED_SHA256.items():
        if digest == published:
            kind = f"SHA-256 {digest}: the published {'aligned' if aligned else 'unaligned'} features of {name}."
            return "ok" if dataset_name in ("", name) else "error", f"{kind} Use it with -d {name}."
    return "note", f"SHA-256 {digest}: no published file; published numbers cannot be expected of it."


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m dataset.check", description="Say what is in a feature pickle.")
    parser.add_argument("file")
    parser.add_argument("-d", "--dataset", default="", help="a data set of the config: check against its settings")
    parser.add_argument("-c", "--config", default="", help="JSON config of that data set (default: config/config.json)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override settings")
    parser.add_argument("--to-predict", action="store_true", help="for test.py --features: any split, labels or none")
    options = parser.parse_args(argv)
    settings = None
    if options.dataset:
        settings = load_config("dmd", options.dataset, options.config, parse_overrides(options.set))
    elif options.config or options.set:
        raise ConfigError("-c and --set: name the data set whose settings they change with -d.")
    if settings and not options.to_predict:
        content = load_published(options.file, settings.dataset_name, settings.need_data_aligned)
    else:
        content = load_pickle(options.file)
    findings = [_digest(options.file, options.dataset.lower())]
    findings += check_content(options.file, content, settings, options.to_predict)
    print(*(f"{level:5} {' '.join(text.split())}" for level, text in findings), sep="\n")
    errors = sum(level == "error" for level, _ in findings)
    if errors:
        hint = "" if options.to_predict else " (A file to predict on is checked with --to-predict.)"
        raise DMDError(f"{options.file}: {errors} error{'s' * (errors > 1)}, above.{hint}")


if __name__ == "__main__":
    sys.exit(run_command(main))
