"""Several processes (ranks) that train one model together, through Hugging Face Accelerate.

Every rank takes its share of every batch. Gradients are summed over the ranks after each backward pass and before the
clipping, so that batch, accumulation and clipping are those of one process, whatever the number of ranks. DDP's own
hooks would average what has accumulated and been clipped, which is another recipe.
"""

import torch
from torch import Tensor

from utils.device import choose_device
from utils.errors import ConfigError
from utils.log import number_of_processes


class Ranks:
    """One process by itself."""

    rank, size = 0, 1

    def backward(self, total: Tensor | None, share: float, parameters: list[Tensor]) -> None:
        """Give the parameters the gradients of a batch's loss.

        total: the loss of this rank's share of the batch; None where the share is 0
        """
        total.backward()

    def sum(self, x: Tensor) -> Tensor:
        """Tensors of one shape, summed over the ranks."""
        return x

    def join(self, x) -> list:
        """What each rank has, rank by rank."""
        return [x]

    def wait(self) -> None:
        """Until all ranks are here."""


class AcceleratedRanks(Ranks):
    """One of several processes that `accelerate launch` or `torchrun` has started."""

    def __init__(self, device: str):
        from accelerate import Accelerator  # takes seconds, for nothing where a process is alone

        self.accelerator = Accelerator(cpu=choose_device(device).type == "cpu")
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        if self.size != number_of_processes():
            raise ConfigError(
                f"The launcher has started {number_of_processes()} processes, of which Accelerate sees {self.size} "
                f"on {self.device}. Choose --device cpu, or as many processes as there are GPUs."
            )

    def backward(self, total: Tensor | None, share: float, parameters: list[Tensor]) -> None:
        parameters = [p for p in parameters if p.requires_grad]
        if total is not None:
            (total * share).backward()
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        summed = self.sum(torch.cat([g.flatten() for g in own])).split([p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def sum(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    def join(self, x) -> list:
        from accelerate.utils import gather_object

        return gather_object([x])

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def find_ranks(device: str) -> Ranks:
    """The ranks that a launcher has started, or this process by itself; device: as --device names it."""
    return AcceleratedRanks(device) if number_of_processes() > 1 else Ranks()
