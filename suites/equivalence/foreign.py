"""Whose weights they are: the operators of a foreign graph matched with the layers of a named network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import models, spec
from impls.spec import BatchNorm2d, Conv2d, Layer, Linear, ModelSpec, Shape
from impls.weights.checkpoints.names import CANDIDATES
from impls.weights.folding import biases_into_means, fold_batch_norm
from impls.weights.variant import epsilons, with_constants

Array = npt.NDArray[Any]
Weights = dict[str, npt.NDArray[np.float32]]

KINDS: Mapping[type[Layer], tuple[str, ...]] = {Conv2d: ("Conv",), BatchNorm2d: ("BatchNormalization",), Linear: ("Gemm", "MatMul")}


class ForeignError(ValueError):
    """A graph whose weights are no known network's; the message says what differs."""


@dataclass(frozen=True, slots=True, eq=False)
class Identified:
    """A network, its weights, and the number of the operator that each of its layers with tensors is."""

    model: ModelSpec
    weights: Weights
    numbers: Mapping[str, int]


def identify(operators: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array], name: str | None = None) -> Identified:
    """The network whose layers the operators are, with batch norm folded if they hold none, and its weights.

    Args:
        operators: as ``impls.onnx.foreign.examine`` gives them.
        arrays: likewise.
        name: the network that was meant; None tries all names.

    Raises:
        UnknownModelError: no family has the name.
        ForeignError: the operators are not this network's, or no network's.
    """
    differences: dict[str, str] = {}
    for candidate in (name,) if name else CANDIDATES:
        model = _with_classes(models.get(candidate), operators, arrays)
        if not any(each["kind"] == "BatchNormalization" for each in operators):
            model = _folded(model)
        try:
            return Identified(model, *_matched(model, operators, arrays))
        except ForeignError as error:
            differences[candidate] = str(error)
    nearest = min(differences, key=lambda each: _distance(models.get(each), arrays))
    start = f"its weights are not {name}'s" if name else f"its weights are no known network's; the nearest is {nearest}"
    raise ForeignError(f"{start}: {differences[nearest]}")


def own_constants(found: Identified, operators: Sequence[Mapping[str, Any]]) -> ModelSpec:
    """The network with the file's own epsilons, which are float32: the model's where that rounds to it, else the shortest decimal.

    Raises:
        ForeignError: batch norm was folded into the convolutions.
    """
    ours = epsilons(found.model)
    if not ours:
        raise ForeignError("its batch norms were folded into its convolutions, which cannot be undone: export it without that")
    theirs = {layer: operators[found.numbers[layer]]["epsilon"] for layer in ours}
    return with_constants(found.model, found.model.classes, {layer: through_float32(theirs[layer], ours[layer]) for layer in ours})


def through_float32(epsilon: float, usual: float) -> float:
    """The number that was meant by an epsilon that was rounded to float32: the usual one, else the shortest decimal."""
    single = np.float32(epsilon)
    return usual if np.float32(usual) == single else float(str(single))


def _with_classes(model: ModelSpec, operators: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]) -> ModelSpec:
    """The model with as many classes as the last product has outputs."""
    *_, last = [number for number, each in enumerate(operators) if each["kind"] in KINDS[Linear]] or [-1]
    if last < 0 or not isinstance(model.body[-1], Linear):
        return model
    return with_constants(model, arrays[f"{last}.weight"].shape[0], {})


def _folded(model: ModelSpec) -> ModelSpec:
    shapes = spec.tensor_shapes(model)
    return fold_batch_norm(model, {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()})[0]


def _matched(model: ModelSpec, operators: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]) -> tuple[Weights, dict[str, int]]:
    """Every layer's tensors, from the operator of its kind and shape that reads what it reads, and that operator's number.

    Where the graph is wired otherwise, which may be its fault, the next of its kind and shape is taken.
    """
    before = _before(model)
    numbers: dict[str, int] = {IMAGES: -1}
    weights: Weights = {}
    left = dict(enumerate(operators))
    for layer in (layer for layer in spec.layers(model.body) if layer.tensors()):
        fitting = [n for n, each in left.items() if each["kind"] in KINDS[type(layer)] and _fits(layer, n, arrays)]
        if not fitting:
            raise ForeignError(f"nothing in it is {layer.name} with {_said(layer.tensors())}")
        sources = sorted(numbers[name] for name in before[layer.name])
        number = next((n for n in fitting if left[n]["inputs"] == sources), fitting[0])
        numbers[layer.name] = number
        del left[number]
        weights |= {f"{layer.name}.{leaf}": _float32(arrays[f"{number}.{leaf}"]) for leaf in layer.tensors()}
        if isinstance(layer, Conv2d) and not layer.bias and f"{number}.bias" in arrays:
            weights[f"{layer.name}.bias"] = _float32(arrays[f"{number}.bias"])
    if left:
        number, surplus = next(iter(left.items()))
        shapes = {leaf: tensor.shape for name, tensor in arrays.items() if (leaf := name.removeprefix(f"{number}.")) != name}
        raise ForeignError(f"it holds a {surplus['kind']} with {_said(shapes)}, which {model.name} does not have")
    weights = biases_into_means(model, weights)
    shapes = spec.tensor_shapes(model)
    if surplus_bias := next((name for name in weights if name not in shapes), None):
        raise ForeignError(f"it holds {surplus_bias}, which {model.name} does not have, and no batch norm after it")
    del numbers[IMAGES]
    return {name: weights[name] for name in shapes}, numbers


IMAGES = "images"


def _before(model: ModelSpec) -> dict[str, frozenset[str]]:
    """The nearest layers with tensors before each layer."""
    found: dict[str, frozenset[str]] = {}

    def apply(layer: Layer, *inputs: frozenset[str]) -> frozenset[str]:
        found[layer.name] = frozenset().union(*inputs)
        return frozenset({layer.name}) if layer.tensors() else found[layer.name]

    spec.walk(model.body, apply, frozenset({IMAGES}))
    return found


def _fits(layer: Layer, number: int, arrays: Mapping[str, Array]) -> bool:
    return all(f"{number}.{leaf}" in arrays and arrays[f"{number}.{leaf}"].shape == shape for leaf, shape in layer.tensors().items())


def _float32(array: Array) -> npt.NDArray[np.float32]:
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ForeignError(f"it holds a tensor of type {array.dtype} or with NaN, where finite float32 was expected")
    return np.ascontiguousarray(array)


def _said(shapes: Mapping[str, Shape]) -> str:
    return " and ".join(f"{leaf} {tuple(shape)}" for leaf, shape in shapes.items())


def _distance(model: ModelSpec, arrays: Mapping[str, Array]) -> int:
    """How many weights of convolutions one has and the other not."""
    mine = sorted(shape for shape in spec.tensor_shapes(model).values() if len(shape) == 4)
    theirs = sorted(array.shape for array in arrays.values() if array.ndim == 4)
    return sum(abs(mine.count(shape) - theirs.count(shape)) for shape in {*mine, *theirs})
