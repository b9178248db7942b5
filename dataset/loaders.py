"""Seeded loaders over the splits."""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Dataset, default_convert

from dataset.features import FIELDS, FeatureSet, Split

RESIDENT_BYTES = 8 * 2**30  # splits of up to this total size are kept on the GPU

Batch = dict[str, torch.Tensor]


class UtteranceDataset(Dataset):
    """The utterances of a split as tensors on a device; on the CPU they share the split's memory.

    Indexed with a list of n rows, it returns a batch, all float32 except for the rows:
    text (n, T_l, d_l) or tokens (n, 3, T_l), audio (n, T_a, d_a), vision (n, T_v, d_v),
    labels (n, 1), rows (n).

    Args:
        split: The utterances.
        device: Where the tensors are kept.
    """

    def __init__(self, split: Split, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.ids = split.ids
        self.tensors = {}
        for name in FIELDS:
            self.tensors[name] = torch.from_numpy(getattr(split, name)).to(device)
        self.tensors["labels"] = torch.from_numpy(split.labels)[:, None].to(device)
        self.tensors["rows"] = torch.arange(len(split)).to(device)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch, which DataLoader fetches with one call: one gather for each tensor."""
        rows = torch.tensor(indices, dtype=torch.long).to(self.device, non_blocking=True)
        return {name: tensor.index_select(0, rows) for name, tensor in self.tensors.items()}


def make_loaders(
    features: FeatureSet,
    batch_size: int,
    eval_batch_size: int,
    seed: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, DataLoader]:
    """Make a loader for each split.

    Train is shuffled by a generator of its own, so that no other random draw changes the order. The
    other splits come in file order (the release shuffles them too, which only changes the batches
    of its Loss). On a GPU, splits of at most RESIDENT_BYTES and a quarter of its free memory
    altogether are moved there once (and need no workers); larger ones come from pinned memory.

    Args:
        features: The splits.
        batch_size: Utterances in a batch of train.
        eval_batch_size: Utterances in a batch of the other splits.
        seed: Seed of the order of train.
        num_workers: Processes that load batches.
        device: Where the model is.

    Returns:
        {split: loader of batches}
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    resident = on_gpu and _fits_on_gpu(features, device)
    loaders = {}
    for name, split in features.splits.items():
        generator = torch.Generator().manual_seed(seed) if name == "train" else None
        loaders[name] = DataLoader(
            UtteranceDataset(split, device if resident else "cpu"),
            batch_size if name == "train" else eval_batch_size,
            shuffle=name == "train",
            generator=generator,
            collate_fn=default_convert,  # the dataset returns batches
            num_workers=0 if resident else num_workers,
            pin_memory=on_gpu and not resident,
        )
    return loaders


def _fits_on_gpu(features: FeatureSet, device: torch.device) -> bool:
    """Whether all splits may be kept on the GPU."""
    size = 0
    for split in features.splits.values():
        for name in FIELDS:
            size += getattr(split, name).nbytes
    torch.cuda.empty_cache()  # PyTorch's cache of an earlier seed does not count as free
    free, _ = torch.cuda.mem_get_info(device)
    return size <= min(RESIDENT_BYTES, free // 4)
