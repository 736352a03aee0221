"""The weight file: a safetensors file in canonical form (docs/weights.md).

Written byte for byte from its content, so equal content gives equal files. Read as if it were hostile: the header is parsed
and held against the file's size and the model's tensors before memory is taken for data.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from impls import models
from impls.spec import ModelSpec, Shape, SpecError, as_json, from_json, tensor_shapes
from impls.weights.container import LENGTH_BYTES, MAX_HEADER_BYTES, Entry, WeightFileError, open_file, parse_json, read_entries, replaced
from impls.weights.container import read_header as read_any_header
from impls.weights.container import read_tensor as read_any_tensor
from impls.weights.variant import epsilons, for_images_of, with_constants

__all__ = (
    "FORMAT",
    "MAX_HEADER_BYTES",
    "WeightFile",
    "WeightFileError",
    "load",
    "read_metadata",
    "save",
    "spec_sha256",
    "tensor_hashes",
    "tensor_sha256",
)

Float32 = npt.NDArray[np.float32]

FORMAT = "levelfield-weights/1"
REQUIRED = ("format", "arch", "preprocess", "source", "licence", "classes", "tensor_sha256")
MAX_NAME = 100
ALIGNMENT = 8  # of the data, as safetensors writes it


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file's content.

    ``weights`` are float32 arrays of their own memory in topological order. ``sha256`` is their root hash, ``tensor_sha256``.
    """

    model: ModelSpec
    weights: dict[str, Float32]
    metadata: dict[str, str]
    sha256: str


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
    source_md5: str = "",
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
        source_md5: likewise; some publishers give no other.

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
    if _is_variant(model):
        metadata["arch_sha256"] = spec_sha256(model)
    metadata |= {name: value for name, value in (("source_sha256", source_sha256), ("source_md5", source_md5)) if value}
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
    with open_file(path) as file:
        return _read_header(file, path)[0]


def load(path: Path, model: ModelSpec | None = None) -> WeightFile:
    """Read a weight file and check everything about it; without ``model``, the one that its metadata names or else describes.

    A file may hold the named network with epsilons, classes and a size of images of its own; it is then the model of what is returned.

    Raises:
        WeightFileError: damaged or hostile file, another network's weights, tensors unknown, missing, of wrong shape or type,
            not finite, negative variances, or bytes that differ from the stored hash.
    """
    with open_file(path) as file:
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
    with replaced(path) as temporary, temporary.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _read_header(file: BufferedReader, path: Path) -> tuple[dict[str, str], dict[str, Entry], int]:
    """Metadata, tensors by name, and where the data begins; everything in them has been checked against the file's size."""
    metadata, document, start = read_any_header(file, path)
    if metadata.get("format") != FORMAT:
        found = reprlib.repr(metadata.get("format"))
        raise WeightFileError(f"{path}: its format is {found}, not {FORMAT!r}; `levelfield weights import` converts checkpoints")
    if missing := [key for key in REQUIRED if key not in metadata]:
        raise WeightFileError(f"{path}: its metadata lacks {', '.join(missing)}")
    if not isinstance(parse_json(path, "preprocess in its metadata", metadata["preprocess"]), dict):
        raise WeightFileError(f"{path}: preprocess in its metadata is no object")
    return metadata, read_entries(file, path, document, start, ("F32",)), start


def _model_of(path: Path, metadata: Mapping[str, str], model: ModelSpec | None) -> ModelSpec:
    """The model, after making sure that the stored spec computes the same function."""
    stored = parse_json(path, "arch in its metadata", metadata["arch"])
    name = stored.get("name") if isinstance(stored, dict) else None
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise WeightFileError(f"{path}: arch in its metadata does not name a model")
    if model is None:
        model = _named_or_described(path, name, stored)
    if "arch_sha256" in metadata:
        model = _with_own_constants(path, metadata, stored, model)
    expected = json.loads(_json(as_json(model)))
    for key in ("input_chw", "classes", "body"):
        if difference := _first_difference(stored.get(key), expected[key], key):
            raise WeightFileError(f"{path}: holds weights for {reprlib.repr(name)}, a different network than {model.name}: {difference}")
    return model


def _is_variant(model: ModelSpec) -> bool:
    """Whether it bears the name of a known network and has other constants than that, or is for other images."""
    try:
        known = models.get(model.name)
    except models.UnknownModelError:
        return False
    return (known.body, known.input_chw) != (model.body, model.input_chw)


def _with_own_constants(path: Path, metadata: Mapping[str, str], stored: object, model: ModelSpec) -> ModelSpec:
    """The model with the file's own epsilons, classes and images. They have a hash, so that damage is not taken for another constant."""
    if hashlib.sha256(metadata["arch"].encode()).hexdigest() != metadata["arch_sha256"]:
        raise WeightFileError(f"{path}: was damaged or edited: arch in its metadata does not have the hash that it says")
    own = _described(path, stored)
    try:
        return for_images_of(with_constants(model, own.classes, epsilons(own)), *own.input_chw[1:])
    except SpecError as error:
        raise WeightFileError(f"{path}: {error}") from None


def _named_or_described(path: Path, name: str, stored: object) -> ModelSpec:
    """The model of this name, or, where no family has one, the network that the file describes."""
    try:
        return models.get(name)
    except models.UnknownModelError as unknown:
        return _described(path, stored, f"{unknown}, and ")


def _described(path: Path, stored: object, before: str = "") -> ModelSpec:
    try:
        return from_json(stored)
    except (SpecError, RecursionError) as error:
        raise WeightFileError(f"{path}: {before}arch in its metadata describes no network: {error}") from None


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


def _read_tensor(file: BufferedReader, path: Path, name: str, entry: Entry, start: int) -> Float32:
    array: Float32 = read_any_tensor(file, path, name, entry, start).astype(np.float32, copy=False)
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
