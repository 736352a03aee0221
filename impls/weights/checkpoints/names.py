"""Whose tensors they are: the names and layouts of public checkpoints brought to the canonical ones, and to the model that they fit.

Canonical names are torchvision's, so a network with torchvision's names needs no line here. What a checkpoint holds beyond the model,
or lacks, is refused by name.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from impls import models
from impls.spec import Linear, ModelSpec, Shape, layers, tensor_shapes
from impls.weights.container import Array, WeightFileError
from impls.weights.folding import biases_into_means, followed
from impls.weights.variant import epsilons, with_constants

Weights = dict[str, npt.NDArray[np.float32]]


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

    return {renamed(name): tensor for name, tensor in tensors.items() if not name.endswith(LEFT_OUT)}


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


@dataclass(frozen=True, slots=True)
class KerasNames:
    """A generation of Keras's ResNets: a layer that only it has, its epsilon, and its name of a canonical layer."""

    sign: str
    epsilon: float
    name_of: Callable[[str], str]


KERAS = (
    KerasNames("bn_conv1", 1e-3, _first_names),  # BatchNormalization's default
    KerasNames("conv1_bn", 1.001e-5, _later_names),
)
"""Two files of one public name, ``resnet50_weights_tf_dim_ordering_tf_kernels.h5``, are told apart by the names in them."""

KERAS_LEAVES = {
    **{"kernel": "weight", "W": "weight", "bias": "bias", "b": "bias", "gamma": "weight", "beta": "bias"},
    **{"moving_mean": "running_mean", "running_mean": "running_mean"},
    **{"moving_variance": "running_var", "running_std": "running_var"},  # Keras 1 calls the variance so
}
LEAF = re.compile(rf"(?:^|_)({'|'.join(KERAS_LEAVES)})(?:_\d+)?(?::0)?$")

KERAS_MODELS = tuple(name for name in models.NAMES if name.endswith("_v1"))
"""All have the stride of a downsampling bottleneck on its first 1x1."""

WHOLE_MODEL = "model_weights/"
"""Where ``Model.save`` keeps what ``Model.save_weights`` writes alone; beside it lies the optimiser."""


def _keras(path: Path, tensors: Mapping[str, Array], model: ModelSpec) -> tuple[ModelSpec, dict[str, Array]]:
    if any(name.startswith(WHOLE_MODEL) for name in tensors):
        tensors = {name.removeprefix(WHOLE_MODEL): tensor for name, tensor in tensors.items() if name.startswith(WHOLE_MODEL)}
    present = {name.partition("/")[0] for name in tensors}
    scheme = next((each for each in KERAS if each.sign in present), None)
    if scheme is None:
        raise WeightFileError(
            f"{path}: is an HDF5 file, but none of Keras's ResNets: it has none of {_listed(each.sign for each in KERAS)}"
        )
    if _strided_on_3x3(model):
        raise WeightFileError(f"{path}: Keras's ResNets have their stride on the first 1x1: its weights are for {model.name}_v1")
    known = (model, *(models.get(name) for name in KERAS_MODELS))
    canonical = {scheme.name_of(layer.name): layer.name for each in known for layer in layers(each.body) if layer.tensors()}
    found: dict[str, Array] = {}
    for name, tensor in tensors.items():
        layer, leaf = canonical.get(name.partition("/")[0]), LEAF.search(name.rpartition("/")[2])
        ours = f"{layer}.{KERAS_LEAVES[leaf[1]]}" if layer and leaf else name
        if ours in found:
            raise WeightFileError(f"{path}: holds two tensors for {ours}: {reprlib.repr(name)} is one")
        found[ours] = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T  # HWIO to OIHW, (in, out) to (out, in)
    return with_constants(model, model.classes, dict.fromkeys(epsilons(model), scheme.epsilon)), found


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
    model, found = _keras(path, tensors, model) if keras else (model, _torch(tensors, model))
    model = _with_classes(model, found)
    expected = _expected(model, found, keras)
    if fault := _fault(model, expected, found):
        raise WeightFileError(f"{path}: {fault}; {_nearest(model, found, keras)}")
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


def _nearest(meant: ModelSpec, found: Mapping[str, Array], keras: bool) -> str:
    """The model from which the fewest tensors differ, and how many do."""
    theirs = {(name, tensor.shape) for name, tensor in found.items()}
    distances = {}
    for name in dict.fromkeys((meant.name, *(KERAS_MODELS if keras else models.NAMES))):
        model = _with_classes(models.get(name), found)
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


def _listed(words: Iterable[str]) -> str:
    return " and ".join(words)
