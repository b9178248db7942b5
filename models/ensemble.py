"""Run encoders of the same structure together: each operation once, on stacked weights.

At this model's sizes, launching an operation on a GPU takes longer than computing it. The
computation is the same as in models/transformer.py, run as an ensemble with `torch.func`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def is_faster_on(device: torch.device) -> bool:
    """Whether encoders run faster together than one after another on a device.

    Not inside torch.compile, which fuses the operations of separate encoders.
    """
    return device.type != "cpu" and not torch.compiler.is_compiling()


def are_alike(encoders: Sequence[nn.Module], sequences: Sequence[Sequence[Tensor]]) -> bool:
    """Whether encoders differ only in the values of tensors, and so do their inputs."""
    for tensors in sequences:
        if any(x.shape != tensors[0].shape for x in tensors):
            return False
    if nn.modules.module._has_any_global_hook():
        return False
    first = _describe(encoders[0])
    return first is not None and all(_describe(encoder) == first for encoder in encoders[1:])


def _describe(encoder: nn.Module) -> list | None:
    """All that determines the computation but tensor values; None if it must run separately."""
    description = []
    for module in encoder.modules():
        settings = {}
        for name, value in vars(module).items():
            if name.endswith("_hooks") and value:
                return None
            if name.startswith("_"):  # internal attributes of nn.Module
                continue
            if isinstance(value, Tensor):  # instead of a parameter, in replicas of nn.DataParallel
                return None
            settings[name] = value
        description.append((type(module), settings))
    for name, x in _tensors(encoder).items():
        description.append((name, x.shape, x.dtype))
    return description


def _tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    tensors = dict(encoder.named_parameters())
    tensors.update(encoder.named_buffers())
    return tensors


def run_together(
    encoders: Sequence[nn.Module], sequences: Sequence[Sequence[Tensor]], last_step: bool
) -> list[Tensor]:
    """Run encoders of the same structure (see `are_alike`).

    Args:
        encoders: E encoders.
        sequences: Their E queries (B, T_q, D) and, unless they attend to themselves, their E
            sources (B, T_s, D).
        last_step: Return only the last step.

    Returns:
        The output of each encoder for its own inputs.
    """
    tensors = [_tensors(encoder) for encoder in encoders]
    stacked = {}
    for name in tensors[0]:
        stacked[name] = torch.stack([each[name] for each in tensors])
    inputs = [torch.stack(list(each)) for each in sequences]

    def run_one(weights: dict[str, Tensor], *arguments: Tensor) -> Tensor:
        options = {"last_step": last_step}
        return torch.func.functional_call(encoders[0], weights, arguments, options)

    outputs = torch.vmap(run_one, randomness="different")(stacked, *inputs)
    return list(outputs.unbind())
