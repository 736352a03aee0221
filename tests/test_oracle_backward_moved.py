"""What a max-pool that takes another element changes in the kernel in front: held to whole backward passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models
from impls.oracle.backward_masks import Edge, flipped
from impls.oracle.backward_moved import kernel_in_front, moved, winner
from impls.oracle.training import Derivatives, differentiate, wiring
from impls.spec import NO_PADDING, BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ModelSpec, Padding, Relu, layers
from impls.weights.synthesis import synthesize

Array = npt.NDArray[Any]


def vgg() -> ModelSpec:
    """Two pools as VGG has them: behind a convolution with a bias and a ReLU, and directly behind another pool."""
    around = Padding.same_on_all_sides(1)
    body = (
        Conv2d("conv", 3, 4, 3, 1, around, True),
        Relu("relu"),
        MaxPool2d("pool", 2, 2, NO_PADDING),
        MaxPool2d("again", 3, 1, around),
        Flatten("flatten", 4, 8, 8),
        Linear("fc", 256, 5),
    )
    return ModelSpec("small", (3, 16, 16), 5, body, "")


MODELS = {
    "vgg": (vgg(), 16),
    "resnet18": (models.get("resnet18"), 64),
    "googlenet": (models.in_training(models.get("googlenet")), 64),
}


def run(name: str, masks: dict[str, Array] | None = None) -> tuple[ModelSpec, dict[str, Array], Array, Derivatives]:
    model, side = MODELS[name]
    generator = np.random.default_rng(1)
    images = generator.standard_normal((2, 3, side, side))
    weights = {key: array.astype(np.float64) for key, array in synthesize(model, 0).items()}
    return model, weights, images, differentiate(model, weights, images, np.array([0, 1]), 0.0, masks=masks)


def nearest(layer: MaxPool2d, x: Array, cotangents: Array) -> Edge:
    """Of some windows that pass something on the one whose two largest values are closest, taking the second."""
    generator = np.random.default_rng(2)
    found = []
    for _ in range(300):
        window = tuple(int(generator.integers(size)) for size in cotangents.shape)
        first = winner(layer, x, window)
        if x[first] > 0 and cotangents[window]:
            other = np.array(x)
            other[first] = -np.inf
            second = winner(layer, other, window)
            if 0 < other[second] < x[first]:
                found.append(
                    Edge(layer.name, window, float(x[first] - x[second]), "", second, float(np.nextafter(float(x[first]), np.inf)))
                )
    return min(found, key=lambda edge: edge.margin)


@pytest.mark.parametrize("name", MODELS)
def test_every_pool_moves_the_kernel_in_front(name: str) -> None:
    """By what a whole backward pass with the pool's other decision says: behind a ReLU, batch norm, a concatenation and another pool.

    The decisions are an implementation's, in float32.
    """
    model, weights, images, exact = run(name)
    masks = {key: tap.astype(np.float32) for key, tap in exact.taps.items()}
    _, _, _, before = run(name, masks)
    nodes = {node.layer.name: node for node in wiring(model)}
    pools = [layer for layer in layers(model.body) if isinstance(layer, MaxPool2d)]
    assert pools
    for layer in pools:
        (mask,) = nodes[layer.name].inputs
        assert mask is not None
        edge = nearest(layer, masks[mask], before.cotangents[layer.name])
        places = moved(layer, masks[mask], before.cotangents[layer.name], edge.element, edge.value)
        kernel = kernel_in_front(nodes, images, before.taps, masks, weights, mask, places)
        assert kernel is not None
        edge = Edge(edge.layer, edge.index, edge.margin, mask, edge.element, edge.value)
        _, _, _, after = run(name, flipped(masks, [edge]))
        change = after.gradients[kernel.weight] - before.gradients[kernel.weight]
        size = np.abs(change[kernel.channel]).max()
        assert size > 0, layer.name
        np.testing.assert_allclose(kernel.moved, change[kernel.channel], atol=0.01 * size, err_msg=layer.name)
        others = np.delete(change, kernel.channel, axis=0)
        assert np.abs(others).max() <= 0.01 * size, layer.name


def test_a_pool_of_the_images_moves_no_kernel() -> None:
    """Nor does one behind a sum."""
    pool = MaxPool2d("pool", 2, 2, NO_PADDING)
    body = (BatchNorm2d("bn", 3, 1e-5, 0.1, "unbiased"), pool, Flatten("flatten", 3, 2, 2), Linear("fc", 12, 5))
    model = ModelSpec("small", (3, 4, 4), 5, body, "")
    nodes = {node.layer.name: node for node in wiring(model)}
    weights = {key: array.astype(np.float64) for key, array in synthesize(model, 0).items()}
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    taps = differentiate(model, weights, images, np.array([0, 1]), 0.0).taps
    assert kernel_in_front(nodes, images, taps, taps, weights, "bn", {(0, 1, 2, 2): 1.0}) is None
    model = models.get("cifar_resnet8")
    weights = {key: array.astype(np.float64) for key, array in synthesize(model, 0).items()}
    taps = differentiate(model, weights, images, np.array([0, 1]), 0.0).taps
    summed = {node.layer.name: node for node in wiring(model)}
    assert kernel_in_front(summed, images, taps, taps, weights, "layer1.0.add", {(0, 1, 2, 2): 1.0}) is None
