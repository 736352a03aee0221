"""Whose tensors they are: the names and layouts of public checkpoints brought to the canonical ones, and to the model that they fit.

Canonical names are torchvision's, so a network with torchvision's names needs no line here. What a checkpoint holds beyond the model,
or lacks, is refused by name.
"""

from __future__ import annotations

import functools
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from impls import models
from impls.spec import Conv2d, Flatten, Linear, MaxPool2d, ModelSpec, Shape, layers, tensor_shapes
from impls.weights.container import Array, WeightFileError
from impls.weights.folding import biases_into_means, followed
from impls.weights.variant import epsilons, with_constants

Weights = dict[str, npt.NDArray[np.float32]]


CANDIDATES = (
    *models.NAMES,
    *(f"resnet{depth}_{letter}" for depth in (18, 34, 50) for letter in "ac"),
    *(f"cifar_resnet{depth}" for depth in (8, 14)),
)
"""The networks that an unknown checkpoint may be of; of those that have the same tensors the first, so v1.5 before v1."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A network with the checkpoint's own epsilons and classes, its canonical weights, and whose names they had."""

    model: ModelSpec
    weights: Weights
    convention: str


# --- PyTorch ---

PREFIXES = ("module.", "_orig_mod.")
"""Before every name: what ``DataParallel`` and ``torch.compile`` put there."""

RENAMED = (
    ("linear.", "fc."),  # akamaster/pytorch_resnet_cifar10 resnet.py: the classifier
    (".shortcut.", ".downsample."),  # the same: the projections of option B
)
"""Parts of names, where the model has the second and not the first."""

LEFT_OUT = (".num_batches_tracked",)
"""Ends of names of what no network computes with: a batch norm's count of training steps."""


def _torch(tensors: Mapping[str, Array], model: ModelSpec) -> dict[str, Array]:
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    known = tensor_shapes(model)

    def renamed(name: str) -> str:
        for old, new in RENAMED:
            if name not in known and name.replace(old, new) in known:
                return name.replace(old, new)
        return name

    for_training = tensor_shapes(models.in_training(model)).keys() - known.keys()
    return {renamed(name): tensor for name, tensor in tensors.items() if not name.endswith(LEFT_OUT) and name not in for_training}


# --- Keras ---

PLACE = re.compile(r"layer(?P<stage>\d+)\.(?P<block>\d+)\.(?:(?P<kind>conv|bn)(?P<number>\d)|downsample\.(?P<shortcut>[01]))")


def _first_names(layer: str) -> str:
    """Keras 1's ``ResNet50`` (fchollet/deep-learning-models resnet50.py)."""
    match = PLACE.fullmatch(layer)
    if match is None:
        return {"conv1": "conv1", "bn1": "bn_conv1", "fc": "fc1000"}.get(layer, layer)
    kind = {"conv": "res", "bn": "bn", "0": "res", "1": "bn"}[match["kind"] or match["shortcut"]]
    branch = f"2{'abc'[int(match['number']) - 1]}" if match["number"] else "1"
    return f"{kind}{int(match['stage']) + 1}{chr(ord('a') + int(match['block']))}_branch{branch}"


def _later_names(layer: str) -> str:
    """Keras since 2.2.5 (keras applications/resnet.py)."""
    match = PLACE.fullmatch(layer)
    if match is None:
        return {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}.get(layer, layer)
    kind = match["kind"] or {"0": "conv", "1": "bn"}[match["shortcut"]]
    return f"conv{int(match['stage']) + 1}_block{int(match['block']) + 1}_{match['number'] or 0}_{kind}"


def _vgg_names(model: ModelSpec) -> dict[str, str]:
    """Keras's VGG (keras applications/vgg16.py), whose blocks end at the max-pools."""
    found: dict[str, str] = {}
    block, number, hidden = 1, 0, 0
    for layer in layers(model.body):
        match layer:
            case Conv2d():
                number += 1
                found[layer.name] = f"block{block}_conv{number}"
            case MaxPool2d():
                block, number = block + 1, 0
            case Linear():
                hidden += 1
                found[layer.name] = "predictions" if layer.out_features == model.classes else f"fc{hidden}"
    return found


def _each(name_of: Callable[[str], str]) -> Callable[[ModelSpec], dict[str, str]]:
    return lambda model: {layer.name: name_of(layer.name) for layer in layers(model.body) if layer.tensors()}


@dataclass(frozen=True, slots=True)
class KerasNames:
    """A family of Keras's: a layer that only it has, its epsilon where it has batch norm, and its names of a model's layers by ours."""

    sign: str
    epsilon: float | None
    names: Callable[[ModelSpec], dict[str, str]]


KERAS = (
    KerasNames("bn_conv1", 1e-3, _each(_first_names)),  # BatchNormalization's default
    KerasNames("conv1_bn", 1.001e-5, _each(_later_names)),
    KerasNames("block1_conv1", None, _vgg_names),
)
"""Two files of one public name, ``resnet50_weights_tf_dim_ordering_tf_kernels.h5``, are told apart by the names in them."""

KERAS_LEAVES = {
    **{"kernel": "weight", "W": "weight", "bias": "bias", "b": "bias", "gamma": "weight", "beta": "bias"},
    **{"moving_mean": "running_mean", "running_mean": "running_mean"},
    **{"moving_variance": "running_var", "running_std": "running_var"},  # Keras 1 calls the variance so
}
LEAF = re.compile(rf"(?:^|_)({'|'.join(KERAS_LEAVES)})(?:_\d+)?(?::0)?$")

KERAS_MODELS = tuple(name for name in models.NAMES if name.endswith("_v1") or name in {"vgg16", "vgg19"})
"""Its ResNets have the stride of a downsampling bottleneck on its first 1x1."""

WHOLE_MODEL = "model_weights/"
"""Where ``Model.save`` keeps what ``Model.save_weights`` writes alone; beside it lies the optimiser."""


def _keras_family(path: Path, tensors: Mapping[str, Array]) -> KerasNames:
    present = {name.removeprefix(WHOLE_MODEL).partition("/")[0] for name in tensors}
    for family in KERAS:
        if family.sign in present:
            return family
    signs = ", ".join(family.sign for family in KERAS)
    raise WeightFileError(f"{path}: is an HDF5 file, but none of Keras's networks that are known: it has none of the layers {signs}")


def _keras(path: Path, family: KerasNames, tensors: Mapping[str, Array], model: ModelSpec) -> dict[str, Array]:
    if any(name.startswith(WHOLE_MODEL) for name in tensors):
        tensors = {name.removeprefix(WHOLE_MODEL): tensor for name, tensor in tensors.items() if name.startswith(WHOLE_MODEL)}
    ours = {theirs: name for name, theirs in family.names(model).items()}
    flattened = _flattened(model)
    found: dict[str, Array] = {}
    for name, tensor in tensors.items():
        layer, leaf = ours.get(name.partition("/")[0]), LEAF.search(name.rpartition("/")[2])
        known = f"{layer}.{KERAS_LEAVES[leaf[1]]}" if layer and leaf else name
        if known in found:
            raise WeightFileError(f"{path}: holds two tensors for {known}: {reprlib.repr(name)} is one")
        found[known] = _turned(tensor, flattened.get(known))
    return found


def _turned(tensor: Array, maps: Flatten | None) -> Array:
    """HWIO to OIHW, and (in, out) to (out, in); where "in" are the elements of ``maps``, from HWC to CHW."""
    if tensor.ndim == 4:
        return tensor.transpose(3, 2, 0, 1)
    if maps is not None and tensor.ndim == 2 and tensor.shape[0] == maps.height * maps.width * maps.channels:
        kernel = tensor.reshape(maps.height, maps.width, maps.channels, tensor.shape[1])
        return kernel.transpose(3, 2, 0, 1).reshape(tensor.shape[1], tensor.shape[0])
    return tensor.T


def _flattened(model: ModelSpec) -> dict[str, Flatten]:
    """The weights of linear layers that take whole maps, and how these were flattened."""
    found: dict[str, Flatten] = {}
    flatten: Flatten | None = None
    for layer in layers(model.body):
        if isinstance(layer, Flatten):
            flatten = layer
        elif isinstance(layer, Linear) and flatten is not None:
            found[f"{layer.name}.weight"], flatten = flatten, None
    return found


def _strided_on_3x3(model: ModelSpec) -> bool:
    try:
        return models.get(f"{model.name}_v1").body != model.body
    except models.UnknownModelError:
        return False


# --- Both ---


def canonical(path: Path, tensors: Mapping[str, Array], model: ModelSpec, *, keras: bool) -> Imported:
    """The tensors of a checkpoint as the model's.

    Args:
        path: of the file, for messages.
        tensors: by the file's own names, in its own layout.
        model: that was meant.
        keras: whether names and layouts are Keras's, else PyTorch's.

    Raises:
        WeightFileError: a tensor too many or too few, of another shape, or not exactly a finite float32; with the nearest model.
    """
    convert = functools.partial(_torch, tensors)
    if keras:
        family = _keras_family(path, tensors)
        if _strided_on_3x3(model):
            raise WeightFileError(f"{path}: Keras's ResNets have their stride on the first 1x1: its weights are for {model.name}_v1")
        convert = functools.partial(_keras, path, family, tensors)
        if family.epsilon is not None:
            model = with_constants(model, model.classes, dict.fromkeys(epsilons(model), family.epsilon))
    found = convert(model)
    model = _with_classes(model, found)
    expected = _expected(model, found, keras)
    if fault := _fault(model, expected, found):
        raise WeightFileError(f"{path}: {fault}; {_nearest(model, convert, keras)}")
    weights = {name: _float32(path, name, found[name]) for name in expected}
    return Imported(model, biases_into_means(model, weights), "Keras" if keras else "PyTorch")


def _expected(model: ModelSpec, found: Mapping[str, Array], keras: bool) -> dict[str, Shape]:
    """The model's tensors, and the biases that Keras's convolutions have before batch norm, where they do."""
    shapes = tensor_shapes(model)
    pairs = followed(model.body) if keras else []
    return shapes | {f"{conv}.bias": shapes[f"{norm}.running_mean"] for conv, norm in pairs if f"{conv}.bias" in found}


def _with_classes(model: ModelSpec, found: Mapping[str, Array]) -> ModelSpec:
    """The model with as many classes as the checkpoint's classifier has."""
    heads = [layer for layer in layers(model.body) if isinstance(layer, Linear) and layer.out_features == model.classes]
    weight = found.get(f"{heads[-1].name}.weight") if heads else None
    if weight is None or weight.ndim != 2 or weight.shape[1] != heads[-1].in_features or not weight.shape[0]:
        return model
    return with_constants(model, weight.shape[0], {})


def _fault(model: ModelSpec, shapes: Mapping[str, Shape], found: Mapping[str, Array]) -> str | None:
    if surplus := [name for name in found if name not in shapes]:
        return f"holds {reprlib.repr(surplus[0])}, which {model.name} does not have ({len(surplus)} such)"
    if missing := [name for name in shapes if name not in found]:
        return f"lacks {missing[0]!r} of {model.name} ({len(missing)} such)"
    for name, shape in shapes.items():
        if found[name].shape != shape:
            return f"{name} has the shape {found[name].shape}, {model.name} needs {shape}"
    return None


def _nearest(meant: ModelSpec, convert: Callable[[ModelSpec], dict[str, Array]], keras: bool) -> str:
    """The model from which the fewest tensors differ, and how many do."""
    distances = {}
    for name in dict.fromkeys((meant.name, *(KERAS_MODELS if keras else CANDIDATES))):
        found = convert(models.get(name))
        model = _with_classes(models.get(name), found)
        theirs = {(name, tensor.shape) for name, tensor in found.items()}
        distances[name] = len(theirs ^ set(_expected(model, found, keras).items()))
    nearest = min(distances, key=lambda name: distances[name])
    if not distances[nearest]:
        return f"its tensors are all those of {nearest}: --model {nearest}"
    if nearest == meant.name:
        return "no other model is nearer"
    return f"the nearest model is {nearest}, from which {distances[nearest]} tensors differ"


def _float32(path: Path, name: str, tensor: Array) -> npt.NDArray[np.float32]:
    """The same numbers in memory of their own."""
    with np.errstate(over="ignore"):
        single = np.array(tensor, np.float32)
    if tensor.dtype.kind != "f" or not np.isfinite(single).all() or (single.astype(tensor.dtype) != tensor).any():
        raise WeightFileError(f"{path}: {name}: its {tensor.dtype} values are not all finite numbers that float32 holds exactly")
    return np.ascontiguousarray(single)
