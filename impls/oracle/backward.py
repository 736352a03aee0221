"""The vector-Jacobian product of every kind of layer in training mode, written by hand in NumPy float64.

One layer is the unit: given an implementation's own inputs, output and cotangent (the derivative of the loss with respect to the
output) it is the teacher-forced reference of that layer's backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle.forward import Array, areas, evaluate, pad
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
    Padding,
    PadShortcut,
    Relu,
    Shape,
    windows,
)


@dataclass(frozen=True, slots=True)
class Pullback:
    """What one layer makes of a cotangent: the cotangents of its inputs in order, and the gradients of its parameters by leaf name."""

    inputs: tuple[Array, ...]
    parameters: dict[str, Array]


def vjp(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
    """Pull a cotangent back through one layer.

    Args:
        layer: the operation; batch norm normalises by the statistics of its input.
        inputs: what it took, float64, NCHW or NC.
        output: what it gave. ReLU passes where this is positive, and max-pooling takes for each window the first element in row-major
            order that is the maximum of ``inputs``; so with an implementation's arrays the masks are its own.
        cotangent: of the output, same shape.
        tensors: the layer's float64 tensors by leaf name.
    """
    x = inputs[0]
    match layer:
        case Conv2d():
            pulled = correlate_back(cotangent, tensors["weight"], layer, x.shape)
            gradients = {"weight": correlate_weights(x, cotangent, layer)}
            return Pullback((pulled,), gradients | {"bias": cotangent.sum(axis=(0, 2, 3))} if layer.bias else gradients)
        case BatchNorm2d():
            return _batch_norm(layer, x, cotangent, tensors["weight"])
        case Relu():
            return Pullback((np.where(output > 0, cotangent, 0.0),), {})
        case MaxPool2d():
            return Pullback((scatter(layer, winners(layer, x), cotangent, x.shape),), {})
        case GlobalAvgPool2d():
            height, width = x.shape[2:]
            return Pullback((np.broadcast_to(cotangent[:, :, None, None] / (height * width), x.shape),), {})
        case AdaptiveAvgPool2d():
            return Pullback((spread(layer, cotangent / areas(layer, x.shape), x.shape),), {})
        case Flatten():
            return Pullback((cotangent.reshape(x.shape),), {})
        case Dropout():
            raise TypeError(f"{layer.name}: dropout has no derivative here")  # ``check_training`` lets none come here
        case Linear():
            return Pullback((cotangent @ tensors["weight"],), {"weight": cotangent.T @ x, "bias": cotangent.sum(axis=0)})
        case PadShortcut():
            pulled = np.zeros(x.shape)
            pulled[:, :, :: layer.stride, :: layer.stride] = cotangent[:, layer.channels_before :][:, : x.shape[1]]
            return Pullback((pulled,), {})
        case Add():
            return Pullback((cotangent,) * len(inputs), {})
        case Concat():
            return Pullback(tuple(np.split(cotangent, np.cumsum([value.shape[1] for value in inputs])[:-1], axis=1)), {})


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of every channel of (N, C, H, W), both (C,)."""
    mean: Array = np.mean(x, axis=(0, 2, 3))
    variance: Array = np.mean((x - mean[:, None, None]) ** 2, axis=(0, 2, 3))
    return mean, variance


def _batch_norm(layer: BatchNorm2d, x: Array, cotangent: Array, gamma: Array) -> Pullback:
    """Ioffe and Szegedy, arXiv 1502.03167, section 3, with the derivatives of mean and variance gathered.

    With h = (x - mean) / s, s = sqrt(var + eps), over m values of a channel: the derivative by x is
    gamma / s * (g - mean(g) - h * mean(g h)), as the derivatives of mean and variance by x_i are 1/m and 2 (x_i - mean) / m.
    """
    mean, variance = batch_statistics(x)
    deviation = np.sqrt(variance + layer.eps)
    normalised = (x - mean[:, None, None]) / deviation[:, None, None]
    for_weight, for_bias = np.sum(cotangent * normalised, axis=(0, 2, 3)), np.sum(cotangent, axis=(0, 2, 3))
    count = x.size // layer.channels
    pulled = cotangent - (for_bias / count)[:, None, None] - normalised * (for_weight / count)[:, None, None]
    pulled *= (gamma / deviation)[:, None, None]
    return Pullback((pulled,), {"weight": for_weight, "bias": for_bias})


def correlate_back(cotangent: Array, weight: Array, layer: Conv2d, shape: tuple[int, ...]) -> Array:
    """Transposed convolution: for every input element of ``shape`` the sum of weight * cotangent over the outputs that it reached."""
    channels, (height, width) = shape[1], cotangent.shape[2:]
    matrix = weight.reshape(len(weight), -1)
    padded = np.zeros(_padded(shape, layer.padding))
    for arriving, image in zip(cotangent, padded, strict=True):
        columns = (matrix.T @ arriving.reshape(len(weight), -1)).reshape(channels, -1, height, width)
        for position, view in enumerate(views(image, layer, height, width)):
            np.add(view, columns[:, position], out=view)
    return _crop(padded, layer.padding)


def correlate_weights(x: Array, cotangent: Array, layer: Conv2d) -> Array:
    """Sum of x * cotangent over batch, rows and columns for every element of an OIHW kernel."""
    channels = cotangent.shape[1]
    gradient = np.zeros((channels, layer.in_channels * layer.kernel**2))
    for arriving, image in zip(cotangent, pad(x, layer.padding, 0.0), strict=True):
        columns = np.stack(list(views(image, layer, *cotangent.shape[2:])), axis=1)
        gradient += arriving.reshape(channels, -1) @ columns.reshape(gradient.shape[1], -1).T
    return gradient.reshape(channels, layer.in_channels, layer.kernel, layer.kernel)


def spread(layer: AdaptiveAvgPool2d, values: Array, shape: Shape) -> Array:
    """For every input element of ``shape`` the sum of the values of the windows that it lies in."""
    result = np.zeros(shape)
    rows, columns = (windows(length, layer.size) for length in shape[2:])
    for row, (top, bottom) in enumerate(rows):
        for column, (left, right) in enumerate(columns):
            result[:, :, top:bottom, left:right] += values[:, :, row, column, None, None]
    return result


def winners(layer: MaxPool2d, x: Array) -> npt.NDArray[np.intp]:
    """For every output of a max-pooling the position in its window, counted row by row, of the first maximum."""
    best = evaluate(layer, (x,), {})
    position = np.zeros(best.shape, dtype=np.intp)
    reached = views(pad(x, layer.padding, -np.inf), layer, *best.shape[2:])
    for here, view in reversed(list(enumerate(reached))):
        position[view == best] = here
    return position


def scatter(layer: MaxPool2d, position: npt.NDArray[np.intp], values: Array, shape: tuple[int, ...]) -> Array:
    """For every input element of ``shape`` the sum of the values of the windows that take it."""
    padded = np.zeros(_padded(shape, layer.padding))
    for here, view in enumerate(views(padded, layer, *values.shape[2:])):
        np.add(view, values, out=view, where=position == here)
    return _crop(padded, layer.padding)


def tied(layer: MaxPool2d, x: Array) -> npt.NDArray[np.bool_]:
    """Elements of ``x`` that share the maximum of a window with another, so that an implementation may take either."""
    best = evaluate(layer, (x,), {})
    reached = list(views(pad(x, layer.padding, -np.inf), layer, *best.shape[2:]))
    shared = sum((view == best).astype(np.intp) for view in reached) > 1
    found = np.zeros(_padded(x.shape, layer.padding), dtype=bool)
    for view, mark in zip(reached, views(found, layer, *best.shape[2:]), strict=True):
        np.logical_or(mark, (view == best) & shared, out=mark)
    return _crop(found, layer.padding)


def views(padded: npt.NDArray[Any], layer: Conv2d | MaxPool2d, height: int, width: int) -> Iterator[npt.NDArray[Any]]:
    """For every position in the window, row by row, the view of a padded image that all (height, width) windows have there."""
    for row in range(layer.kernel):
        for column in range(layer.kernel):
            yield padded[..., row :: layer.stride, column :: layer.stride][..., :height, :width]


def _padded(shape: tuple[int, ...], padding: Padding) -> tuple[int, ...]:
    return (*shape[:2], shape[2] + padding.top + padding.bottom, shape[3] + padding.left + padding.right)


def _crop(padded: npt.NDArray[Any], padding: Padding) -> npt.NDArray[Any]:
    height, width = padded.shape[2:]
    return padded[:, :, padding.top : height - padding.bottom, padding.left : width - padding.right]
