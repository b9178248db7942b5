"""What a .pth file says of itself, checked before PyTorch believes it.

torch.load with weights_only runs nothing, but trusts the sizes in a file: of compressed records, of storages, of
tensors. So the file is read once as data, in which tensors are no more than their sizes, and must be a state_dict
whose every number is in the file.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

from utils.reading import regular_size
from utils.unpickling import ForbiddenContent, RestrictedUnpickler, checked_list, ordered_dict

ZIP_MAGIC = b"PK\x03\x04"
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6
MAX_AXES = 32
ITEM_BYTES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip


class NoStateDict(Exception):
    """The file can be read, and holds something else."""


class _Storage:
    def __init__(self, items: int):
        self.items = items


class _Tensor:
    """Stands for a tensor whose numbers are all there."""


def _tensor(_, storage: _Storage, offset: int, shape: tuple, strides: tuple, requires_grad, hooks, metadata=None):
    if not isinstance(storage, _Storage) or hooks or metadata:
        raise pickle.UnpicklingError("a tensor of another kind")
    shape, strides = checked_list(shape), checked_list(strides)
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise pickle.UnpicklingError("a tensor with an impossible shape")
    if not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise pickle.UnpicklingError("a tensor with an impossible shape")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and max(last + 1, math.prod(shape)) > storage.items:
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(shape)} made of {storage.items} numbers")
    return _Tensor()


def _parameter(_, tensor: _Tensor, requires_grad, hooks):
    if not isinstance(tensor, _Tensor) or hooks:
        raise pickle.UnpicklingError("a parameter of another kind")
    return tensor


MAKERS = {
    ("collections", "OrderedDict"): ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): name for name in ITEM_BYTES},
}


class _SizeUnpickler(RestrictedUnpickler):
    """Reads the pickle of a checkpoint; `records` has the bytes of each storage, or is None if they are not named."""

    def __init__(self, file: io.BufferedIOBase, size: int, records: dict[str, int] | None):
        super().__init__(file, size, MAKERS)
        self._records, self._known, self.claimed = records, {}, 0

    def persistent_load(self, pid) -> _Storage:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise ForbiddenContent("a persistent id")
        _, kind, key, _, items = pid[:5]
        if type(kind) is not str or kind not in ITEM_BYTES or type(key) is not str or type(items) is not int:
            raise pickle.UnpicklingError("a storage of another kind")
        if items < 0 or self._known.setdefault(key, (kind, items)) != (kind, items):
            raise pickle.UnpicklingError("a storage of two sizes")
        taken = items * ITEM_BYTES[kind]
        self.claimed += taken
        if self._records is not None and self._records.get(f"data/{key}") != taken:
            raise pickle.UnpicklingError(f"a storage of {taken} bytes whose record is missing or of another size")
        return _Storage(items)

    def set_state(self, target, state) -> None:
        # What a module adds to its state_dict; torch.load would set any other attribute as well.
        if type(target) is not OrderedDict or type(state) is not dict or set(state) != {"_metadata"}:
            super().set_state(target, state)


def check_weights(path: str | Path) -> None:
    """Pass if the file is a state_dict that torch.load can be let loose on.

    Raises NoStateDict, or whatever a damaged or hostile file makes the readers raise.
    """
    content = check_sizes(path)
    if not isinstance(content, dict) or not content:
        raise NoStateDict
    if not all(type(name) is str and isinstance(value, _Tensor) for name, value in content.items()):
        raise NoStateDict


def check_sizes(path: str | Path) -> object:
    """Pass if torch.load can be let loose on the file.  -> what it holds, with stand-ins for tensors

    Raises whatever a damaged or hostile file makes the readers raise.
    """
    size = regular_size(path)
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        file.seek(0)
        return _read_zip(file, size) if zipped else _read_old(file, size)


def _read_zip(file: io.BufferedIOBase, size: int) -> object:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        root = members[0].filename.split("/")[0] + "/"
        records = {member.filename.removeprefix(root): member.file_size for member in members}
        if root == "/" or len(records) < len(members) or sum(records.values()) > size:
            raise zipfile.BadZipFile("records without a name, or said to be larger than the file")
        for member in members:
            strange = ".." in member.filename.split("/") or not member.filename.startswith(root)
            if strange or member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise zipfile.BadZipFile("records that torch.save would not write")
        content = archive.read(root + "data.pkl")
    return _SizeUnpickler(io.BytesIO(content), len(content), records).load()


def _read_old(file: io.BufferedIOBase, size: int) -> object:
    """Three pickles of what the file is, the content, the names of the storages, then their bytes."""
    if _SizeUnpickler(file, size, None).load() != OLD_MAGIC or _SizeUnpickler(file, size, None).load() != OLD_VERSION:
        raise pickle.UnpicklingError("no file of torch.save")
    _SizeUnpickler(file, size, None).load()
    reader = _SizeUnpickler(file, size, None)
    content = reader.load()
    if reader.claimed > size:
        raise pickle.UnpicklingError("storages larger than the file")
    return content
