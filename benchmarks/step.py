"""Time a training step and an evaluation: the plain model (fast=false) against the fast one.

python -m benchmarks.step

A training step is forward, losses, backward and clipping of one batch; an evaluation is the prediction for one batch.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from easydict import EasyDict
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from benchmarks.measure import Work, alternate, free_memory, machine, operations, peak_flops, peak_memory, table
from config import load_config
from models.dmd import DMD
from trainers.losses import Objective
from trainers.trainer import Trainer
from utils.device import autocast, choose_device, choose_tf32, keep_freed_memory
from utils.seed import set_seed

STEPS = {"aligned": [50, 50, 50], "unaligned": [50, 375, 500]}  # of text, audio, vision in the published files


@dataclass(frozen=True)
class Case:
    dataset: str
    layout: str
    bert: bool
    mode: str  # train or eval
    batch_size: int

    def __str__(self) -> str:
        bert = "bert-base" if self.bert else "no BERT"
        return f"{self.dataset}, {self.layout}, {bert}, {self.mode}, b{self.batch_size}"

    def settings(self, bert_folder: str):
        overrides = {"use_bert": self.bert, "batch_size": self.batch_size}
        overrides |= {"need_data_aligned": self.layout == "aligned"}
        if self.bert:
            BertConfig().save_pretrained(bert_folder)
            overrides["pretrained"] = bert_folder
        args = load_config("dmd", self.dataset, overrides=overrides)
        args.seq_lens = STEPS[self.layout]
        return args

    def batch(self, args, device: torch.device) -> dict[str, torch.Tensor]:
        """Random features, as long and wide as those of the data set."""
        shapes = zip(("text", "audio", "vision"), args.seq_lens, args.feature_dims, strict=True)
        batch = {name: torch.randn(self.batch_size, steps, width) for name, steps, width in shapes}
        if self.bert:
            ids = torch.randint(1000, 30_000, (self.batch_size, args.seq_lens[0]))
            batch["text"] = torch.stack([ids, torch.ones_like(ids), torch.zeros_like(ids)], dim=1).float()
        batch["rows"] = torch.arange(self.batch_size)
        batch["labels"] = torch.round(torch.rand(self.batch_size, 1) * 30 - 15) / 5
        return {name: x.to(device) for name, x in batch.items()}

    def scores(self) -> int:
        """Bytes of attention scores that a plain training step keeps: masked, softmax, mask and product of dropout,
        of 4 layers of the 6 cross-modal encoders with 10 heads."""
        pairs = [q * s for q, s in itertools.permutations(STEPS[self.layout], 2)]
        return 4 * 4 * 4 * 10 * self.batch_size * sum(pairs) if self.mode == "train" else 0


def paths_of(device: torch.device, mode: str) -> dict[str, tuple[bool, str, bool]]:
    """The paths by name: whether fast, precision, and whether compiled."""
    paths = {"plain": (False, "fp32", False), "fast": (True, "fp32", False), "bf16": (True, "bf16", False)}
    if device.type == "cuda" and mode == "train":
        paths |= {"compiled": (True, "fp32", True), "bf16 compiled": (True, "bf16", True)}
    return paths


def work_of(case: Case, args, device: torch.device, fast: bool, precision: str, compiled: bool) -> Work:
    set_seed(1111)
    args = EasyDict(args | {"fast": fast})
    model, objective, batch = DMD(args), Objective(args), case.batch(args, device)
    trainer = Trainer(args, model, objective, {"train": range(10)}, device, precision=precision, compiled=compiled)
    if case.mode == "train":
        return lambda: trainer.training_step(batch)
    model.eval()

    @torch.inference_mode()
    def evaluate():
        choose_tf32(precision)
        with autocast(device, precision):
            return model(batch["text"], batch["audio"], batch["vision"]).output_logit

    return evaluate


def run_case(
    case: Case, device: torch.device, flops: dict[str, float], budget: float, only: Sequence[str]
) -> list[dict]:
    """Measure one case on all paths.  -> a row of the table for each"""
    with tempfile.TemporaryDirectory() as bert_folder:
        args = case.settings(bert_folder)
        paths = {name: how for name, how in paths_of(device, case.mode).items() if not only or name in only}
        if case.scores() > 0.7 * free_memory(device):
            paths.pop("plain", None)
        works = {name: work_of(case, args, device, *how) for name, how in paths.items()}
    needed = float("nan")
    if "plain" in works:
        with FlopCounterMode(display=False) as counter:
            works["plain"]()
        needed = counter.get_total_flops()
    times = alternate(works, device, budget)
    rows = []
    for name, work in works.items():
        timing, counted = times[name], operations(work, device)
        _, precision, _ = paths[name]
        row = {
            "case": str(case),
            "path": name,
            "median s": f"{timing.median:.4f}",
            "middle half": timing.spread,
            "ratio": f"{times['plain'].median / timing.median:.2f}" if "plain" in times else "-",
            "peak MiB": f"{peak_memory(work, device):.0f}",
            "ATen": f"{counted.aten}",
        }
        if device.type == "cuda":
            row["launches"] = f"{counted.launches}"
        rows.append(row | {"arithmetic": f"{needed / flops[precision] / timing.median:.0%}"})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time training steps and evaluations, plain and fast.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--datasets", nargs="+", default=["mosi", "mosei"])
    parser.add_argument("--layouts", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--bert", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--modes", nargs="+", choices=("train", "eval"), default=["train", "eval"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--paths", nargs="+", default=[], help="plain, fast, bf16, …: only these (default: all)")
    parser.add_argument("--seconds", type=float, default=10, help="for each case, after two rounds of warming up")
    options = parser.parse_args(argv)
    device = choose_device(options.device)
    keep_freed_memory()
    flops = peak_flops(device)
    print(machine(device))
    rates = ", ".join(f"{precision} {rate / 1e12:.2f} TFLOP/s" for precision, rate in flops.items())
    print(f"At best: {rates}", flush=True)
    rows = []
    for dataset, layout, bert, mode, batch_size in itertools.product(
        options.datasets, options.layouts, options.bert, options.modes, options.batch_sizes
    ):
        case = Case(dataset, layout, bert == "yes", mode, batch_size)
        new = run_case(case, device, flops, options.seconds, options.paths)
        # Line by line, as it takes long.
        print(table(new) if not rows else table(new).split("\n", 2)[2], flush=True)
        rows += new


if __name__ == "__main__":
    main()
