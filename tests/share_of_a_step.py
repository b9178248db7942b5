"""One rank's share of a training step; run by torchrun from tests/test_ranks.py, and by the test itself alone.

python -m tests.share_of_a_step FOLDER KEY=VALUE…: writes the gradients after two accumulated batches.
"""

import sys
from pathlib import Path

import torch

from config import parse_overrides
from dataset.features import FeatureSet, Split
from dataset.loaders import make_loaders
from tests.reference import Reference
from trainers.distributed import find_ranks
from trainers.trainer import Trainer


def main(folder: str, *settings: str) -> None:
    ranks = find_ranks("cpu")
    reference = Reference("mosi_aligned", Path(folder))
    reference.args.update(parse_overrides(settings) | {"batch_size": 6, "grad_clip": 0.01, "update_epochs": 3})
    # 13 utterances: two batches of 6, and one that leaves the second of two ranks without any.
    arrays = {name: array[:13] for name, array in reference.utterances.items()}
    names = [str(i) for i in range(13)]
    features = FeatureSet("", {"train": Split(**arrays, ids=names, raw_text=names)}, [], [])
    loader = make_loaders(features, 6, 6, seed=1, rank=ranks.rank, ranks=ranks.size)["train"]
    trainer = Trainer(reference.args, *reference.build(), {"train": loader}, torch.device("cpu"), ranks=ranks)
    trainer.optimizer.step = lambda: None  # only the gradients are of interest
    epoch = trainer.train_epoch()
    if ranks.rank == 0:
        predicted = torch.from_numpy(epoch.predictions.predicted)
        losses = torch.tensor(list(epoch.losses.values()))
        gradients = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                               for p in trainer.parameters])  # fmt: skip
        torch.save({"gradients": gradients, "losses": losses, "predicted": predicted}, f"{folder}/{ranks.size}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
