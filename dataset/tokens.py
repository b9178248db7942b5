"""Tokenize texts for a text encoder, and check that tokens belong to its vocabulary."""

import shlex
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from easydict import EasyDict

from dataset.features import FeatureSet
from models.text_encoder import PROJECT_ROOT, load_tokenizer, most_tokens
from utils.errors import ConfigError

TEXT_STEPS = 50
MIN_TOKENS = 3  # the first, the last and one of the text
SAMPLE_SIZE = 20  # utterances that are tokenized
# Ids with which common tokenizers begin.
FIRST_TOKENS = {0: "as RoBERTa's <s>", 101: "as BERT's [CLS]"}


def add_tokens(content: dict[str, dict], tokenizer, config, steps: int) -> int:
    """Tokenize raw_text: text_bert (N, 3, steps) is token ids, attention mask and segment ids.

    Args:
        content: {split: {field: values}}; `text_bert` is added to each split, or replaced.
        tokenizer: The tokenizer of a text encoder.
        config: The configuration of the encoder.
        steps: Longer texts are truncated, shorter ones padded on the right.

    Returns:
        The number of texts that were truncated.

    Raises:
        ConfigError: The encoder does not support so many steps, or has no padding token.
    """
    if not MIN_TOKENS <= steps <= most_tokens(config):
        raise ConfigError(
            f"--text-steps: {steps} is out of range; '{tokenizer.name_or_path}' accepts "
            f"{MIN_TOKENS} to {most_tokens(config)} tokens, including the first and the last one."
        )
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"--pretrained: '{tokenizer.name_or_path}' has no padding token. Expected an encoder "
            "such as BERT, RoBERTa, DeBERTa or MPNet."
        )
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    truncated = 0
    for fields in content.values():
        texts = fields["raw_text"]
        for ids in tokenizer(texts, verbose=False)["input_ids"]:
            truncated += len(ids) > steps
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=steps)
        ids = np.array(tokens["input_ids"], np.float32)
        mask = np.array(tokens["attention_mask"], np.float32)
        segments = np.zeros_like(ids)
        if "token_type_ids" in tokens:  # not every tokenizer has them
            segments = np.array(tokens["token_type_ids"], np.float32)
        fields["text_bert"] = np.stack([ids, mask, segments], axis=1)
    return truncated


def count_text_steps(fields: dict) -> int:
    """Count the text steps of a split.

    Args:
        fields: {field: values}

    Returns:
        The steps of text_bert, else of text, else TEXT_STEPS.
    """
    if np.ndim(fields.get("text_bert")) == 3:
        return np.shape(fields["text_bert"])[2]
    if np.ndim(fields.get("text")) == 3:
        return np.shape(fields["text"])[1]
    return TEXT_STEPS


def encoder_kind(config) -> str:
    """The value of the setting `transformers` for an encoder.

    Args:
        config: The configuration of the encoder.

    Returns:
        bert, roberta or auto.
    """
    return config.model_type if config.model_type in ("bert", "roberta") else "auto"


def check_tokens(features: FeatureSet, settings: EasyDict) -> str | None:
    """Tokenize a sample of utterances and compare the result with the tokens of the features.

    An encoder accepts the ids of any vocabulary that is not larger than its own, and would silently
    train on the wrong words.

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
        f"utterances agree. Tokenize the text again: {shlex.join(command)} -o OUT.pkl"
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
    """Whether at least half of the shorter sequence occurs in the other one, in the same order.

    Special tokens are ignored, because vocabularies may share them; so are truncated tokens.
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
    """The first id, which often identifies the family of a tokenizer."""
    if len(ids) == 0:
        return "no tokens"
    name = FIRST_TOKENS.get(int(ids[0]))
    return f"first id {ids[0]}, {name}" if name else f"first id {ids[0]}"
