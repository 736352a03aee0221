"""PyTorch's checkpoints, in both serialisations of ``torch.save``: a zip archive (since 1.6), and pickles in a row before it.

Both keep the names and shapes of tensors in a pickle and their numbers outside of it (torch/serialization.py).
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np

from impls.weights.checkpoints import pickled
from impls.weights.checkpoints.pickled import PickleError, Storage, Tensor
from impls.weights.container import DTYPES, LARGEST_FILE, MAX_RANK, Array, WeightFileError, numbers

MAGIC = 0x1950A86A20F9469CFC6C
"""The first of the pickles in a row."""

LONGEST_DIRECTORY = 1 << 23
"""Bytes of an archive's directory: ResNet-1202's 7,200 tensors take one million. ``zipfile`` makes objects of it before it can be asked."""

WAY_OUT = "save the state dict alone: torch.save(model.state_dict(), FILE)"

STATE_DICTS = ("state_dict", "model_state_dict", "model", "net")
"""Under which training scripts keep the tensors, among epochs and optimisers (the ImageNet example of PyTorch: the first)."""

Fetch = Callable[[Storage], Array]


class _Bounded(BufferedReader):
    """A file of which so much can be read at once."""

    most = LONGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file does, but not more than ``most`` bytes."""
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > self.most:
            raise zipfile.BadZipFile(f"its directory would take {size} bytes")
        return super().read(size)


def read_zip(file: BufferedReader, path: Path) -> dict[str, Array]:
    """The tensors of an archive's state dict by name. Only stored members are read: a compressed one may be a bomb.

    Raises:
        WeightFileError: damaged, another archive, or of more than tensors.
    """
    try:
        with _Bounded(FileIO(os.dup(file.fileno()))) as bounded, zipfile.ZipFile(bounded) as archive:
            bounded.most = LARGEST_FILE  # every member's own size is looked at instead
            members = _members(path, archive, bounded.seek(0, 2))
            programs = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(programs) != 1 or f"{programs[0].removesuffix('/data.pkl')}/constants.pkl" in members:
                raise WeightFileError(f"{path}: is a zip archive, but no state dict that torch.save wrote; {WAY_OUT}")
            folder = programs[0].removesuffix("/data.pkl")
            if members[programs[0]].file_size > pickled.LARGEST:
                raise WeightFileError(f"{path}: names its tensors in a pickle of more than {pickled.LARGEST} bytes")
            order = members.get(f"{folder}/byteorder")
            if order is not None and (order.file_size > len("little") or archive.read(order) != b"little"):
                raise WeightFileError(f"{path}: was written on a machine of another byte order")
            value = _loaded(path, BytesIO(archive.read(members[programs[0]])))

            def fetch(storage: Storage) -> Array:
                member = members.get(f"{folder}/data/{storage.key}")
                if member is None or member.file_size != storage.elements * DTYPES[storage.dtype].itemsize:
                    raise PickleError(f"lacks the {storage.elements} numbers of {storage.key[:80]!r}")
                return numbers(np.frombuffer(archive.read(member), DTYPES[storage.dtype]), storage.dtype)

            return _tensors(path, value, fetch)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError, OSError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise WeightFileError(f"{path}: is a damaged archive: {' '.join(str(error).split())[:200]}") from None


def _members(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    members = {member.filename: member for member in archive.infolist()}
    if len(archive.infolist()) != len(members):
        raise WeightFileError(f"{path}: holds two files of one name")
    for name, member in members.items():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise WeightFileError(f"{path}: {name[:80]!r} is compressed, which torch.save never does; {WAY_OUT}")
    if sum(member.file_size for member in members.values()) > size:
        raise WeightFileError(f"{path}: claims to hold more bytes than it has: its files overlap")
    return members


def read_row(file: BufferedReader, path: Path) -> dict[str, Array]:
    """The tensors of a state dict in the older serialisation: magic number, protocol, machine, the value, keys, and storages.

    Raises:
        WeightFileError: damaged, another pickle, or of more than tensors.
    """
    size = file.seek(0, 2)
    file.seek(0)
    stream = BytesIO(file.read(pickled.LARGEST))
    if _loaded(path, stream) != MAGIC:
        raise WeightFileError(f"{path}: is a pickle, but none of torch.save; {WAY_OUT}")
    _loaded(path, stream)  # the protocol, which did not change
    machine, value, keys = (_loaded(path, stream) for _ in range(3))
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise WeightFileError(f"{path}: was written on a machine of another byte order")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise WeightFileError(f"{path}: does not name its storages")
    sizes = {storage.key: DTYPES[storage.dtype].itemsize for storage in _storages(value)}
    places: dict[str, tuple[int, int]] = {}
    position = stream.tell()
    for key in keys:
        file.seek(position)
        elements = int.from_bytes(file.read(8), "little")
        position += 8
        places[key] = position, elements
        if key not in sizes or position + elements * sizes[key] > size:
            raise WeightFileError(f"{path}: is cut off, or keeps numbers of no tensor under {key[:80]!r}")
        position += elements * sizes[key]

    def fetch(storage: Storage) -> Array:
        begin, elements = places.get(storage.key, (0, -1))
        if elements != storage.elements:
            raise PickleError(f"lacks the {storage.elements} numbers of {storage.key[:80]!r}")
        file.seek(begin)
        data = file.read(elements * DTYPES[storage.dtype].itemsize)
        return numbers(np.frombuffer(data, DTYPES[storage.dtype]), storage.dtype)

    return _tensors(path, value, fetch)


def _loaded(path: Path, stream: BytesIO) -> Any:
    try:
        return pickled.load(stream)
    except PickleError as error:
        raise WeightFileError(f"{path}: its pickle {error}; {WAY_OUT}") from None


def _state_dict(path: Path, value: Any) -> Mapping[str, Tensor]:
    """The dictionary of tensors that the value is, or holds under a usual name."""
    if not isinstance(value, dict):
        raise WeightFileError(f"{path}: holds a {type(value).__name__}, not a state dict; {WAY_OUT}")
    found = {key: value[key] for key in STATE_DICTS if isinstance(value.get(key), dict)} or {"": value}
    if len(found) > 1:
        raise WeightFileError(f"{path}: holds several state dicts, {' and '.join(found)}; {WAY_OUT}")
    tensors: Mapping[str, Tensor] = next(iter(found.values()))
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightFileError(f"{path}: holds {str(name)[:80]!r}, a {type(tensor).__name__}, where a tensor was expected; {WAY_OUT}")
    return tensors


def _storages(value: Any) -> list[Storage]:
    """Every storage that the value reaches, each container entered once."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Tensor):
            found[each.storage.key] = each.storage
        elif isinstance(each, Storage):
            found[each.key] = each
        elif isinstance(each, (list, tuple, dict)) and id(each) not in seen:
            seen.add(id(each))
            waiting += each.values() if isinstance(each, dict) else each
    return list(found.values())


def _tensors(path: Path, value: Any, fetch: Fetch) -> dict[str, Array]:
    storages: dict[Storage, Array] = {}
    arrays: dict[str, Array] = {}
    for name, tensor in _state_dict(path, value).items():
        try:
            if tensor.storage not in storages:
                storages[tensor.storage] = fetch(tensor.storage)
            arrays[name] = _view(tensor, storages[tensor.storage])
        except PickleError as error:
            raise WeightFileError(f"{path}: {name[:80]!r}: its pickle {error}") from None
    return arrays


def _view(tensor: Tensor, storage: Array) -> Array:
    """The tensor as a view of its storage, and never larger than that."""
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    elements = math.prod(tensor.shape)
    if len(tensor.shape) > MAX_RANK or elements > len(storage) or (elements and last >= len(storage)):
        raise PickleError(f"describes a tensor of shape {str(tensor.shape)[:80]} in {len(storage)} numbers")
    if not elements:
        return np.empty(tensor.shape, storage.dtype)
    strides = [stride * storage.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
