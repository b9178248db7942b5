"""Train two epochs without dropout, under torchrun or in one process (tests/test_ranks.py).

python -m tests.distributed_worker FOLDER: the first process writes the final results.
"""

import sys
from pathlib import Path

import torch

from dataset.features import FeatureSet
from dataset.loaders import make_loaders
from tests.reference import Reference
from trainers.distributed import init_processes
from trainers.trainer import Trainer
from utils.ranks import rank, world_size

# Batches of 6, 6 and 1 (alike shares, then one of nothing), and of 5 and 3 (shares that differ).
BATCHES = {6: 13, 5: 8}


def main(folder: str) -> None:
    device = init_processes("cpu")
    results = []
    for batch_size, utterances in BATCHES.items():
        reference = Reference("mosi_aligned", Path(folder), nlevels=1)
        reference.args.update({"batch_size": batch_size, "update_epochs": 3})
        features = FeatureSet("", {"train": reference.split(slice(utterances))}, [], [])
        loader = make_loaders(features, batch_size, 5, seed=1)["train"]
        trainer = Trainer(
            reference.args, *reference.build(), {"train": loader, "test": loader}, device
        )
        first = trainer.train_epoch()  # with one step, in the end
        gradients = [None if p.grad is None else p.grad.clone() for p in trainer.all_parameters]
        second = trainer.train_epoch()
        evaluated = trainer.evaluate("test")
        results.append((gradients, first, second, evaluated))
    if rank() == 0:
        torch.save(results, f"{folder}/{world_size()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
