"""Whether the tokens of a feature pickle belong to the vocabulary of the text encoder."""

import shlex
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from easydict import EasyDict

from dataset.features import FeatureSet
from models.text_encoder import PROJECT_ROOT, load_tokenizer
from utils.errors import ConfigError

SAMPLE_SIZE = 20  # utterances that are tokenized
# Ids with which common tokenizers begin.
FIRST_TOKENS = {0: "as RoBERTa's <s>", 101: "as BERT's [CLS]"}


def check_tokens(features: FeatureSet, settings: EasyDict) -> str | None:
    """Tokenize a sample of utterances and compare the result with the tokens of the features.

    An encoder accepts the ids of any vocabulary that is not larger than its own, and would train on
    other words than those of the texts.

    Args:
        features: Data read with `use_bert=true`.
        settings: Settings of the run; `use_bert` and `pretrained` are used.

    Returns:
        A warning if less than half of the utterances agree, else None. None also without raw_text,
        or if the tokenizer of the encoder is not on this machine (the network is not used).
    """
    if not settings.use_bert:
        return None
    texts, rows = _sample(features)
    tokenizer = _load_local_tokenizer(settings.pretrained) if texts else None
    if tokenizer is None:
        return None
    agreeing = 0
    for text, row in zip(texts, rows, strict=True):
        agreeing += _agree(row, tokenizer(text, verbose=False)["input_ids"], tokenizer)
    if 2 * agreeing >= len(texts):
        return None
    path = features.text_path or features.path
    found = _describe_first(rows[0])
    expected = _describe_first(tokenizer(texts[0], verbose=False)["input_ids"])
    command = ["python", "-m", "dataset.tokenize", path, "--pretrained", settings.pretrained]
    return (
        f"{path}: 'text_bert' has tokens of another vocabulary ({found}) than "
        f"pretrained={settings.pretrained} ({expected}): {agreeing} of {len(texts)} sampled "
        f"utterances agree. Tokenize the text anew: {shlex.join(command)} -o OUT.pkl"
    )


def local_folder(pretrained: str) -> Path | None:
    """The folder of an encoder on this machine, which may be the hub's cache, or None."""
    for folder in (Path(pretrained), PROJECT_ROOT / pretrained):
        if folder.is_dir():
            return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(pretrained, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or not a name of the hub
        return None


def _load_local_tokenizer(pretrained: str):
    """The tokenizer of an encoder, or None if it is not on this machine."""
    folder = local_folder(pretrained)
    if folder is None:
        return None
    try:
        tokenizer, _ = load_tokenizer(str(folder))
    except ConfigError:  # without a vocabulary
        return None
    return tokenizer


def _sample(features: FeatureSet) -> tuple[list[str], list[np.ndarray]]:
    """Texts and their real token ids, spread evenly over the first split; none without raw_text."""
    split = next(iter(features.splits.values()))
    spoken = [row for row, text in enumerate(split.raw_text) if text.strip()]
    if not spoken:
        return [], []
    picked = np.linspace(0, len(spoken) - 1, min(SAMPLE_SIZE, len(spoken))).astype(int)
    texts, rows = [], []
    for index in picked:
        row = spoken[index]
        ids, mask, _ = split.text[row]
        texts.append(split.raw_text[row])
        rows.append(ids[mask == 1].astype(int))
    return texts, rows


def _agree(found: np.ndarray, expected: list[int], tokenizer) -> bool:
    """Whether most ids are alike and in the same order, as far as the shorter sequence goes.

    Special tokens are ignored, as vocabularies may share them; so is what truncation has cut off.
    """
    special = set(tokenizer.all_special_ids)
    found = [token for token in found.tolist() if token not in special]
    expected = [token for token in expected if token not in special]
    shorter = min(len(found), len(expected))
    if shorter == 0:
        return found == expected
    blocks = SequenceMatcher(None, found, expected, autojunk=False).get_matching_blocks()
    return 2 * sum(block.size for block in blocks) >= shorter


def _describe_first(ids) -> str:
    """The first id, which often tells the family of a tokenizer."""
    if len(ids) == 0:
        return "no tokens"
    name = FIRST_TOKENS.get(int(ids[0]))
    return f"first id {ids[0]}, {name}" if name else f"first id {ids[0]}"
