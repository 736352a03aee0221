"""Reading and running an ONNX file of unknown origin: its weights in order, and what it computes.

Only operators that ResNets are exported with are run, and nothing outside the file is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from impls.implementation import CannotError

Array = npt.NDArray[Any]

WEIGHTED = {"Conv", "BatchNormalization", "Gemm", "MatMul"}

OPERATORS = WEIGHTED | {
    *("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Add", "Sum", "Mul", "Sub", "Div"),
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Cast", "Constant", "Shape", "Gather"),
    *("Concat", "Slice", "Pad", "Softmax", "LogSoftmax"),
}
"""What PyTorch's, Keras's and JAX's exporters make of a ResNet; none of them makes large arrays of small ones but Pad, whose result
is checked."""

LARGEST_FILE = (1 << 31) - 1
"""Protocol buffers end at 2 GiB."""

LARGEST_TENSOR = 1 << 28
"""Elements: 20 times the largest activation of a ResNet for eight images of 224 x 224."""


def examine(path: Path, pools: Mapping[str, Array], size: str, threads: int) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """The weighted operators in topological order, and arrays.

    Each operator is a mapping with "kind", "inputs", the numbers of the nearest weighted operators before it, -1 for the images, and
    "epsilon", a float32 as a float, None where it is no batch norm.
    The arrays are "NUMBER.LEAF", in canonical layout and under the spec's leaf names, and "logits" of "images".

    Args:
        path: the ONNX file.
        pools: images (N, C, H, W) float32 by their size, "HxW".
        size: that is taken where the file leaves it free.
        threads: for the run.

    Raises:
        CannotError: it is no such file; the message says why.
    """
    model = _read(path)
    name, images, arranged = _fix_input(model.graph, pools, size)
    _check_sizes(model)
    operators, arrays = _weights(model.graph, name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        logits = np.concatenate([session.run([model.graph.output[0].name], {name: batch})[0] for batch in arranged])
    except (errors.Fail, errors.InvalidGraph, errors.InvalidArgument, errors.NotImplemented, errors.RuntimeException, ValueError) as error:
        raise CannotError(f"ONNX Runtime does not run it: {' '.join(str(error).split())[:300]}") from None
    return operators, {**arrays, "logits": logits, "images": images}


def _read(path: Path) -> ModelProto:
    if not path.is_file():
        raise CannotError("there is no such file")
    if path.stat().st_size > LARGEST_FILE:
        raise CannotError(f"is larger than the {LARGEST_FILE} bytes that an ONNX file can have")
    try:
        model = onnx.load_model_from_string(path.read_bytes())  # of bytes, so that no path in it is followed
    except DecodeError:
        raise CannotError("is no ONNX file") from None
    graph = model.graph
    if not graph.node or not graph.output:
        raise CannotError("is no ONNX file, or one with an empty graph")
    for tensor in [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise CannotError(f"keeps the tensor {tensor.name[:80]!r} in another file, which is not read: save it in one file")
        if math.prod(tensor.dims) > LARGEST_TENSOR or min(tensor.dims, default=0) < 0:
            raise CannotError(f"holds a tensor {tensor.name[:80]!r} of shape {list(tensor.dims)}")
    if graph.sparse_initializer or model.functions:
        raise CannotError("holds sparse tensors or functions of its own, which are not read")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            operator = f"{node.domain}.{node.op_type}".strip(".")[:80]
            raise CannotError(f"has the operator {operator}, which is none that a ResNet for inference is made of")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise CannotError(f"has a graph inside its {node.op_type}")
    return model


def _fix_input(graph: GraphProto, pools: Mapping[str, Array], size: str) -> tuple[str, Array, list[Array]]:
    """The one input's name, the images for it, and these in its layout, cut into its batches; its shape is fixed to theirs."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise CannotError(f"takes {len(inputs)} inputs or another type than float32, where a batch of images was expected")
    shape = inputs[0].type.tensor_type.shape.dim
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in shape]
    channels = pools[size].shape[1]
    if len(dims) != 4 or (dims[1] == channels) == (dims[3] == channels):
        raise CannotError(f"takes an input of shape {dims}, which is neither NCHW nor NHWC for {channels} channels")
    sides = dims[2:] if dims[1] == channels else dims[1:3]
    wanted = size if None in sides else f"{sides[0]}x{sides[1]}"
    if wanted not in pools or not 1 <= (dims[0] or len(pools[wanted])) <= len(pools[wanted]):
        raise CannotError(f"takes images of shape {dims}: export it with free sizes and batch, or for one image of {', '.join(pools)}")
    batch = dims[0] or len(pools[wanted])
    images = pools[wanted][: len(pools[wanted]) // batch * batch]
    arranged = images if dims[1] == channels else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    for dim, fixed in zip(shape, (batch, *arranged.shape[1:]), strict=True):
        dim.dim_value = fixed
    for output in graph.output:  # what the exporter wrote there may hold another batch
        output.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    return inputs[0].name, images, np.split(arranged, len(arranged) // batch)


def _check_sizes(model: ModelProto) -> None:
    """No intermediate may be absurdly large; shapes are inferred, nothing is computed."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise CannotError(f"does not fit together: {' '.join(str(error).split())[:300]}") from None
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(sizes) > LARGEST_TENSOR or min(sizes, default=0) < 0:
            raise CannotError(f"computes {value.name[:80]!r} of shape {sizes}")


def _weights(graph: GraphProto, images: str) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    before: dict[str, frozenset[int]] = {images: frozenset({-1})}
    operators: list[dict[str, Any]] = []
    arrays: dict[str, Array] = {}
    bias_of: dict[str, int] = {}  # outputs of products whose bias may be added by the next node
    for node in graph.node:
        sources: frozenset[int] = frozenset().union(*(before.get(name, frozenset()) for name in node.input))
        number = len(operators)
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constants:
            for leaf, tensor in _tensors(node, constants).items():
                arrays[f"{number}.{leaf}"] = tensor
            operators.append({"kind": node.op_type, "inputs": sorted(sources), "epsilon": _epsilon(node)})
            sources = frozenset({number})
            if node.op_type == "MatMul":
                bias_of[node.output[0]] = number
        elif node.op_type == "Add":
            products = [bias_of[name] for name in node.input if name in bias_of]
            added = [constants[name] for name in node.input if name in constants]
            if products and added:
                arrays[f"{products[0]}.bias"] = _array(added[0])
        before |= dict.fromkeys(node.output, sources)
    return operators, arrays


def _array(tensor: TensorProto) -> npt.NDArray[Any]:
    """A constant of the file.

    Raises:
        CannotError: its bytes are not of its shape and type.
    """
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise CannotError(f"holds a constant {tensor.name[:80]!r} that cannot be read: {error}") from None


def _epsilon(node: NodeProto) -> float | None:
    """1e-5 is what the standard takes where a file says nothing."""
    if node.op_type != "BatchNormalization":
        return None
    return float(next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), np.float32(1e-5)))


def _tensors(node: NodeProto, constants: Mapping[str, TensorProto]) -> dict[str, Array]:
    """The node's tensors by the spec's leaf names, linear weights as (out, in)."""
    names = [name for name in node.input[1:] if name]
    if missing := [name for name in names if name not in constants]:
        raise CannotError(f"computes the tensor {missing[0][:80]!r} of a {node.op_type}, where a constant was expected")
    tensors = [_array(constants[name]) for name in names]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    match node.op_type:
        case "BatchNormalization":
            if attributes.get("training_mode", 0):
                raise CannotError("has a BatchNormalization in training mode: export the model for inference")
            return dict(zip(("weight", "bias", "running_mean", "running_var"), tensors, strict=True))
        case "Conv":
            if attributes.get("group", 1) != 1:
                raise CannotError("has a Conv of several groups, which no ResNet of the paper has")
        case "Gemm":
            if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1 or attributes.get("transA", 0):
                raise CannotError("has a Gemm with alpha, beta or transA, which no exporter writes")
            tensors[0] = tensors[0] if attributes.get("transB", 0) else tensors[0].T
        case "MatMul":
            tensors[0] = tensors[0].T
    return dict(zip(("weight", "bias"), tensors, strict=False))
