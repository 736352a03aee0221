"""One function per layer kind, in plain NumPy: NHWC activations, HWIO kernels, a convolution as one matrix product per kernel position."""

from __future__ import annotations

import numpy as np

from impls.spec import (
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PadShortcut,
    Relu,
    windows,
)


def to_framework(array):
    """OIHW to HWIO, (out, in) to (in, out); vectors stay."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def to_canonical(array):
    """HWIO to OIHW, (in, out) to (out, in); vectors stay."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _padded(x, padding, fill):
    return np.pad(x, ((0, 0), (padding.top, padding.bottom), (padding.left, padding.right), (0, 0)), constant_values=fill)


def _shifts(layer, x):
    """The strided view of ``x`` below every position of the window."""
    height, width = ((size - layer.kernel) // layer.stride + 1 for size in x.shape[1:3])
    for row in range(layer.kernel):
        for column in range(layer.kernel):
            yield row, column, x[:, row :: layer.stride, column :: layer.stride][:, :height, :width]


def conv2d(layer, tensors, x):
    """Cross-correlation with zero padding."""
    y = sum(view @ tensors["weight"][row, column] for row, column, view in _shifts(layer, _padded(x, layer.padding, 0)))
    return y + tensors["bias"] if layer.bias else y


def batch_norm2d(layer, tensors, x):
    """Normalisation by the running statistics."""
    scale = np.sqrt(tensors["running_var"] + x.dtype.type(layer.eps))
    return (x - tensors["running_mean"]) / scale * tensors["weight"] + tensors["bias"]


def max_pool2d(layer, tensors, x):
    """Maximum over a window that is padded with minus infinity."""
    return np.max([view for _, _, view in _shifts(layer, _padded(x, layer.padding, -np.inf))], axis=0)


def pad_shortcut(layer, tensors, x):
    """Every ``stride``-th row and column, and zero channels on both sides."""
    return np.pad(x[:, :: layer.stride, :: layer.stride], ((0, 0), (0, 0), (0, 0), (layer.channels_before, layer.channels_after)))


def adaptive_avg_pool2d(layer, tensors, x):
    """Mean over each window."""
    rows, columns = (windows(length, layer.size) for length in x.shape[1:3])
    return np.stack([np.stack([x[:, a:b, c:d].mean(axis=(1, 2)) for c, d in columns], 1) for a, b in rows], 1)


FUNCTIONS = {
    Conv2d: conv2d,
    BatchNorm2d: batch_norm2d,
    Relu: lambda layer, tensors, x: np.maximum(x, 0),
    MaxPool2d: max_pool2d,
    GlobalAvgPool2d: lambda layer, tensors, x: x.mean(axis=(1, 2)),
    AdaptiveAvgPool2d: adaptive_avg_pool2d,
    Flatten: lambda layer, tensors, x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
    Dropout: lambda layer, tensors, x: x,
    Linear: lambda layer, tensors, x: x @ tensors["weight"] + tensors["bias"],
    PadShortcut: pad_shortcut,
    Add: lambda layer, tensors, *inputs: sum(inputs[1:], inputs[0]),
    Concat: lambda layer, tensors, *inputs: np.concatenate(inputs, axis=-1),
}
