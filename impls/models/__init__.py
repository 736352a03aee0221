"""One file per family; a model is found here by its name."""

from __future__ import annotations

import difflib

from impls.models import alexnet, googlenet, resnet, vgg
from impls.spec import ModelSpec

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
