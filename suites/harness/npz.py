"""Somebody's arrays from an .npz file, which is not trusted: nothing is unpickled, and headers are checked before memory is taken."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]

MOST_ARRAYS = 10_000
"""Above the taps of the deepest network, ResNet-1202."""

LONGEST_HEADER = 10_000
"""``numpy.lib.format``'s own limit for headers from strangers."""


class NpzError(ValueError):
    """An .npz file that cannot be used; the message names file and array."""


def load(path: Path, check: Callable[[Mapping[str, Shape]], None]) -> dict[str, npt.NDArray[Any]]:
    """The arrays by name.

    Args:
        path: the file.
        check: is shown all shapes before any array is read, and raises ValueError if it does not like them.

    Raises:
        NpzError: no zip file, encrypted, of another content than numbers, or other in length than its headers say; or ``check`` raised.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            headers = {name: _read_header(path, name, archive, member) for name, member in members.items()}
            try:
                check({name: shape for name, (shape, _, _) in headers.items()})
            except ValueError as error:
                raise NpzError(f"{path}: {error}") from None
            return {name: _read(path, name, archive, members[name], *header) for name, header in headers.items()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise NpzError(f"{path}: is no .npz file that can be read: {error}") from None


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > MOST_ARRAYS:
        raise NpzError(f"{path}: holds {len(archive.infolist())} files, more than the {MOST_ARRAYS} arrays that any network has")
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in members:
            raise NpzError(f"{path}: {member.filename[:80]!r} is no array, or stands in it twice")
        members[name] = member
    return members


def _header(path: Path, name: str, file: IO[bytes]) -> tuple[Shape, bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type; the file is left where the data begins."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"its format {version} is for structured arrays")
        shape, fortran, dtype = readers[version](file, max_header_size=LONGEST_HEADER)
    except (ValueError, SyntaxError, TokenError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise NpzError(f"{path}: {name}: is no array that can be read: {' '.join(str(error).split())[:200]}") from None
    if dtype.hasobject:
        raise NpzError(f"{path}: {name}: holds Python objects, which are not read; save plain numbers")
    if any(size < 0 for size in shape):
        raise NpzError(f"{path}: {name}: has the shape {shape}")
    return shape, fortran, dtype


def _read_header(path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Shape, bool, np.dtype[Any]]:
    with archive.open(member) as file:
        shape, fortran, dtype = _header(path, name, file)
        needed, said = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if needed != said:
        raise NpzError(f"{path}: {name}: shape {shape} of {dtype} takes {needed} bytes, the file says {said}")
    return shape, fortran, dtype


def _read(
    path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, shape: Shape, fortran: bool, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    with archive.open(member) as file:
        _header(path, name, file)
        data = file.read(math.prod(shape) * dtype.itemsize)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise NpzError(f"{path}: {name}: is cut off")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
