"""The safetensors container: a header of JSON, then tensors without holes. Read as if it were hostile.

The header is parsed and held against the file's size before memory is taken for data.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.spec import Shape

Array = npt.NDArray[Any]

LENGTH_BYTES = 8  # the header's length, before the header
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
MAX_RANK = 8
LARGEST_FILE = 1 << 32
"""Bytes of a checkpoint that is read: seven times VGG-19, which with an optimiser's state is three times its weights."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
        **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"},
    }.items()
}
"""NumPy's type of the bytes of each type of tensor; for bfloat16 it has none."""


class WeightFileError(ValueError):
    """A weight file or checkpoint that cannot be used; the message names file, tensor, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of type ``dtype`` that lies at bytes [begin, end) of the data."""

    dtype: str
    shape: Shape
    begin: int
    end: int


def open_file(path: Path) -> BufferedReader:
    """The file, open for reading.

    Raises:
        WeightFileError: there is none, or it cannot be read.
    """
    try:
        if not path.is_file():
            raise WeightFileError(f"{path}: {'is not a file' if path.exists() else 'there is no such file'}")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise WeightFileError(f"{path}: cannot be read: {error}") from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, renamed over it in the end: the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_header(file: BufferedReader, path: Path) -> tuple[dict[str, str], dict[str, Any], int]:
    """Metadata, what the header says of each tensor, as JSON values, and the byte of the file at which the data begins.

    Raises:
        WeightFileError: no header, or one that is longer than the file or no JSON object.
    """
    size = os.fstat(file.fileno()).st_size
    if size < LENGTH_BYTES:
        raise WeightFileError(f"{path}: is {size} bytes long, too short for a weight file")
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise WeightFileError(f"{path}: is no safetensors file: claims a header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if length > size - LENGTH_BYTES:
        raise WeightFileError(f"{path}: is cut off: says that its header has {length} bytes, the whole file has {size}")
    document = parse_json(path, "its header", file.read(length))
    if not isinstance(document, dict):
        raise WeightFileError(f"{path}: its header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightFileError(f"{path}: __metadata__ is not an object of strings")
    return metadata, document, LENGTH_BYTES + length


def read_entries(file: BufferedReader, path: Path, document: Mapping[str, Any], start: int, dtypes: Iterable[str]) -> dict[str, Entry]:
    """The tensors of a header by name, each of one of ``dtypes``; together they cover the data exactly.

    Raises:
        WeightFileError: a type, shape or place that is none, a hole, an overlap, or bytes missing or to spare.
    """
    entries = {name: _entry(path, name, value, dtypes) for name, value in document.items()}
    _check_layout(path, entries, os.fstat(file.fileno()).st_size - start)
    return entries


def read_tensor(file: BufferedReader, path: Path, name: str, entry: Entry, start: int) -> Array:
    """A tensor's values in memory of their own, as ``numbers`` gives them.

    Raises:
        WeightFileError: the file became shorter meanwhile.
    """
    file.seek(start + entry.begin)
    array: Array = np.empty(entry.shape, DTYPES[entry.dtype])
    if array.size and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise WeightFileError(f"{path}: {name}: the file became shorter while it was read")
    return numbers(array, entry.dtype)


def numbers(array: Array, dtype: str) -> Array:
    """What the bytes of a type of ``DTYPES`` mean: a bfloat16 is the upper half of a float32, the others are what NumPy says."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array


def parse_json(path: Path, what: str, text: bytes | str) -> Any:
    """The JSON value; refuses duplicate keys, NaN and whatever Python's parser cannot take.

    Raises:
        WeightFileError: it does.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {reprlib.repr(twice)} stands in it twice")
        return result

    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise WeightFileError(f"{path}: {what} cannot be read: {error}") from None


def _naturals(value: object) -> bool:
    """Whether it is a list of integers in 0 .. 2**63 - 1; True and 1.0 are none."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _entry(path: Path, name: str, value: object, dtypes: Iterable[str]) -> Entry:
    where = f"{path}: {reprlib.repr(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise WeightFileError(f"{where}: must be an object of dtype, shape and data_offsets")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise WeightFileError(f"{where}: its dtype is {reprlib.repr(dtype)}, must be {' or '.join(map(repr, dtypes))}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise WeightFileError(f"{where}: its shape {reprlib.repr(shape)} is not a list of at most {MAX_RANK} non-negative integers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise WeightFileError(f"{where}: its data_offsets {reprlib.repr(offsets)} are not two non-negative integers")
    begin, end = offsets
    needed = DTYPES[dtype].itemsize * math.prod(shape)
    if end - begin != needed:
        raise WeightFileError(f"{where}: its shape {shape} takes {needed} bytes, its data_offsets {offsets} span {end - begin}")
    return Entry(dtype, tuple(shape), begin, end)


def _check_layout(path: Path, entries: Mapping[str, Entry], data_bytes: int) -> None:
    """Tensors must cover the data exactly: no hole, no overlap, nothing after the last."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise WeightFileError(f"{path}: {reprlib.repr(name)}: begins at byte {entry.begin} of the data, expected {position}: {fault}")
        position = entry.end
    if position != data_bytes:
        fault = "is cut off" if position > data_bytes else "has bytes that belong to no tensor"
        raise WeightFileError(f"{path}: {fault}: its tensors take {position} bytes of data, it has {data_bytes}")
