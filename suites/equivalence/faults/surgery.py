"""Pure changes of networks and weights, of which faults are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.spec import NO_PADDING, Block, Conv2d, Layer, MaxPool2d, ModelSpec, Node, Padding, Shape, layers, output_shape, walk
from suites.equivalence.faults.fault import HELPER, Array, Case, Function, Group, Images, Weights

MUTANT = "mutant"
"""The name of every changed network: no family has it, so a weight file describes it in full."""


def helper(name: str, role: str = "") -> str:
    """The name of a helper layer that stands beside the layer ``name``."""
    return f"{HELPER}{name.replace('.', '_')}{role}"


def each(kind: type[Any], where: Callable[[Any], bool] = lambda layer: True) -> Callable[[ModelSpec], tuple[Group, ...]]:
    """Finds every layer of a kind, each a group of its own."""
    return lambda model: tuple((layer.name,) for layer in layers(model.body) if isinstance(layer, kind) and where(layer))


def first_convolution(model: ModelSpec) -> tuple[Group, ...]:
    """The layer that images enter; a fault of the images shows there first."""
    return ((next(layer.name for layer in layers(model.body) if isinstance(layer, Conv2d)),),)


def last_layer(model: ModelSpec) -> tuple[Group, ...]:
    """The layer that gives the logits."""
    return ((list(layers(model.body))[-1].name,),)


def blocks(model: ModelSpec) -> tuple[Block, ...]:
    """The residual blocks in order."""
    return tuple(node for node in model.body if isinstance(node, Block))


def joins(where: Callable[[Block], bool]) -> Callable[[ModelSpec], tuple[Group, ...]]:
    """Finds the sums of the blocks that satisfy ``where``."""
    return lambda model: tuple((block.merge.name,) for block in blocks(model) if where(block))


def rewired(case: Case, change: Mapping[str, Callable[[Any], tuple[Node, ...]]]) -> Case:
    """The case with layers replaced by nodes; ``change`` goes by layer name."""
    return _with_body(case, _replaced(case.model.body, change))


def relayered(case: Case, names: Collection[str], **fields: Any) -> Case:
    """The case with other numbers in the spec of some layers."""
    return rewired(case, {name: lambda layer: (dataclasses.replace(layer, **fields),) for name in names})


def rejoined(case: Case, names: Collection[str], change: Callable[[Block], Block]) -> Case:
    """The case with the blocks changed whose sums are named."""
    return _with_body(
        case, tuple(change(node) if isinstance(node, Block) and node.merge.name in names else node for node in case.model.body)
    )


def swapped_with_next(case: Case, names: Collection[str]) -> Case:
    """The case in which each named layer and the one behind it have changed places."""

    def swap(nodes: tuple[Any, ...]) -> tuple[Any, ...]:
        result: list[Any] = []
        waiting: Layer | None = None
        for node in nodes:
            if isinstance(node, Block):
                result.append(dataclasses.replace(node, branches=tuple(swap(branch) for branch in node.branches), then=swap(node.then)))
            elif node.name in names:
                waiting = node
                continue
            else:
                result.append(node)
            if waiting is not None:
                result.append(waiting)
                waiting = None
        return tuple(result)

    return _with_body(case, swap(case.model.body))


def followed_by(first: type[Any], second: type[Any]) -> Callable[[ModelSpec], tuple[Group, ...]]:
    """Finds the layers of one kind that a layer of another follows directly."""

    def search(nodes: tuple[Any, ...]) -> list[Group]:
        found: list[Group] = []
        for node, following in pairwise((*nodes, None)):
            if isinstance(node, Block):
                for branch in (*node.branches, node.then):
                    found += search(branch)
            elif isinstance(node, first) and isinstance(following, second):
                found.append((node.name,))
        return found

    return lambda model: tuple(search(model.body))


def passed_on(layer: Layer) -> tuple[Node, ...]:
    """A layer of the same name that does nothing."""
    return (MaxPool2d(layer.name, 1, 1, NO_PADDING),)


def with_tensors(case: Case, tensors: Mapping[str, Array]) -> Case:
    """The case with some tensors exchanged or added; rounded once to float32, where a faulty one may overflow."""
    with np.errstate(over="ignore"):
        made: Weights = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    return dataclasses.replace(case, weights=case.weights | made)


def changed(case: Case, names: Collection[str], leaf: str, change: Callable[[Array], Array]) -> Case:
    """The case with one tensor of each named layer made anew from the old one, in float64."""
    return with_tensors(case, {f"{name}.{leaf}": change(case.weights[f"{name}.{leaf}"].astype(np.float64)) for name in names})


def with_images(case: Case, change: Callable[[Array], Array]) -> Case:
    """The case with images made anew from the old ones, in float64."""
    made: Images = np.ascontiguousarray(change(case.images.astype(np.float64)), np.float32)
    return dataclasses.replace(case, images=made)


def with_functions(case: Case, names: Collection[str], function: Function) -> Case:
    """The case in which the named layers compute something else."""
    return dataclasses.replace(case, instead={**case.instead, **dict.fromkeys(names, function)})


def doubled(case: Case, names: Collection[str]) -> Case:
    """The case in which the blocks with the named layers are applied twice; the second application has the names."""
    tensors: dict[str, Array] = {}

    def copy(node: Any) -> Any:
        if isinstance(node, Block):
            branches = tuple(tuple(copy(child) for child in branch) for branch in node.branches)
            return Block(helper(node.name), branches, copy(node.merge), tuple(copy(child) for child in node.then))
        tensors.update({f"{helper(node.name)}.{leaf}": case.weights[f"{node.name}.{leaf}"] for leaf in node.tensors()})
        return dataclasses.replace(node, name=helper(node.name))

    body: list[Node] = []
    for node in case.model.body:
        if isinstance(node, Block) and any(layer.name in names for layer in layers((node,))):
            body.append(copy(node))
        body.append(node)
    return with_tensors(_with_body(case, tuple(body)), tensors)


def per_channel(
    name: str, channels: int, kernel: int, stride: int, padding: Padding, taps: npt.ArrayLike
) -> tuple[Conv2d, dict[str, Array]]:
    """A convolution that treats each channel alone, with the same (kernel, kernel) ``taps``, and its weight."""
    weight = np.zeros((channels, channels, kernel, kernel))
    weight[np.arange(channels), np.arange(channels)] = np.asarray(taps, np.float64)
    return Conv2d(name, channels, channels, kernel, stride, padding, bias=False), {f"{name}.weight": weight}


def entering(case: Case, name: str) -> Shape:
    """Shape of what enters a layer."""
    shapes: dict[str, Shape] = {}

    def apply(layer: Layer, *inputs: Shape) -> Shape:
        shapes[layer.name] = inputs[0]
        return output_shape(layer, *inputs)

    walk(case.model.body, apply, case.images.shape)
    return shapes[name]


def _with_body(case: Case, body: tuple[Node, ...]) -> Case:
    return dataclasses.replace(case, model=dataclasses.replace(case.model, name=MUTANT, body=body))


def _replaced(nodes: tuple[Any, ...], change: Mapping[str, Callable[[Any], tuple[Node, ...]]]) -> tuple[Any, ...]:
    result: list[Any] = []
    for node in nodes:
        if isinstance(node, Block):
            branches = tuple(_replaced(branch, change) for branch in node.branches)
            result.append(dataclasses.replace(node, branches=branches, then=_replaced(node.then, change)))
        elif node.name in change:
            result += change[node.name](node)
        else:
            result.append(node)
    return tuple(result)
