"""Several processes that train one model exactly as one process does, started by `torchrun` or `accelerate launch`.

Margin, orthogonality and mean edges couple the utterances of a batch, so that an average of losses over shares of it
would be another objective. Hence every process runs the model on its share of each batch, gathers the outputs of all,
and computes the objective of the whole batch; gradients are averaged after each backward pass, before the clipping.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from utils.device import choose_device
from utils.errors import ConfigError
from utils.log import number_of_processes


def start_process(device: str) -> torch.device:
    """Join the processes that a launcher has started, if any.  -> the device of this one; device: as --device names it

    Raises ConfigError where there are fewer GPUs than processes.
    """
    chosen = choose_device(device)
    if number_of_processes() == 1:
        return chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if chosen.index >= torch.cuda.device_count():
            raise ConfigError(f"{torch.cuda.device_count()} GPUs for more processes: start fewer, or --device cpu.")
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        # The first process scores and draws while the others wait for it, longer than the default of 10 minutes.
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(days=1))
    return chosen


def leave_processes() -> None:
    """Leave the group, once all is done. A process that fails does not: it would wait for the others, and the launcher
    ends them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(x: Tensor) -> Tensor:
    """This process's share of a batch: every `size()`th utterance. The first ones are repeated where shares would
    differ in length; `gather` drops them.  (B, ·) -> (⌈B / size()⌉, ·)"""
    if size() == 1:
        return x
    each = -(-len(x) // size())
    return x[torch.arange(each, device=x.device).mul_(size()).add_(rank()) % len(x)]


def gather(x: Tensor, batch: int) -> Tensor:
    """What all processes have of a batch of that many utterances, in its order.  (⌈B / size()⌉, ·) -> (B, ·)"""
    return x if size() == 1 else _gather(x)[:batch]


class _Gather(torch.autograd.Function):
    """As every process computes the whole objective, each has the gradient of its share without communication."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient[rank() :: size()] * size()  # average_gradients divides it again


_gather = torch.compiler.disable(_Gather.apply)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Over the processes, in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if size() == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    parts = flat.div_(size()).split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def gather_objects(x) -> list:
    """What each process has, in the order of their numbers."""
    everything = [x] * size()
    if size() > 1:
        dist.all_gather_object(everything, x)
    return everything


def from_first_rank(compute: Callable[[], object]) -> object:
    """What `compute` returns in the first process, in all of them; the others do not call it."""
    result = [compute() if rank() == 0 else None]
    if size() > 1:
        dist.broadcast_object_list(result, src=0)
    return result[0]


def wait_for_all() -> None:
    """Until all processes are here."""
    gather_objects(None)
