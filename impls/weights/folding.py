"""Batch norm folded into the convolution before it: the same network in inference, with half the layers.

Done once, in float64, rounded once to float32, so every implementation and the oracle hold the same folded bytes
(Jacob et al., arXiv 1712.05877 section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from impls.spec import BatchNorm2d, Block, Conv2d, Layer, ModelSpec, Node, tensor_shapes

Weights = dict[str, npt.NDArray[np.float32]]


def fold_batch_norm(model: ModelSpec, weights: Mapping[str, npt.NDArray[np.float32]]) -> tuple[ModelSpec, Weights]:
    """The model without batch norm and the weights that go with it.

    Each convolution that a batch norm follows gets weight ``w * s`` and bias ``(b - mean) * s + beta`` with
    ``s = gamma / sqrt(var + eps)``. A batch norm that follows anything else stays. The folded convolution's tap holds
    what the batch norm's tap held.
    """
    folded: Weights = {}

    def fold_pair(conv: Conv2d, norm: BatchNorm2d) -> Conv2d:
        gamma, beta, mean, var = (
            weights[f"{norm.name}.{leaf}"].astype(np.float64) for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(var + norm.eps)
        bias = weights[f"{conv.name}.bias"].astype(np.float64) if conv.bias else 0.0
        folded[f"{conv.name}.weight"] = (weights[f"{conv.name}.weight"] * scale[:, None, None, None]).astype(np.float32)
        folded[f"{conv.name}.bias"] = ((bias - mean) * scale + beta).astype(np.float32)
        return replace(conv, bias=True)

    def keep(layer: Layer) -> Layer:
        folded.update({f"{layer.name}.{leaf}": weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors()})
        return layer

    def fold_nodes(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        result: list[Node] = []
        position = 0
        while position < len(nodes):
            node = nodes[position]
            following = nodes[position + 1] if position + 1 < len(nodes) else None
            if isinstance(node, Conv2d) and isinstance(following, BatchNorm2d):
                result.append(fold_pair(node, following))
                position += 2
                continue
            if isinstance(node, Block):
                result.append(replace(node, branches=tuple(fold_nodes(branch) for branch in node.branches)))
                for layer in node.then:
                    keep(layer)
            else:
                result.append(keep(node))
            position += 1
        return tuple(result)

    return replace(model, body=fold_nodes(model.body)), folded


def biases_into_means(model: ModelSpec, weights: Mapping[str, npt.NDArray[np.float32]]) -> Weights:
    """The weights without the biases that convolutions have before batch norm (Keras's ResNets), which are smaller running means.

    Only biases that the model does not have are taken away; each mean is rounded once.
    """
    shapes, folded = tensor_shapes(model), dict(weights)
    for conv, norm in followed(model.body):
        if f"{conv}.bias" in folded and f"{conv}.bias" not in shapes:
            mean = folded[f"{norm}.running_mean"].astype(np.float64) - folded.pop(f"{conv}.bias")
            folded[f"{norm}.running_mean"] = mean.astype(np.float32)
    return folded


def followed(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """Every convolution with the batch norm right behind it, by their names."""
    pairs: list[tuple[str, str]] = []
    for node, following in pairwise((*nodes, None)):
        if isinstance(node, Block):
            pairs += [pair for branch in node.branches for pair in followed(branch)]
        elif isinstance(node, Conv2d) and isinstance(following, BatchNorm2d):
            pairs.append((node.name, following.name))
    return pairs
