"""BERT, RoBERTa or another encoder of the transformers library, behind one small class."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import ConfigError
from utils.reading import printable, read_json

# transformers is imported where it is used: without BERT nothing needs it, and it takes seconds.
PROJECT_ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # whole, or in shards
VOCABULARIES = ("vocab.*", "tokenizer.json", "*.model")
TOKENIZER_FILES = (
    *VOCABULARIES,
    "config.json",
    "merges.txt",
    "tokenizer_config.json",
    "*_tokens*.json",
)


class TextEncoder(nn.Module):
    """The last hidden state over all positions, padding included.

    tokens (B, 3, T)  input ids, attention mask, segment ids (any number type)
    ->     (B, T, D)  gradients only with `finetune`

    `pretrained` is a hub name, a folder with weights, or a folder with only config.json (and a
    vocabulary): the last is initialised from the current random state. `kind` is "bert", "roberta",
    or "auto" for whatever it is. Raises ConfigError if the weights cannot be had, are of another
    kind or not `width` wide.
    """

    def __init__(self, pretrained: str, finetune: bool, width: int, kind: str = "bert"):
        super().__init__()
        self.finetune = finetune
        self.model = load_encoder(pretrained, kind).requires_grad_(finetune)
        config = self.model.config
        # RoBERTa has none to tell apart
        self.has_segments = getattr(config, "type_vocab_size", 0) > 1
        if config.hidden_size != width:
            raise ConfigError(
                f"pretrained: {pretrained} is {config.hidden_size} wide, but feature_dims[0] is "
                f"{width}."
            )

    def forward(self, tokens: Tensor) -> Tensor:
        ids, mask, segments = tokens.long().unbind(1)  # (B, T) each
        # The model counts positions itself: RoBERTa skips its padding id, which tokenizers of its
        # kind pad with.
        of_segments = {"token_type_ids": segments} if self.has_segments else {}
        with contextlib.nullcontext() if self.finetune else torch.no_grad():
            return self.model(input_ids=ids, attention_mask=mask, **of_segments).last_hidden_state


def most_tokens(config) -> int:
    """The longest sequence that an encoder of this configuration takes."""
    kind = config.model_type
    if "roberta" in kind or kind in ("camembert", "mpnet"):
        # They count positions from the one after their padding id.
        return config.max_position_embeddings - config.pad_token_id - 1
    return config.max_position_embeddings


def load_encoder(pretrained: str, kind: str = "bert") -> nn.Module:
    """Load or initialise the encoder in float32, whatever type its file has. Raises ConfigError if
    that cannot be.
    """
    with _loading(pretrained, kind, ("config.json",), "weights") as (local, _, config):
        from transformers import AutoModel

        if local and not _holds(local, WEIGHTS):
            return AutoModel.from_config(config, dtype=torch.float32)
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, found = AutoModel.from_pretrained(local or pretrained, **options)
        # which is not used
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ValueError(f"it lacks {len(missing)} weights, such as {missing[0]}")
        return model


def load_tokenizer(pretrained: str, kind: str = "auto"):
    """-> tokenizer and configuration of the encoder, without its weights. Raises ConfigError if
    they cannot be had.
    """
    with _loading(pretrained, kind, TOKENIZER_FILES, "vocabulary") as (_, folder, config):
        from transformers import AutoTokenizer

        if not _holds(folder, VOCABULARIES):  # the library would make one up
            raise ValueError("it has no vocabulary")
        return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True), config


def _holds(folder: str, patterns: tuple[str, ...]) -> bool:
    return any(any(Path(folder).glob(pattern)) for pattern in patterns)


@contextlib.contextmanager
def _loading(pretrained: str, kind: str, files: tuple[str, ...], needs: str) -> Iterator[tuple]:
    """-> local folder ("" for a hub name), folder of these files, configuration. Raises ConfigError
    for any failure.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars
    from transformers import AutoConfig, BertConfig
    from transformers.utils import logging as transformers_logging

    # its report of unused weights is no news to our users
    transformers_logging.set_verbosity_error()
    # nor are retries without a network
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    local = next(
        (str(f) for f in (Path(pretrained), PROJECT_ROOT / pretrained) if os.path.isdir(f)), ""
    )
    try:
        # In one request, which fails at once without a network; the library would retry each file
        # for half a minute.
        folder = local or snapshot_download(pretrained, allow_patterns=files)
        # BERT folders of 2019 do not say what they are.
        loader = (
            AutoConfig if "model_type" in read_json(Path(folder) / "config.json") else BertConfig
        )
        config = loader.from_pretrained(folder, local_files_only=True)
        if kind not in ("auto", config.model_type) or config.is_encoder_decoder:
            raise ValueError(f"it is a {config.model_type}, and `transformers` asks for {kind}")
        yield local, folder, config
    except Exception as error:  # the hub, its cache and the file formats have many unrelated kinds
        reason = printable(next(iter(str(error).splitlines()), "") or type(error).__name__, 160)
        raise ConfigError(
            f"pretrained: cannot load '{pretrained}': {reason}. Expected a folder with config.json "
            f"and {needs}, or the name of a model on the hub (without a network: of one in its "
            "local cache)."
        ) from error
