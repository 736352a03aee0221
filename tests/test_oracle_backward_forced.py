"""The teacher-forced backward pass on a simulated implementation: each layer judged alone, ties by their sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models, spec
from impls.oracle.backward import Pullback, scatter, tied, vjp, winners
from impls.oracle.backward_forced import Forced, forced, settled
from impls.oracle.rounding import round_to
from impls.oracle.training import EXACT, Derivatives, Operations, differentiate
from impls.spec import BatchNorm2d, Conv2d, Layer, MaxPool2d
from tests.float32_training import operations, pairwise, sequential
from tests.test_oracle_backward_rounding import allowed, rms
from tests.test_oracle_training import BOTTLENECK, SMOOTHING, batch, generic

Array = npt.NDArray[Any]
MODELS = {"bottleneck": BOTTLENECK, "cifar_resnet8": models.get("cifar_resnet8")}


def judged(name: str, found: Derivatives, precision: str = "fp32") -> Forced:
    """What the oracle expects of a simulated run on a batch of four."""
    model = MODELS[name]
    images, labels = batch(model, 4)
    return forced(model, generic(model), images, labels, SMOOTHING, found.taps, found.cotangents, precision)


def run(name: str, how: Operations) -> Derivatives:
    """A simulated run; every cotangent is stored in float32."""
    model = MODELS[name]
    found = differentiate(model, generic(model), *batch(model, 4), SMOOTHING, operations=how)
    stored = {tap: cotangent.astype(np.float32).astype(np.float64) for tap, cotangent in found.cotangents.items()}
    return replace(found, cotangents=stored)


def zs(name: str, found: Derivatives, precision: str = "fp32") -> dict[str, float]:
    """Rms z of everything, by the name of tap or tensor."""
    expected = judged(name, found, precision)
    assert list(expected.cotangents) == list(found.cotangents)
    assert list(expected.gradients) == list(found.gradients)
    everything = {tap: rms(expected.cotangents[tap].z(value)) for tap, value in found.cotangents.items()}
    everything |= {tensor: rms(expected.gradients[tensor].z(value)) for tensor, value in found.gradients.items()}
    return everything | {"loss": rms(expected.loss.z(np.array(found.loss)))}


@cache
def correct(name: str) -> Derivatives:
    """A correct run in float32."""
    return run(name, operations(pairwise))


@pytest.mark.parametrize("total", [sequential, pairwise])
@pytest.mark.parametrize("name", MODELS)
def test_a_correct_run(name: str, total: Any) -> None:
    """Every cotangent, gradient and the loss lie within the noise."""
    found = zs(name, run(name, operations(total)))
    channels = dict.fromkeys(found, 10_000) | {tensor: shape[0] for tensor, shape in spec.tensor_shapes(MODELS[name]).items()}
    shapes = spec.tap_shapes(MODELS[name], 4, 20, 18)
    assert all(z < allowed(shapes[key][1] if key in shapes else 1 if key == "loss" else channels[key]) for key, z in found.items()), found


@pytest.mark.parametrize("name", MODELS)
def test_teacher_forcing_the_oracle(name: str) -> None:
    """From its own taps and cotangents the free backward pass comes out again, to the last bit."""
    model = MODELS[name]
    images, labels = batch(model, 4)
    free = differentiate(model, generic(model), images, labels, SMOOTHING)
    expected = judged(name, free, "fp64")
    assert expected.loss.value == free.loss
    for tap, cotangent in free.cotangents.items():
        np.testing.assert_array_equal(expected.cotangents[tap].value, settled(cotangent, expected.cotangents[tap].tied))
        assert not expected.cotangents[tap].z(cotangent).any()
    for tensor, gradient in free.gradients.items():
        np.testing.assert_array_equal(expected.gradients[tensor].value, gradient)


def in_one_layer(layer: str, other: Operations) -> Operations:
    """A correct run in which one layer goes backward otherwise."""
    right = operations(pairwise)

    def back(node: Layer, *arguments: Any) -> Pullback:
        return (other if node.name == layer else right).vjp(node, *arguments)

    return replace(right, vjp=back)


def test_one_layer_in_tf32_is_the_one_that_fails() -> None:
    """The input's cotangent and the weight's gradient of that layer, and nothing else."""
    found = zs("cifar_resnet8", run("cifar_resnet8", in_one_layer("layer2.0.conv2", operations(pairwise, lambda a: round_to(a, "tf32")))))
    assert {key for key, z in found.items() if z > allowed(16)} == {"layer2.0.relu1", "layer2.0.conv2.weight"}
    assert min(found["layer2.0.relu1"], found["layer2.0.conv2.weight"]) > 50


def test_a_run_in_tf32() -> None:
    """All products in TF32 lie at 1 in tf32's noise, and far outside fp32's."""
    found = run("cifar_resnet8", operations(pairwise, lambda a: round_to(a, "tf32")))
    products = [f"{layer.name}.weight" for layer in spec.layers(MODELS["cifar_resnet8"].body) if isinstance(layer, Conv2d)]
    as_tf32, as_fp32 = zs("cifar_resnet8", found, "tf32"), zs("cifar_resnet8", found)
    assert all(0.7 < as_tf32[name] < 1.4 for name in products), as_tf32
    assert all(as_fp32[name] > 30 for name in products), as_fp32


def constants(layer: Layer, inputs: Any, output: Array, cotangent: Array, tensors: Any) -> Pullback:
    """Batch norm whose statistics are not differentiated."""
    right = vjp(layer, inputs, output, cotangent, tensors)
    assert isinstance(layer, BatchNorm2d)
    scale = tensors["weight"] / np.sqrt(inputs[0].var(axis=(0, 2, 3)) + layer.eps)
    return Pullback((cotangent * scale[:, None, None],), right.parameters)


def turned(layer: Layer, inputs: Any, output: Array, cotangent: Array, tensors: Any) -> Pullback:
    """A convolution back through transposed kernels."""
    return vjp(layer, inputs, output, cotangent, {**tensors, "weight": tensors["weight"].swapaxes(2, 3)})


def half_open(layer: Layer, inputs: Any, output: Array, cotangent: Array, tensors: Any) -> Pullback:
    """A ReLU that lets through where its output is not negative."""
    return Pullback((np.where(output >= 0, cotangent, 0.0),), {})


def weaker(layer: Layer, inputs: Any, output: Array, cotangent: Array, tensors: Any) -> Pullback:
    """A sum that gives its first branch a thousandth less."""
    return Pullback((cotangent * 0.999, cotangent), {})


@pytest.mark.parametrize(
    ("layer", "fault", "fails"),
    [
        ("layer2.0.bn2", constants, "layer2.0.conv2"),
        ("layer2.0.conv2", turned, "layer2.0.relu1"),
        ("layer2.0.relu1", half_open, "layer2.0.bn1"),
        ("layer2.0.add", weaker, "layer2.0.bn2"),
    ],
)
def test_a_fault_is_found_where_it_is(layer: str, fault: Callable[..., Pullback], fails: str) -> None:
    """Only the cotangent that the faulty layer made differs."""
    found = zs("cifar_resnet8", run("cifar_resnet8", in_one_layer(layer, replace(EXACT, vjp=fault))))
    assert {key for key, z in found.items() if not z < allowed(16)} == {fails}
    assert found[fails] > 100


def test_ties_are_compared_by_their_sum() -> None:
    """Another choice among equals is right; a cotangent that is lost, doubled or given to a smaller element is not."""
    model, found = MODELS["bottleneck"], correct("bottleneck")
    layer = next(node for node in spec.layers(model.body) if isinstance(node, MaxPool2d))
    x, g = found.taps["relu1"], found.cotangents["maxpool"]
    assert 0 < np.count_nonzero(tied(layer, x)) < x.size / 2
    places, first = last_in_window(layer, x), winners(layer, x)
    assert np.count_nonzero(places != first) > 10
    expected = judged("bottleneck", found).cotangents["relu1"]
    other = scatter(layer, places, g, x.shape)
    assert np.count_nonzero(other != found.cotangents["relu1"]) > 10
    assert rms(expected.z(other)) < 1
    one = tuple(np.argwhere((places != first) & (g != 0))[0])
    for factor in (0.0, 2.0):
        wrong = g.copy()
        wrong[one] *= factor
        assert np.abs(expected.z(scatter(layer, first, wrong, x.shape))).max() > 1e4
    assert np.abs(expected.z(scatter(layer, np.full(first.shape, 4), g, x.shape))).max() > 1e4


def last_in_window(layer: MaxPool2d, x: Array) -> Array:
    """Position of the last maximum of every window."""
    pad = layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad.top, pad.bottom), (pad.left, pad.right)), constant_values=-np.inf)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (layer.kernel, layer.kernel), axis=(2, 3))
    flat = seen[:, :, :: layer.stride, :: layer.stride].reshape(*winners(layer, x).shape, -1)
    last: Array = flat.shape[-1] - 1 - np.argmax(flat[..., ::-1], axis=-1)
    return last


def test_settling() -> None:
    """The sum of a plane's ties stands in the first of them."""
    array = np.arange(8.0).reshape(1, 2, 2, 2)
    marks = np.array([[[[False, True], [True, False]], [[False, False], [False, False]]]])
    np.testing.assert_array_equal(settled(array, marks), [[[[0, 3], [0, 3]], [[4, 5], [6, 7]]]])
    assert settled(array, None) is array


def test_an_error_where_none_is_allowed_is_infinite() -> None:
    """Behind a mask equality is demanded."""
    found = correct("cifar_resnet8")
    expected = judged("cifar_resnet8", found).cotangents["layer2.0.bn1"]
    wrong = found.cotangents["layer2.0.bn1"].copy()
    stopped = tuple(np.argwhere(wrong == 0)[0])
    wrong[stopped] = 1e-20
    assert np.isinf(expected.z(wrong)[stopped])
    wrong[stopped] = np.nan
    assert np.isnan(expected.z(wrong)[stopped])
