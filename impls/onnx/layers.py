"""One function per layer kind of ``impls/spec.py``, in operators of the ONNX standard (opset 17).

Activations are NCHW, convolution weights OIHW, linear weights (out, in). A function adds nodes to ``graph`` and returns
the name of its output, which is the layer's name; it finds the layer's own tensors among the initialisers under their
canonical names. Every attribute is written out, so no operator default is relied on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, helper, numpy_helper

from impls.implementation import CannotError
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
)

Array = npt.NDArray[np.generic]


class Graph:
    """Adds to the graph ``proto``, whose floating-point tensors are all of ``dtype``."""

    def __init__(self, proto: GraphProto, dtype: npt.DTypeLike) -> None:
        self.proto = proto
        self.dtype = np.dtype(dtype)

    def constant(self, name: str, array: Array) -> str:
        """Add an initialiser; its name."""
        self.proto.initializer.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, name: str, *values: int) -> str:
        """Add a vector of int64; its name."""
        return self.constant(name, np.array(values, np.int64))

    def node(self, op_type: str, *inputs: str, output: str, **attributes: object) -> str:
        """Add a node with one output; the output's name, which is the node's too."""
        self.proto.node.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output


def to_framework(array: Array) -> Array:
    """OIHW and (out, in) are ONNX's own layouts."""
    return np.ascontiguousarray(array)


def to_canonical(array: Array) -> Array:
    """OIHW and (out, in) are ONNX's own layouts."""
    return array


def _explicit(padding: Padding) -> list[int]:
    return [padding.top, padding.left, padding.bottom, padding.right]


def conv2d(layer: Conv2d, graph: Graph, x: str) -> str:
    """Cross-correlation with zero padding."""
    tensors = [f"{layer.name}.{leaf}" for leaf in layer.tensors()]
    kernel, strides, pads = [layer.kernel] * 2, [layer.stride] * 2, _explicit(layer.padding)
    return graph.node("Conv", x, *tensors, output=layer.name, kernel_shape=kernel, strides=strides, pads=pads, dilations=[1, 1], group=1)


def batch_norm2d(layer: BatchNorm2d, graph: Graph, x: str) -> str:
    """Normalisation by the running statistics; ONNX's momentum is the weight of the old value, and epsilon a float32."""
    tensors = [f"{layer.name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    return graph.node("BatchNormalization", x, *tensors, output=layer.name, epsilon=layer.eps, momentum=1 - layer.momentum, training_mode=0)


def relu(layer: Relu, graph: Graph, x: str) -> str:
    """Maximum of x and 0."""
    return graph.node("Relu", x, output=layer.name)


def max_pool2d(layer: MaxPool2d, graph: Graph, x: str) -> str:
    """Maximum over a window; ``pads`` of MaxPool are minus infinity."""
    kernel, strides, pads = [layer.kernel] * 2, [layer.stride] * 2, _explicit(layer.padding)
    return graph.node(
        "MaxPool", x, output=layer.name, kernel_shape=kernel, strides=strides, pads=pads, dilations=[1, 1], ceil_mode=0, storage_order=0
    )


def global_avg_pool2d(layer: GlobalAvgPool2d, graph: Graph, x: str) -> str:
    """Mean over height and width."""
    mean = graph.node("GlobalAveragePool", x, output=f"{layer.name}.mean")
    return graph.node("Flatten", mean, output=layer.name, axis=1)


def adaptive_avg_pool2d(layer: AdaptiveAvgPool2d, graph: Graph, x: str) -> str:
    """Refused: the standard has no such operator, its slices have no size that follows the map's, and a graph is run at several sizes."""
    raise CannotError(f"{layer.name}: ONNX has no adaptive pool")


def flatten(layer: Flatten, graph: Graph, x: str) -> str:
    """Channel by channel."""
    return graph.node("Flatten", x, output=layer.name, axis=1)


def dropout(layer: Dropout, graph: Graph, x: str) -> str:
    """The identity: there is no training with it."""
    return graph.node("Identity", x, output=layer.name)


def linear(layer: Linear, graph: Graph, x: str) -> str:
    """Product x @ weight.T, plus bias."""
    tensors = [f"{layer.name}.{leaf}" for leaf in ("weight", "bias")]
    return graph.node("Gemm", x, *tensors, output=layer.name, alpha=1.0, beta=1.0, transA=0, transB=1)


def pad_shortcut(layer: PadShortcut, graph: Graph, x: str) -> str:
    """Every ``stride``-th row and column, and zero channels on both sides."""
    name = layer.name
    starts, ends = graph.integers(f"{name}.starts", 0, 0), graph.integers(f"{name}.ends", *[np.iinfo(np.int64).max] * 2)
    axes, steps = graph.integers(f"{name}.axes", 2, 3), graph.integers(f"{name}.steps", layer.stride, layer.stride)
    pads = graph.integers(f"{name}.pads", 0, layer.channels_before, 0, 0, 0, layer.channels_after, 0, 0)
    zero = graph.constant(f"{name}.zero", np.zeros((), graph.dtype))
    kept = graph.node("Slice", x, starts, ends, axes, steps, output=f"{name}.kept")
    return graph.node("Pad", kept, pads, zero, output=name, mode="constant")


def add(layer: Add, graph: Graph, *inputs: str) -> str:
    """Sum of the branches in their order."""
    return graph.node("Sum", *inputs, output=layer.name)


def concat(layer: Concat, graph: Graph, *inputs: str) -> str:
    """The channels in the order of the branches."""
    return graph.node("Concat", *inputs, output=layer.name, axis=1)


FUNCTIONS: dict[type[Layer], Callable[..., str]] = {
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
