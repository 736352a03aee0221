"""One file per family; a model is found here by its name."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from impls.models import alexnet, googlenet, resnet, vgg
from impls.spec import Block, Dropout, ModelSpec, layers

NAMES: tuple[str, ...] = (*resnet.NAMES, *vgg.NAMES, *googlenet.NAMES, *alexnet.NAMES)
"""Every model with a name of its own; CIFAR nets of other depths (6n + 2) and ImageNet nets with other shortcuts are built too."""


class UnknownModelError(ValueError):
    """No model has this name; the message holds the nearest that does."""


def get(name: str) -> ModelSpec:
    """The model called ``name``, for example ``resnet50``, ``resnet50_v1``, ``cifar_resnet56_b``, ``vgg16_bn``.

    Raises:
        UnknownModelError: no family knows the name.
    """
    for parse in (resnet.parse, vgg.parse, googlenet.parse, alexnet.parse):
        if (model := parse(name)) is not None:
            return model
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)
    raise UnknownModelError(f"there is no model {name!r}; the nearest is {near[0]!r}; `levelfield models` lists all")


def in_training(model: ModelSpec) -> ModelSpec:
    """The network that is trained where this one is asked for: with its auxiliary heads and without dropout.

    The model itself where it has neither, else one of another name, since it is another network. Dropout is off because every framework
    draws its own: two of them never take the same step.
    """
    trained = googlenet.with_heads(model) if model.name in googlenet.NAMES else model
    if any(isinstance(layer, Dropout) for layer in layers(trained.body)):
        trained = replace(trained, body=_without_dropout(trained.body))
    return model if trained is model else replace(trained, name=f"{model.name} in training")


def _without_dropout(nodes: tuple[Any, ...]) -> tuple[Any, ...]:
    def kept(node: Any) -> Any:
        if not isinstance(node, Block):
            return node
        return replace(node, branches=tuple(map(_without_dropout, node.branches)), then=_without_dropout(node.then))

    return tuple(kept(node) for node in nodes if not isinstance(node, Dropout))
