"""BERT behind one small class."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils import logging as transformers_logging

from utils.errors import ConfigError
from utils.reading import printable

PROJECT_ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_FILES = (*WEIGHTS, *(f"{name}.index.json" for name in WEIGHTS))  # whole, or in shards
VOCABULARIES = ("vocab.txt", "tokenizer.json")
TOKENIZER_SETTINGS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class BertTextEncoder(nn.Module):
    """BERT's last hidden state over all positions, padding included.

    tokens (B, 3, T)  input ids, attention mask, segment ids (any number type)
    ->     (B, T, D)  gradients only with `finetune`

    `pretrained` is a hub name, a folder with weights, or a folder with only config.json (and vocab.txt): the
    last is initialised from the current random state.

    Raises ConfigError if the weights cannot be had or are not `width` wide.
    """

    def __init__(self, pretrained: str, finetune: bool, width: int):
        super().__init__()
        self.finetune = finetune
        self.model = load_bert(pretrained).requires_grad_(finetune)
        if self.model.config.hidden_size != width:
            raise ConfigError(
                f"pretrained: {pretrained} is {self.model.config.hidden_size} wide, but feature_dims[0] is {width}. "
                "Set the first of feature_dims to BERT's hidden size, or choose another pretrained."
            )

    def forward(self, tokens: Tensor) -> Tensor:
        ids, mask, segments = tokens.long().unbind(1)  # (B, T) each
        with contextlib.nullcontext() if self.finetune else torch.no_grad():
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state


def load_bert(pretrained: str) -> BertModel:
    """Load or initialise the BERT that `pretrained` names, in float32. Raises ConfigError if that cannot be done."""
    with _loading(pretrained, "weights") as place:
        if os.path.isdir(place) and not (Path(place) / "config.json").is_file():
            raise FileNotFoundError("no config.json there")  # the library would take bert-base's
        if os.path.isdir(place) and not any((Path(place) / name).is_file() for name in WEIGHT_FILES):
            return BertModel(BertConfig.from_pretrained(place, local_files_only=True)).float()
        kind = BertConfig.get_config_dict(place)[0].get("model_type", "bert")
        if kind != "bert":
            raise ConfigError(f"pretrained: '{pretrained}' is a {printable(kind)}. Choose a BERT.")
        # In float32, for the file's own type may be a half one.
        model, found = BertModel.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))  # which is not used
        if missing:
            raise ConfigError(
                f"pretrained: '{pretrained}' lacks {len(missing)} weights of a BERT, such as {missing[0]}. Get it anew."
            )
        return model


def load_tokenizer(pretrained: str) -> tuple[BertTokenizer, BertConfig]:
    """The tokenizer and the sizes of the BERT that `pretrained` names; its weights are not asked for.

    Raises ConfigError if they cannot be had.
    """
    with _loading(pretrained, "vocab.txt") as place:
        if not os.path.isdir(place):  # in one request: each of the files would be looked for for half a minute
            place = snapshot_download(place, allow_patterns=[*VOCABULARIES, *TOKENIZER_SETTINGS])
        if not any((Path(place) / name).is_file() for name in VOCABULARIES):
            raise FileNotFoundError(f"no {' or '.join(VOCABULARIES)} there")  # the library would make up a vocabulary
        config = BertConfig.from_pretrained(place, local_files_only=True)
        return BertTokenizer.from_pretrained(place, local_files_only=True), config


@contextlib.contextmanager
def _loading(pretrained: str, needs: str) -> Iterator[str]:
    """What to load from: the local folder, or the hub name as it is. Raises ConfigError for whatever fails inside."""
    transformers_logging.set_verbosity_error()  # its report of unused weights is no news to our users
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # nor are five retries without a network
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    folder = Path(pretrained)
    if not os.path.isdir(folder) and os.path.isdir(PROJECT_ROOT / folder):
        folder = PROJECT_ROOT / folder  # the folders shipped with the project are found from anywhere
    try:
        yield str(folder) if os.path.isdir(folder) else pretrained
    except ConfigError:
        raise
    except Exception as error:  # the hub, its cache and the file formats raise errors of many unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"pretrained: cannot load '{pretrained}': neither a readable local folder, nor in the local cache, nor "
            f"to be had from the model hub ({type(error).__name__}: {reason[:160]}). "
            f"Check the network, or set pretrained to a folder with config.json and {needs}."
        ) from error
