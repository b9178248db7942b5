"""Compare the default implementation with the plain one (`fast=false`): time and digits.

    python -m benchmarks.step

A training step is forward, losses, backward and clipping of one batch; an evaluation is the
prediction for one batch. The variants of a case are timed in turn in one process, so that other
load on the machine affects all of them; only ratios within one run are meaningful. `difference` is
that of the predictions (largest) or gradients (relative), without dropout.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from easydict import EasyDict
from torch import Tensor
from transformers import BertConfig

from config import load_config
from models.dmd import DMD
from trainers.losses import Objective
from trainers.trainer import Trainer
from utils import device as devices
from utils.seed import set_seed

WARM_UP_ROUNDS = 2
MIN_ROUNDS = 3
MODES = ("train", "eval")
COLUMNS = ("case", "mode", "variant", "median s", "quartiles", "ratio", "difference", "peak MiB")


@dataclass(frozen=True)
class Case:
    """Shapes of the published MOSI features."""

    aligned: bool
    bert: bool  # of bert-base's size, with random weights
    seq_lens: tuple[int, int, int]  # text, audio, vision


@dataclass(frozen=True)
class Variant:
    """One way to compute a case."""

    fast: bool = True
    precision: str = "fp32"
    compiled: bool = False


CASES = {
    "aligned": Case(aligned=True, bert=False, seq_lens=(50, 50, 50)),
    "bert": Case(aligned=True, bert=True, seq_lens=(50, 50, 50)),
    "unaligned": Case(aligned=False, bert=False, seq_lens=(50, 375, 500)),  # plain needs 10 GB
}
VARIANTS = {
    "plain": Variant(fast=False),
    "fast": Variant(),
    "bf16": Variant(precision="bf16"),
    "compiled": Variant(compiled=True),
}


class Runner:
    """A variant of a case, ready to run on one batch."""

    def __init__(self, args: EasyDict, variant: Variant, batch: dict, device: torch.device):
        set_seed(1111)
        args = EasyDict(args, fast=variant.fast)
        self.batch = batch
        self.variant = variant
        self.device = device
        self.model = DMD(args)
        self.trainer = Trainer(
            args,
            self.model,
            Objective(args),
            {"train": [batch] * args.update_epochs},
            device,
            precision=variant.precision,
            compile=variant.compiled,
        )

    def train(self) -> None:
        """Run a training step."""
        self.trainer.training_step(self.batch)

    def evaluate(self) -> Tensor:
        """Return the predictions (B, 1)."""
        precision = self.variant.precision
        devices.choose_tf32(precision)
        with torch.inference_mode(), devices.autocast(self.device, precision):
            output = self.model(self.batch["text"], self.batch["audio"], self.batch["vision"])
        return output.output_logit.float()

    def gradients(self) -> Tensor:
        """Return the gradients of a training step as one vector."""
        self.model.zero_grad()
        self.train()
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(gradients)

    def compare(self, reference: "Runner", mode: str) -> str:
        """Return the difference from a reference, without dropout."""
        if self.variant.compiled:
            return "-"  # without dropout, the model would be compiled a second time
        self.model.eval()
        reference.model.eval()
        if mode == "eval":
            difference = (self.evaluate() - reference.evaluate()).abs().max()
        else:
            expected = reference.gradients()
            difference = (self.gradients() - expected).norm() / expected.norm()
        return f"{difference.item():.0e}"


def load_case(case: Case, batch_size: int, bert_folder: str) -> EasyDict:
    """Settings of MOSI with the shapes of a case; bert_folder receives a BERT without weights."""
    overrides = {"use_bert": case.bert, "need_data_aligned": case.aligned, "batch_size": batch_size}
    if case.bert:
        BertConfig().save_pretrained(bert_folder)
        overrides["pretrained"] = bert_folder
    args = load_config("dmd", "mosi", overrides=overrides)
    args.seq_lens = list(case.seq_lens)
    return args


def make_batch(args: EasyDict, device: torch.device) -> dict[str, Tensor]:
    """Random features and labels: text (B, T, d), or (B, 3, T) for BERT; labels (B, 1)."""
    size = args.batch_size
    batch = {}
    for i, name in enumerate(("text", "audio", "vision")):
        batch[name] = torch.randn(size, args.seq_lens[i], args.feature_dims[i], device=device)
    if args.use_bert:
        ids = torch.randint(1000, 30_000, (size, args.seq_lens[0]), device=device)
        mask = torch.ones_like(ids)
        segments = torch.zeros_like(ids)
        batch["text"] = torch.stack([ids, mask, segments], dim=1).float()
    batch["labels"] = torch.randint(-15, 16, (size, 1), device=device) / 5
    batch["rows"] = torch.arange(size, device=device)
    return batch


def synchronize(device: torch.device) -> None:
    """Wait for the work that is queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turn(
    works: dict[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Time each work once a round, for at least MIN_ROUNDS rounds and `seconds` seconds."""
    for _ in range(WARM_UP_ROUNDS):
        for work in works.values():
            work()
    times = {name: [] for name in works}
    started = time.perf_counter()
    rounds = 0
    while rounds < MIN_ROUNDS or time.perf_counter() - started < seconds:
        for name, work in works.items():
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return times


def measure_memory(work: Callable[[], object], device: torch.device) -> str:
    """MiB that a work allocates on a GPU at its peak, in addition to those before."""
    if device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    synchronize(device)
    return f"{(torch.cuda.max_memory_allocated(device) - before) / 2**20:.0f}"


def run_case(name: str, mode: str, options: argparse.Namespace, device: torch.device) -> None:
    """Measure the variants of a case; print a row for each, relative to the first variant."""
    set_seed(1111)
    with tempfile.TemporaryDirectory() as bert_folder:
        args = load_case(CASES[name], options.batch_size, bert_folder)
        batch = make_batch(args, device)
        runners = {v: Runner(args, VARIANTS[v], batch, device) for v in options.variants}
    first = options.variants[0]
    differences = {v: runner.compare(runners[first], mode) for v, runner in runners.items()}
    works = {}
    for variant, runner in runners.items():
        runner.model.train(mode == "train")
        works[variant] = runner.train if mode == "train" else runner.evaluate
    times = time_in_turn(works, device, options.seconds)
    for variant, work in works.items():
        low, median, high = statistics.quantiles(times[variant], n=4, method="inclusive")
        seconds = (f"{median:.4f}", f"{low:.4f}-{high:.4f}")
        ratio = f"{statistics.median(times[first]) / median:.2f}"
        memory = measure_memory(work, device)
        print_row(name, mode, variant, *seconds, ratio, differences[variant], memory)


def print_row(*cells: str) -> None:
    """Print a row of a Markdown table at once, since some cases take minutes."""
    print(f"| {' | '.join(cells)} |", flush=True)


def describe_machine(device: torch.device) -> str:
    """The device with its threads, the processor, versions and date."""
    parts = [devices.describe_device(device)]
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                parts.append(line.partition(":")[2].strip())
                break
    installed = devices.versions()
    for package in ("python", "torch", "transformers"):
        parts.append(f"{package} {installed[package]}")
    return ", ".join([*parts, time.strftime("%Y-%m-%d")])


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags (None: those of the process) and print the table."""
    parser = argparse.ArgumentParser(description="Time training steps and evaluations.")
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--modes", nargs="+", choices=MODES, default=MODES)
    add("--variants", nargs="+", choices=VARIANTS, default=["plain", "fast"])
    add("--batch-size", type=int, default=16)
    add("--seconds", type=float, default=10, help="at least, for each case and mode (default: 10)")
    options = parser.parse_args(argv)
    device = devices.choose_device(options.device)
    devices.keep_freed_memory()
    print(describe_machine(device), end="\n\n")
    print_row(*COLUMNS)
    print_row(*["---"] * len(COLUMNS))
    for case in options.cases:
        for mode in options.modes:
            run_case(case, mode, options, device)


if __name__ == "__main__":
    main()
