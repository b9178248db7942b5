"""What the model computes, faster: several encoders at a time, and forms that suit the CPU.

models/ without this folder is the whole model. `run_encoders` is used for the one in models/transformer.py, which is
its specification, where `applies` says that both give the same. The key `fast` turns all of this off.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from models import transformer
from models.fast.cpu import CpuForms
from models.fast.encoders import run_encoders
from models.transformer import CrossModalEncoder, Layer, MultiheadAttention, SinusoidalPositions, causal_mask
from utils.log import logger

__all__ = ["CpuForms", "applies", "run_encoders"]

# The text of models/transformer.py that models/fast/encoders.py computes. Whoever edits that file gets the plain
# model, as edited. To have both: make encoders.py compute the same again, and put the new value here.
SPECIFICATION = "661c96a6e5705383b95355235d90be94181b6236a67af54a88b7d1e4517950a4"
EDITED = hashlib.sha256(Path(transformer.__file__).read_text("utf-8").encode()).hexdigest() != SPECIFICATION
OURS = (CrossModalEncoder, Layer, MultiheadAttention, SinusoidalPositions)
if any({kind.__module__, kind.forward.__module__} != {transformer.__name__} for kind in OURS):
    EDITED = True  # a class or its forward was replaced before this file was imported
if EDITED:
    logger.warning("models/transformer.py has been edited: the model runs as it is there, without models/fast/.")

# The classes that encoders.py computes, as they are.
STOCK = {kind: dict(vars(kind)) for kind in (*OURS, nn.ModuleList, nn.LayerNorm, nn.Linear, nn.Dropout)}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
METHODS = {"forward", "embed", "table", "_split_heads"}  # that an instance may have replaced


def applies(encoders: Sequence[CrossModalEncoder]) -> bool:
    """Whether run_encoders gives what each encoder gives by itself, to rounding: where all are of the stock classes,
    unedited and without hooks, and alike but for their weights and the dropout of their attention. Any may be frozen.
    """
    edited = EDITED or transformer.causal_mask is not causal_mask
    if edited or nn.modules.module._has_any_global_hook() or any(vars(kind) != was for kind, was in STOCK.items()):
        return False
    descriptions = [_describe(encoder, encoders[0].training) for encoder in encoders]
    return None not in descriptions and all(description == descriptions[0] for description in descriptions)


def _describe(module: nn.Module, training: bool) -> list | None:
    """What must be alike in encoders; None where a module is not of the stock, in another mode, or has hooks."""
    kind, state = type(module), module.__dict__  # read as they are: this runs for some 500 modules in a forward pass
    if kind not in STOCK or any(map(state.__getitem__, HOOKS)) or not METHODS.isdisjoint(state):
        return None
    if state["training"] != training or state.get("eps", 1e-5) != 1e-5:
        return None
    shapes = [None if parameter is None else parameter.shape for parameter in state["_parameters"].values()]
    children = [_describe(child, training) for child in state["_modules"].values()]
    unlike = kind is nn.ModuleList and any(child != children[0] for child in children)  # layers
    if unlike or None in shapes or None in children:
        return None
    return [kind, state.get("p"), state.get("dim"), state.get("num_heads"), state.get("attn_mask"), *shapes, *children]
