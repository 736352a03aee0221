"""The network in NumPy float64: what every implementation must compute, up to rounding.

Weights are taken as the float32 numbers that they are and epsilon as the double in the spec. Convolution is a matrix
product over a window view, one image at a time, so memory stays near that of the largest activation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import spec
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
    Shape,
    windows,
)

Array = npt.NDArray[np.float64]
Tap = Callable[[str, Array], None]


class WeightsError(ValueError):
    """Weights that do not belong to the model; the message names the tensor."""


def forward(model: ModelSpec, weights: Mapping[str, npt.NDArray[Any]], images: npt.NDArray[Any], *, tap: Tap | None = None) -> Array:
    """Logits of a batch, float64 (N, classes).

    Args:
        model: the network.
        weights: every tensor of ``spec.tensor_shapes(model)`` by name; cast to float64, which is exact.
        images: (N, C, H, W), any real type.
        tap: called with the name and the output (float64, NCHW or NC) of every layer in topological order.
            The arrays are never written again, so they may be kept; they must not be changed.

    Raises:
        SpecError: the network does not take images of this shape.
        WeightsError: a tensor is missing or has the wrong shape.
    """
    check(model, weights, images)

    def apply(layer: Layer, *inputs: Array) -> Array:
        output = evaluate(layer, inputs, tensors_of(layer, weights))
        if tap is not None:
            tap(layer.name, output)
        return output

    return spec.walk(model.body, apply, np.asarray(images, dtype=np.float64))


def taps(model: ModelSpec, weights: Mapping[str, npt.NDArray[Any]], images: npt.NDArray[Any]) -> dict[str, Array]:
    """Every layer's output by layer name, in topological order; raises as :func:`forward`."""
    outputs: dict[str, Array] = {}
    forward(model, weights, images, tap=outputs.__setitem__)
    return outputs


def check(model: ModelSpec, weights: Mapping[str, npt.NDArray[Any]], images: npt.NDArray[Any]) -> None:
    """Raise what :func:`forward` raises, before any memory is taken."""
    if images.ndim != 4 or images.shape[1] != model.input_chw[0]:
        raise spec.SpecError(f"{model.name}: takes images of shape (N, {model.input_chw[0]}, H, W), not {images.shape}")
    spec.tap_shapes(model, images.shape[0], images.shape[2], images.shape[3])
    for name, shape in spec.tensor_shapes(model).items():
        if name not in weights:
            raise WeightsError(f"{model.name}: the weights hold no tensor {name!r}")
        if weights[name].shape != shape:
            raise WeightsError(f"{name}: has shape {weights[name].shape}, {model.name} needs {shape}")


def tensors_of(layer: Layer, weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, Array]:
    """The layer's own tensors in float64, by leaf name ("weight", "bias", ...); a matrix as it is held, which ``multiply`` widens."""
    own = {leaf: weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
    return {leaf: tensor if isinstance(layer, Linear) and leaf == "weight" else tensor.astype(np.float64) for leaf, tensor in own.items()}


def evaluate(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
    """One layer's output from its inputs, all float64; a fresh array, or an input itself where nothing is to be done.

    Given an implementation's own inputs this is the teacher-forced reference of that layer.
    """
    x = inputs[0]
    match layer:
        case Conv2d():
            y = convolve(x, tensors["weight"], layer.stride, layer.padding)
            if layer.bias:
                y += tensors["bias"][:, None, None]
            return y
        case BatchNorm2d():
            scale = tensors["weight"] / np.sqrt(tensors["running_var"] + layer.eps)
            y = x - tensors["running_mean"][:, None, None]
            y *= scale[:, None, None]
            y += tensors["bias"][:, None, None]
            return y
        case Relu():
            return np.maximum(x, 0.0)
        case MaxPool2d():
            return _max_pool(x, layer)
        case GlobalAvgPool2d():
            mean: Array = np.mean(x, axis=(2, 3))
            return mean
        case AdaptiveAvgPool2d():
            rows, columns = (windows(length, layer.size) for length in x.shape[2:])
            return np.stack([np.stack([np.mean(x[:, :, a:b, c:d], axis=(2, 3)) for c, d in columns], axis=2) for a, b in rows], axis=2)
        case Flatten():
            return x.reshape(len(x), -1)
        case Dropout():
            return x
        case Linear():
            return multiply(x, tensors["weight"]) + tensors["bias"]
        case PadShortcut():
            kept = x[:, :, :: layer.stride, :: layer.stride]
            return np.pad(kept, ((0, 0), (layer.channels_before, layer.channels_after), (0, 0), (0, 0)))
        case Add():
            total: Array = functools.reduce(np.add, inputs)
            return total
        case Concat():
            return np.concatenate(inputs, axis=1)


WIDENED = 1 << 24
"""Elements of a matrix that are float64 at a time: 0.1 GB, where VGG's largest would take 0.8 in every thread."""


def multiply(x: Array, weight: npt.NDArray[Any]) -> Array:
    """The product x @ weight.T for (N, in) and (out, in), in the wider of both types."""
    parts = np.array_split(weight, -(-weight.size // WIDENED))
    return np.concatenate([x @ rows.astype(np.result_type(x, rows), copy=False).T for rows in parts], axis=1)


def convolve(x: Array, weight: Array, stride: int, padding: Padding) -> Array:
    """Cross-correlation of (N, C, H, W) with OIHW kernels, zero padding, no bias."""
    out_channels, in_channels, kernel, _ = weight.shape
    matrix = weight.reshape(out_channels, in_channels * kernel * kernel)
    padded = pad(x, padding, 0.0)
    height, width = ((size - kernel) // stride + 1 for size in padded.shape[2:])
    output = np.empty((x.shape[0], out_channels, height, width))
    for image, result in zip(padded, output, strict=True):
        if kernel == 1:
            columns = image[:, ::stride, ::stride]
        else:
            windows = np.lib.stride_tricks.sliding_window_view(image, (kernel, kernel), axis=(1, 2))
            columns = windows[:, ::stride, ::stride].transpose(0, 3, 4, 1, 2)
        np.matmul(matrix, columns.reshape(matrix.shape[1], height * width), out=result.reshape(out_channels, height * width))
    return output


def _max_pool(x: Array, layer: MaxPool2d) -> Array:
    padded = pad(x, layer.padding, -np.inf)
    height, width = ((size - layer.kernel) // layer.stride + 1 for size in padded.shape[2:])
    output = np.full((*x.shape[:2], height, width), -np.inf)
    for row in range(layer.kernel):
        for column in range(layer.kernel):
            shifted = padded[:, :, row :: layer.stride, column :: layer.stride]
            np.maximum(output, shifted[:, :, :height, :width], out=output)
    return output


def areas(layer: AdaptiveAvgPool2d, shape: Shape) -> npt.NDArray[np.intp]:
    """How many elements each window on maps of ``shape`` (N, C, H, W) has, (size, size)."""
    heights, widths = ([end - first for first, end in windows(length, layer.size)] for length in shape[2:])
    return np.outer(heights, widths)


def pad(x: Array, padding: Padding, value: float) -> Array:
    """Images with rows and columns of ``value`` around them; the images themselves where there are none."""
    if padding == spec.NO_PADDING:
        return x
    widths = ((0, 0), (0, 0), (padding.top, padding.bottom), (padding.left, padding.right))
    return np.pad(x, widths, constant_values=value)
