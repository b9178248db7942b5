"""Seeded loaders over the splits."""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Dataset, default_convert

from dataset.features import FIELDS, FeatureSet, Split

RESIDENT_BYTES = 8 * 2**30  # splits of up to so much altogether are kept on the GPU

Batch = dict[str, torch.Tensor]


class UtteranceDataset(Dataset):
    """The utterances of a split as tensors on a device; on the CPU they share the split's memory.

    batch of n indices -> text (n, T, d_l) or (n, 3, T), audio (n, T_a, d_a), vision (n, T_v, d_v), labels (n, 1),
    all float32, and rows (n): the indices.
    """

    def __init__(self, split: Split, device: torch.device | str = "cpu"):
        tensors = {name: torch.from_numpy(getattr(split, name)) for name in FIELDS}
        tensors["labels"] = torch.from_numpy(split.labels)[:, None]
        tensors["rows"] = torch.arange(len(split))
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.device, self.ids = torch.device(device), split.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """What DataLoader asks for a whole batch with: one gather for each tensor."""
        rows = torch.tensor(indices, dtype=torch.long).to(self.device, non_blocking=True)
        return {name: tensor.index_select(0, rows) for name, tensor in self.tensors.items()}


def make_loaders(
    features: FeatureSet, batch_size: int, eval_batch_size: int, seed: int, num_workers: int = 0,
    device: torch.device | str = "cpu"
) -> dict[str, DataLoader]:  # fmt: skip
    """A loader for each split that was read.

    Train is shuffled by a generator of its own, seeded with `seed`, so that nothing else that draws random numbers
    changes the order. The other splits come in file order (the release shuffles them too, which only changes what its
    Loss calls a batch). On a GPU, splits of at most RESIDENT_BYTES and a quarter of its free memory altogether are
    moved there once (and need no workers); larger ones come from pinned memory.
    """
    device = torch.device(device)
    size = sum(getattr(split, name).nbytes for split in features.splits.values() for name in FIELDS)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()  # what PyTorch keeps of an earlier seed is not counted as free
    resident = on_gpu and size <= min(RESIDENT_BYTES, torch.cuda.mem_get_info(device)[0] // 4)
    return {
        name: DataLoader(
            UtteranceDataset(split, device if resident else "cpu"),
            batch_size if name == "train" else eval_batch_size,
            shuffle=name == "train",
            generator=torch.Generator().manual_seed(seed) if name == "train" else None,
            collate_fn=default_convert,  # the dataset answers with batches
            num_workers=0 if resident else num_workers,
            pin_memory=on_gpu and not resident,
        )
        for name, split in features.splits.items()
    }
