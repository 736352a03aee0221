"""One function per layer kind of ``impls/spec.py``, in TensorFlow's primitive operations.

Activations are NHWC, convolution weights HWIO, linear weights (in, out). ``tensors`` holds the layer's own tensors by
the last part of their names. Arithmetic is in the dtype of the input; where TensorFlow's kernel would round every
partial result to bf16 or fp16, it is done in fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext  # has no public name

from impls.spec import (
    NO_PADDING,
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
    windows,
)

Tensors = Mapping[str, tf.Tensor]
Array = npt.NDArray[np.generic]


def to_framework(array: Array) -> Array:
    """OIHW to HWIO, (out, in) to (in, out); vectors stay."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_canonical(array: Array) -> Array:
    """HWIO to OIHW, (in, out) to (out, in); vectors stay."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _padding(padding: Padding) -> str | list[list[int]]:
    # Where nothing is padded it must say so: only then a GPU computes a 1x1 convolution of stride 1 as the matrix product that it is.
    return "VALID" if padding == NO_PADDING else [[0, 0], [padding.top, padding.bottom], [padding.left, padding.right], [0, 0]]


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32) if x.dtype.size < tf.float32.size else x


def conv2d(layer: Conv2d, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Cross-correlation with zero padding."""
    y = tf.nn.conv2d(x, tensors["weight"], layer.stride, _padding(layer.padding))
    return tf.nn.bias_add(y, tensors["bias"]) if layer.bias else y


def batch_norm2d(layer: BatchNorm2d, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Normalisation by the running statistics (``tf.nn.fused_batch_norm`` has no float64)."""
    mean, variance, offset, scale = (_wide(tensors[leaf]) for leaf in ("running_mean", "running_var", "bias", "weight"))
    # Not tf.nn.batch_normalization, nor an ordinary division, which Grappler turns into the same: their fast reciprocal square root
    # errs by 3.4 unit roundoffs on AVX-512, a square root and a division by 1.
    factor = tf.math.divide_no_nan(scale, tf.sqrt(variance + layer.eps))
    return tf.cast((_wide(x) - mean) * factor + offset, x.dtype)


def relu(layer: Relu, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """max(x, 0)."""
    return tf.nn.relu(x)


def max_pool2d(layer: MaxPool2d, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Maximum over a window; padding holds minus infinity."""
    padding = _padding(layer.padding)
    if padding != "VALID" and (GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()) or not tf.config.list_logical_devices("GPU")):
        # XLA refuses explicit padding in the pool itself, and on CPUs its gradient takes up to 13 times as long.
        x, padding = tf.pad(x, padding, constant_values=tf.constant(-np.inf, x.dtype)), "VALID"
    return tf.nn.max_pool2d(x, layer.kernel, layer.stride, padding)


def global_avg_pool2d(layer: GlobalAvgPool2d, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Mean over height and width."""
    return tf.cast(tf.reduce_mean(_wide(x), (1, 2)), x.dtype)


def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Mean over each window's rows, then over its columns."""
    rows = tf.stack([tf.reduce_mean(_wide(x[:, first:end]), 1) for first, end in windows(x.shape[1], layer.size)], 1)
    return tf.cast(tf.stack([tf.reduce_mean(rows[:, :, first:end], 2) for first, end in windows(x.shape[2], layer.size)], 2), x.dtype)


def flatten(layer: Flatten, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Channel by channel, as in NCHW."""
    return tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (x.shape[0], -1))


def dropout(layer: Dropout, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """The identity: there is no training with it."""
    return x


def linear(layer: Linear, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """The product x @ weight, with weight (in, out), and the bias; without oneDNN's kernel the product of fp16 would be rounded too."""
    y = tf.linalg.matmul(_wide(x), _wide(tensors["weight"]))
    return tf.cast(tf.nn.bias_add(y, _wide(tensors["bias"])), x.dtype)


def pad_shortcut(layer: PadShortcut, tensors: Tensors, x: tf.Tensor) -> tf.Tensor:
    """Every ``stride``-th row and column, and zero channels on both sides."""
    return tf.pad(x[:, :: layer.stride, :: layer.stride], [[0, 0], [0, 0], [0, 0], [layer.channels_before, layer.channels_after]])


def add(layer: Add, tensors: Tensors, *inputs: tf.Tensor) -> tf.Tensor:
    """Sum of the branches in their order."""
    return sum(inputs[1:], inputs[0])


def concat(layer: Concat, tensors: Tensors, *inputs: tf.Tensor) -> tf.Tensor:
    """The channels in the order of the branches."""
    return tf.concat(inputs, axis=-1)


FUNCTIONS: dict[type[Layer], Callable[..., tf.Tensor]] = {
    Conv2d: conv2d,
    BatchNorm2d: batch_norm2d,
    Relu: relu,
    MaxPool2d: max_pool2d,
    GlobalAvgPool2d: global_avg_pool2d,
    AdaptiveAvgPool2d: adaptive_avg_pool2d,
    Flatten: flatten,
    Dropout: dropout,
    Linear: linear,
    PadShortcut: pad_shortcut,
    Add: add,
    Concat: concat,
}
