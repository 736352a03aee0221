"""Weights that training starts from: the same bytes on every machine, whatever framework trains."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from impls.spec import BatchNorm2d, Conv2d, Linear, ModelSpec, layers
from impls.weights.synthesis import Float32, normal


def initialize(model: ModelSpec, seed: int) -> dict[str, Float32]:
    """Fresh weights: canonical names, topological order, float32 in canonical layout.

    Kernels are normal with standard deviation sqrt(2 / fan_out), fan_out = out_channels * kernel**2 (He et al.,
    arXiv 1502.01852, equation 14; torchvision 0.28 ``models/resnet.py``); ``fc`` with 1 / sqrt(in_features), which gives logits the
    second moment of its inputs. Biases 0; batch norm begins as the identity: gamma 1, beta 0, mean 0, variance 1.
    "Normal" and the dependence on (seed, tensor name) are those of ``impls.weights.synthesis``.
    """
    return dict(_tensors(model, seed))


def _tensors(model: ModelSpec, seed: int) -> Iterator[tuple[str, Float32]]:
    for layer in layers(model.body):
        for leaf, shape in layer.tensors().items():
            name = f"{layer.name}.{leaf}"
            match layer:
                case Conv2d() if leaf == "weight":
                    sd = math.sqrt(2 / (layer.out_channels * layer.kernel**2))
                    yield name, normal(seed, name, math.prod(shape), sd).reshape(shape)
                case Linear() if leaf == "weight":
                    yield name, normal(seed, name, math.prod(shape), 1 / math.sqrt(layer.in_features)).reshape(shape)
                case BatchNorm2d() if leaf in ("weight", "running_var"):
                    yield name, np.ones(shape, np.float32)
                case _:
                    yield name, np.zeros(shape, np.float32)
