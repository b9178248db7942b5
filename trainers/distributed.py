"""Train one model in several processes exactly as in one process.

`torchrun` or `accelerate launch` start them. Margin, orthogonality and mean edges couple the
utterances of a batch, so an average of losses over shards would be another objective. Hence every
process runs the model on its shard of each batch, gathers the outputs of all processes, and
computes the objective of the whole batch. Gradients are averaged after each backward pass, before
clipping.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from utils.device import choose_device
from utils.errors import ConfigError
from utils.ranks import rank, world_size


def init_processes(device: str) -> torch.device:
    """Join the processes that a launcher has started, if any.

    Args:
        device: Value of --device.

    Returns:
        The device of this process.

    Raises:
        ConfigError: The device does not exist, or there are fewer GPUs than processes.
    """
    chosen = choose_device(device)
    if world_size() == 1:
        return chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if chosen.index >= torch.cuda.device_count():
            raise ConfigError(
                f"{torch.cuda.device_count()} GPUs for more processes. Start fewer processes, or "
                "use --device cpu."
            )
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        # The others wait while the first process scores and draws, longer than the default of 10
        # minutes.
        try:
            dist.init_process_group(backend, timeout=timedelta(days=1))
        except ValueError as error:  # variables of the environment are missing
            raise ConfigError(
                f"WORLD_SIZE is {world_size()}, but {error}: start several processes with torchrun "
                "or accelerate launch, or unset WORLD_SIZE."
            ) from error
    return chosen


def destroy_processes() -> None:
    """Leave the group at the end of a command.

    A process that fails must not call this: it would wait for the others, which the launcher ends.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(x: Tensor) -> Tensor:
    """Take every `world_size()`th utterance of a batch, from number `rank()` on.

    The first utterances are repeated if shards would differ in length; `all_gather` drops them.
    (B, ·) -> (⌈B / world_size⌉, ·)
    """
    if not dist.is_initialized():
        return x
    length = -(-len(x) // world_size())
    indices = torch.arange(length, device=x.device) * world_size() + rank()
    return x[indices % len(x)]


def all_gather(x: Tensor, batch: int) -> Tensor:
    """Gather the shards of all processes, differentiably.

    Args:
        x: (⌈B / world_size⌉, ·), this process's shard.
        batch: B, the size of the batch.

    Returns:
        (B, ·), in the order of the batch.
    """
    if not dist.is_initialized():
        return x
    return _all_gather(x)[:batch]


class _AllGather(torch.autograd.Function):
    """Gather shards; the gradient of a shard needs no communication.

    Every process computes the whole objective, and so has the gradients of all outputs.
    """

    @staticmethod
    def forward(ctx, x):
        shards = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())
        ]
        dist.all_gather(shards, x.contiguous())
        return torch.stack(shards, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient[rank() :: world_size()] * world_size()  # average_gradients divides it again


_all_gather = torch.compiler.disable(_AllGather.apply)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over the processes, in place.

    Accumulated gradients of earlier batches, which are averages already, stay the same.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not dist.is_initialized() or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    start = 0
    for gradient in gradients:
        end = start + gradient.numel()
        gradient.copy_(flat[start:end].view_as(gradient))
        start = end


def all_gather_objects(x: object) -> list:
    """Gather an object of each process, in the order of their ranks."""
    if not dist.is_initialized():
        return [x]
    objects = [None] * world_size()
    dist.all_gather_object(objects, x)
    return objects


def from_first_rank(compute: Callable[[], object]) -> object:
    """Call a function in the first process only, and return its result in all of them."""
    result = [None]
    if rank() == 0 or not dist.is_initialized():
        result = [compute()]
    if dist.is_initialized():
        dist.broadcast_object_list(result, src=0)
    return result[0]


def barrier() -> None:
    """Wait for all processes."""
    all_gather_objects(None)
