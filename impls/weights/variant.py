"""A named network with the constants of somebody's checkpoint: the same structure with another epsilon, or another number of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from impls.spec import BatchNorm2d, Block, Linear, ModelSpec, Node, layers

T = TypeVar("T", bound=Node)


def with_constants(model: ModelSpec, classes: int, epsilons: Mapping[str, float]) -> ModelSpec:
    """The model with so many classes, and with these epsilons in the batch norms of these names.

    What gives as many numbers as the model has classes is taken for a classifier.
    """

    def changed(node: T) -> T:
        if isinstance(node, Block):
            branches = tuple(tuple(changed(child) for child in branch) for branch in node.branches)
            return replace(node, branches=branches, then=tuple(changed(child) for child in node.then))
        if isinstance(node, BatchNorm2d):
            return replace(node, eps=epsilons.get(node.name, node.eps))
        if isinstance(node, Linear) and node.out_features == model.classes:
            return replace(node, out_features=classes)
        return node

    return replace(model, classes=classes, body=tuple(changed(node) for node in model.body))


def epsilons(model: ModelSpec) -> dict[str, float]:
    """The epsilon of every batch norm by its name."""
    return {layer.name: layer.eps for layer in layers(model.body) if isinstance(layer, BatchNorm2d)}


def constants(model: ModelSpec) -> str:
    """Classes and epsilons for people."""
    found = sorted(set(epsilons(model).values()))
    return f"{model.classes} classes" + (f", epsilon {' and '.join(map(str, found))}" if found else "")
