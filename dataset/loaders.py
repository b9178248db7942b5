"""Seeded loaders over the splits."""

import torch
from torch.utils.data import DataLoader, Dataset

from dataset.features import FeatureSet, Split


class UtteranceDataset(Dataset):
    """The utterances of a split as tensors.

    item -> text (T, d_l) or (3, T), audio (T_a, d_a), vision (T_v, d_v), labels (1,), all float32
    """

    def __init__(self, split: Split):
        self.tensors = {name: torch.from_numpy(getattr(split, name)) for name in ("text", "audio", "vision")}
        self.tensors["labels"] = torch.from_numpy(split.labels)[:, None]

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}


def make_loaders(
    features: FeatureSet, batch_size: int, seed: int, num_workers: int = 0, pin_memory: bool = False
) -> dict[str, DataLoader]:
    """A loader for each split that was read. Train is shuffled by a generator of its own, seeded with `seed`, so
    that nothing else that draws random numbers changes the order; the other splits come in file order (the release
    shuffles them too, which only changes what its Loss calls a batch)."""
    return {
        name: DataLoader(
            UtteranceDataset(split),
            batch_size=batch_size,
            shuffle=name == "train",
            generator=torch.Generator().manual_seed(seed) if name == "train" else None,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
        for name, split in features.splits.items()
    }
