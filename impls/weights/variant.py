"""A named network as somebody's checkpoint has it: the same structure with another epsilon, number of classes, or size of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from impls.spec import BatchNorm2d, Block, Linear, ModelSpec, Node, SpecError, layers, tap_shapes

T = TypeVar("T", bound=Node)

SIDES = (64, 1024)
"""Least and most pixels of a side of images that are not of the model's own size. Of fewer, networks for ImageNet make maps of one element;
of more, no published accuracy of theirs is."""


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


def for_images_of(model: ModelSpec, height: int, width: int) -> ModelSpec:
    """The network for images of this size, of which it then is computed, certified and timed.

    Networks that average their last map, whatever its size, take other images than their own; not those for CIFAR's 32 x 32, and not
    VGG and AlexNet, whose first linear layer sees every element of the map.

    Raises:
        SpecError: the model takes no such images.
    """
    if (height, width) == model.input_chw[1:]:
        return model
    least, most = SIDES
    others = ""
    if min(model.input_chw[1:]) >= least and _takes(model, least):
        if least <= min(height, width) and max(height, width) <= most:
            return replace(model, input_chw=(model.input_chw[0], height, width))
        others = f", or others of {least} to {most} pixels a side"
    own = "{} x {}".format(*model.input_chw[1:])
    raise SpecError(f"{model.name} takes images of {own}{others}; not of {height} x {width}")


def _takes(model: ModelSpec, side: int) -> bool:
    try:
        tap_shapes(model, 1, side, side)
    except SpecError:
        return False
    return True


def epsilons(model: ModelSpec) -> dict[str, float]:
    """The epsilon of every batch norm by its name."""
    return {layer.name: layer.eps for layer in layers(model.body) if isinstance(layer, BatchNorm2d)}


def constants(model: ModelSpec) -> str:
    """Size of images, classes and epsilons for people."""
    (height, width), found = model.input_chw[1:], sorted(set(epsilons(model).values()))
    sizes = f"images of {height} x {width}, {model.classes} classes"
    return sizes + (f", epsilon {' and '.join(map(str, found))}" if found else "")
