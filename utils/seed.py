"""Random seeds, and the state of the random number generators."""

import random

import numpy as np
import torch

from utils.log import logger


def set_seed(seed: int) -> None:
    """Seed every generator that training draws from, except those of the loaders."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's generators too
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def random_state() -> dict:
    """Return the state of every generator that `set_seed` seeds, in types a checkpoint can hold."""
    kind, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict) -> None:
    """Restore a state that `random_state` returned.

    The generators of the GPUs are restored only if there are as many GPUs; otherwise a warning is
    logged.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if not state["cuda"]:
        return
    if torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    else:
        logger.warning(
            f"The random state of {len(state['cuda'])} GPUs was saved, and "
            f"{torch.cuda.device_count()} are available: their generators start from the seed, so "
            "that dropout draws other numbers than in an uninterrupted run."
        )
