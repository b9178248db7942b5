"""Checkpoints that want to run something, or to cost more than they weigh.  HOSTILE is {name: content}."""

import io
import os
import pickle
import zipfile

import torch

from tests.dataset.hostile import SHELL, Call, call, name, number, text, whole

HUGE = 10**12


def zipped(content: bytes, storages: dict[str, bytes] | None = None, root="x", method=zipfile.ZIP_STORED) -> bytes:
    """A file such as torch.save writes around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"{root}/data.pkl", content)
        archive.writestr(f"{root}/byteorder", "little")
        for key, values in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", values)
        archive.writestr(f"{root}/version", "3\n")
    return buffer.getvalue()


def storage(items: int = 4, kind: str = "FloatStorage", key: str = "0") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(items) + b"tQ"


def tensor(of: bytes, shape: tuple = (4,), strides: tuple = (1,), offset: int = 0) -> bytes:
    numbers = [b"(" + b"".join(map(number, value)) + b"t" for value in (shape, strides)]
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", of, number(offset), *numbers, b"\x89", hooks)


def state(value: bytes) -> bytes:
    return whole(b"}" + text("w") + value + b"s")


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def claiming(file: bytes, member: str, size: int) -> bytes:
    """A zip whose directory says that a member, stored or compressed, has so many bytes."""
    at = file.rindex(member.encode()) - 46  # the entry of the central directory
    return file[: at + 24] + min(size, 2**32 - 2).to_bytes(4, "little") + file[at + 28 :]


def bomb() -> bytes:
    """100 MB of zeros, of which 100 kB are left."""
    return zipped(state(tensor(storage(25 * 10**6), (25 * 10**6,))), {"0": bytes(10**8)}, method=zipfile.ZIP_DEFLATED)


FOUR = {"0": bytes(16)}
GOOD = state(tensor(storage()))
EVIL = Call(os.system, SHELL)
rebuild_meta = call("torch._utils", "_rebuild_meta_tensor_no_storage", name("torch", "float32"), number(HUGE) + b"\x85",
                    b"K\x01\x85", b"\x89")  # fmt: skip
SPARSE = torch.sparse_coo_tensor([[0, 3]], [1.0, 2.0], (4,), check_invariants=False)
WHOLE = saved({"w": torch.zeros(4)})
OLD = saved({"w": torch.zeros(4)}, _use_new_zipfile_serialization=False)
HOSTILE = {
    "a call in a zip": zipped(whole(call("os", "system", text(SHELL)))),
    "a call among the weights": saved({"w": EVIL}),
    "a pickle that calls": pickle.dumps(EVIL),
    "a call in the old format": saved({"w": EVIL}, _use_new_zipfile_serialization=False),
    "the old format, then a pickle that calls": OLD[:137] + pickle.dumps(EVIL),
    "a huge storage": zipped(state(tensor(storage(HUGE), (HUGE,))), FOUR),
    "a storage larger than its record": zipped(state(tensor(storage(10**6), (10**6,))), FOUR),
    "a huge storage in the old format": OLD.replace(b"cpuq\x06K\x04", b"cpuq\x06J\xff\xff\xff\x7f"),
    "a tensor larger than its storage": zipped(state(tensor(storage(), (HUGE,))), FOUR),
    "an expanded tensor": zipped(state(tensor(storage(), (HUGE,), (0,))), FOUR),
    "overlapping strides": zipped(state(tensor(storage(), (10**6, 10**6), (0, 0))), FOUR),
    "negative strides": zipped(state(tensor(storage(), (4,), (-1,), 3)), FOUR),
    "an offset behind the storage": zipped(state(tensor(storage(), (4,), (1,), 10**9)), FOUR),
    "a missing record": zipped(GOOD),
    "one storage as two": zipped(whole(b"}" + text("a") + tensor(storage()) + b"s" + text("b")
                                       + tensor(storage(16, "ByteStorage"), (16,)) + b"s"), FOUR),
    "a tensor without numbers": zipped(state(rebuild_meta)),
    "a huge bytearray": zipped(state(call("builtins", "bytearray", number(HUGE)))),
    "a tensor of a size": zipped(state(call("torch", "FloatTensor", number(HUGE)))),
    "sparse, indices out of range": saved({"w": SPARSE}).replace((3).to_bytes(8, "little"), HUGE.to_bytes(8, "little")),
    "on no device": saved({"w": torch.empty(10**12, device="meta")}),
    "complex numbers": saved({"w": torch.zeros(4, dtype=torch.complex64)}),
    "attributes": zipped(whole(call("collections", "OrderedDict") + b"}" + text("values") + b"K\x01sb")),
    "compressed zeros": bomb(),
    "a member that claims 4 GB": claiming(zipped(GOOD, FOUR), "x/data/0", 2**32),
    "a pickle that claims 4 GB": claiming(zipped(GOOD, FOUR), "x/data.pkl", 2**32),
    "a name that leads out": zipped(GOOD, FOUR | {"../../../canary": b"x"}),
    "an absolute name": zipped(GOOD, FOUR, root=""),
    "no pickle": zipped(GOOD, FOUR).replace(b"data.pkl", b"data.pkk"),
    "an empty zip": b"PK\x05\x06" + bytes(18), "the start of a zip": WHOLE[:4], "nothing": b"",
    "lists doubling": zipped(state(b"]q\x00" + b"](h\x00h\x00eq\x00" * 60)),
    "marks": zipped(b"\x80\x02" + b"(" * 10**6),
    "deep": zipped(whole(b")" + b"\x85" * 10**5)),
}  # fmt: skip
