"""How many bytes a forward pass must move and how fast that can be, by what is made one kernel: the rooflines of a GPU.

A pass is a sequence of kernels; each reads its inputs and weights once and writes its output once, and nothing stays in a cache from one
to the next. A kernel takes the longer of its arithmetic at the peak rate and its bytes at the memory's (Williams, Waterman and
Patterson, "Roofline", 2009), and the pass takes their sum. That holds where a batch's activations are larger than the cache.

Imports only the standard library and the spec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from impls.implementation import Roofline
from impls.spec import Add, BatchNorm2d, Conv2d, Layer, Linear, ModelSpec, Relu, Shape, macs_of_layers, output_shape, walk


@dataclass(slots=True)
class Kernel:
    """One launch: multiply-accumulates, and elements read and written; ``pointwise`` says that more of its kind can join it."""

    macs: int
    elements: int
    pointwise: bool = False


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor and the kernel that wrote it."""

    shape: Shape
    kernel: Kernel | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def kernels(model: ModelSpec, roofline: Roofline, batch: int) -> list[Kernel]:
    """The kernels of a pass over a batch of the model's own size.

    ========  ======================================================================================================
    fused     a convolution with all that follows it up to the next: batch norm, sum, ReLU (TensorRT)
    compile   a convolution, then one kernel of its batch norm, sum and ReLU (TorchInductor, XLA)
    folded    batch norm is in the weights; ReLU and the sum are kernels of their own (ONNX Runtime's CUDA provider)
    eager     convolution, batch norm, sum and ReLU are kernels of their own; so they are where batch norm was folded
              and the bias is added after the convolution (PyTorch)
    ========  ======================================================================================================
    """
    launched: list[Kernel] = []
    products = macs_of_layers(model, *model.input_chw[1:])
    joins = {"fused": (BatchNorm2d, Add, Relu), "compile": (BatchNorm2d, Add, Relu), "folded": (BatchNorm2d,), "eager": ()}[roofline]

    def apply(layer: Layer, *inputs: _Value) -> _Value:
        output = output_shape(layer, *(each.shape for each in inputs))
        before = inputs[0].kernel
        joined = isinstance(layer, joins) and before is not None and (roofline != "compile" or before.pointwise)
        if joined:
            assert before is not None
            before.elements += sum(each.size for each in inputs[1:])
            return _Value(output, before)
        weights = sum(map(math.prod, layer.tensors().values())) if isinstance(layer, (Conv2d, Linear)) else 0
        elements = sum(each.size for each in inputs) + weights + math.prod(output)
        launched.append(Kernel(products[layer.name] * batch, elements, isinstance(layer, (BatchNorm2d, Add, Relu))))
        return _Value(output, launched[-1])

    walk(model.body, apply, _Value((batch, *model.input_chw), None))
    return launched


def least_time_s(launched: Sequence[Kernel], storage_bytes: int, flops_per_s: float, bytes_per_s: float) -> float:
    """The least seconds that they take, one after the other."""
    return sum(max(2 * kernel.macs / flops_per_s, kernel.elements * storage_bytes / bytes_per_s) for kernel in launched)
