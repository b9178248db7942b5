"""Choose and describe the device, and set its precision and memory options."""

import contextlib
import ctypes
import functools
import platform
from importlib import metadata
from pathlib import Path
from zlib import crc32

import torch

from utils.errors import ConfigError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
# The packages that results depend on.
PACKAGES = (
    "config",
    "dataset",
    "models",
    "trainers",
    "experiments",
    "utils",
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """Choose a device.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: The device does not exist.
    """
    available = ["cpu"]
    gpus = torch.cuda.device_count()
    if gpus:
        available.append("cuda")
        available += [f"cuda:{number}" for number in range(gpus)]
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name not in available:
        raise ConfigError(
            f"--device: '{name}' is not available; available devices: {', '.join(available)}."
        )
    return torch.device(name)


def choose_tf32(precision: str) -> None:
    """Let CUDA use TF32 in matrix products and convolutions only for precision tf32.

    By default PyTorch uses it in convolutions.
    """
    allow = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow
    torch.backends.cudnn.allow_tf32 = allow


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context in which the model runs: for bf16, matrix products in bfloat16."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors, instead of returning it to the system.

    A training step frees and asks for the same gigabytes again; getting them from the system page
    by page can double its time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        set_thresholds(ctypes.CDLL("libc.so.6"))


def set_thresholds(libc) -> None:
    """Set the thresholds of glibc's malloc, or none of them.

    An older glibc rejects such a large threshold (mallopt returns 0). Setting only the other one
    would be slower than setting none: once one is set, glibc no longer adapts both.
    """
    if libc.mallopt(M_MMAP_THRESHOLD, 2**30):
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # no limit


@functools.cache  # later rows and trials run the imported code, even if the files are edited
def versions() -> dict[str, str]:
    """The versions that a result depends on; `code` is a checksum of this program's sources."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
    versions["python"] = platform.python_version()
    versions["platform"] = platform.platform()
    checksum = 0
    for package in PACKAGES:
        for path in sorted((PROJECT_ROOT / package).rglob("*.py")):
            checksum = crc32(path.read_bytes(), checksum)
    versions["code"] = f"{checksum:08x}"
    return versions


def describe_device(device: torch.device) -> str:
    """'cpu (2 threads)' or the GPU's name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"
