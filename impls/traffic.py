"""How many bytes a forward pass or a step of SGD must move and how fast that can be, by what is made one kernel: the rooflines of a GPU.

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
from impls.spec import (
    Add,
    BatchNorm2d,
    Conv2d,
    Layer,
    Linear,
    ModelSpec,
    Relu,
    Shape,
    macs_of_layers,
    output_shape,
    parameter_count,
    tap_shapes,
    walk,
)


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
    fused     a convolution with all that follows it up to the next: batch norm, sum, ReLU (TensorRT; XLA with folded batch norm)
    compile   a convolution, then one kernel of its batch norm, sum and ReLU (TorchInductor, XLA)
    folded    batch norm is in the weights; ReLU and the sum are kernels of their own (ONNX Runtime's CUDA provider)
    eager     convolution, batch norm, sum and ReLU are kernels of their own; so they are where batch norm was folded
              and the bias is added after the convolution (PyTorch, TensorFlow's graphs)
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


@dataclass(slots=True, eq=False)
class _Tensor:
    """A tensor whose gradient a backward pass needs: its elements, the layer that made it, and how many layers read it."""

    size: int
    maker: Layer | None
    readers: int = 0


def training_kernels(model: ModelSpec, roofline: Roofline, batch: int, parameter_size: int = 1) -> list[Kernel]:
    """The kernels of a step of SGD on a batch of the model's own size; a parameter takes the bytes of ``parameter_size`` elements.

    Those of ``kernels``, and, where n elements are what a layer gives:

    =============================  =====================================  =====================================  ==========
    of                             eager, folded                          compile                                fused
    =============================  =====================================  =====================================  ==========
    convolution, linear layer      its weights' gradient, and but for the first layer its input's: each has the arithmetic of the
                                   forward pass and moves as much
    batch norm, forward            its statistics: n read                 as eager                               none
    batch norm, backward           two sums: 2n read; then 2n read, n     as eager                               3n
                                   written
    ReLU, backward                 2n read, n written                     none after a pointwise layer, else     none
                                                                          as eager
    sum, backward                  none: each branch takes the gradient as it is
    a second reader of a tensor    2n read, n written: gradients          n read, where the sum is used          as compile
                                   are summed
    any other layer, backward      what it moves forward
    all parameters                 read with gradient and momentum buffer, written with the buffer: one kernel, 5 elements each
    =============================  =====================================  =====================================  ==========

    fused is what MLPerf's best does: the forward pass's batch norm in the next convolution's prologue, sums of both passes in epilogues.
    Batch norm cannot be in the weights while it is trained, so folded is eager. In all, arithmetic is three times the forward pass's
    less the first layer's input gradient.
    """
    line: Roofline = "eager" if roofline == "folded" else roofline
    launched = kernels(model, line, batch)
    products, shapes = macs_of_layers(model, *model.input_chw[1:]), tap_shapes(model, batch, *model.input_chw[1:])
    images = _Tensor(batch * math.prod(model.input_chw), None)
    tensors: list[_Tensor] = []
    pointwise = (BatchNorm2d, Add, Relu)
    joined = {"eager": (), "compile": pointwise, "fused": (*pointwise, Conv2d, Linear)}[line]

    def apply(layer: Layer, *inputs: _Tensor) -> _Tensor:
        for each in inputs:
            each.readers += 1
        entered, left = sum(each.size for each in inputs), math.prod(shapes[layer.name])
        if isinstance(layer, (Conv2d, Linear)):
            moved = entered + left + sum(map(math.prod, layer.tensors().values()))
            launched.extend(Kernel(products[layer.name] * batch, moved) for _ in range(1 if inputs[0] is images else 2))
        elif isinstance(layer, BatchNorm2d):
            launched.extend(Kernel(0, left * passes) for passes in ((3,) if line == "fused" else (1, 2, 3)))
        elif isinstance(layer, Relu):
            if not isinstance(inputs[0].maker, joined):
                launched.append(Kernel(0, 3 * left))
        elif not isinstance(layer, Add):
            launched.append(Kernel(0, entered + left))
        tensors.append(_Tensor(left, layer))
        return tensors[-1]

    walk(model.body, apply, images)
    summed = 3 if line == "eager" else 1
    launched.extend(Kernel(0, summed * (each.readers - 1) * each.size) for each in tensors if each.readers > 1)
    return [*launched, Kernel(0, 5 * parameter_count(model) * parameter_size)]


def least_time_s(launched: Sequence[Kernel], storage_bytes: int, flops_per_s: float, bytes_per_s: float) -> float:
    """The least seconds that they take, one after the other."""
    return sum(max(2 * kernel.macs / flops_per_s, kernel.elements * storage_bytes / bytes_per_s) for kernel in launched)
