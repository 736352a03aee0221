"""The products of a traced graph, each computed once in a process of its own, where oneDNN reports its kernels.

TensorFlow's oneDNN (3.7.3 in 2.21.0; ``dnnl_set_verbose`` is not exported) reports if the environment says so before its
first use, and then for good, so the process that is timed cannot be the one that reports.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from impls import kernels
from impls.implementation import ROOT

ATTRIBUTES = {
    "Conv2D": ("strides", "padding", "explicit_paddings", "data_format", "dilations"),
    "MatMul": ("transpose_a", "transpose_b"),
}
"""The operations that compute products, and what decides about their kernels beside type and shapes."""

FROM_VARIABLES = 1 << 25
"""Bytes from which on a tensor is a variable in the graph too; no convolution of a network here has as many."""

TIMEOUT_S = 120.0
DONE = "levelfield: product done"


def of_graph(graph: tf.Graph) -> tuple[str, ...]:
    """The distinct products of a graph, as JSON; ``bias`` says whether one is added, which TensorFlow's kernels include."""
    found = []
    for operation in graph.get_operations():
        if operation.type in ATTRIBUTES:
            values = {name: operation.get_attr(name) for name in ATTRIBUTES[operation.type]}
            product = {
                "type": operation.type,
                "dtype": operation.inputs[0].dtype.name,
                "shapes": [tensor.shape.as_list() for tensor in operation.inputs],
                "attributes": {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()},
                "bias": any(reader.type == "BiasAdd" for reader in operation.outputs[0].consumers()),
            }
            found.append(json.dumps(product))
    return tuple(dict.fromkeys(found))


@functools.cache
def arithmetic(products: tuple[str, ...], threads: int) -> str:
    """How TensorFlow's kernels compute these products here, with so many threads."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", __name__, str(threads)]
    try:
        done = subprocess.run(
            command, input="\n".join(products), env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or type(error).__name__
        return f"{kernels.UNTOLD}: the process that asks oneDNN failed: {str(said).strip().splitlines()[-1]}"
    return _told(products, done.stdout)


def _told(products: tuple[str, ...], output: str) -> str:
    """The summary of what the process printed: behind the lines of each product a line that it is done."""
    reports = [[each for each in map(kernels.onednn_product, part.splitlines()) if each] for part in output.split(DONE)[:-1]]
    if len(reports) != len(products):
        return f"{kernels.UNTOLD}: the process that asks oneDNN computed {len(reports)} of {len(products)} products"
    own = sorted({json.loads(product)["type"] for product, report in zip(products, reports, strict=True) if not report})
    silent = sum(not report for report in reports)
    untold = f"{kernels.UNTOLD} of {silent} of {len(products)} distinct products: TensorFlow's own {', '.join(own)}" if silent else ""
    return kernels.summary(
        [each for report in reports for each in report], untold, kernels.onednn_isa(output.splitlines()) or f"cpu isa {kernels.UNTOLD}"
    )


def _compute(product: dict[str, Any]) -> None:
    """Compute one product of ones; the weights are a constant or a variable, as in the graph that is timed."""
    dtype, (inputs, weight) = tf.as_dtype(product["dtype"]), product["shapes"]
    ones = np.ones(weight, dtype.as_numpy_dtype)
    variable = tf.Variable(ones) if ones.nbytes >= FROM_VARIABLES else None
    bias = np.ones(weight[0] if product["attributes"].get("transpose_b") else weight[-1], dtype.as_numpy_dtype)

    def compute(x: tf.Tensor) -> tf.Tensor:
        held = tf.constant(ones) if variable is None else tf.convert_to_tensor(variable)
        if product["type"] == "Conv2D":
            y = tf.raw_ops.Conv2D(input=x, filter=held, **product["attributes"])
        else:
            y = tf.raw_ops.MatMul(a=x, b=held, **product["attributes"])
        return tf.nn.bias_add(y, tf.constant(bias)) if product["bias"] else y

    tf.function(compute, autograph=False)(tf.ones(inputs, dtype))


def main() -> None:
    """Compute the products that standard input names, one a line."""
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for line in sys.stdin:
        _compute(json.loads(line))
        print(DONE, flush=True)  # oneDNN flushes each of its lines


if __name__ == "__main__":
    main()
