"""The hand-written backward pass against forward differences that are exact, complex steps and central differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impls.oracle import training
from impls.oracle.backward import Pullback, scatter, spread, tied, vjp, winners
from impls.oracle.forward import areas
from impls.spec import (
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    Padding,
    PadShortcut,
    Relu,
)

Array = npt.NDArray[np.float64]
Vjp = Callable[[Layer, tuple[Array, ...], Array, Array, Mapping[str, Array]], Pullback]

BOUND = 1e-12
"""Four decades above float64's unit roundoff."""

NOTICED = 1e6 * BOUND
"""Each of the mutants below errs by more."""

LAYERS: list[tuple[Layer, list[tuple[int, ...]]]] = [
    (Conv2d("c", 3, 4, 3, 2, Padding(0, 1, 2, 1), bias=True), [(2, 3, 7, 6)]),
    (BatchNorm2d("b", 3, 0.1, 0.1, "unbiased"), [(2, 3, 4, 5)]),
    (Relu("r"), [(2, 3, 4, 5)]),
    (MaxPool2d("p", 3, 2, Padding(1, 1, 1, 0)), [(2, 3, 7, 6)]),
    (GlobalAvgPool2d("g"), [(2, 3, 3, 5)]),
    (AdaptiveAvgPool2d("w", 4), [(2, 3, 7, 6)]),
    (Flatten("f", 3, 4, 5), [(2, 3, 4, 5)]),
    (Linear("l", 4, 3), [(5, 4)]),
    (PadShortcut("s", 2, 1, 2), [(2, 3, 5, 4)]),
    (Add("a"), [(2, 3, 4, 5)] * 3),
    (Concat("a"), [(2, 3, 4, 5), (2, 1, 4, 5), (2, 2, 4, 5)]),
]


def complex_batch_norm(layer: BatchNorm2d, x: npt.NDArray[np.complex128], gamma: Array, beta: Array) -> npt.NDArray[np.complex128]:
    """Batch norm in training mode for a complex step: analytic, so no conjugates and no absolute values."""
    centred = x - x.mean(axis=(0, 2, 3), keepdims=True)
    variance = (centred * centred).mean(axis=(0, 2, 3), keepdims=True)
    return centred / np.sqrt(variance + layer.eps) * gamma[:, None, None] + beta[:, None, None]


def through_inputs(layer: Layer, inputs: tuple[Array, ...], tensors: dict[str, Array], moved: tuple[Array, ...]) -> Array:
    """Directional derivative of the oracle's own forward pass as the inputs move.

    Every layer but batch norm is linear within reach of a step that moves no decision: there a difference is exact. Batch
    norm is differentiated by a complex step, whose truncation error is step^2.
    """
    if isinstance(layer, BatchNorm2d):
        step = 1e-30
        return complex_batch_norm(layer, inputs[0] + 1j * step * moved[0], tensors["weight"], tensors["bias"]).imag / step
    there = training.evaluate(layer, tuple(x + v for x, v in zip(inputs, moved, strict=True)), tensors)
    return there - training.evaluate(layer, inputs, tensors)


def through_tensors(layer: Layer, inputs: tuple[Array, ...], tensors: dict[str, Array], changed: dict[str, Array]) -> Array:
    """The same as the tensors change, in which every layer is linear."""
    there = training.evaluate(layer, inputs, {leaf: tensor + changed[leaf] for leaf, tensor in tensors.items()})
    return there - training.evaluate(layer, inputs, tensors)


def adjoint_error(layer: Layer, shapes: list[tuple[int, ...]], pull: Vjp = vjp) -> float:
    """|<J v, u> - <v, J' u>| over |J v| |u|, with v in the inputs or in the parameters, whichever errs more."""
    generator = np.random.default_rng(0)
    # Numbers from -2 to 2 in random order, none 0, no two equal, and the steps below half their distance, so no maximum moves.
    sizes = [int(np.prod(s)) for s in shapes]
    inputs = tuple((generator.permutation(size).reshape(s) - size // 2 + 0.5) * 4 / size for s, size in zip(shapes, sizes, strict=True))
    moved = tuple(generator.uniform(-0.4, 0.4, s) * 4 / size for s, size in zip(shapes, sizes, strict=True))
    tensors = {leaf: generator.uniform(0.5, 1.5, s) * generator.choice((-1, 1), s) for leaf, s in layer.tensors().items()}
    changed = {leaf: generator.normal(size=s) for leaf, s in layer.tensors().items()}
    output = training.evaluate(layer, inputs, tensors)
    u = generator.normal(size=output.shape)
    pulled = pull(layer, inputs, output, u, tensors)
    assert [p.shape for p in pulled.inputs] == shapes

    def error(forward: Array, back: float) -> float:
        return float(abs(np.sum(forward * u) - back) / (np.linalg.norm(forward) * np.linalg.norm(u)))

    errors = [error(through_inputs(layer, inputs, tensors, moved), sum(np.sum(v * p) for v, p in zip(moved, pulled.inputs, strict=True)))]
    if tensors:
        back = sum(np.sum(changed[leaf] * gradient) for leaf, gradient in pulled.parameters.items())
        errors.append(error(through_tensors(layer, inputs, tensors, changed), back))
    return max(errors)


@pytest.mark.parametrize(("layer", "shapes"), LAYERS, ids=lambda value: type(value).__name__)
def test_adjoint(layer: Layer, shapes: list[tuple[int, ...]]) -> None:
    """Every kind of layer's backward pass is the transpose of its derivative."""
    assert adjoint_error(layer, shapes) < BOUND


@settings(max_examples=60, derandomize=True)
@given(
    kernel=st.sampled_from([1, 2, 3, 7]),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    size=st.tuples(st.integers(7, 9), st.integers(7, 10)),
    bias=st.booleans(),
)
def test_adjoint_of_convolutions(kernel: int, stride: int, pads: tuple[int, int, int, int], size: tuple[int, int], bias: bool) -> None:
    """Odd and even sizes, non-square images, four unequal paddings, strides that leave rows unread."""
    assert adjoint_error(Conv2d("c", 2, 3, kernel, stride, Padding(*pads), bias), [(2, 2, *size)]) < BOUND


@settings(max_examples=40, derandomize=True)
@given(
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    size=st.tuples(st.integers(3, 7), st.integers(3, 8)),
)
def test_adjoint_of_max_pools(kernel: int, stride: int, pads: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """The same for pools, whose windows may overlap or leave gaps."""
    assert adjoint_error(MaxPool2d("p", kernel, stride, Padding(*pads)), [(2, 3, *size)]) < BOUND


@settings(max_examples=40, derandomize=True)
@given(windows=st.integers(1, 6), size=st.tuples(st.integers(1, 14), st.integers(1, 14)))
def test_adjoint_of_adaptive_pools(windows: int, size: tuple[int, int]) -> None:
    """Windows that overlap, that differ in size, and more windows than rows."""
    assert adjoint_error(AdaptiveAvgPool2d("w", windows), [(2, 3, *size)]) < BOUND


def test_adjoint_of_logits() -> None:
    """The logits of several heads part again."""
    assert adjoint_error(Concat("a"), [(2, 3), (2, 5), (2, 4)]) < BOUND


def batch_norm_mutant(fault: str) -> Vjp:
    """Batch norm's backward pass with one term wrong."""

    def mutant(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
        assert isinstance(layer, BatchNorm2d)
        x, axes = inputs[0], (0, 2, 3)
        count = x.size // layer.channels
        deviation = np.sqrt(x.var(axis=axes, keepdims=True) + (0 if fault == "no epsilon" else layer.eps))
        h = (x - x.mean(axis=axes, keepdims=True)) / deviation
        mean, slope = cotangent.mean(axis=axes, keepdims=True), (cotangent * h).mean(axis=axes, keepdims=True)
        if fault == "unbiased variance":
            slope = slope * count / (count - 1)
        if fault == "sums for means":
            mean, slope = mean * count, slope * count
        signs = {"mean added": (-1, 1), "no mean": (0, 1), "no slope": (1, 0), "statistics are constants": (0, 0)}.get(fault, (1, 1))
        gamma = 1.0 if fault == "no gamma" else tensors["weight"][:, None, None]
        pulled = gamma / deviation * (cotangent - signs[0] * mean - signs[1] * h * slope)
        right = vjp(layer, inputs, output, cotangent, tensors).parameters
        if fault == "gamma from x":
            right = right | {"weight": np.sum(cotangent * x, axis=axes)}
        if fault == "gamma and beta exchanged":
            right = {"weight": right["bias"], "bias": right["weight"]}
        return Pullback((pulled,), right)

    return mutant


def changed_input(change: Callable[[Array], Array]) -> Vjp:
    """The right backward pass with the first input's cotangent changed."""

    def mutant(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
        right = vjp(layer, inputs, output, cotangent, tensors)
        return Pullback((change(right.inputs[0]), *right.inputs[1:]), right.parameters)

    return mutant


def changed_gradient(leaf: str, change: Callable[[Array], Array]) -> Vjp:
    """The right backward pass with one parameter's gradient changed."""

    def mutant(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
        right = vjp(layer, inputs, output, cotangent, tensors)
        return Pullback(right.inputs, right.parameters | {leaf: change(right.parameters[leaf])})

    return mutant


def with_weight(change: Callable[[Array], Array]) -> Vjp:
    """The backward pass of a convolution with other kernels."""
    return lambda layer, inputs, output, u, tensors: vjp(layer, inputs, output, u, {**tensors, "weight": change(tensors["weight"])})


def shifted_padding(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
    """The backward pass of a convolution or pool whose rows are padded the other way round."""
    assert isinstance(layer, Conv2d | MaxPool2d)
    pad = layer.padding
    other = (
        Padding(pad.bottom, pad.top, pad.left, pad.right) if pad.top != pad.bottom else Padding(pad.top, pad.bottom, pad.right, pad.left)
    )
    return vjp(dataclasses.replace(layer, padding=other), inputs, output, cotangent, tensors)


def last_of_window(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
    """A pool that passes its cotangent to the middle of the window."""
    assert isinstance(layer, MaxPool2d)
    return Pullback((scatter(layer, np.full(output.shape, 4), cotangent, inputs[0].shape),), {})


def apart(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
    """An adaptive pool whose windows end where the next begins."""
    assert isinstance(layer, AdaptiveAvgPool2d)
    rows, columns = ([len(inputs[0][0, 0].swapaxes(0, axis)) * i // 4 for i in range(5)] for axis in (0, 1))
    pulled = np.zeros(inputs[0].shape)
    for i, j in np.ndindex(4, 4):
        part = pulled[:, :, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        part += cotangent[:, :, i, j, None, None] / part[0, 0].size
    return Pullback((pulled,), {})


def one_divisor(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
    """An adaptive pool that divides by the size of its first window."""
    assert isinstance(layer, AdaptiveAvgPool2d)
    return Pullback((spread(layer, cotangent / areas(layer, inputs[0].shape)[0, 0], inputs[0].shape),), {})


def no_mask(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
    """A ReLU that lets everything pass."""
    return Pullback((cotangent,), {})


MUTANTS: dict[str, tuple[type[Layer], Vjp]] = {
    **{
        f"batch norm: {fault}": (BatchNorm2d, batch_norm_mutant(fault))
        for fault in (
            "no epsilon",
            "unbiased variance",
            "sums for means",
            "mean added",
            "no mean",
            "no slope",
            "statistics are constants",
            "no gamma",
            "gamma from x",
            "gamma and beta exchanged",
        )
    },
    "convolution: rows and columns of the kernel exchanged": (Conv2d, with_weight(lambda w: w.swapaxes(2, 3))),
    "convolution: kernel turned around": (Conv2d, with_weight(lambda w: w[:, :, ::-1, ::-1])),
    "convolution: gradient transposed": (Conv2d, changed_gradient("weight", lambda g: g.swapaxes(2, 3))),
    "convolution: gradient is a mean": (Conv2d, changed_gradient("weight", lambda g: g / 2)),
    "convolution: no bias": (Conv2d, changed_gradient("bias", np.zeros_like)),
    "convolution: padding exchanged": (Conv2d, shifted_padding),
    "convolution: shifted by a pixel": (Conv2d, changed_input(lambda x: np.roll(x, 1, axis=3))),
    "ReLU: no mask": (Relu, no_mask),
    "max-pool: the middle of the window": (MaxPool2d, last_of_window),
    "max-pool: padding exchanged": (MaxPool2d, shifted_padding),
    "mean: no divisor": (GlobalAvgPool2d, changed_input(lambda x: x * 15)),
    "adaptive mean: windows that do not overlap": (AdaptiveAvgPool2d, apart),
    "adaptive mean: one divisor": (AdaptiveAvgPool2d, one_divisor),
    "linear: bias is a mean": (Linear, changed_gradient("bias", lambda g: g / 5)),
    "linear: gradient negative": (Linear, changed_gradient("weight", np.negative)),
    "option A: odd phase": (PadShortcut, changed_input(lambda x: np.roll(x, 1, axis=2))),
    "option A: other channels": (PadShortcut, changed_input(lambda x: np.roll(x, 1, axis=1))),
    "sum: the first branch gets nothing": (Add, changed_input(np.zeros_like)),
    "flattening: rows and columns exchanged": (Flatten, changed_input(lambda x: x.reshape(2, 3, 5, 4).swapaxes(2, 3))),
    "concatenation: other channels": (Concat, changed_input(lambda x: np.roll(x, 1, axis=1))),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_adjoint_notices(fault: str) -> None:
    """The adjoint test fails for each of these faults, by six decades."""
    kind, mutant = MUTANTS[fault]
    ((layer, shapes),) = ((layer, shapes) for layer, shapes in LAYERS if isinstance(layer, kind))
    assert adjoint_error(layer, shapes, mutant) > NOTICED


def test_relu_stops_at_zero() -> None:
    """The derivative at zero, of either sign, is 0, and the mask is that of the output it is given."""
    x = np.array([[-1.0, -0.0, 0.0, 1e-300, 2.0]])
    u = np.ones(x.shape)
    np.testing.assert_array_equal(vjp(Relu("r"), (x,), np.maximum(x, 0), u, {}).inputs[0], [[0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(vjp(Relu("r"), (x,), np.array([[1.0, 0, 0, 0, 1]]), u, {}).inputs[0], [[1, 0, 0, 0, 1]])


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 1000), kernel=st.integers(2, 3), stride=st.integers(1, 3), pads=st.tuples(*[st.integers(0, 1)] * 4))
def test_ties(seed: int, kernel: int, stride: int, pads: tuple[int, int, int, int]) -> None:
    """Winners and ties of small integers are those that a loop over the windows finds."""
    layer = MaxPool2d("p", kernel, stride, Padding(*pads))
    x = np.random.default_rng(seed).integers(-1, 2, (1, 1, 6, 5)).astype(float)
    padded = np.pad(x[0, 0], (pads[:2], pads[2:]), constant_values=-np.inf)
    first, shared = winners(layer, x)[0, 0], np.zeros(padded.shape, dtype=bool)
    for row, column in np.ndindex(first.shape):
        corner = (row * stride, column * stride)
        window = padded[corner[0] : corner[0] + kernel, corner[1] : corner[1] + kernel]
        best = np.argwhere(window == window.max())
        assert first[row, column] == best[0][0] * kernel + best[0][1]
        for place in best if len(best) > 1 else ():
            shared[tuple(place + corner)] = True
    np.testing.assert_array_equal(tied(layer, x)[0, 0], shared[pads[0] : pads[0] + 6, pads[2] : pads[2] + 5])
