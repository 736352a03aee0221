"""Checkpoints of others, in the formats that the world keeps them in. None is trusted: no code of a file runs, and no framework is needed.

The format is recognised by the first bytes, never by the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

from impls.weights import container
from impls.weights.checkpoints import hdf5, pth
from impls.weights.container import DTYPES, LARGEST_FILE, MAX_HEADER_BYTES, Array, WeightFileError

Format = Literal["zip", "pickle", "safetensors", "hdf5", "onnx"]

KNOWN = "known are PyTorch's .pth, safetensors, Keras's .h5 and ONNX"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file's tensors under its own names, in its own layout and type; a bfloat16 has become the float32 that it is."""

    format: Format
    tensors: Mapping[str, Array]


def recognise(path: Path) -> Format:
    """The format that the file's first bytes say.

    Raises:
        WeightFileError: there is no such file, it is too large, or of none of the formats.
    """
    with container.open_file(path) as file:
        return _recognise(file, path)


def read(path: Path) -> Checkpoint:
    """The tensors of a checkpoint. ONNX files are read elsewhere: their tensors may be nameless, and go by the operators' wiring.

    Raises:
        WeightFileError: of no known format, damaged, or holding more than tensors.
    """
    with container.open_file(path) as file:
        form = _recognise(file, path)
        readers = {"zip": pth.read_zip, "pickle": pth.read_row, "safetensors": _read_safetensors, "hdf5": hdf5.read}
        if form not in readers:
            raise WeightFileError(f"{path}: is an ONNX file, which has no names that could be read")
        return Checkpoint(form, readers[form](file, path))


def sha256(path: Path) -> str:
    """Of the file's bytes, hex."""
    return _digest(path, "sha256")


def md5(path: Path) -> str:
    """Of the file's bytes, hex; Keras publishes these."""
    return _digest(path, "md5")


def _digest(path: Path, kind: str) -> str:
    with container.open_file(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _recognise(file: BufferedReader, path: Path) -> Format:
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    if size > LARGEST_FILE:
        raise WeightFileError(f"{path}: is larger than the {LARGEST_FILE} bytes that any checkpoint here has")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(hdf5.SIGNATURE):
        return "hdf5"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    if head[:1] == b"\x08":  # the first field of a ModelProto: the version of its format, a number
        return "onnx"
    raise WeightFileError(f"{path}: {f'begins with {head[:8]!r}, as no checkpoint does' if head else 'is empty'}; {KNOWN}")


def _read_safetensors(file: BufferedReader, path: Path) -> dict[str, Array]:
    metadata, document, start = container.read_header(file, path)
    if metadata.get("format", "").startswith("levelfield-weights/"):
        raise WeightFileError(f"{path}: is a weight file already")
    entries = container.read_entries(file, path, document, start, DTYPES)
    return {name: container.read_tensor(file, path, name, entry, start) for name, entry in entries.items()}
