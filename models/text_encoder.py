"""BERT behind one small class."""

import contextlib
import logging
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from models import kernels
from utils.errors import ConfigError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_FILES = (*WEIGHTS, *(f"{name}.index.json" for name in WEIGHTS))  # whole, or in shards


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
        with contextlib.nullcontext() if self.finetune else torch.no_grad(), kernels.Substitutes():
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state


def load_bert(pretrained: str) -> BertModel:
    """Load or initialise the BERT that `pretrained` names."""
    transformers_logging.set_verbosity_error()  # its report of unused weights is no news to our users
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # nor are five retries without a network
    transformers_logging.disable_progress_bar()
    folder = Path(pretrained)
    if not os.path.isdir(folder) and os.path.isdir(PROJECT_ROOT / folder):
        folder = PROJECT_ROOT / folder  # the folders shipped with the project are found from anywhere
    try:
        if os.path.isdir(folder) and not any((folder / name).is_file() for name in WEIGHT_FILES):
            return BertModel(BertConfig.from_pretrained(str(folder), local_files_only=True))
        return BertModel.from_pretrained(str(folder) if os.path.isdir(folder) else pretrained)
    except Exception as error:  # the hub, its cache and the file formats raise errors of many unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"pretrained: cannot load '{pretrained}': neither a readable local folder, nor in the local cache, nor "
            f"to be had from the model hub ({type(error).__name__}: {reason[:160]}). "
            "Check the network, or set pretrained to a folder with config.json and weights."
        ) from error
