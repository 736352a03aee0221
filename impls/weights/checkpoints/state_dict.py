"""Canonical weights as a state dict of torchvision, in the archive that ``torch.save`` writes. PyTorch is not needed.

The pickle inside is written instruction by instruction (torch/serialization.py says which), so equal weights give equal files.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from impls import models
from impls.spec import BatchNorm2d, ModelSpec, Shape, layers, tensor_shapes
from impls.weights.container import WeightFileError
from impls.weights.variant import with_constants

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("vgg16", "vgg19", "vgg16_bn", "vgg19_bn", "googlenet", "alexnet"),
)
"""The models that torchvision has under these very names; a network with torchvision's names needs one word here."""

FOLDER = "archive"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment of a zip archive

PROTO, STOP, MARK, TUPLE, REDUCE, SETITEMS, PERSISTENT, FALSE = b"\x80\x02", b".", b"(", b"t", b"R", b"u", b"Q", b"\x89"
EMPTY_TUPLE = b")"
ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def twin(path: Path, model: ModelSpec) -> str:
    """The model of torchvision that is this network but for its number of classes.

    Raises:
        WeightFileError: torchvision has no model that computes this function; ``path`` is not written.
    """
    for name in TORCHVISION:
        if with_constants(models.get(name), model.classes, {}).body == model.body:
            return name
    same = [name for name in TORCHVISION if tensor_shapes(with_constants(models.get(name), model.classes, {})) == tensor_shapes(model)]
    why = f"the weights would fit {same[0]}, which computes something else" if same else f"it has {', '.join(TORCHVISION)}"
    raise WeightFileError(f"{path}: is not written: torchvision has no {model.name} with these constants: {why}")


def save(path: Path, model: ModelSpec, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Write the state dict of a network that torchvision has.

    ``num_batches_tracked``, which torchvision has and a weight file has not, is 0.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = dict(_tensors(model, weights))
    members = {
        "data.pkl": _pickle(tensors),
        "byteorder": b"little",
        **{f"data/{number}": np.ascontiguousarray(tensor).tobytes() for number, tensor in enumerate(tensors.values())},
        "version": b"3\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{member}", EPOCH), data)


def _tensors(model: ModelSpec, weights: Mapping[str, npt.NDArray[np.float32]]) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    for layer in layers(model.body):
        for leaf in layer.tensors():
            yield f"{layer.name}.{leaf}", weights[f"{layer.name}.{leaf}"].astype("<f4", copy=False)
        if isinstance(layer, BatchNorm2d):
            yield f"{layer.name}.num_batches_tracked", np.zeros((), "<i8")


def _pickle(tensors: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """An ordered dictionary of tensors, each a view of a storage of its own."""
    items = b"".join(_text(name) + _tensor(number, tensor) for number, (name, tensor) in enumerate(tensors.items()))
    return PROTO + ORDERED + EMPTY_TUPLE + REDUCE + MARK + items + SETITEMS + STOP


def _tensor(number: int, tensor: npt.NDArray[np.generic]) -> bytes:
    """``_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)``."""
    storage = b"ctorch\n" + (b"FloatStorage" if tensor.dtype.kind == "f" else b"LongStorage") + b"\n"
    identity = MARK + _text("storage") + storage + _text(str(number)) + _text("cpu") + _integer(tensor.size) + TUPLE
    strides = tuple(stride // tensor.itemsize for stride in np.empty(tensor.shape, tensor.dtype).strides)
    view = identity + PERSISTENT + _integer(0) + _integers(tensor.shape) + _integers(strides)
    return REBUILD + MARK + view + FALSE + ORDERED + EMPTY_TUPLE + REDUCE + TUPLE + REDUCE


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _integers(values: Shape) -> bytes:
    return MARK + b"".join(_integer(value) for value in values) + TUPLE
