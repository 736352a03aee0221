"""A pickle read as data: numbers, strings, plain containers and PyTorch's tensors. Nothing is imported, nothing is called.

A pickle is a program for a stack machine. ``pickletools`` of the standard library takes it apart without running it; what stands
here runs the few instructions that plain data is made of. What names anything else (``os.system``) ends the reading.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

LARGEST = 1 << 23
"""Bytes of a pickle that are read: that of ResNet-1202's 7,200 tensors takes one million. A hostile byte makes an object of 56."""

STORAGES = {
    **{"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16"},
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL"},
}
"""PyTorch's classes of storage, by the types of ``impls.weights.container.DTYPES``."""

ORDERED = "collections OrderedDict"
TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
PARAMETERS = ("torch._utils _rebuild_parameter", "torch.nn.parameter Parameter")  # the second in state dicts of PyTorch 0.1
KNOWN = (ORDERED, *TENSORS, *PARAMETERS, *(f"torch {name}" for name in STORAGES))

LITERALS = {
    *("INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
}
"""Instructions whose argument is the value."""

EMPTY: Mapping[str, Callable[[], Any]] = {
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple},
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
}
"""Instructions that make a value of nothing."""


class PickleError(ValueError):
    """A pickle that is damaged or holds more than data; the message says what."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle names, "MODULE NAME"; it stays a name."""

    what: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of ``elements`` numbers of a type of ``DTYPES`` that lies under ``key`` in the file around the pickle."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where a container's items begin on the stack."""


def load(stream: BytesIO) -> Any:
    """The value of the pickle that begins here; the stream is left behind it.

    Raises:
        PickleError: an instruction, or a name, that plain data does not have; or it is damaged.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own, of backslashes in strings of the first protocol
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return machine.pop()
                machine.step(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PickleError(f"is damaged: {' '.join(str(error).split())[:200]}") from None
    raise PickleError("is cut off")


class _Machine:
    """The stack, and what was put by for later."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise PickleError("is damaged: it takes what is not there")
        return value

    def pop_items(self) -> list[Any]:
        """What lies above the last mark."""
        items: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            items.append(value)
        return items[::-1]

    def step(self, name: str, argument: Any) -> None:
        """Run one instruction."""
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.stack.append(_Mark())
            case _ if name in LITERALS:
                self.stack.append(argument)
            case _ if name in EMPTY:
                self.stack.append(EMPTY[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple([self.pop() for _ in range(int(name[-1]))][::-1]))
            case "TUPLE":
                self.stack.append(tuple(self.pop_items()))
            case "LIST":
                self.stack.append(self.pop_items())
            case "DICT":
                items = self.pop_items()
                self.stack.append(_dictionary(zip(items[::2], items[1::2], strict=True)))
            case "APPEND" | "APPENDS":
                items = [self.pop()] if name == "APPEND" else self.pop_items()
                self.top(list).extend(items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.top(dict).update(_dictionary([(key, value)]))
            case "SETITEMS":
                items = self.pop_items()
                self.top(dict).update(_dictionary(zip(items[::2], items[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.stack.append(_named(argument))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                self.stack.append(_named(f"{module} {attribute}"))
            case "BINPERSID":
                self.stack.append(_storage(self.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.pop(), self.pop()
                self.stack.append(_made(function, arguments))
            case "BUILD":  # what is kept beside a dictionary's items, the versions of modules, or beside a parameter's numbers
                self.pop()
                self.top(dict, Tensor)
            case _:
                raise PickleError(f"has the instruction {name}, which no tensors or plain containers need")

    def top(self, *kinds: type) -> Any:
        """What is to be added to, on top of the stack."""
        if not isinstance(self.stack[-1], kinds):
            raise PickleError(f"is damaged: it treats a {type(self.stack[-1]).__name__} as a {kinds[0].__name__}")
        return self.stack[-1]


def _dictionary(pairs: Iterable[Any]) -> dict[Any, Any]:
    """Only numbers and strings are keys: their hashes are cheap, those of nested tuples are not."""
    made = {}
    for key, value in pairs:
        if type(key) not in {str, int, float, bool}:
            raise PickleError(f"has a {type(key).__name__} for a key")
        made[key] = value
    return made


def _named(what: str) -> Name:
    if what not in KNOWN:
        raise PickleError(f"names {what.replace(' ', '.', 1)[:80]!r}, which is no part of tensors; nothing of it was run")
    return Name(what)


def _storage(identity: Any) -> Storage:
    """("storage", class, key, device, elements); files of old have the place in another storage for a sixth, None where it is whole."""
    if not isinstance(identity, tuple) or len(identity) not in {5, 6} or not _is(identity[0], "storage"):
        raise PickleError("names data by something else than a storage")
    _, kind, key, _, elements = identity[:5]
    if len(identity) == 6 and identity[5] is not None:
        raise PickleError("keeps one storage within another, which is not read: save it anew with a PyTorch of today")
    dtype = STORAGES.get(kind.what.removeprefix("torch ")) if isinstance(kind, Name) else None
    if dtype is None or not isinstance(key, str) or not _natural(elements):
        raise PickleError("describes a storage by something else than type, key and size")
    return Storage(dtype, key, elements)


def _made(function: Any, arguments: Any) -> Any:
    """What the function that PyTorch names here would make of plain data."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise PickleError("calls what is no function")
    if function.what == ORDERED and len(arguments) <= 1 and all(isinstance(pairs, list) for pairs in arguments):
        return _dictionary(pair for pairs in arguments for pair in pairs)  # Python 2 gives them as a list
    if function.what in PARAMETERS and arguments and isinstance(arguments[0], Tensor):
        return arguments[0]
    if function.what in TENSORS and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        sized = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
        if isinstance(storage, Storage) and sized and all(map(_natural, (offset, *shape, *strides))):
            return Tensor(storage, offset, shape, strides)
    raise PickleError(f"calls {function.what.replace(' ', '.', 1)} with what it does not take")


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is(value: Any, text: str) -> bool:
    return isinstance(value, str) and value == text
