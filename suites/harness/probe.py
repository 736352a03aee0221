"""This machine's own ceilings, measured in the same run: FLOP rate per precision and memory bandwidth.

The FLOP rate is the best of a matrix product and a 3x3 convolution over all installed implementations, each a one-layer
network that goes through the ordinary contract: NumPy's product alone reaches half of what a compiled convolution does.
The bandwidth is that of a copy of arrays far larger than any cache, counting bytes read and bytes written.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

import numpy as np

from impls.spec import Conv2d, GlobalAvgPool2d, Linear, ModelSpec, Padding, macs, tensor_shapes
from impls.weights import file
from results.record import Cell
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context
from suites.harness.process import WorkerError, WorkerProcess

CALLS = 12
COPY_BYTES = 256 << 20
COPY_REPEATS = 8

# Shapes at which the four frameworks' kernels come closest to the peak: ResNet-50's 3x3 of stage 2, and a square product.
CONVOLUTION = ModelSpec(
    "probe-convolution",
    (128, 28, 28),
    128,
    (Conv2d("conv", 128, 128, 3, 1, Padding.same_on_all_sides(1), bias=True), GlobalAvgPool2d("avgpool"), Linear("fc", 128, 1)),
    "a probe of the machine",
)
PRODUCT = ModelSpec(
    "probe-product",
    (2048, 1, 1),
    2048,
    (GlobalAvgPool2d("avgpool"), Linear("fc", 2048, 2048)),
    "a probe of the machine",
)
BATCH = {"probe-convolution": 16, "probe-product": 1024}


@functools.cache
def copy_bytes_per_s() -> float:
    """Bytes read plus bytes written per second of a large copy on one thread; the best of several."""
    source, target = np.ones(COPY_BYTES // 8), np.empty(COPY_BYTES // 8)
    np.copyto(target, source)
    best = float("inf")
    for _ in range(COPY_REPEATS):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * COPY_BYTES / best


def run(context: Context, arm: Cell, worker: WorkerProcess, packages: Mapping[str, str]) -> None:
    """Measure the FLOP rate that an arm reaches in its worker, which nothing runs beside, and store it as a record.

    A failure is a record too. What the store holds is not measured again.
    """
    if context.store.has(context.run.run_id, "probe", arm, None):
        return
    best = 0.0
    try:
        for model in (CONVOLUTION, PRODUCT):
            generator = np.random.Generator(np.random.PCG64(0))
            weights = {name: generator.standard_normal(shape, np.float32) for name, shape in tensor_shapes(model).items()}
            path = context.scratch / f"{model.name}.safetensors"
            file.save(path, model, weights, source="random numbers", preprocess={}, licence="CC0-1.0")
            batch = BATCH[model.name]
            ring = context.scratch / "ring.safetensors"
            save({"images": generator.standard_normal((1, batch, *model.input_chw), np.float32)}, ring)
            shape = [batch, *model.input_chw]
            worker.call("prepare", BUILD_TIMEOUT_S, handle=model.name, weights=str(path), mode=arm.mode, input_shape=shape, fold=False)
            worker.call("put", BUILD_TIMEOUT_S, handle=model.name, images=str(ring))
            taken = worker.call("visit", CALL_TIMEOUT_S, handle=model.name, scope="device", samples=CALLS, calls=1)
            best = max(best, 2e9 * macs(model) * batch / min(taken["duration_ns"]))
    except WorkerError as error:
        context.store.append(context.failure("probe", arm, error))
        return
    measurements = {"peak_flops_per_s": best, "copy_bytes_per_s": copy_bytes_per_s()}
    context.store.append(context.record("probe", arm, measurements=measurements, software=dict(packages)))
