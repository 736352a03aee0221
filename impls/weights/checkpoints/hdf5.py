"""HDF5 as Keras writes it: groups, and arrays of numbers that lie in one piece. No library, and nothing outside of the file.

Written from the HDF5 File Format Specification 3.0; roman numerals below are its sections. What it knows beyond this is refused by
name: links that are followed (to other files above all), chunks and the filters on them, data in other files, structures shared
between objects. Every length is held against the file before it is used, and no structure is entered twice, so nothing goes in circles.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from impls.weights.container import MAX_RANK, Array, WeightFileError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NOWHERE = (1 << 64) - 1
"""The address of what was never written."""

MOST_STRUCTURES = 20_000
"""Headers and nodes of trees. ResNet-152 in Keras has 930 arrays in 1,000 groups: one of each array, three of each group."""

LARGEST_STRUCTURE = 1 << 20
"""Bytes of one of them."""

DEEPEST = 16
"""Groups within groups: Keras nests four."""

WAY_OUT = "write it anew with h5py's defaults"

# IV.A.2: the kinds of messages in an object's header.
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES, LAYOUT, FILTERS, CONTINUATION, SYMBOL_TABLE = 1, 2, 3, 6, 7, 8, 11, 16, 17

FLOATS = {
    # bytes: offset and precision in bits; place and size of exponent and mantissa; bias of the exponent (IV.A.2.d, IEEE 754)
    2: (0, 16, 10, 5, 0, 10, 15),
    4: (0, 32, 23, 8, 0, 23, 127),
    8: (0, 64, 52, 11, 0, 52, 1023),
}


class _Hdf5Error(ValueError):
    """What is wrong with the file."""


@dataclass(frozen=True, slots=True)
class _Message:
    """A part of an object's header."""

    kind: int
    data: bytes


def read(file: BufferedReader, path: Path) -> dict[str, Array]:
    """Every array of the file by its path, as "conv1/conv1/kernel:0".

    Raises:
        WeightFileError: damaged, or of structures that are not read.
    """
    try:
        return dict(_File(file).arrays())
    except _Hdf5Error as error:
        raise WeightFileError(f"{path}: {error}") from None
    except (struct.error, ValueError, IndexError) as error:
        raise WeightFileError(f"{path}: is damaged: {error}") from None


class _File:
    def __init__(self, file: BufferedReader) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.entered: set[int] = set()

    def at(self, address: int, length: int) -> bytes:
        """Bytes of the file."""
        if address + length > self.size:
            raise _Hdf5Error("is cut off, or damaged")
        self.file.seek(address)
        return self.file.read(length)

    def structure(self, address: int, length: int) -> bytes:
        """Bytes that are not numbers of an array."""
        if length > LARGEST_STRUCTURE:
            raise _Hdf5Error(f"has a structure of {length} bytes")
        return self.at(address, length)

    def enter(self, address: int) -> None:
        """Note that a structure is read, which is done once."""
        if address in self.entered:
            raise _Hdf5Error("names one of its parts twice, by a hard link or in a circle")
        self.entered.add(address)
        self.bound(self.entered)

    def bound(self, parts: Sized) -> None:
        """Refuse more parts than any network has."""
        if len(parts) > MOST_STRUCTURES:
            raise _Hdf5Error(f"has more than {MOST_STRUCTURES} parts")

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Path and values of every array."""
        waiting = [("", self.root())]
        taken = 0
        while waiting:
            name, address = waiting.pop()
            messages = list(self.messages(address))
            if any(message.kind == LAYOUT for message in messages):
                array = self.array(name, messages)
                taken += array.nbytes
                if taken > self.size:
                    raise _Hdf5Error("has arrays that overlap")
                yield name, array
                continue
            if name.count("/") == DEEPEST:
                raise _Hdf5Error(f"has groups more than {DEEPEST} deep")
            for link, target in self.links(messages):
                waiting.append((f"{name}/{link}".lstrip("/"), target))
                self.bound(waiting)

    def root(self) -> int:
        """Address of the root group's header (II)."""
        version = self.at(0, 9)[8]
        if version in {0, 1}:
            sizes, base = self.at(13, 2), 24 if version == 0 else 28
            (start,) = struct.unpack("<Q", self.at(base, 8))
            (root,) = struct.unpack("<Q", self.at(base + 40, 8))  # behind four addresses and the link's name
        elif version in {2, 3}:
            sizes = self.at(9, 2)
            start, _, _, root = struct.unpack("<4Q", self.at(12, 32))
        else:
            raise _Hdf5Error(f"has version {version} of the format")
        if sizes != b"\x08\x08" or start:
            raise _Hdf5Error(f"has addresses of another size than 8 bytes, or something before its beginning; {WAY_OUT}")
        return int(root)

    def messages(self, address: int) -> Iterator[_Message]:
        """The messages of the header at an address (IV.A.1)."""
        second = self.at(address, 4) == b"OHDR"
        blocks: list[tuple[int, int]] = []
        if second:
            version, flags = self.at(address + 4, 2)
            width = 1 << (flags & 3)
            begin = address + 6 + 16 * bool(flags & 32) + 4 * bool(flags & 16)
            blocks.append((begin + width, int.from_bytes(self.at(begin, width), "little")))
            head = 6 if flags & 4 else 4
        else:
            version, _, _, _, length = struct.unpack("<BBHII", self.at(address, 12))
            blocks.append((address + 16, length))
            head = 8
        if version != (2 if second else 1):
            raise _Hdf5Error("is damaged: no object where one was expected")
        while blocks:
            begin, length = blocks.pop(0)
            self.enter(begin)
            block, position = self.structure(begin, length), 0
            while position + head <= length:
                kind, size, flags = struct.unpack_from("<BHB" if second else "<HHB", block, position)
                data = block[position + head : position + head + size]
                if len(data) != size:
                    raise _Hdf5Error("is damaged: a part of an object reaches beyond it")
                position += head + size
                if kind == CONTINUATION:
                    begin, more = struct.unpack("<QQ", data)
                    # That of the second version has a signature before and a checksum behind.
                    blocks.append((begin + 4, more - 8) if second and more >= 8 else (begin, more))
                elif kind in {DATASPACE, DATATYPE, LAYOUT, FILTERS, EXTERNAL_FILES} and flags & 2:
                    raise _Hdf5Error(f"shares a structure between objects, which is not read; {WAY_OUT}")
                else:
                    yield _Message(kind, data)

    def links(self, messages: list[_Message]) -> Iterator[tuple[str, int]]:
        """Names in a group, and the addresses of the headers."""
        for message in messages:
            if message.kind == SYMBOL_TABLE:
                tree, heap = struct.unpack("<QQ", message.data[:16])
                yield from self.symbols(tree, self.heap(heap))
            elif message.kind == LINK:
                yield _link(message.data)
            elif message.kind == LINK_INFO and struct.unpack_from("<Q", message.data, 2 + 8 * (message.data[1] & 1))[0] != NOWHERE:
                raise _Hdf5Error(f"keeps the names of a group in a fractal heap, which is not read; {WAY_OUT}")

    def heap(self, address: int) -> bytes:
        """The names of a group, each with a zero behind it (III.D)."""
        signature, size, _, data = struct.unpack("<8sQQQ", self.at(address, 32))
        if signature[:5] != b"HEAP\x00":
            raise _Hdf5Error("is damaged: no names where a group has them")
        return self.structure(data, size)

    def symbols(self, tree: int, names: bytes) -> Iterator[tuple[str, int]]:
        """The entries below a node of a group's tree (III.A.1, III.B, III.C)."""
        waiting = [tree]
        while waiting:
            address = waiting.pop(0)
            self.enter(address)
            signature, kind, _, entries = struct.unpack("<4sBBH", self.at(address, 8))
            if signature == b"TREE" and kind == 0:
                # The node's header takes 24 bytes, then keys and children take turns, 8 bytes each.
                waiting += struct.unpack(f"<{2 * entries}Q", self.at(address + 24, 16 * entries))[1::2]
                self.bound(waiting)
            elif signature == b"SNOD":
                for name, header, cache, _, _ in struct.iter_unpack("<QQII16s", self.at(address + 8, 40 * entries)):
                    end = names.find(b"\0", name)
                    if cache == 2 or end < 0:
                        raise _Hdf5Error(f"has a soft link, which is not followed; {WAY_OUT}")
                    yield _text(names[name:end]), header
            else:
                raise _Hdf5Error("is damaged: no entries where a group has them")

    def array(self, name: str, messages: list[_Message]) -> Array:
        """The values of an array."""
        found = {message.kind: message.data for message in messages}
        for kind, what in ((FILTERS, "is compressed"), (EXTERNAL_FILES, "lies in another file")):
            if kind in found:
                raise _Hdf5Error(f"{name[:80]!r} {what}, which is not read; {WAY_OUT}")
        if DATASPACE not in found or DATATYPE not in found:
            raise _Hdf5Error(f"{name[:80]!r} has no shape or no type")
        shape, dtype = _shape(name, found[DATASPACE]), _dtype(name, found[DATATYPE])
        needed = math.prod(shape) * dtype.itemsize
        version, kind = found[LAYOUT][:2]
        if version not in {3, 4} or kind not in {0, 1}:
            raise _Hdf5Error(f"{name[:80]!r} is stored in chunks, which are not read; {WAY_OUT}")
        if kind == 0:
            (size,) = struct.unpack_from("<H", found[LAYOUT], 2)
            data = found[LAYOUT][4 : 4 + size]
        else:
            address, size = struct.unpack_from("<QQ", found[LAYOUT], 2)
            if needed and address == NOWHERE:
                raise _Hdf5Error(f"{name[:80]!r} was never written")
            data = self.at(address, needed) if needed else b""
        if not needed == size == len(data):
            raise _Hdf5Error(f"{name[:80]!r}: shape {shape} of {dtype} takes {needed} bytes, the file says {size}")
        return np.frombuffer(data, dtype).reshape(shape)


def _link(data: bytes) -> tuple[str, int]:
    """Name and address of a link in the newer form (IV.A.2.g); only hard ones lead to an address."""
    version, flags = data[:2]
    position = 2
    kind = data[position] if flags & 8 else 0
    position += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
    width = 1 << (flags & 3)
    length = int.from_bytes(data[position : position + width], "little")
    position += width
    name = _text(data[position : position + length])
    if version != 1 or kind != 0:
        what = {1: "a soft link", 64: "a link to another file"}.get(kind, "a link of an unknown kind")
        raise _Hdf5Error(f"has {what}, {name[:80]!r}, which is not followed; {WAY_OUT}")
    return name, int(struct.unpack_from("<Q", data, position + length)[0])


def _text(name: bytes) -> str:
    text = name.decode("utf-8")
    if not text or "/" in text:
        raise _Hdf5Error("is damaged: it has something without a name")
    return text


def _shape(name: str, data: bytes) -> tuple[int, ...]:
    """IV.A.2.b."""
    version, rank = data[:2]
    if version not in {1, 2} or rank > MAX_RANK or (version == 2 and data[3] == 2):
        raise _Hdf5Error(f"{name[:80]!r} has a shape that is none, or of more than {MAX_RANK} dimensions")
    return struct.unpack_from(f"<{rank}Q", data, 8 if version == 1 else 4)


def _dtype(name: str, data: bytes) -> np.dtype[np.generic]:
    """IV.A.2.d: IEEE floats and whole numbers, the least byte first."""
    kind, bits, size = data[0] & 15, data[1], struct.unpack_from("<I", data, 4)[0]
    if kind == 1 and not bits & 0x41 and FLOATS.get(size) == struct.unpack_from("<HHBBBBI", data, 8):
        return np.dtype(f"<f{size}")
    if kind == 0 and not bits & 1 and size in {1, 2, 4, 8}:
        return np.dtype(f"<{'i' if bits & 8 else 'u'}{size}")
    raise _Hdf5Error(f"{name[:80]!r} holds something else than numbers in the order of this machine")
