"""The weight file: a safetensors file in canonical form (docs/weights.md).

Written byte for byte from its content, so equal content gives equal files. Read as if it were hostile: the header is parsed
and held against the file's size and the model's tensors before memory is taken for data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import models
from impls.spec import ModelSpec, Shape, SpecError, as_json, from_json, tensor_shapes

Float32 = npt.NDArray[np.float32]

FORMAT = "levelfield-weights/1"
REQUIRED = ("format", "arch", "preprocess", "source", "licence", "classes", "tensor_sha256")
LENGTH_BYTES = 8  # the header's length, before the header
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
MAX_RANK = 8
MAX_NAME = 100
ALIGNMENT = 8  # of the data, as safetensors writes it


class WeightFileError(ValueError):
    """A weight file that cannot be used; the message names file, tensor, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file's content.

    ``weights`` are float32 arrays of their own memory in topological order. ``sha256`` is their root hash, ``tensor_sha256``.
    """

    model: ModelSpec
    weights: dict[str, Float32]
    metadata: dict[str, str]
    sha256: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies: bytes [begin, end) of the data."""

    shape: Shape
    begin: int
    end: int


def spec_sha256(model: ModelSpec) -> str:
    """Hash of the whole spec: sha256 of its canonical JSON, hex."""
    return hashlib.sha256(_json(as_json(model)).encode()).hexdigest()


def tensor_hashes(weights: Mapping[str, Float32]) -> dict[str, str]:
    """Hash of each tensor by name: sha256 of its shape as a JSON list and its little-endian float32 bytes, hex."""
    return {name: _tensor_hash(array) for name, array in weights.items()}


def tensor_sha256(weights: Mapping[str, Float32]) -> str:
    """Root hash of the weights: sha256 over the lines ``HASH NAME`` of ``tensor_hashes``, in the mapping's (topological) order."""
    lines = "".join(f"{digest} {name}\n" for name, digest in tensor_hashes(weights).items())
    return hashlib.sha256(lines.encode()).hexdigest()


def save(
    path: Path,
    model: ModelSpec,
    weights: Mapping[str, Float32],
    *,
    source: str,
    preprocess: Mapping[str, object],
    licence: str,
    classes: Sequence[str] = (),
    source_sha256: str = "",
) -> str:
    """Write a weight file in one step: it appears whole or not at all. Returns the root hash.

    Args:
        path: the file; one that is there is replaced.
        model: the network; its whole spec is stored.
        weights: float32, every tensor of ``tensor_shapes(model)`` and no other, in any order.
        source: where the weights come from, for people.
        preprocess: how images become inputs, JSON values.
        licence: of the weights, an SPDX name where there is one.
        classes: names of the logits in order; empty where they have none.
        source_sha256: of the file that they were taken from, hex.

    Raises:
        WeightFileError: tensors that ``load`` would refuse, or a number of classes that is not the model's.
        OSError: the file cannot be written.
    """
    shapes = tensor_shapes(model)
    _compare_names(path, model, shapes, {name: array.shape for name, array in weights.items()})
    ordered = {name: weights[name] for name in shapes}
    for name, array in ordered.items():
        if array.dtype != np.float32:
            raise WeightFileError(f"{path}: {name}: is {array.dtype}, must be float32")
        _check_values(path, name, array)
    if classes and len(classes) != model.classes:
        raise WeightFileError(f"{path}: {len(classes)} class names, {model.name} has {model.classes} classes")
    root = tensor_sha256(ordered)
    metadata = {
        "format": FORMAT,
        "arch": _json(as_json(model)),
        "preprocess": _json(dict(preprocess)),
        "source": source,
        "licence": licence,
        "classes": _json(list(classes)),
        "tensor_sha256": root,
    }
    if source_sha256:
        metadata["source_sha256"] = source_sha256
    entries: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for name, array in ordered.items():
        entries[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, begin + array.nbytes]}
        begin += array.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    _replace(path, [len(header).to_bytes(LENGTH_BYTES, "little"), header, *(_bytes(array) for array in ordered.values())])
    return root


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone; no tensor is read.

    Raises:
        WeightFileError: not a weight file of this format.
    """
    with _open(path) as file:
        return _read_header(file, path)[0]


def load(path: Path, model: ModelSpec | None = None) -> WeightFile:
    """Read a weight file and check everything about it; without ``model``, the one that its metadata names or else describes.

    Raises:
        WeightFileError: damaged or hostile file, another network's weights, tensors unknown, missing, of wrong shape or type,
            not finite, negative variances, or bytes that differ from the stored hash.
    """
    with _open(path) as file:
        metadata, entries, data_start = _read_header(file, path)
        model = _model_of(path, metadata, model)
        shapes = tensor_shapes(model)
        _compare_names(path, model, shapes, {name: entry.shape for name, entry in entries.items()})
        weights = {name: _read_tensor(file, path, name, entries[name], data_start) for name in shapes}
    root = tensor_sha256(weights)
    if root != metadata["tensor_sha256"]:
        stored = reprlib.repr(metadata["tensor_sha256"])
        raise WeightFileError(f"{path}: was damaged or edited: the tensors have the hash {root}, the metadata says {stored}")
    return WeightFile(model, weights, metadata, root)


def _json(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _bytes(array: Float32) -> memoryview:
    return np.ascontiguousarray(array, dtype="<f4").reshape(-1).data


def _tensor_hash(array: Float32) -> str:
    digest = hashlib.sha256(_json(list(array.shape)).encode())
    digest.update(_bytes(array))
    return digest.hexdigest()


def _replace(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    """Write beside ``path``, flush to the disk, rename over it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open(path: Path) -> BufferedReader:
    try:
        if not path.is_file():
            raise WeightFileError(f"{path}: {'is not a file' if path.exists() else 'there is no such file'}")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, WeightFileError):
            raise
        raise WeightFileError(f"{path}: cannot be read: {error}") from None


def _read_header(file: BufferedReader, path: Path) -> tuple[dict[str, str], dict[str, _Entry], int]:
    """Metadata, tensors by name, and where the data begins; everything in them has been checked against the file's size."""
    size = os.fstat(file.fileno()).st_size
    if size < LENGTH_BYTES:
        raise WeightFileError(f"{path}: is {size} bytes long, too short for a weight file")
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise WeightFileError(f"{path}: is no safetensors file: claims a header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if length > size - LENGTH_BYTES:
        raise WeightFileError(f"{path}: is cut off: says that its header has {length} bytes, the whole file has {size}")
    document = _parse_json(path, "its header", file.read(length))
    if not isinstance(document, dict):
        raise WeightFileError(f"{path}: its header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightFileError(f"{path}: __metadata__ is not an object of strings")
    if metadata.get("format") != FORMAT:
        found = reprlib.repr(metadata.get("format"))
        raise WeightFileError(f"{path}: its format is {found}, not {FORMAT!r}; `levelfield weights import` converts checkpoints")
    if missing := [key for key in REQUIRED if key not in metadata]:
        raise WeightFileError(f"{path}: its metadata lacks {', '.join(missing)}")
    entries = {name: _entry(path, name, value) for name, value in document.items()}
    _check_layout(path, entries, size - LENGTH_BYTES - length)
    return metadata, entries, LENGTH_BYTES + length


def _parse_json(path: Path, what: str, text: bytes | str) -> Any:
    """The JSON value; refuses duplicate keys, NaN and whatever Python's parser cannot take."""

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


def _entry(path: Path, name: str, value: object) -> _Entry:
    where = f"{path}: {reprlib.repr(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise WeightFileError(f"{where}: must be an object of dtype, shape and data_offsets")
    if value["dtype"] != "F32":
        raise WeightFileError(f"{where}: its dtype is {reprlib.repr(value['dtype'])}, must be 'F32'")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise WeightFileError(f"{where}: its shape {reprlib.repr(shape)} is not a list of at most {MAX_RANK} non-negative integers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise WeightFileError(f"{where}: its data_offsets {reprlib.repr(offsets)} are not two non-negative integers")
    begin, end = offsets
    if end - begin != 4 * math.prod(shape):
        needed = 4 * math.prod(shape)
        raise WeightFileError(f"{where}: its shape {shape} takes {needed} bytes, its data_offsets {offsets} span {end - begin}")
    return _Entry(tuple(shape), begin, end)


def _check_layout(path: Path, entries: Mapping[str, _Entry], data_bytes: int) -> None:
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


def _model_of(path: Path, metadata: Mapping[str, str], model: ModelSpec | None) -> ModelSpec:
    """The model, after making sure that the stored spec computes the same function."""
    stored = _parse_json(path, "arch in its metadata", metadata["arch"])
    name = stored.get("name") if isinstance(stored, dict) else None
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise WeightFileError(f"{path}: arch in its metadata does not name a model")
    if model is None:
        model = _named_or_described(path, name, stored)
    expected = json.loads(_json(as_json(model)))
    for key in ("classes", "body"):
        if difference := _first_difference(stored.get(key), expected[key], key):
            raise WeightFileError(f"{path}: holds weights for {reprlib.repr(name)}, a different network than {model.name}: {difference}")
    return model


def _named_or_described(path: Path, name: str, stored: object) -> ModelSpec:
    """The model of this name, or, where no family has one, the network that the file describes."""
    try:
        return models.get(name)
    except models.UnknownModelError as unknown:
        try:
            return from_json(stored)
        except (SpecError, RecursionError) as error:
            raise WeightFileError(f"{path}: {unknown}, and arch in its metadata describes no network: {error}") from None


def _first_difference(found: object, expected: object, where: str) -> str | None:
    """The first place at which two JSON values differ, as a sentence; layers are named."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        name = expected.get("name", where)
        pairs = [(found[key], value, f"{name}.{key}") for key, value in expected.items()]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = [(one, other, f"{where}[{index}]") for index, (one, other) in enumerate(zip(found, expected, strict=True))]
    elif type(found) is type(expected) and found == expected and not isinstance(found, dict | list):
        return None
    else:
        return f"{where} is {reprlib.repr(found)} in the file, must be {reprlib.repr(expected)}"
    return next((difference for pair in pairs if (difference := _first_difference(*pair))), None)


def _compare_names(path: Path, model: ModelSpec, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    if unknown := [name for name in found if name not in expected]:
        name = reprlib.repr(unknown[0])
        raise WeightFileError(f"{path}: holds the tensor {name}, which {model.name} does not have ({len(unknown)} such)")
    if missing := [name for name in expected if name not in found]:
        raise WeightFileError(f"{path}: lacks the tensor {missing[0]!r} of {model.name} ({len(missing)} such)")
    for name, shape in expected.items():
        if found[name] != shape:
            raise WeightFileError(f"{path}: {name}: has the shape {found[name]}, {model.name} needs {shape}")


def _read_tensor(file: BufferedReader, path: Path, name: str, entry: _Entry, data_start: int) -> Float32:
    file.seek(data_start + entry.begin)
    array: Float32 = np.empty(entry.shape, "<f4")
    if array.size and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise WeightFileError(f"{path}: {name}: the file became shorter while it was read")
    array = array.astype(np.float32, copy=False)
    _check_values(path, name, array)
    return array


def _check_values(path: Path, name: str, array: Float32) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        count = int(bad.sum())
        raise WeightFileError(f"{path}: {name}: {count} of {array.size} values are not finite, the first is {array[index]} at {index}")
    if name.endswith(".running_var") and (array < 0).any():
        index = tuple(int(i) for i in np.argwhere(array < 0)[0])
        raise WeightFileError(f"{path}: {name}: a variance is negative: {array[index]} at {index}")
