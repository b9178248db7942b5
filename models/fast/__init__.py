"""Speed, and nothing else: what the model computes, for several encoders at a time and in forms that suit the CPU.

models/ without this folder is the whole model. `run_encoders` here has the signature of the one in
models/transformer.py, which is its specification, and is used where `applies` says that both compute the same. The
key `fast` turns all of it off.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn

from models import transformer
from models.fast.cpu import CpuForms
from models.fast.encoders import run_encoders
from models.transformer import CrossModalEncoder, Layer, MultiheadAttention, SinusoidalPositions
from utils.runtime import logger

__all__ = ["applies", "library_model", "run_encoders"]

# The text of models/transformer.py that models/fast/encoders.py computes. Whoever edits that file gets the plain
# model, as edited. To have both: make encoders.py compute the same again, and put the new value here.
SPECIFICATION = "258ac1d4590d61d31fff76ccb488a75ee89d58ac8be791a70a61a63dc5c759da"

STOCK = {  # the classes that encoders.py stands for, with the forward that it stands for
    kind: kind.forward
    for kind in (CrossModalEncoder, Layer, MultiheadAttention, SinusoidalPositions,
                 nn.ModuleList, nn.LayerNorm, nn.Linear, nn.Dropout)
}  # fmt: skip


def applies(encoders: Sequence[CrossModalEncoder]) -> bool:
    """Whether run_encoders gives here what each encoder gives by itself, to rounding.

    It does for encoders of the stock classes, unedited and without hooks, that are alike but for their weights and
    the dropout of their attention. Which parameters are trained makes no difference.
    """
    if not _unedited() or torch._C._are_functorch_transforms_active() or nn.modules.module._has_any_global_hook():
        return False
    descriptions = [[] for _ in encoders]
    stock = all(_describe(encoder, parts) for encoder, parts in zip(encoders, descriptions, strict=True))
    return stock and all(description == descriptions[0] for description in descriptions)


@torch.compiler.assume_constant_result
def _unedited() -> bool:
    return specification() == SPECIFICATION or _say_edited()


@cache
def specification() -> str:
    """The SHA-256 of models/transformer.py."""
    return hashlib.sha256(Path(transformer.__file__).read_text(encoding="utf-8").encode()).hexdigest()


@cache
def _say_edited() -> bool:
    logger.warning("models/transformer.py has been edited: the model runs as it stands there, without models/fast/.")
    return False


def _describe(module: nn.Module, parts: list) -> bool:
    """Add to `parts` what must be alike in encoders.  -> False where a module is not of the stock, or has hooks"""
    kind, own = type(module), module.__dict__
    hooks = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    if kind.forward is not STOCK.get(kind) or hooks or "forward" in own:
        return False
    get = own.get
    parts += (kind, own["training"], get("p"), get("eps"), get("dim"), get("num_heads"), get("attn_mask"))
    for parameter in own["_parameters"].values():
        parts.append(None if parameter is None else parameter.shape)
    for child in own["_modules"].values():  # noqa: SIM110  (this runs for some 500 modules in every forward pass)
        if not _describe(child, parts):
            return False
    return True


def library_model(fast: bool) -> contextlib.AbstractContextManager:
    """The context in which a model from a library, BERT here, runs in the CPU's forms; elsewhere it changes nothing."""
    return CpuForms() if fast and not torch._C._are_functorch_transforms_active() else contextlib.nullcontext()
