"""Pickles that try to run something, or to crash numpy or Python; some written opcode by opcode.

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

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def dtype(
    code: str, state: bytes = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
) -> bytes:
    return call("numpy", "dtype", text(code), b"\x89\x88") + state


def array(shape: bytes, type_: bytes, values: bytes) -> bytes:
    start = call(
        "numpy._core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", b"U\x01b"
    )
    return start + b"(K\x01" + shape + type_ + b"\x89" + values + b"tb"


ONE, MANY, EIGHT = b"K\x01\x85", f"I{HUGE}\n".encode() + b"\x85", b"C\x08" + b"a" * 8
EVIL = call("os", "system", text(SHELL))
DEEP_TUPLE = b")" + b"\x85" * 3 * 10**5
CODE = {
    "os.system": EVIL,
    "eval": call("builtins", "eval", text(RUN)),
    "getattr": call("builtins", "getattr", name("numpy", "dtype"), text("__subclasses__")),
    "pickle.loads": call("pickle", "loads", b"U" + bytes([12]) + b"cos\nsystem\n."),
    "numpy runstring": call("numpy.testing._private.utils", "runstring", text(RUN), b"}"),
    "OBJ": b"(" + name("os", "system") + text(SHELL) + b"o",
    "NEWOBJ": name("subprocess", "Popen") + text(SHELL) + b"\x85\x81",
    "PERSID": b"Pabc\n",
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + text(SHELL) + b"\x85R",
    "dotted name": text("numpy") + text("dtype.__class__") + b"\x93",
    "state of a name": name("numpy", "dtype") + b"N}" + text("__defaults__") + b")s\x86b",
    "state of a dict": b"}" + b"}" + text("a") + b"Nsb",
    "array of objects that calls": array(ONE, dtype("O"), b"]" + EVIL + b"a"),
}
CRASH = {
    "array of pointers": array(ONE, dtype("O"), b"U\x08aaaaaaaa"),
    "array that is set twice": array(ONE, dtype("u1"), b"U\x01a")
    + b"(K\x01"
    + ONE
    + dtype("u1")
    + b"\x89U\x01btb",
    "forged type": array(ONE, dtype("V8"), EIGHT),
    "type with fields": dtype("f4,O"),
    "huge array": array(MANY, dtype("f4"), b"U\x04aaaa"),
    "scalar of an object": call("numpy._core.multiarray", "scalar", dtype("O"), EIGHT),
    "short scalar": call("numpy._core.multiarray", "scalar", dtype("f8"), b"U\x01a"),
    "buffer of a huge shape": call(
        "numpy._core.numeric", "_frombuffer", EIGHT, dtype("f8"), MANY, text("C")
    ),
    "deep tuple as a key": b"}" + DEEP_TUPLE + b"Ns",
    "deep tuple in a set": b"\x8f(" + DEEP_TUPLE + b"\x90",
    "lists nested deeply": b"]" * 10**5 + b"a" * (10**5 - 1),
}
HOSTILE = {key: b"\x80\x02" + content + b"." for key, content in (CODE | CRASH).items()}
for protocol in (0, 2, 4):
    evil = Call(os.system, SHELL)
    HOSTILE |= {
        f"protocol {protocol}": pickle.dumps(evil, protocol),
        f"protocol {protocol}, nested": pickle.dumps({"train": [{"audio": (1, evil)}]}, protocol),
        f"protocol {protocol}, in an array": pickle.dumps(np.array([evil], dtype=object), protocol),
    }
