"""Reading pickles as data: what is not data is refused, and nothing costs more than the file could honestly need.

A pickle is a program. Reading one can call whatever it names, claim lengths that the file does not have, share one
value so often that walking the result never ends, and choose keys that all fall into one place of a hash table.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from operator import methodcaller

LARGE = 2**20  # bytes
ALLOWANCE = 2**26  # bytes that a small file may cost
ALLOWED_FACTOR = 8  # and that each byte of a larger one may
ODD_KEYS = 50_000  # numbers as keys: their hashes can be chosen
MAX_DEPTH = 32

# What an operation costs where that is many times its own length in the file: bytes.
COSTS = {
    "MARK": 72, "EMPTY_LIST": 96, "LIST": 96, "EMPTY_DICT": 232, "DICT": 232, "EMPTY_SET": 232, "FROZENSET": 232,
    "TUPLE": 64, "TUPLE1": 56, "TUPLE2": 64, "TUPLE3": 72, "MEMOIZE": 128, "PUT": 128, "BINPUT": 128,
    "LONG_BINPUT": 128, "REDUCE": 256, "BUILD": 64,
}  # fmt: skip
OTHERS = (
    "PROTO", "FRAME", "STOP", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_TUPLE", "GLOBAL", "STACK_GLOBAL", "GET", "BINGET", "LONG_BINGET", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "ADDITEMS", "PERSID", "BINPERSID",
)  # fmt: skip
REFUSED = {
    "INST": "an object", "OBJ": "an object", "NEWOBJ": "an object", "NEWOBJ_EX": "an object",
    "EXT1": "a name from the extension registry", "EXT2": "a name from the extension registry",
    "EXT4": "a name from the extension registry", "LONG4": "a number of more than 255 bytes",
    "NEXT_BUFFER": "a buffer outside the file", "READONLY_BUFFER": "a buffer outside the file",
}  # fmt: skip


class ForbiddenContent(Exception):
    """The pickle asks for something that is no data."""


class _Bounded:
    """A file of which nobody asks for more than there is: readers make room for what a length claims."""

    def __init__(self, file: io.BufferedIOBase, size: int):
        self._file, self._size, self.readline = file, size, file.readline

    def read(self, n: int) -> bytes:
        if n > LARGE and n > self._size - self._file.tell():
            raise pickle.UnpicklingError(f"{n} bytes are said to follow, which the file does not have")
        return self._file.read(n)


class RestrictedUnpickler(pickle._Unpickler):
    """Reads the pickle at the position of `file`, which is `size` bytes large.

    `makers` are the only names that it knows, and the only functions that it calls: with itself and the pickle's
    arguments, which each of them checks.
    Derived classes say what a state may be set on (`set_state`) and what a persistent id means.

    It builds on the reader written in Python: unlike the one in C, each operation of it can be checked. The bulk of
    a file is a few large arrays, so that it is no slower.
    """

    def __init__(self, file: io.BufferedIOBase, size: int, makers: dict[tuple[str, str], Callable | str]):
        super().__init__(_Bounded(file, size), encoding="latin1")
        self._makers, self._size = makers, size
        self._left, self._odd_keys = ALLOWANCE + ALLOWED_FACTOR * size, ODD_KEYS

    def find_class(self, module: str, name: str):
        try:
            return self._makers[module, name]
        except KeyError:
            raise ForbiddenContent(f"{module}.{name}") from None

    def persistent_load(self, pid):
        raise ForbiddenContent("a persistent id")

    def set_state(self, target, state) -> None:
        raise pickle.UnpicklingError(f"state for a {type(target).__name__}")

    def spend(self, cost: int) -> None:
        """Count bytes that come of the pickle. Raises UnpicklingError where they are out of all proportion to it."""
        self._left -= cost
        if self._left < 0:
            raise pickle.UnpicklingError("it would take up many times its own size")

    def check_keys(self, keys) -> None:
        """Keys of dicts and members of sets: strings, or small numbers in no great quantity."""
        for key in keys:
            if type(key) in (str, bytes):
                continue
            self._odd_keys -= 1
            if not (key is None or type(key) in (int, float, bool)):
                raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")
            if self._odd_keys < 0 or (type(key) is int and key.bit_length() > 64):
                raise pickle.UnpicklingError("too many or too large numbers as keys")

    def load_build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    def load_reduce(self) -> None:
        arguments, maker = self.stack.pop(), self.stack[-1]
        if not callable(maker) or type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call of what is no function")
        made = self.stack[-1] = maker(self, *arguments)
        self.spend(size_of(made))

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_put(self) -> None:
        index = int(self.readline()[:-1])
        if not 0 <= index <= self._size:  # also keeps large numbers, whose hashes can be chosen, out of the memo
            raise pickle.UnpicklingError("a memo larger than the file")
        self.memo[index] = self.stack[-1]

    def load_append(self) -> None:
        _check_target(self.stack[-2], list)
        super().load_append()

    def load_appends(self) -> None:
        _check_target(self.metastack[-1][-1], list)
        super().load_appends()

    def load_setitem(self) -> None:
        target, key, _ = self.stack[-3:]
        _check_target(target, dict, OrderedDict)
        self.check_keys((key,))
        self.spend(LARGEST_ENTRY)
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_target(self.metastack[-1][-1], dict, OrderedDict)
        self._check_entries(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        self._check_entries(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_target(self.metastack[-1][-1], set)
        self._check_entries(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        self._check_entries(self.stack)
        super().load_frozenset()

    def _check_entries(self, keys: list) -> None:
        self.check_keys(keys)
        self.spend(LARGEST_ENTRY * len(keys))


LARGEST_ENTRY = 100  # bytes that a key takes in a hash table


def _check_target(target, *kinds: type) -> None:
    if type(target) not in kinds:
        raise pickle.UnpicklingError(f"items for a {type(target).__name__}")


def _refusing(what: str) -> Callable:
    def load(unpickler: RestrictedUnpickler) -> None:
        raise ForbiddenContent(what)

    return load


def _charging(load: Callable, cost: int) -> Callable:
    def charged(unpickler: RestrictedUnpickler) -> None:
        unpickler.spend(cost)
        load(unpickler)

    return charged


def _operations() -> dict[int, Callable]:
    code_of = {operation.name: ord(operation.code) for operation in pickletools.opcodes}
    loads = {}
    for name in (*COSTS, *OTHERS):
        method = f"load_{name.lower()}"
        own = hasattr(RestrictedUnpickler, method)  # called by name: a derived class may have its own
        loads[name] = methodcaller(method) if own else pickle._Unpickler.dispatch[code_of[name]]
    loads |= {name: _charging(loads[name], cost) for name, cost in COSTS.items()}
    loads |= {name: _refusing(what) for name, what in REFUSED.items()}
    return {code_of[name]: load for name, load in loads.items()}


RestrictedUnpickler.dispatch = _operations()


def size_of(value) -> int:
    """Bytes of an array or text; 0 for anything else."""
    return len(value) if isinstance(value, (bytes, bytearray, str)) else getattr(value, "nbytes", 0)


def latin1_bytes(_, text: str, encoding: str = "latin1") -> bytes:
    """A maker: what protocols below 3 call to make bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes encoded otherwise than as latin1")
    return text.encode("latin1")


def ordered_dict(unpickler: RestrictedUnpickler, pairs: list | tuple = ()) -> OrderedDict:
    """A maker: protocol 2 of Python 2 hands over all pairs, the others none."""
    pairs = [(key, value) for key, value in checked_list(pairs)]
    unpickler.check_keys([key for key, _ in pairs])
    return OrderedDict(pairs)


def checked_list(value) -> list | tuple:
    """Itself, if it is a list or tuple: of other things an iteration need not end."""
    if type(value) not in (list, tuple):
        raise pickle.UnpicklingError(f"a {type(value).__name__} where a list was expected")
    return value


def check_extent(content: object, size: int, plain: tuple[type, ...]) -> None:
    """Refuse content, read from a file of `size` bytes, that is endless to walk: values nested deeply, in
    themselves, or shared so often that the whole is far larger than the file. Each value is looked at once.

    `plain` are the types that hold no others. Raises UnpicklingError; ForbiddenContent for any other type.
    """
    limit, extents = ALLOWANCE + 2 * ALLOWED_FACTOR * size, {}

    def extent(value, depth: int) -> int:
        if isinstance(value, plain):
            return 8 + size_of(value)
        if id(value) not in extents:
            if depth > MAX_DEPTH:
                raise pickle.UnpicklingError("values nested too deeply, or in themselves")
            if not isinstance(value, (list, tuple, set, frozenset, dict)):
                raise ForbiddenContent(f"a {type(value).__name__}")
            members = value.values() if isinstance(value, dict) else value
            extents[id(value)] = 8 + sum(extent(member, depth + 1) for member in members)
            if extents[id(value)] > limit:
                raise pickle.UnpicklingError("values shared so often that the whole is far larger than the file")
        return extents[id(value)]

    extent(content, 0)
