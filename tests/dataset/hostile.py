"""Pickles that want to run something, or to cost more than they weigh. Written opcode by opcode, where needed.

HOSTILE is {name: content}; CANARY is the file that any of them would make if it ran.
"""

import os
import pickle
import struct

import numpy as np

CANARY = "canary"
RUN = f"open({CANARY!r}, 'w')"
SHELL = f"touch {CANARY}"
HUGE = 10**12


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    return f"I{value}\n".encode()


def whole(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def dtype(code: str) -> bytes:
    return call("numpy", "dtype", text(code), b"\x89\x88")


def array(shape: bytes, type_: bytes, values: bytes) -> bytes:
    start = call("numpy._core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", b"U\x01b")
    return start + b"(K\x01" + shape + type_ + b"\x89" + values + b"tb"


def doubling(start: bytes, step: bytes, times: int = 60) -> bytes:
    """`step` makes a value of the last one, which lies in the memo at 0, and puts it there."""
    return start + (b"0" + step) * times


def nested(opening: bytes, closing: bytes, depth: int = 100_000) -> bytes:
    return opening * depth + closing * depth


CALLS = {
    "os.system": ("os", "system", text(SHELL)),
    "posix.system": ("posix", "system", text(SHELL)),
    "subprocess": ("subprocess", "getoutput", text(SHELL)),
    "eval": ("builtins", "eval", text(RUN)),
    "exec": ("builtins", "exec", text(RUN)),
    "python 2 eval": ("__builtin__", "eval", text(RUN)),
    "open": ("builtins", "open", text(CANARY), text("w")),
    "io.open": ("io", "open", text(CANARY), text("w")),
    "getattr": ("builtins", "getattr", name("builtins", "set"), text("__subclasses__")),
    "import": ("builtins", "__import__", text("antigravity")),
    "pickle.loads": ("pickle", "loads", b"U" + bytes([12]) + b"cos\nsystem\n."),
    "numpy.load": ("numpy", "load", text("x.npy")),
    "numpy runstring": ("numpy.testing._private.utils", "runstring", text(RUN), b"}"),
    "numpy.empty": ("numpy", "empty", number(HUGE)),
    "codecs.decode": ("_codecs", "decode", text("x"), text("zip")),
    "encode with idna": ("_codecs", "encode", text("a" * 200_000), text("idna")),
    "bytearray of a length": ("builtins", "bytearray", number(HUGE)),
    "bytearray of 10 GB": ("builtins", "bytearray", number(10**10)),
    "list of a range": ("builtins", "list", call("builtins", "range", number(HUGE))),
    "str": ("builtins", "str", text("a" * 100)),
    "int of digits": ("builtins", "int", text("9" * 10**7)),
    "complex of text": ("builtins", "complex", text("1" * 10**6)),
    "OrderedDict of numbers": ("collections", "OrderedDict", number(5)),
    "OrderedDict of text": ("collections", "OrderedDict", text("ab" * 1000)),
    "set of text": ("builtins", "set", text("ab" * 1000)),
    "scalar without data": ("numpy._core.multiarray", "scalar", dtype("S999999999")),
    "scalar of an object": ("numpy._core.multiarray", "scalar", dtype("O"), text("x")),
    "short scalar": ("numpy._core.multiarray", "scalar", dtype("f8"), b"U\x01a"),
    "from buffer of a huge shape": (
        "numpy._core.numeric", "_frombuffer", b"C\x08" + b"a" * 8, dtype("f8"), number(HUGE) + b"\x85", text("C")),
    "from buffer of no size": (
        "numpy._core.numeric", "_frombuffer", b"C\x00", dtype("S0"), number(HUGE) + b"\x85", text("C")),
    "many fields": ("numpy", "dtype", text("f4," * 200_000), b"\x89\x88"),
    "nested type": ("numpy", "dtype", text("(1000000,1000000)f4"), b"\x89\x88"),
    "type of a bomb": ("numpy", "dtype", doubling(b"]q\x00", b"](h\x00h\x00eq\x00"), b"\x89\x88"),
}  # fmt: skip
EVIL = name("os", "system") + text(SHELL) + b"\x85"
OPCODES = {
    "INST": b"(" + text(SHELL) + b"ios\nsystem\n",
    "OBJ": b"(" + name("os", "system") + text(SHELL) + b"o",
    "OBJ of an admitted name": b"(" + name("builtins", "bytearray") + number(HUGE) + b"o",
    "INST of an admitted name": b"(" + number(HUGE) + b"ibuiltins\nbytearray\n",
    "NEWOBJ": name("subprocess", "Popen") + text(SHELL) + b"\x85\x81",
    "NEWOBJ of an admitted name": name("builtins", "bytearray") + number(HUGE) + b"\x85\x81",
    "NEWOBJ_EX": name("subprocess", "Popen") + text(SHELL) + b"\x85}\x92",
    "EXT1": b"\x82\x01", "EXT2": b"\x83\x01\x00", "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pabc\n", "BINPERSID": text("abc") + b"Q",
    "NEXT_BUFFER": b"\x97", "READONLY_BUFFER": b"C\x01a\x98",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + text(SHELL) + b"\x85R",
    "dotted STACK_GLOBAL": text("numpy") + text("dtype.__class__") + b"\x93",
    "a call of a call": call("builtins", "set") + b")R",
    "state of a dict": b"}" + b"}b", "state of a set": b"\x8f}b",
    "state of a name": name("builtins", "set") + b"}" + text("__globals__") + b"Nsb",
    "items of an array": array(b"K\x01\x85", dtype("u1"), b"U\x01a") + b"K\x00K\x01s",
    "items of a bytearray": call("builtins", "bytearray", b"C\x01a") + b"(K\x01K\x02e",
    "a name among the data": b"}" + text("train") + name("builtins", "set") + b"s",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", HUGE), "BINUNICODE8": b"\x8d" + struct.pack("<Q", HUGE),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", HUGE), "BYTEARRAY8 of 10 GB": b"\x96" + struct.pack("<Q", 10**10),
    "BINBYTES": b"B" + struct.pack("<I", 2**32 - 1) + b"a", "BINSTRING": b"T" + struct.pack("<i", 2**31 - 1),
    "negative BINSTRING": b"T" + struct.pack("<i", -1),
    "FRAME": b"\x95" + struct.pack("<Q", HUGE), "FRAME of 10 GB": b"\x95" + struct.pack("<Q", 10**10),
    "LONG4": b"\x8b" + struct.pack("<i", 2**31 - 1), "LONG": b"L" + b"9" * 10**6 + b"L\n",
    "huge array": array(number(HUGE) + b"\x85", dtype("f4"), b"U\x04aaaa"),
    "array of no size": array(number(HUGE) + b"\x85", dtype("S0"), b"U\x00"),
    "array of impossible sizes": array(b"(" + (b"L0x" + b"f" * 10**5 + b"L\n") * 30 + b"t", dtype("f4"), b"U\x00"),
    "array of objects with a name": array(b"K\x01\x85", dtype("O"), b"]" + name("builtins", "set") + b"a"),
    "array of objects that calls": array(b"K\x01\x85", dtype("O"), b"]" + EVIL + b"Ra"),
    "array of pointers": array(b"K\x01\x85", dtype("O"), b"U\x08aaaaaaaa"),
    "forged type": dtype("O") + b"(K\x03" + text("|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb",
    "lists doubling": doubling(b"]q\x00", b"](h\x00h\x00eq\x00"),
    "lists of eight, ten deep": doubling(b"]q\x00", b"](" + b"h\x00" * 8 + b"eq\x00", 10),
    "an array, shared ever more often": doubling(
        array(b"M\x00\x10\x85", dtype("u1"), b"T" + struct.pack("<i", 4096) + bytes(4096)) + b"q\x00",
        b"](" + b"h\x00" * 30 + b"eq\x00", 4),
    "dicts doubling": doubling(b"]q\x00", b"}K\x01h\x00sK\x02h\x00sq\x00"),
    "tuples doubling as a key": b"}" + doubling(b")q\x00", b"h\x00h\x00\x86q\x00") + b"Ns",
    "tuples doubling in a set": b"\x8f(" + doubling(b")q\x00", b"h\x00h\x00\x86q\x00") + b"\x90",
    "frozensets doubling": b"(" + doubling(b")q\x00", b"h\x00h\x00\x86q\x00") + b"\x91",
    "a list in itself": b"]q\x00h\x00a",
    "tuples nested deeply": b")" + b"\x85" * 10**5,
    "lists nested deeply": nested(b"]", b"a")[:-1],
    "dicts nested deeply": b"}" + nested(b"K\x00}", b"s"),
    "marks": b"(" * 3 * 10**6, "sets": b"\x8f" * 3 * 10**6, "memo": b"N" + b"\x94" * 3 * 10**6,
    "memo at 2**31": b"Nr" + struct.pack("<I", 2**31) + b"a", "memo at a large number": b"Np" + b"9" * 4000 + b"\na",
    "colliding numbers in the memo": b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(50_000)) + b"a",
    "colliding numbers in a set": b"\x8f(" + b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") for i in range(80_000)) + b"\x90",
    "colliding tuples in a set": b"\x8f(" + b"".join(
        b"(" + b"".join(number(-1 - (i >> k & 1)) for k in range(14)) + b"t" for i in range(2**14)) + b"\x90",
    "bytes made again and again": text("a" * 10**6) + b"q\x01" + text("latin1") + b"q\x02"
        + b"0" + (name("_codecs", "encode") + b"h\x01h\x02\x86R") * 10_000,
}  # fmt: skip
HOSTILE = {key: whole(call(*of)) for key, of in CALLS.items()} | {key: whole(of) for key, of in OPCODES.items()}
for protocol in range(6):
    evil = Call(os.system, SHELL)
    HOSTILE |= {
        f"protocol {protocol}": pickle.dumps(evil, protocol),
        f"protocol {protocol}, nested": pickle.dumps({"train": [{"audio": (1, evil)}]}, protocol),
        f"protocol {protocol}, in an array": pickle.dumps(np.array([evil], dtype=object), protocol),
        f"protocol {protocol}, a pickle in a pickle": pickle.dumps({"train": pickle.dumps(evil)}, protocol),
    }


def hostile_splits() -> dict[str, bytes]:
    """Files that can be read as pickles, and of which the fields are a burden."""
    utterance = {"audio": np.zeros((2, 3, 4)), "vision": np.zeros((2, 3, 4)), "text": np.zeros((2, 3, 4))}
    good = utterance | {"id": ["a", "b"], "regression_labels": np.zeros(2)}
    long = "x" * 10**6
    changes = {
        "texts of one long": {"audio": [long] + ["y"] * 100_000},
        "labels of one long text": {"regression_labels": [long] + ["y"] * 100_000},
        "bytes shared as ids": {"id": [long.encode()] * 10_000},
        "an id of many digits": {"id": [int("f" * 200, 16), "b"]},
        "a list as an id": {"id": [[1], "b"]},
        "a label of many digits": {"regression_labels": [int("f" * 200, 16), 0]},
        "axes": {"audio": [[[[[[[[[[1.0]]]]]]]]]]},
    }
    return {key: pickle.dumps({split: good | change for split in ("train", "valid", "test")})
            for key, change in changes.items()}  # fmt: skip


HOSTILE |= hostile_splits()
