"""How the benchmarks measure: time in alternation, peak memory, operations, and what the hardware can do at best."""

import contextlib
import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from utils.device import describe_device, versions

Work = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one piece of work, repeated."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """The middle half: from the first to the third quartile."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return f"{low:.3f}–{high:.3f}"


def alternate(works: dict[str, Work], device: torch.device, budget: float, warm_up: int = 2) -> dict[str, Times]:
    """Time pieces of work in turn, so that whatever else the machine does strikes all of them alike.

    Goes round at least 5 times, and until `budget` seconds have passed.
    """
    for work in works.values():
        for _ in range(warm_up):
            work()
    seconds = {name: [] for name in works}
    started = time.perf_counter()
    rounds = 0
    while rounds < 5 or time.perf_counter() - started < budget:
        for name, work in works.items():
            seconds[name].append(_time(work, device))
        rounds += 1
    return {name: Times(values) for name, values in seconds.items()}


def _time(work: Work, device: torch.device) -> float:
    if device.type == "cuda":
        with torch.cuda.device(device):  # whose stream the events are of
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory(work: Work, device: torch.device) -> float:
    """MiB that the work holds at its highest, beyond what is held before it; NaN where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # hand freed memory back, so that asking for it again is seen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 2**10
    except (OSError, AttributeError):
        return float("nan")


def _status(field: str) -> int:
    """KiB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or of main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Operations:
    aten: int  # events of ATen operations, those called by others included
    launches: int  # of CUDA kernels and graphs


def operations(work: Work, device: torch.device) -> Operations:
    """Count what the profiler sees of one piece of work."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    counts = {event.key: event.count for event in profiler.key_averages()}
    launches = sum(count for key, count in counts.items() if "LaunchKernel" in key or "GraphLaunch" in key)
    return Operations(sum(count for key, count in counts.items() if key.startswith("aten::")), launches)


def peak_flops(device: torch.device) -> dict[str, float]:
    """Operations a second of a large product of matrices (multiply and add are two), measured, by precision."""
    n, flops = 8192 if device.type == "cuda" else 1024, {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        a @ b  # warms up
        flops[precision] = 2 * n**3 / min(_time(lambda a=a, b=b: a @ b, device) for _ in range(10))
    return flops


def machine(device: torch.device) -> str:
    """Processor or GPU, threads, versions and date, for the head of a table."""
    name = describe_device(device)
    if device.type == "cpu":
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name")) + f", {name}"
    known = versions()
    packages = ", ".join(f"{package} {known[package]}" for package in ("python", "torch", "transformers"))
    return f"{name}; {packages}; {time.strftime('%Y-%m-%d')}"


def table(rows: list[dict[str, str]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
