"""This machine's own ceilings, measured in the same run: FLOP rate per precision and memory bandwidth.

The FLOP rate is the best of a matrix product and a 3x3 convolution over all installed implementations, each a one-layer
network that goes through the ordinary contract: NumPy's product alone reaches half of what a compiled convolution does.
The bandwidth is that of a copy of arrays far larger than any cache, counting bytes read and bytes written: by NumPy of host
memory, of a GPU's by a batch norm alone, which every framework has as one kernel that reads a tensor and writes one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from impls.precision import PRECISIONS
from impls.spec import BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, ModelSpec, Padding, macs, tensor_shapes
from impls.weights import file
from results.record import Cell
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, Context
from suites.harness.process import WorkerError, WorkerProcess

SAMPLES = 12
COPY_BYTES = 256 << 20
COPY_REPEATS = 8


def _convolution(channels: int, side: int) -> ModelSpec:
    padding = Padding.same_on_all_sides(1)
    body = (Conv2d("conv", channels, channels, 3, 1, padding, bias=True), GlobalAvgPool2d("avgpool"), Linear("fc", channels, 1))
    return ModelSpec("probe-convolution", (channels, side, side), 1, body, "a probe of the machine")


def _product(features: int) -> ModelSpec:
    body = (GlobalAvgPool2d("avgpool"), Linear("fc", features, features))
    return ModelSpec("probe-product", (features, 1, 1), features, body, "a probe of the machine")


def _copy(channels: int, side: int) -> ModelSpec:
    body = (BatchNorm2d("bn", channels, 1e-5, 0.1, "unbiased"),)
    return ModelSpec("probe-copy", (channels, side, side), channels, body, "a probe of the machine")


@dataclass(frozen=True, slots=True)
class Shapes:
    """The networks that show a device's FLOP rate, and its bandwidth where that is a network's, with their batches.

    ``calls`` are enqueued before the first is waited for, so that a GPU does not wait for launches.
    """

    arithmetic: tuple[tuple[ModelSpec, int], ...]
    copy: tuple[ModelSpec, int] | None
    calls: int


SHAPES: Mapping[str, Shapes] = {
    # At which the four frameworks' kernels come closest to the peak: ResNet-50's 3x3 of stage 2, and a square product.
    "cpu": Shapes(((_convolution(128, 28), 16), (_product(2048), 1024)), None, 1),
    # A third of a millisecond and more at 800 TFLOP/s; a copy of five times the largest second-level cache.
    "cuda": Shapes(((_convolution(512, 28), 64), (_product(8192), 8192)), (_copy(64, 256), 32), 8),
}


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
    shapes = SHAPES[arm.device]
    try:
        rates = [2 * macs(model) * batch / _call_s(context, arm, worker, model, batch) for model, batch in shapes.arithmetic]
        if shapes.copy is None:
            bandwidth = copy_bytes_per_s()
        else:
            model, batch = shapes.copy
            elements = 2 * batch * np.prod(model.input_chw)
            bandwidth = float(elements) * PRECISIONS[arm.precision].storage_bytes / _call_s(context, arm, worker, model, batch)
    except WorkerError as error:
        context.store.append(context.failure("probe", arm, error))
        return
    measurements = {"peak_flops_per_s": max(rates), "copy_bytes_per_s": bandwidth}
    context.store.append(context.record("probe", arm, measurements=measurements, software=dict(packages)))


def _call_s(context: Context, arm: Cell, worker: WorkerProcess, model: ModelSpec, batch: int) -> float:
    """The least seconds that a network's pass over a batch on the device takes."""
    generator = np.random.Generator(np.random.PCG64(0))
    weights = {name: generator.random(shape, np.float32) for name, shape in tensor_shapes(model).items()}
    path, ring = context.scratch / f"{model.name}.safetensors", context.scratch / "ring.safetensors"
    file.save(path, model, weights, source="random numbers", preprocess={}, licence="CC0-1.0")
    shape = [batch, *model.input_chw]
    save({"images": generator.standard_normal((1, *shape), np.float32)}, ring)
    worker.call("prepare", BUILD_TIMEOUT_S, handle=model.name, weights=str(path), mode=arm.mode, input_shape=shape, fold=False)
    worker.call("put", BUILD_TIMEOUT_S, handle=model.name, images=str(ring))
    calls = SHAPES[arm.device].calls
    taken = worker.call("visit", CALL_TIMEOUT_S, handle=model.name, scope="device", samples=SAMPLES, calls=calls)
    worker.call("release", CALL_TIMEOUT_S, handle=model.name)
    return float(min(taken["duration_ns"])) / 1e9 / calls
