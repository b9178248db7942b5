"""The three paths of a model on the CPU: plain, with the CPU's attention, and with encoders run
together.
"""

import pytest
import torch

from models import ensemble
from models.transformer import MultiheadAttention

PATHS = ("plain", "fast", "together")


def use_path(model: torch.nn.Module, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose a path of PATHS for a model that is made."""
    model.fast = path != "plain"
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.fast = path != "plain"
    # As on a GPU.
    monkeypatch.setattr(ensemble, "is_faster_on", lambda device: path == "together")


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
