"""All parameters in one buffer, and all gradients in another."""

from collections.abc import Iterable

import torch
from torch import nn


class FlatParameters:
    """Lays parameters side by side in one buffer, and their gradients in a second.

    Each parameter and its `.grad` stay tensors of their own, now views; what is done to all of them (clipping,
    zeroing, the optimizer's update) is done to `values` and `values.grad` at once. A parameter that gets no gradient
    has one of zeros. models/kernels.py recognises the layout and reads stacked weights from it without copying.

    Lay out after the model has reached its device: moving it later would leave the buffers behind.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        parameters = [p for p in parameters if p.requires_grad]
        self.values = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.values.grad = torch.zeros_like(self.values)
        sizes = [p.numel() for p in parameters]
        parts = zip(self.values.detach().split(sizes), self.values.grad.split(sizes), strict=True)
        for parameter, (value, gradient) in zip(parameters, parts, strict=True):
            parameter.data, parameter.grad = value.view(parameter.shape), gradient.view(parameter.shape)

    def zero_grad(self) -> None:
        self.values.grad.zero_()

    def clip_grad_value(self, limit: float) -> None:
        """Clamp every gradient to [-limit, limit]."""
        self.values.grad.clamp_(-limit, limit)
