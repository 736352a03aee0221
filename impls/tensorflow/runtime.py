"""TensorFlow: one ``tf.function`` of fixed input shape, run by TensorFlow's graph executor or compiled by XLA.

In the graph the weights are constants. Then oneDNN rearranges each filter once and not in every pass, which a variable
could not promise: ResNet-50 at batch 1 on Zen 5 takes about two thirds of the CPU time in bf16 and 1 to 3 % less in fp32,
for a first pass 1 to 2 s longer and about twelve times the weights in host memory. XLA gains nothing from constants on
ResNet-50 (about a tenth of 1 ms on a CIFAR net) and needs twice the memory with them, so there the weights are variables. So
are in both modes the largest matrices (of VGG's and AlexNet's first linear layers), of which a graph would hold a dozen copies.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only; read when TensorFlow is imported

import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled  # has no public name
from tensorflow.python.util import _pywrap_util_port  # nothing public says whether oneDNN is on

from impls import implementation, kernels
from impls.implementation import CannotError, Settings, Sgd
from impls.spec import Layer, ModelSpec, Shape, tensor_shapes, walk
from impls.tensorflow import products, training
from impls.tensorflow.layers import FUNCTIONS, to_canonical, to_framework

Array = npt.NDArray[Any]

DTYPES = {"fp64": tf.float64, "fp32": tf.float32, "tf32": tf.float32, "bf16": tf.bfloat16, "fp16": tf.float16}
MODES = ("graph", "xla")
TF32 = ("tf32", "bf16", "fp16")
"""Where a GPU's float32 products may be TF32: in the last two their factors were bf16 or fp16, all of whose bits TF32 keeps."""
PERSISTENT = "TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT"


class Runtime(implementation.Runtime):
    """TensorFlow in this process: one device, one precision."""

    def __init__(self, settings: Settings) -> None:
        if settings.device == "cpu":
            if settings.precision == "tf32":
                raise CannotError("TF32 is a format of NVIDIA's tensor cores")
            tf.config.set_visible_devices([], "GPU")
        else:
            _prepare_gpu(settings.precision)
        tf.config.threading.set_intra_op_parallelism_threads(settings.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.experimental.enable_tensor_float_32_execution(settings.device == "cuda" and settings.precision in TF32)
        if settings.deterministic:
            tf.config.experimental.enable_op_determinism()
            tf.random.set_seed(0)  # wanted then for every program that XLA compiles, though nothing here is random
        self._precision, self._dtype = settings.precision, DTYPES[settings.precision]

    def prepare(self, model: ModelSpec, weights: Mapping[str, Array], mode: str, input_shape: Shape) -> Network:
        """Load the weights and trace the forward pass; optimisation and compilation wait for the first ``run``."""
        _check_mode(mode)
        return Network(model, weights, mode, input_shape, self._dtype)

    def prepare_training(
        self, model: ModelSpec, weights: Mapping[str, Array], momentum: Mapping[str, Array], sgd: Sgd, mode: str, input_shape: Shape
    ) -> training.Trainer:
        """Load the state and trace the step; optimisation and compilation wait for the first."""
        _check_mode(mode)
        implementation.check_training(model, self._precision, input_shape)
        return training.Trainer(model, weights, momentum, sgd, mode, self._dtype, input_shape, _settings)

    def versions(self) -> dict[str, str]:
        """TensorFlow, what it was built with, and NVIDIA's libraries that are installed beside it."""
        names = {str(found.name).lower() for found in importlib.metadata.distributions()}
        chosen = sorted(name for name in names if name.startswith(("tensorflow", "ml_dtypes", "nvidia-")))
        build = tf.sysconfig.get_build_info()
        return (
            {name: importlib.metadata.version(name) for name in chosen}
            | {"tensorflow_git": tf.version.GIT_VERSION, "compiler": tf.version.COMPILER_VERSION}
            | {f"build_{name}": str(build[name]) for name in ("cuda_version", "cudnn_version") if name in build}
        )

    def device_memory(self) -> dict[str, int]:
        """Peak of TensorFlow's GPU allocator; the CPU's keeps no count."""
        if not tf.config.list_logical_devices("GPU"):
            return {}
        return {"peak_allocated_bytes": int(tf.config.experimental.get_memory_info("GPU:0")["peak"])}


class Network(implementation.Network):
    """One model, traced for one shape."""

    host_layout = "NHWC"
    _pending = False  # whether anything was enqueued on a GPU since it was last waited for

    def __init__(self, model: ModelSpec, weights: Mapping[str, Array], mode: str, input_shape: Shape, dtype: tf.DType) -> None:
        self._model, self._dtype = model, dtype
        self._on_gpu = bool(tf.config.list_logical_devices("GPU"))
        arrays = {name: to_framework(weights[name]).astype(dtype.as_numpy_dtype) for name in tensor_shapes(model)}
        variable = [name for name, array in arrays.items() if mode == "xla" or array.nbytes >= products.FROM_VARIABLES]
        self._variables = {name: tf.Variable(arrays.pop(name), trainable=False) for name in variable}

        def forward(images: tf.Tensor) -> tf.Tensor:
            tensors = {name: tf.convert_to_tensor(variable) for name, variable in self._variables.items()}
            tensors |= {name: tf.constant(array, name=name) for name, array in arrays.items()}
            logits = _evaluate(model, tensors, images)
            return logits if dtype == tf.float64 else tf.cast(logits, tf.float32)

        batch, channels, height, width = input_shape
        signature = [tf.TensorSpec((batch, height, width, channels), dtype)]
        self._traced = tf.function(forward, input_signature=signature, jit_compile=mode == "xla", autograph=False)
        self._forward = self._traced.get_concrete_function()

    def put(self, images: Array) -> tf.Tensor:
        """Host images to a device batch."""
        self._pending = self._on_gpu
        return tf.cast(tf.convert_to_tensor(images.transpose(0, 2, 3, 1)), self._dtype)

    def run(self, batch: tf.Tensor) -> tf.Tensor:
        """One forward pass: enqueued on a GPU, complete on return on a CPU."""
        self._pending = self._on_gpu
        return self._forward(batch)

    def wait(self, output: tf.Tensor) -> None:
        """Return when the output has been computed."""
        # What was enqueued later is waited for as well, so the other outputs of a window are not asked for again.
        if self._pending:
            training.synchronise()
            self._pending = False

    def get(self, output: tf.Tensor) -> Array:
        """The logits on the host."""
        return output.numpy()

    def taps(self, images: Array) -> dict[str, Array]:
        """Every layer's output, by TensorFlow's own kernels in both modes.

        Each layer is a function of its own, so TensorFlow cannot fuse layers; it still fuses a convolution with its own bias,
        as in the timed path, and bf16 and fp16 round once per layer.
        """
        taps: dict[str, Array] = {}

        def tapped(layer: Layer, *inputs: tf.Tensor) -> tf.Tensor:
            tensors = {leaf: self._tensor(f"{layer.name}.{leaf}") for leaf in layer.tensors()}
            output = _alone(replace(layer, name=""))(tensors, *inputs)  # without its name it is traced once for all its equals
            array = _wide(output.numpy())
            taps[layer.name] = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
            return output

        walk(self._model.body, tapped, self.put(images))
        return taps

    def weights(self) -> dict[str, Array]:
        """The tensors read back from the graph's constants, or from the variables."""
        return {name: to_canonical(_wide(self._tensor(name).numpy())) for name in tensor_shapes(self._model)}

    def compilations(self) -> int:
        """How often the function was traced; with one signature XLA compiles a trace once."""
        return int(self._traced.experimental_get_tracing_count())

    def arithmetic(self, batch: tf.Tensor) -> str:
        """See the contract. XLA's is that of a small program, since that of the network would have to be compiled again to be seen."""
        if _is_compiled(self._forward):
            return _xla_arithmetic(self._dtype)
        if self._on_gpu:
            return f"{kernels.UNTOLD}: it is read from oneDNN, which is for CPUs"
        return products.arithmetic(products.of_graph(self._forward.graph), tf.config.threading.get_intra_op_parallelism_threads())

    def settings(self) -> dict[str, Any]:
        """What TensorFlow says of the function and of itself."""
        dtypes = ", ".join(sorted({self._tensor(name).dtype.name for name in tensor_shapes(self._model)}))
        return {**_settings(self._forward, dtypes), "weights_are_constants": not self._forward.captured_inputs}

    def _tensor(self, name: str) -> tf.Tensor:
        """A tensor in the dtype and layout that TensorFlow holds: the variable's own, or a copy of the graph's constant."""
        if name in self._variables:
            return tf.convert_to_tensor(self._variables[name])
        return tf.constant(tf.make_ndarray(self._forward.graph.get_operation_by_name(name).get_attr("value")))


def _is_compiled(function: Any) -> bool:
    """Whether XLA must compile a concrete function."""
    return bool(function.function_def.attr["_XlaMustCompile"].b)


def _layout(function: Any, dtypes: str) -> str:
    """The memory order of a graph on a GPU: Grappler leaves NHWC where it finds convolutions of bf16 or fp16, and else may change it."""
    return "NHWC" if _is_compiled(function) or dtypes in ("bfloat16", "float16") else "NHWC as traced, NCHW where Grappler prefers it"


def _settings(function: Any, dtypes: str) -> dict[str, Any]:
    """What TensorFlow says of a concrete function that computes in ``dtypes``, and of itself."""
    gpus = tf.config.get_visible_devices("GPU")
    return {
        "placed_on": "cuda" if gpus else "cpu",
        "device": tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU",
        "precision": dtypes,
        # Whether numbers of this precision lose bits to TF32; the switch itself comes next.
        "tf32": bool(gpus) and dtypes == "float32" and tf.config.experimental.tensor_float_32_execution_enabled(),
        "tensor_float_32_execution": tf.config.experimental.tensor_float_32_execution_enabled(),
        "layout": _layout(function, dtypes) if gpus else "NHWC",
        "deterministic": is_op_determinism_enabled(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "interop_threads": tf.config.threading.get_inter_op_parallelism_threads(),
        "jit_compile": _is_compiled(function),
        "onednn": _pywrap_util_port.IsMklEnabled(),
        "onednn_variable": os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
        "batch_norm_variable": os.environ.get(PERSISTENT, ""),
        "graph_optimizer": dict(tf.config.optimizer.get_experimental_options()),
        "xla_flags": os.environ.get("TF_XLA_FLAGS", ""),
        "synchronous": tf.config.experimental.get_synchronous_execution(),
    }


@functools.cache
def _alone(layer: Layer) -> Callable[..., tf.Tensor]:
    """One layer as a function of its tensors and inputs."""
    return tf.function(lambda tensors, *inputs: FUNCTIONS[type(layer)](layer, tensors, *inputs), autograph=False)


def _evaluate(model: ModelSpec, tensors: Mapping[str, tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    """The network's output."""

    def apply(layer: Layer, *inputs: tf.Tensor) -> tf.Tensor:
        return FUNCTIONS[type(layer)](layer, {leaf: tensors[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}, *inputs)

    return walk(model.body, apply, images)


def _wide(array: Array) -> Array:
    """Float64 where it is and float32 otherwise."""
    return np.asarray(array, np.float64 if array.dtype == np.float64 else np.float32)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise CannotError(f"TensorFlow has no mode {mode!r}; it has {' and '.join(MODES)}")


@functools.cache
def _xla_arithmetic(dtype: tf.DType) -> str:
    """How XLA computes a convolution and a matrix product of this type here, from a small program that it compiled."""

    def small(x: tf.Tensor, kernel: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matmul(tf.reshape(tf.nn.conv2d(x, kernel, 1, "VALID"), (8, 144)), weight)

    arguments = tf.zeros((8, 8, 8, 4), dtype), tf.zeros((3, 3, 4, 4), dtype), tf.zeros((144, 8), dtype)
    compiled = tf.function(small, jit_compile=True, autograph=False)
    return kernels.of_hlo(compiled.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo"), "read from a small program")


def _prepare_gpu(precision: str) -> None:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        raise CannotError(f"TensorFlow {tf.version.VERSION} finds no NVIDIA GPU; `nvidia-smi` shows whether the driver does")
    capability = tf.config.experimental.get_device_details(gpus[0])["compute_capability"]
    if precision in ("tf32", "bf16") and capability < (8, 0):
        raise CannotError(f"{precision} needs compute capability 8.0 or newer; this GPU has {'.'.join(map(str, capability))}")
    if precision == "bf16":
        # Without it training transposes bf16 around every batch norm; read when the first one runs. In tf32 and fp32 it is NCHW anyhow.
        os.environ.setdefault(PERSISTENT, "1")
    tf.config.set_visible_devices(gpus[:1], "GPU")
    tf.config.experimental.set_memory_growth(gpus[0], True)
