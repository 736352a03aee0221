"""The oracle against a reference of plain Python loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impls import models, spec
from impls.oracle.forward import WeightsError, evaluate, forward, multiply, taps
from impls.spec import (
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    Padding,
    PadShortcut,
    Relu,
)
from impls.weights.folding import fold_batch_norm

Array = npt.NDArray[np.float64]


def generic_weights(model: ModelSpec, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Weights in generic position: every parameter has an effect."""
    generator = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in spec.tensor_shapes(model).items():
        if name.endswith("running_var"):
            value = generator.uniform(0.5, 2.0, shape)
        elif len(shape) > 1:
            value = (generator.random(shape, dtype=np.float32) - 0.5) * np.sqrt(24 / np.prod(shape[1:]))
        else:
            value = generator.uniform(0.5, 1.5, shape) if name.endswith(".weight") else generator.normal(0, 0.2, shape)
        weights[name] = value.astype(np.float32)
    return weights


def by_loops(layer: Layer, inputs: tuple[Array, ...], tensors: dict[str, Array]) -> Array:
    """One output element at a time, from the definitions in ``impls.spec``."""
    x = inputs[0]
    output = np.zeros(spec.output_shape(layer, *(i.shape for i in inputs)))
    for index in np.ndindex(output.shape):
        n, c = index[:2]
        match layer:
            case Conv2d() | MaxPool2d():
                window = []
                for i, j in itertools.product(range(layer.kernel), repeat=2):
                    row, column = index[2] * layer.stride + i - layer.padding.top, index[3] * layer.stride + j - layer.padding.left
                    if not (0 <= row < x.shape[2] and 0 <= column < x.shape[3]):
                        continue
                    if isinstance(layer, MaxPool2d):
                        window.append(x[n, c, row, column])
                    else:
                        window += [x[n, k, row, column] * tensors["weight"][c, k, i, j] for k in range(x.shape[1])]
                output[index] = max(window) if isinstance(layer, MaxPool2d) else sum(window) + (tensors["bias"][c] if layer.bias else 0)
            case BatchNorm2d():
                root = (tensors["running_var"][c] + layer.eps) ** 0.5
                output[index] = (x[index] - tensors["running_mean"][c]) / root * tensors["weight"][c] + tensors["bias"][c]
            case Relu():
                output[index] = x[index] if x[index] > 0 else 0
            case GlobalAvgPool2d():
                output[index] = sum(x[n, c].flat) / x[n, c].size
            case AdaptiveAvgPool2d():
                rows, columns = (
                    range(place * length // layer.size, math.ceil((place + 1) * length / layer.size))
                    for place, length in zip(index[2:], x.shape[2:], strict=True)
                )
                output[index] = sum(x[n, c, i, j] for i in rows for j in columns) / (len(rows) * len(columns))
            case Flatten():
                area = layer.height * layer.width
                output[index] = x[n, c // area, c % area // layer.width, c % layer.width]
            case Dropout():
                output[index] = x[index]
            case Linear():
                output[index] = sum(x[n, k] * tensors["weight"][c, k] for k in range(x.shape[1])) + tensors["bias"][c]
            case PadShortcut():
                source = c - layer.channels_before
                if 0 <= source < x.shape[1]:
                    output[index] = x[n, source, index[2] * layer.stride, index[3] * layer.stride]
            case Add():
                output[index] = sum(i[index] for i in inputs)
            case Concat():
                channels = [channel for i in inputs for channel in i[n]]
                output[index] = channels[c][index[2:]]
    return output


def agrees(layer: Layer, *shapes: tuple[int, ...]) -> None:
    """Assert that the oracle's layer is the definition on random inputs, and leaves them alone."""
    generator = np.random.default_rng(0)
    inputs = tuple(generator.normal(size=shape) for shape in shapes)
    tensors = {leaf: generator.uniform(0.5, 1.5, shape) * generator.choice((-1, 1), shape) for leaf, shape in layer.tensors().items()}
    if "running_var" in tensors:
        tensors["running_var"] = np.abs(tensors["running_var"])
    expected = by_loops(layer, inputs, tensors)
    before = [i.copy() for i in inputs]
    actual = evaluate(layer, inputs, tensors)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    assert all(np.array_equal(i, b) for i, b in zip(inputs, before, strict=True))


@settings(max_examples=40, derandomize=True)
@given(
    kernel=st.sampled_from([1, 2, 3, 7]),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    size=st.tuples(st.integers(7, 9), st.integers(7, 10)),
    bias=st.booleans(),
)
def test_convolution(kernel: int, stride: int, pads: tuple[int, int, int, int], size: tuple[int, int], bias: bool) -> None:
    """Convolution is the definition, for odd and even sizes, non-square images and four unequal paddings."""
    agrees(Conv2d("c", 2, 3, kernel, stride, Padding(*pads), bias), (2, 2, *size))


@settings(max_examples=30, derandomize=True)
@given(
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    size=st.tuples(st.integers(3, 7), st.integers(3, 8)),
)
def test_max_pool(kernel: int, stride: int, pads: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """A pad is never the maximum, also where all values are negative."""
    layer = MaxPool2d("p", kernel, stride, Padding(*pads))
    agrees(layer, (2, 3, *size))
    assert np.all(evaluate(layer, (np.full((1, 1, *size), -5.0),), {}) == -5.0)


@pytest.mark.parametrize("widened", [1, 5, 12, 1000])
def test_matrices_are_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch, widened: int) -> None:
    """Whatever part of a float32 matrix is widened at a time, the product is that of float64; of float32 alone it stays float32."""
    generator = np.random.default_rng(3)
    x, weight = generator.normal(size=(2, 4)), generator.normal(size=(7, 4)).astype(np.float32)
    monkeypatch.setattr("impls.oracle.forward.WIDENED", widened)
    product = multiply(x, weight)
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, x @ weight.astype(np.float64).T, rtol=1e-14)
    assert multiply(x.astype(np.float32), weight).dtype == np.float32


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (BatchNorm2d("b", 3, 0.1, 0.1, "unbiased"), [(2, 3, 4, 5)]),
        (Relu("r"), [(2, 3, 4, 5)]),
        (GlobalAvgPool2d("g"), [(2, 3, 3, 5)]),
        (AdaptiveAvgPool2d("g", 4), [(2, 2, 7, 5)]),
        (AdaptiveAvgPool2d("g", 4), [(2, 2, 3, 14)]),
        (Concat("l"), [(2, 3), (2, 4)]),
        (Flatten("f", 3, 4, 5), [(2, 3, 4, 5)]),
        (Dropout("d", 0.5), [(2, 4)]),
        (Linear("l", 4, 3), [(2, 4)]),
        (PadShortcut("s", 2, 1, 2), [(2, 3, 5, 4)]),
        (PadShortcut("s", 1, 0, 3), [(1, 2, 3, 3)]),
        (Add("a"), [(2, 3, 4, 5)] * 2),
        (Add("a"), [(2, 3, 4, 5)] * 3),
        (Concat("a"), [(2, 3, 4, 5), (2, 1, 4, 5), (2, 2, 4, 5)]),
    ],
)
def test_other_layers(layer: Layer, shapes: list[tuple[int, ...]]) -> None:
    """Every other kind of layer is its definition."""
    agrees(layer, *shapes)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_resnet8_b", "cifar_resnet8_c", "cifar_plain8", "resnet18", "resnet50_v1"])
def test_taps_are_those_of_the_spec(name: str) -> None:
    """Names, order and shapes of the taps are the spec's, at a size that is odd and not square; the last tap is the logits."""
    model = models.get(name)
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 33, 46), dtype=np.uint8)
    weights = generic_weights(model)
    outputs = taps(model, weights, images)
    assert [(k, v.shape) for k, v in outputs.items()] == list(spec.tap_shapes(model, 2, 33, 46).items())
    assert all(v.dtype == np.float64 and np.isfinite(v).all() and np.ptp(v) > 0 for v in outputs.values())
    assert np.array_equal(forward(model, weights, images), outputs["fc"])


def test_kept_taps_are_not_written_again() -> None:
    """A tap holds the same values after the forward pass as when it was handed over."""
    model = models.get("cifar_resnet8_b")
    kept: list[tuple[Array, Array]] = []
    images = np.random.default_rng(1).normal(size=(1, 3, 16, 16))
    forward(model, generic_weights(model), images, tap=lambda _, value: kept.append((value, value.copy())))
    assert len(kept) == len(list(spec.layers(model.body)))
    assert all(np.array_equal(now, then) for now, then in kept)


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Logits of an image alone are those in a batch."""
    model = models.get("cifar_resnet8")
    weights, images = generic_weights(model), np.random.default_rng(2).normal(size=(3, 3, 32, 32))
    together = forward(model, weights, images)
    np.testing.assert_allclose(forward(model, weights, images[1:2]), together[1:2], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_resnet14_b", "resnet18"])
def test_folding_is_the_same_function(name: str) -> None:
    """A net with batch norm folded gives the same logits, up to the one rounding of the folded weights to float32."""
    model = models.get(name)
    weights = generic_weights(model)
    images = np.random.default_rng(3).normal(size=(1, 3, 32, 32))
    plain = forward(model, weights, images)
    folded_model, rounded = fold_batch_norm(model, weights)
    np.testing.assert_allclose(forward(folded_model, rounded, images), plain, atol=2e-5 * np.abs(plain).max())
    # The same fold without the rounding: identity to 1e-12.
    exact = dict[str, npt.NDArray[np.float64]]({k: v.astype(np.float64) for k, v in rounded.items()})
    nodes = list(spec.layers(model.body))
    for conv, norm in itertools.pairwise(nodes):
        if isinstance(conv, Conv2d) and isinstance(norm, BatchNorm2d):
            gamma, beta, mean, var = (
                weights[f"{norm.name}.{leaf}"].astype(np.float64) for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / np.sqrt(var + norm.eps)
            exact[f"{conv.name}.weight"] = weights[f"{conv.name}.weight"] * scale[:, None, None, None]
            exact[f"{conv.name}.bias"] = beta - mean * scale
    np.testing.assert_allclose(forward(folded_model, exact, images), plain, atol=1e-12 * np.abs(plain).max())


def test_integers_come_out_exact() -> None:
    """Integer weights and images give the integers that 64-bit integer arithmetic gives."""
    generator = np.random.default_rng(4)
    layer = Conv2d("c", 5, 4, 3, 2, Padding(0, 1, 1, 0), bias=True)
    x, w, b = generator.integers(-99, 99, (2, 5, 9, 8)), generator.integers(-99, 99, (4, 5, 3, 3)), generator.integers(-99, 99, 4)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (1, 0)))
    expected = sum(
        np.einsum("oc,nchw->nohw", w[:, :, i, j], padded[:, :, i : i + 7 : 2, j : j + 7 : 2]) for i in range(3) for j in range(3)
    )
    actual = evaluate(layer, (x.astype(float),), {"weight": w.astype(float), "bias": b.astype(float)})
    assert np.array_equal(actual, expected + b[:, None, None])


def test_unfit_input_is_named() -> None:
    """Missing and misshapen tensors and wrong images are refused with the name of the culprit."""
    model = models.get("cifar_resnet8")
    weights, images = generic_weights(model), np.zeros((1, 3, 32, 32))
    without = {k: v for k, v in weights.items() if k != "layer2.0.conv1.weight"}
    with pytest.raises(WeightsError, match=r"layer2\.0\.conv1\.weight"):
        forward(model, without, images)
    with pytest.raises(WeightsError, match=r"fc\.bias.*\(9,\)"):
        forward(model, weights | {"fc.bias": np.zeros(9, np.float32)}, images)
    with pytest.raises(spec.SpecError, match="3"):
        forward(model, weights, np.zeros((1, 32, 32, 3)))
    with pytest.raises(spec.SpecError):
        forward(replace(model, input_chw=(4, 32, 32)), weights, np.zeros((1, 4, 32, 32)))
