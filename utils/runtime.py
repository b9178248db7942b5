"""The surroundings of a run: random seeds, the device, the log, versions."""

import contextlib
import ctypes
import logging
import os
import platform
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from utils.errors import ConfigError

LOGGER_NAME = "MMSA"  # the name that the log lines of this family carry
logger = logging.getLogger(LOGGER_NAME)


def set_seed(seed: int) -> None:
    """Seed every generator that training draws from; the loaders have one of their own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's generators too
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def random_state() -> dict:
    """The state of every generator that `set_seed` seeds, in types that a checkpoint may hold."""
    kind, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    """Go on from what `random_state` told; the GPUs' generators only where there are as many GPUs."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def use_deterministic_algorithms(wanted: bool) -> None:
    """Let PyTorch choose algorithms that give the same bits every time, or whichever is fastest. On the CPU those of
    this program always do; on CUDA this costs time."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before its first use
    torch.use_deterministic_algorithms(wanted)


def choose_device(name: str) -> torch.device:
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> a device that is there.

    Raises ConfigError for another name, or where CUDA or that GPU is absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"--device: '{name}' is not one of auto, cpu, cuda, cuda:N.")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"--device: '{name}' was asked for, but PyTorch sees no CUDA device. Use --device cpu.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"--device: '{name}' was asked for, but there are {torch.cuda.device_count()} GPUs.")
    return device


class _TerminalHandler(logging.Handler):
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        text = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the reader of a pipe has gone, or the disk is full: the log file goes on
            self.setLevel(logging.CRITICAL + 1)  # removed amid a line, it would make the next handler miss that line
            with open(os.devnull, "w") as nothing:  # else Python fails at its end, with what is still to be written
                os.dup2(nothing.fileno(), sys.stdout.fileno())


class _LogFile(logging.FileHandler):
    """A log file whose disk may fill up: that is said once, and ends the log, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the name that logging calls)
        logger.removeHandler(self)
        logger.warning(f"{self.baseFilename}: cannot be written ({sys.exc_info()[1]}); the log ends here.")


def start_log(log_file: Path, verbose_level: int) -> None:
    """Send log lines to the terminal (0: errors, 1: info, 2: debug) and, from info on, to `log_file`.

    Of several ranks only the first has a log. Raises ConfigError where the file cannot be written.
    """
    stop_log()
    logger.propagate = False
    if not is_first_rank():
        logger.addHandler(logging.NullHandler())
        return
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        terminal, file = _TerminalHandler(), _LogFile(log_file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--log-dir: cannot write {log_file} ({error.strerror}). Choose another folder.") from error
    formatter = logging.Formatter("%(asctime)s - %(name)s [%(levelname)s] - %(message)s")
    terminal.setLevel({0: logging.ERROR, 1: logging.INFO, 2: logging.DEBUG}[verbose_level])
    file.setLevel(logging.DEBUG if verbose_level == 2 else logging.INFO)
    for handler in (terminal, file):
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


def stop_log() -> None:
    """Close the handlers of an earlier run in this process."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # what a full disk did not take
            handler.close()


def progress(batches: Iterable, description: str) -> Iterable:
    """A progress bar over batches; none where the output is not a terminal, or another rank shows one."""
    return tqdm(batches, desc=description, leave=False, disable=None if is_first_rank() else True)


def number_of_processes() -> int:
    """How many processes a launcher has started to train one model."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is the one of them that writes."""
    return number_of_processes() == 1 or os.environ.get("RANK", "0") == "0"


PRECISIONS = ("fp32", "tf32", "bf16")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context in which the model runs: for bf16 with matrix products in bfloat16.

    tf32 lets CUDA round the factors of products and convolutions, from here on. fp32 and bf16 forbid it, where PyTorch
    itself allows it in convolutions.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def keep_freed_memory() -> None:
    """Let glibc reuse what large tensors free instead of handing it back: a training step frees and asks for the
    same hundreds of megabytes again, and getting them from the system page by page can double its time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):
        pass  # another C library: nothing to tune


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def describe_device(device: torch.device) -> str:
    """'cpu (2 threads)' or the GPU's name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
