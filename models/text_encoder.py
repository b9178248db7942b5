"""BERT, RoBERTa or another encoder of the transformers library, behind one small class."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ConfigError
from utils.reading import printable, read_json

# transformers is imported inside functions: without BERT nothing needs it, and it takes seconds.
PROJECT_ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # in one file, or in shards
VOCABULARIES = ("vocab.*", "tokenizer.json", "*.model")
TOKENIZER_FILES = VOCABULARIES + (
    "config.json",
    "merges.txt",
    "tokenizer_config.json",
    "*_tokens*.json",
)


class TextEncoder(nn.Module):
    """The last hidden state over all positions, padding included.

    Args:
        pretrained: A hub name, a folder with weights, or a folder with only config.json (and a
            vocabulary): the last is initialized from the current random state.
        finetune: Train the encoder.
        width: Expected width D.
        kind: "bert", "roberta", or "auto" for any encoder.

    Raises:
        ConfigError: The encoder cannot be loaded, is of another kind, or is not `width` wide.
    """

    def __init__(self, pretrained: str, finetune: bool, width: int, kind: str = "bert"):
        super().__init__()
        self.finetune = finetune
        self.model = load_encoder(pretrained, kind).requires_grad_(finetune)
        config = self.model.config
        # RoBERTa has none.
        self.has_segments = getattr(config, "type_vocab_size", 0) > 1
        if config.hidden_size != width:
            raise ConfigError(
                f"pretrained: {pretrained} is {config.hidden_size} wide, "
                f"but feature_dims[0] is {width}."
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token rows.

        Args:
            tokens: Input ids, attention mask and segment ids (B, 3, T), of any number type.

        Returns:
            (B, T, D), with gradients only if the encoder is trained.
        """
        ids, mask, segments = tokens.long().unbind(1)  # (B, T) each
        # The model counts positions itself: RoBERTa skips its padding id.
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.has_segments:
            inputs["token_type_ids"] = segments
        if self.finetune:
            return self.model(**inputs).last_hidden_state
        with torch.no_grad():
            return self.model(**inputs).last_hidden_state


def most_tokens(config) -> int:
    """Return the longest sequence that an encoder of this configuration takes."""
    kind = config.model_type
    if "roberta" in kind or kind in ("camembert", "mpnet"):
        # They count positions from the one after their padding id.
        return config.max_position_embeddings - config.pad_token_id - 1
    return config.max_position_embeddings


def load_encoder(pretrained: str, kind: str = "bert") -> nn.Module:
    """Load or initialize the encoder in float32, whatever type its file has.

    Args:
        pretrained: See `TextEncoder`.
        kind: See `TextEncoder`.

    Returns:
        The model of the transformers library.

    Raises:
        ConfigError: It cannot be loaded, or lacks weights.
    """
    with _loading(pretrained, kind, ("config.json",), "weights") as source:
        from transformers import AutoModel

        if source.is_local and not _contains(source.folder, WEIGHTS):
            return AutoModel.from_config(source.config, dtype=torch.float32)
        model, info = AutoModel.from_pretrained(
            source.folder if source.is_local else pretrained,
            config=source.config,
            dtype=torch.float32,
            output_loading_info=True,
        )
        # The pooler is not used.
        missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
        if missing:
            raise ValueError(f"it lacks {len(missing)} weights, such as {min(missing)}")
        return model


def load_tokenizer(pretrained: str, kind: str = "auto") -> tuple[Any, Any]:
    """Load the tokenizer and the configuration of an encoder, without its weights.

    Args:
        pretrained: See `TextEncoder`.
        kind: See `TextEncoder`.

    Returns:
        The tokenizer and the configuration of the transformers library.

    Raises:
        ConfigError: They cannot be loaded.
    """
    with _loading(pretrained, kind, TOKENIZER_FILES, "vocabulary") as source:
        from transformers import AutoTokenizer

        if not _contains(source.folder, VOCABULARIES):  # the library would invent one
            raise ValueError("it has no vocabulary")
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, config=source.config, local_files_only=True
        )
        return tokenizer, source.config


@dataclass(frozen=True)
class _Source:
    """Where an encoder is loaded from."""

    folder: str  # contains the requested files
    is_local: bool  # not from the hub
    config: Any  # of the transformers library


def _contains(folder: str, patterns: tuple[str, ...]) -> bool:
    return any(any(Path(folder).glob(pattern)) for pattern in patterns)


def _local_folder(pretrained: str) -> str:
    """The folder, relative to the working directory or the project's root; "" for a hub name."""
    for folder in (Path(pretrained), PROJECT_ROOT / pretrained):
        if folder.is_dir():
            return str(folder)
    return ""


@contextlib.contextmanager
def _loading(pretrained: str, kind: str, files: tuple[str, ...], needs: str) -> Iterator[_Source]:
    """Find the files, and turn any failure to load from them into a ConfigError."""
    _silence_libraries()
    try:
        source = _find(pretrained, files)
        model_type = source.config.model_type
        if kind not in ("auto", model_type) or source.config.is_encoder_decoder:
            raise ValueError(f"it is a {model_type}, but `transformers` is {kind}")
        yield source
    except Exception as error:  # the hub, its cache and the file formats raise unrelated errors
        lines = str(error).splitlines() or [""]
        reason = printable(lines[0] or type(error).__name__, 160)
        raise ConfigError(
            f"pretrained: cannot load '{pretrained}': {reason}. Expected a folder with config.json "
            f"and {needs}, or the name of a model on the hub (without a network: of one in its "
            "local cache)."
        ) from error


def _find(pretrained: str, files: tuple[str, ...]) -> _Source:
    """Find the files in a folder or download them, and read the configuration."""
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, BertConfig

    local = _local_folder(pretrained)
    # In one request, which fails at once without a network; the library would retry each file for
    # half a minute.
    folder = local or snapshot_download(pretrained, allow_patterns=files)
    # BERT folders of 2019 have no model_type.
    has_type = "model_type" in read_json(Path(folder) / "config.json")
    loader = AutoConfig if has_type else BertConfig
    config = loader.from_pretrained(folder, local_files_only=True)
    return _Source(folder, bool(local), config)


def _silence_libraries() -> None:
    """Turn off progress bars, and reports of unused weights and of retries without a network."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    disable_progress_bars()
