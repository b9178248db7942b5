"""Time an epoch of run.py's loop: loading, training, evaluation of valid and test, writing the checkpoint.

python -m benchmarks.epoch

The plain model (fast=false) against the fast one, each with everything that run.py does around it.
"""

import argparse
import math
import pickle
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from easydict import EasyDict

from benchmarks.measure import Times, machine, table
from benchmarks.step import STEPS, Case
from dataset.features import SPLITS, prepare_features
from dataset.loaders import make_loaders
from experiments.options import PRECISIONS
from experiments.run_folder import RunFolder
from models.dmd import DMD
from trainers.losses import Objective
from trainers.trainer import Trainer
from utils.device import choose_device, keep_freed_memory
from utils.seed import set_seed

UTTERANCES = {"mosi": (1284, 229, 686), "mosei": (16326, 1871, 4659)}  # train, valid, test of the published files
STAGES = ("loading", "training", "evaluation", "checkpoint")


def write_features(path: Path, case: Case, args, utterances: Sequence[int]) -> None:
    """A feature pickle of random numbers, of the data set's shapes."""
    content = {}
    for split, count in zip(SPLITS, utterances, strict=True):
        batch = Case(case.dataset, case.layout, case.bert, "train", count).batch(args, torch.device("cpu"))
        fields = {name: x.numpy() for name, x in batch.items()}
        fields["text_bert" if case.bert else "text"] = fields.pop("text")
        fields["regression_labels"] = fields.pop("labels")[:, 0]
        content[split] = fields | {"id": [f"{split}${i}" for i in range(count)]}
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=4)


class Clock:
    """Seconds of the stages of each epoch."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage].append(time.perf_counter() - start)

    def epoch(self) -> Times:
        """All stages together."""
        return Times([sum(stages) for stages in zip(*self.seconds.values(), strict=True)])


class Loop:
    """run.py's loop, epoch by epoch."""

    def __init__(self, name: str, args, device: torch.device, folder: Path, **options):
        self.args, self.device, self.clock, self.number = args, device, Clock(device), 0
        set_seed(1111)
        model, objective = DMD(args), Objective(args)
        self.run = RunFolder(name, args.dataset_name, 1111, folder / "pt", folder / "result")
        self.run.start({})
        self.trainer = Trainer(args, model, objective, {"train": range(10)}, device, **options)

    def epoch(self) -> None:
        self.number += 1
        with self.clock("loading"):
            features = prepare_features(self.args)
            self.trainer.loaders = make_loaders(
                features, self.args.batch_size, self.args.eval_batch_size, 1111, device=self.device
            )
        with self.clock("training"):
            self.trainer.train_epoch()
        with self.clock("evaluation"):
            self.trainer.evaluate("valid")
            self.trainer.evaluate("test")
        with self.clock("checkpoint"):
            state = {"epoch": self.number} | self.trainer.state()
            self.run.save_epoch(self.trainer.model, state, {"epoch": self.number}, self.number, keep=1)
            # In a run the next epoch trains meanwhile; here that would be the other loop's.
            self.run.finish_writing()


def measure(
    case: Case,
    device: torch.device,
    epochs: int,
    utterances: Sequence[int],
    paths: Sequence[str],
    seconds: float = math.inf,
    **options,
) -> list[dict]:
    """Run epochs of the loops in turn, and begin none after so many seconds.  -> rows of the table"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args = case.settings(str(folder / "bert"))
        args.featurePath = str(folder / "features.pkl")
        write_features(Path(args.featurePath), case, args, utterances)
        settings = {name: EasyDict(args | {"fast": name == "fast"}) for name in paths}
        loops = {name: Loop(name, of_loop, device, folder, **options) for name, of_loop in settings.items()}
        started = time.perf_counter()
        for _ in range(epochs):
            for loop in loops.values():
                loop.epoch()
            if time.perf_counter() - started > seconds:
                break
    totals = {name: loop.clock.epoch() for name, loop in loops.items()}
    rows = []
    for name, loop in loops.items():
        row = {"case": str(case), "path": name, "epochs": str(loop.number)}
        row |= {f"{stage} s": f"{Times(times).median:.2f}" for stage, times in loop.clock.seconds.items()}
        row |= {"epoch s": f"{totals[name].median:.2f}", "all s": f"{sum(totals[name].seconds):.1f}"}
        row["ratio"] = f"{totals[paths[0]].median / totals[name].median:.2f}"
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time epochs of run.py's loop, plain and fast.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dataset", choices=UTTERANCES, default="mosi")
    parser.add_argument("--layout", choices=STEPS, default="aligned")
    parser.add_argument("--bert", action="store_true", help="with BERT, of bert-base's shape")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no epoch after so many")
    parser.add_argument("--utterances", nargs=3, type=int, help="in train, valid, test (default: the data set's)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of all loops")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--paths", nargs="+", choices=("plain", "fast"), default=["plain", "fast"])
    options = parser.parse_args(argv)
    device = choose_device(options.device)
    keep_freed_memory()
    print(machine(device), flush=True)
    case = Case(options.dataset, options.layout, options.bert, "train", batch_size=16)
    how = {"precision": options.precision, "compiled": options.compile}
    utterances = options.utterances or UTTERANCES[options.dataset]
    print(table(measure(case, device, options.epochs, utterances, options.paths, options.seconds, **how)))


if __name__ == "__main__":
    main()
