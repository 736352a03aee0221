"""JAX: one compiled pure function of the parameters and the images.

The parameters are arguments of the compiled program, not constants in it: as constants ResNet-50 is 2 % faster at
batch 1 on a CPU and takes two to three times as long to compile. Compilation is ahead of time, in ``prepare``.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from impls import implementation, kernels
from impls.implementation import CannotError, Settings, Sgd
from impls.jax import training
from impls.jax.layers import FUNCTIONS, Tensors, to_canonical, to_framework
from impls.spec import Layer, ModelSpec, Node, Shape, equal_runs, layers, walk, without_prefix

Array = npt.NDArray[Any]

DTYPES = {"fp64": jnp.float64, "fp32": jnp.float32, "tf32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}
MATMUL_PRECISION = {"fp64": "highest", "fp32": "highest"}
"""Of convolutions too. Elsewhere it is XLA's default, on a GPU TF32 for float32. The name "tensorfloat32" means HIGH, with which XLA's
Triton kernels compute in float32 (``IsTf32Allowed``)."""

MEMORY_FRACTIONS = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"}
"""Names of one setting, of which JAX takes one at most."""

SCAN_FROM = {"cpu": 7, "gpu": 100}
"""Fewest equal blocks in a row that are a scan, by JAX's name of the platform.

2 cores, fp32, milliseconds as a scan and unrolled: runs of 35 and 7 blocks (resnet152, batch 1) 70 and 84, of 18 and 17
(cifar_resnet110, batch 64) 165 and 207, of 5 or fewer (resnet50, batch 1) 46 and 45. On a GPU, where each row of the
stacked weights is copied for cuDNN, a scan is for what takes minutes to compile unrolled.
"""


class Runtime(implementation.Runtime):
    """JAX in this process: one device, one precision."""

    def __init__(self, settings: Settings) -> None:
        if settings.device == "cpu" and settings.precision == "tf32":
            raise CannotError("TF32 is a format of NVIDIA's tensor cores")
        # XLA reads its environment when the first device is asked for, which is below.
        os.environ["PJRT_NPROC"] = str(settings.threads)  # threads of the CPU client's pool
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if not os.environ.keys() & MEMORY_FRACTIONS:
            os.environ["XLA_CLIENT_MEM_FRACTION"] = "0.95"  # 0.75 if left alone, where other frameworks may have all of the card
        if settings.deterministic:
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
        jax.config.update("jax_platforms", settings.device)
        jax.config.update("jax_enable_x64", settings.precision == "fp64")
        jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION.get(settings.precision))
        try:
            self._device = jax.devices()[0]
        except (RuntimeError, AssertionError) as error:  # JAX 0.10.2 asserts where no plugin for the platform is installed
            why = str(error) or "its plugin is not installed, or finds no driver"
            raise CannotError(f"JAX finds no {settings.device} device here: {why}") from None
        self._precision, self._dtype = settings.precision, DTYPES[settings.precision]

    def prepare(self, model: ModelSpec, weights: Mapping[str, Array], mode: str, input_shape: Shape) -> Network:
        """Load the weights and compile the forward pass."""
        _check_mode(mode)
        return Network(model, weights, input_shape, self._dtype)

    def prepare_training(
        self, model: ModelSpec, weights: Mapping[str, Array], momentum: Mapping[str, Array], sgd: Sgd, mode: str, input_shape: Shape
    ) -> training.Trainer:
        """Load the state; compilation waits for the first step."""
        _check_mode(mode)
        implementation.check_training(model, self._precision, input_shape)
        return training.Trainer(model, weights, momentum, sgd, self._dtype, _settings, _compilations)

    def versions(self) -> dict[str, str]:
        """JAX's packages, NVIDIA's libraries that are installed beside them, and what XLA's backend says of itself."""
        names = {str(found.name).lower() for found in importlib.metadata.distributions()}
        chosen = sorted(name for name in names if name.startswith(("jax", "nvidia-")))
        return {name: importlib.metadata.version(name) for name in chosen} | {"xla_platform": self._device.client.platform_version}

    def device_memory(self) -> dict[str, int]:
        """Peak of XLA's allocator; the CPU client keeps no count."""
        statistics = self._device.memory_stats()
        return {"peak_allocated_bytes": int(statistics["peak_bytes_in_use"])} if statistics else {}


def _check_mode(mode: str) -> None:
    if mode != "jit":
        raise CannotError(f"JAX has no mode {mode!r}; it has jit")


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes that run once for each of ``prefixes``, which complete the names of their layers."""

    nodes: tuple[Node, ...]
    prefixes: tuple[str, ...]


def parts_of(model: ModelSpec) -> list[Part]:
    """The body as long runs of equal blocks and what lies between them."""
    parts: list[Part] = []
    scan_from = SCAN_FROM[jax.default_backend()]
    for run in equal_runs(model.body):
        if len(run) >= scan_from:
            parts.append(Part((without_prefix(run[0], run[0].name),), tuple(block.name for block in run)))
        elif parts and parts[-1].prefixes == ("",):
            parts[-1] = Part(parts[-1].nodes + run, ("",))
        else:
            parts.append(Part(run, ("",)))
    return parts


def load(part: Part, weights: Mapping[str, Array], dtype: Any) -> dict[str, dict[str, jax.Array]]:
    """A part's tensors by layer and leaf; those of a scan are stacked, one row for each prefix."""

    def tensor(name: str) -> jax.Array:
        rows = [to_framework(weights[prefix + name]) for prefix in part.prefixes]
        return jnp.array(rows[0] if len(rows) == 1 else np.stack(rows), dtype)

    return {layer.name: {leaf: tensor(f"{layer.name}.{leaf}") for leaf in layer.tensors()} for layer in layers(part.nodes)}


def apply(layer: Layer, tensors: Tensors, *inputs: jax.Array) -> jax.Array:
    """One layer."""
    return FUNCTIONS[type(layer)](layer, tensors, *inputs)


def forward(parts: list[Part], params: list[dict[str, dict[str, jax.Array]]], x: jax.Array) -> jax.Array:
    """The logits (N, classes) of images (N, H, W, C)."""

    def run(part: Part, x: jax.Array, tensors: Mapping[str, Tensors]) -> jax.Array:
        return walk(part.nodes, lambda layer, *inputs: apply(layer, tensors[layer.name], *inputs), x)

    for part, tensors in zip(parts, params, strict=True):
        if len(part.prefixes) == 1:
            x = run(part, x, tensors)
        else:
            x, _ = lax.scan(lambda x, row, part=part: (run(part, x, row), None), x, tensors)
    return x


class Network(implementation.Network):
    """One model, compiled for one shape."""

    host_layout = "NHWC"

    def __init__(self, model: ModelSpec, weights: Mapping[str, Array], input_shape: Shape, dtype: Any) -> None:
        self._model, self._dtype = model, dtype
        self._parts = parts_of(model)
        self._params = [load(part, weights, dtype) for part in self._parts]
        batch, channels, height, width = input_shape
        lowered = jax.jit(partial(forward, self._parts)).lower(self._params, jax.ShapeDtypeStruct((batch, height, width, channels), dtype))
        self._operand_precisions = training.operand_precisions(lowered)
        self._forward = lowered.compile()

    def put(self, images: Array) -> jax.Array:
        """Host images to a device batch.

        On a CPU the batch may be the host's own memory (XLA takes aligned arrays without a copy), so the images may be
        written again only when the output has been computed.
        """
        return jax.device_put(images.transpose(0, 2, 3, 1)).astype(self._dtype)

    def run(self, batch: jax.Array) -> jax.Array:
        """Enqueue one forward pass."""
        return self._forward(self._params, batch)

    def wait(self, output: jax.Array) -> None:
        """Return when the output has been computed."""
        output.block_until_ready()

    def get(self, output: jax.Array) -> Array:
        """The logits on the host."""
        return _wide(output)

    def taps(self, images: Array) -> dict[str, Array]:
        """Every layer's output; each layer is a program of its own, so nothing is fused across layers."""
        tensors = {name: {leaf: jnp.asarray(array) for leaf, array in held.items()} for name, held in self._held()}
        alone = jax.jit(apply, static_argnums=0)
        taps: dict[str, Array] = {}

        def tapped(layer: Layer, *inputs: jax.Array) -> jax.Array:
            # Without its name a layer is compiled once for all its equals.
            output = alone(replace(layer, name=""), tensors[layer.name], *inputs)
            taps[layer.name] = _wide(output.transpose(0, 3, 1, 2) if output.ndim == 4 else output)
            return output

        walk(self._model.body, tapped, self.put(images))
        return taps

    def weights(self) -> dict[str, Array]:
        """The tensors read back from the device."""
        return {f"{name}.{leaf}": to_canonical(_wide(array)) for name, held in self._held() for leaf, array in held.items()}

    def compilations(self) -> int:
        """See the contract."""
        return _compilations()

    def arithmetic(self, batch: jax.Array) -> str:
        """See the contract; of the program that is timed."""
        return kernels.of_hlo(self._forward.as_text())

    def settings(self) -> dict[str, Any]:
        """What XLA was given and what its process shows."""
        scanned = sum(len(part.prefixes) for part in self._parts if len(part.prefixes) > 1)
        return {**_settings(jax.tree.leaves(self._params)[0], self._operand_precisions), "scanned_blocks": scanned}

    def _held(self) -> Iterator[tuple[str, dict[str, Array]]]:
        """Each layer's name and its tensors on the host, in the dtype and layout that the device holds."""
        for part, params in zip(self._parts, self._params, strict=True):
            host = jax.device_get(params)
            for row, prefix in enumerate(part.prefixes):
                for name, held in host.items():
                    yield prefix + name, {leaf: array[row] if len(part.prefixes) > 1 else array for leaf, array in held.items()}


def _settings(leaf: jax.Array, operand_precisions: list[str]) -> dict[str, Any]:
    """What XLA was given for programs with an array like ``leaf``, and what its process shows."""
    platform = leaf.device.platform
    pool = sum(comm.read_text().strip() == "tf_XLAEigen" for comm in Path("/proc/self/task").glob("*/comm"))
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        "placed_on": {"gpu": "cuda"}.get(platform, platform),
        "device": leaf.device.device_kind,
        "precision": str(leaf.dtype),
        "x64": bool(jax.config.jax_enable_x64),
        "operand_precisions": operand_precisions,
        "tf32": platform != "cpu" and leaf.dtype == jnp.float32 and operand_precisions != ["HIGHEST"],
        "layout": "NHWC",
        # The CPU backend divides work by shape and threads alone: 30 runs of resnet50 and cifar_resnet110 gave the same bits.
        "deterministic": platform == "cpu" or "--xla_gpu_deterministic_ops=true" in flags,
        "threads": pool or len(os.sched_getaffinity(0)),
        "threads_read_from": "XLA's thread pool" if pool else "affinity mask",
        "xla_flags": flags,
    }


_compiled_count = 0


def _count_compilation(event: str, duration_s: float, **_: object) -> None:
    global _compiled_count  # noqa: PLW0603 - JAX tells listeners of the process, not of a network
    _compiled_count += event == "/jax/core/compile/backend_compile_duration"


def _compilations() -> int:
    """How often this process has compiled anything, conversions between types included."""
    return _compiled_count


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def _wide(array: Any) -> Array:
    """On the host, float64 where it is and float32 otherwise."""
    return np.asarray(array, np.float64 if array.dtype == np.float64 else np.float32)
