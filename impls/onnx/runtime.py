"""ONNX Runtime: an ONNX model built node by node from the spec, run by one inference session.

On the CPU the session optimises the graph at the highest level, where it blocks the channels of activations and
weights itself (NCHWc) and fuses ReLU and the residual sum into convolutions. On a GPU inputs and outputs are bound to device
memory, and mode ``ort_graph`` replays the pass as one CUDA graph. ONNX Runtime's CPU provider has no float64 Conv, so fp64
is evaluated by ``onnx.reference``, the standard's own NumPy semantics, on the same model in float64.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from impls import implementation, spec
from impls.implementation import CannotError, Settings, read_manifest
from impls.onnx.layers import FUNCTIONS, Graph, to_canonical, to_framework
from impls.spec import Layer, ModelSpec, Shape

Array = npt.NDArray[Any]

# ONNX 1.12's pair: the newest opset in which every operator used here has kernels in ONNX Runtime 1.30 and 1.31, CPU and CUDA.
OPSET_VERSION = 17
IR_VERSION = 8

MODES: Mapping[str, tuple[str, ...]] = {"cpu": ("ort",), "cuda": ("ort", "ort_graph")}

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DTYPES: dict[str, npt.DTypeLike] = {"fp64": np.float64, "fp32": np.float32, "tf32": np.float32, "fp16": np.float16}

TYPE_NAMES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}

IMAGES = "images"


def build(model: ModelSpec, weights: Mapping[str, Any], dtype: npt.DTypeLike, input_shape: Shape) -> ModelProto:
    """The model, checked against the standard, with every tap's shape declared as the spec has it.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the graph is not valid ONNX, or ONNX infers
            another shape for a tap than the spec does.
    """
    opsets = [helper.make_opsetid("", OPSET_VERSION)]
    proto = helper.make_model(GraphProto(name=model.name), opset_imports=opsets, ir_version=IR_VERSION, producer_name="levelfield")
    graph = Graph(proto.graph, dtype)
    element_type = helper.np_dtype_to_tensor_dtype(graph.dtype)

    def apply(layer: Layer, *inputs: str) -> str:
        return FUNCTIONS[type(layer)](layer, graph, *inputs)

    def declared(shapes: Mapping[str, Shape]) -> dict[str, ValueInfoProto]:
        return {name: helper.make_tensor_value_info(name, element_type, shape) for name, shape in shapes.items()}

    logits = spec.walk(model.body, apply, IMAGES)
    batch, _, height, width = input_shape
    taps = declared(spec.tap_shapes(model, batch, height, width))
    proto.graph.output.append(taps.pop(logits))
    proto.graph.value_info.extend(taps.values())
    proto.graph.input.append(helper.make_tensor_value_info(IMAGES, element_type, input_shape))

    # The check copies a model several times, so it sees the weights as inputs of their shapes.
    proto.graph.input.extend(declared(spec.tensor_shapes(model)).values())
    onnx.checker.check_model(proto, full_check=True)
    del proto.graph.input[1:]
    for name in spec.tensor_shapes(model):
        graph.constant(name, to_framework(np.asarray(weights[name]).astype(graph.dtype, copy=False)))
    return proto


def _with_every_tap_an_output(model: ModelProto, images_shape: Shape, layers: list[Layer]) -> ModelProto:
    """The model for images of any batch and size, with all taps for outputs."""
    graph = model.graph
    element_type = graph.output[0].type.tensor_type.elem_type
    for declarations in (graph.input, graph.output, graph.value_info):
        del declarations[:]
    graph.input.append(helper.make_tensor_value_info(IMAGES, element_type, images_shape))
    graph.output.extend(helper.make_tensor_value_info(layer.name, element_type, None) for layer in layers)
    return model


def _at_least_float32(array: Array) -> Array:
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def _weights(model: ModelProto, spec_model: ModelSpec) -> dict[str, Array]:
    arrays = {initializer.name: initializer for initializer in model.graph.initializer}
    return {name: _at_least_float32(to_canonical(numpy_helper.to_array(arrays[name]))) for name in spec.tensor_shapes(spec_model)}


class SessionNetwork(implementation.Network):
    """A model in an inference session.

    A session does not give its weights back. It is created from a file without a name, which is kept to read them from;
    so the process holds no second copy in memory, and a killed one leaves nothing behind.
    """

    host_layout = "NCHW"

    def __init__(self, model: ModelSpec, file: BinaryIO, settings: Settings, *, cuda_graph: bool = False) -> None:
        self._model = model
        self._file = file
        self._settings = settings
        self._device_type = settings.device
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = _session(f"/proc/self/fd/{file.fileno()}", settings, level, cuda_graph=cuda_graph)
        self._output_name = self._session.get_outputs()[0].name
        self._images_dtype = np.dtype(TYPE_NAMES[self._session.get_inputs()[0].type])

    def _cast(self, images: Array) -> Array:
        return images.astype(self._images_dtype, copy=False)

    def _proto(self) -> ModelProto:
        self._file.seek(0)
        return onnx.load_model_from_string(self._file.read())

    def put(self, images: Array) -> onnxruntime.OrtValue:
        """See the contract. On a CPU the batch is a view of ``images``."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(self._cast(images), self._device_type, 0)

    def run(self, batch: onnxruntime.OrtValue) -> onnxruntime.OrtValue:
        """See the contract."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(IMAGES, batch)
        binding.bind_output(self._output_name, self._device_type, 0)
        # ONNX Runtime synchronises the device at the end of every run.
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def wait(self, output: onnxruntime.OrtValue) -> None:
        """Nothing is left to wait for: ``run`` returns when the output has been computed."""

    def get(self, output: onnxruntime.OrtValue) -> Array:
        """See the contract."""
        return _at_least_float32(output.numpy())

    def taps(self, images: Array) -> dict[str, Array]:
        """See the contract."""
        layers = list(spec.layers(self._model.body))
        observed = _with_every_tap_an_output(self._proto(), images.shape, layers)
        session = _session(observed.SerializeToString(), self._settings, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
        names = [layer.name for layer in layers]
        return {name: _at_least_float32(tap) for name, tap in zip(names, session.run(names, {IMAGES: self._cast(images)}), strict=True)}

    def weights(self) -> dict[str, Array]:
        """See the contract."""
        return _weights(self._proto(), self._model)

    def compilations(self) -> int:
        """See the contract: the session optimised its graph once and for all when it was made."""
        return 0

    def settings(self) -> dict[str, Any]:
        """See the contract."""
        options = self._session.get_session_options()
        provider, *_ = self._session.get_providers()
        provider_options = self._session.get_provider_options()[provider]
        return {
            "threads": options.intra_op_num_threads,
            "inter_op_threads": options.inter_op_num_threads,
            "precision": TYPE_NAMES[self._session.get_outputs()[0].type],
            "tf32": self._settings.precision == "tf32" and provider_options.get("use_tf32") == "1",
            "layout": "NHWC" if provider_options.get("prefer_nhwc") == "1" else "NCHW",
            "deterministic": options.use_deterministic_compute,
            "graph_optimization_level": options.graph_optimization_level.name,
            "execution_mode": options.execution_mode.name,
            "allow_spinning": options.get_session_config_entry("session.intra_op.allow_spinning") == "1",
            "placed_on": {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}[provider],
            "cuda_graphs": provider_options.get("enable_cuda_graph") == "1",
            "provider": provider,
            "provider_options": provider_options,
        }


class GraphNetwork(SessionNetwork):
    """A session whose passes replay one CUDA graph, which always reads and writes the same memory.

    So a pass begins and ends with a copy on the device, as PyTorch's does (ONNX Runtime's documentation of the CUDA provider, "Using
    CUDA Graphs": fixed shapes, inputs and outputs bound to addresses that stay). ``OrtValue.update_inplace`` copies from a GPU to a GPU
    by its docstring, and is done when it returns (gpu_data_transfer.cc synchronises its stream).
    """

    def __init__(self, model: ModelSpec, file: BinaryIO, settings: Settings) -> None:
        super().__init__(model, file, settings, cuda_graph=settings.device == "cuda")
        self._input, self._output = map(self._allocate, (self._session.get_inputs()[0], self._session.get_outputs()[0]))
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(IMAGES, self._input)
        self._binding.bind_ortvalue_output(self._output_name, self._output)
        uncaptured = onnxruntime.RunOptions()
        uncaptured.add_run_config_entry("gpu_graph_id", "-1")
        for _ in range(2):  # all memory is there before a run is captured, which no allocation may disturb
            self._session.run_with_iobinding(self._binding, uncaptured)

    def _allocate(self, node: Any) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(node.shape, np.dtype(TYPE_NAMES[node.type]), self._device_type, 0)

    def run(self, batch: onnxruntime.OrtValue) -> onnxruntime.OrtValue:
        """See the contract."""
        self._input.update_inplace(batch)
        self._session.run_with_iobinding(self._binding)
        output = self._allocate(self._session.get_outputs()[0])
        output.update_inplace(self._output)
        return output


class ReferenceNetwork(implementation.Network):
    """A model in ``onnx.reference``, one NumPy operation after the other."""

    host_layout = "NCHW"

    def __init__(self, model: ModelSpec, proto: ModelProto) -> None:
        self._model = model
        self._proto = proto
        self._evaluator = ReferenceEvaluator(proto)

    def put(self, images: Array) -> Array:
        """See the contract."""
        return images

    def run(self, batch: Array) -> Array:
        """See the contract."""
        (logits,) = self._evaluator.run(None, {IMAGES: batch})
        return logits

    def wait(self, output: Array) -> None:
        """Nothing is left to wait for."""

    def get(self, output: Array) -> Array:
        """See the contract."""
        return output

    def taps(self, images: Array) -> dict[str, Array]:
        """See the contract."""
        results = self._evaluator.run(None, {IMAGES: images}, intermediate=True)
        return {layer.name: results[layer.name] for layer in spec.layers(self._model.body)}

    def weights(self) -> dict[str, Array]:
        """See the contract."""
        return _weights(self._proto, self._model)

    def compilations(self) -> int:
        """See the contract."""
        return 0

    def settings(self) -> dict[str, Any]:
        """See the contract."""
        return {
            "threads": None,  # NumPy's BLAS decides, and does not say
            "precision": helper.tensor_dtype_to_np_dtype(self._proto.graph.output[0].type.tensor_type.elem_type).name,
            "tf32": False,
            "layout": "NCHW",
            "epsilon": "float32",  # the attribute is a float, also in a float64 model
            "deterministic": True,
            "placed_on": "cpu",
            "provider": "onnx.reference.ReferenceEvaluator",
        }


def _session(
    source: str | bytes, settings: Settings, level: onnxruntime.GraphOptimizationLevel, *, cuda_graph: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the device that was asked for and on no other.

    Raises:
        CannotError: the device's provider cannot run all of the model.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = settings.deterministic
    options.enable_mem_pattern = not cuda_graph  # a plan made between two runs would allocate while the graph is captured
    options.log_severity_level = 3  # errors; a fallback is an error below
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    provider = PROVIDERS[settings.device]
    provider_options: dict[str, str] = {}
    if settings.device == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider_options = _cuda_options(settings, cuda_graph=cuda_graph)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=[(provider, provider_options)], enable_fallback=0)
    except (errors.NotImplemented, errors.Fail, errors.EPFail) as error:
        raise CannotError(f"ONNX Runtime cannot run this model on {settings.device}: {error}") from error
    if session.get_providers()[0] != provider:
        raise CannotError(f"ONNX Runtime does not use its {provider} here: its CUDA 13 or cuDNN 9 libraries cannot be loaded")
    return session


def _cuda_options(settings: Settings, *, cuda_graph: bool) -> dict[str, str]:
    """Options of the CUDA provider, by the names of its documentation and of onnxruntime-gpu 1.31.1's library."""
    tensor_cores = settings.precision in {"tf32", "fp16"}
    return {
        # Off, it leaves out every plan of cuDNN that uses tensor cores, whatever the type (providers/cuda/nn/conv.cc).
        "use_tf32": str(int(tensor_cores)),
        # cuDNN's tensor-core kernels take NHWC.
        "prefer_nhwc": str(int(tensor_cores)),
        "fuse_conv_bias": str(int(tensor_cores)),
        # DEFAULT takes cuDNN's fallback plan, which may be very slow; EXHAUSTIVE its best guess, and times nothing.
        "cudnn_conv_algo_search": "DEFAULT" if settings.deterministic else "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "enable_cuda_graph": str(int(cuda_graph)),
        # Several processes share the card's memory; doubling takes up to twice what is used.
        "arena_extend_strategy": "kSameAsRequested",
    }


class Runtime(implementation.Runtime):
    """ONNX Runtime in this process."""

    def __init__(self, settings: Settings) -> None:
        device = read_manifest(Path(__file__).with_name("impl.toml")).devices.get(settings.device)
        if device is None:
            raise CannotError(f"ONNX Runtime is set up here for {' and '.join(PROVIDERS)}, not for {settings.device}")
        if settings.precision not in device.precisions:
            raise CannotError(f"ONNX Runtime {settings.precision} on {settings.device}: {device.cannot[settings.precision]}")
        if settings.device == "cuda":
            if settings.precision == "fp32":
                os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # where no plan is left it tries once more with TF32, and says nothing
            # The libraries come from pip packages, where the loader does not look; what is missing is printed.
            with contextlib.redirect_stdout(sys.stderr):
                onnxruntime.preload_dlls()
        if PROVIDERS[settings.device] not in onnxruntime.get_available_providers():
            raise CannotError(f"this onnxruntime was built without {settings.device}; install impls/onnx/{device.requirements.name}")
        self._settings = settings

    def prepare(self, model: ModelSpec, weights: Mapping[str, Any], mode: str, input_shape: Shape) -> SessionNetwork | ReferenceNetwork:
        """See the contract."""
        modes = MODES[self._settings.device]
        if mode not in modes:
            raise CannotError(f"ONNX Runtime has no mode {mode!r}; it has {' and '.join(modes)}")
        proto = build(model, weights, DTYPES[self._settings.precision], input_shape)
        if self._settings.device == "cpu" and self._settings.precision == "fp64":
            return ReferenceNetwork(model, proto)
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the network keeps it open
        file.write(proto.SerializeToString())
        file.flush()
        del proto
        return (GraphNetwork if mode == "ort_graph" else SessionNetwork)(model, file, self._settings)

    def versions(self) -> dict[str, str]:
        """See the contract."""
        found = {
            "onnxruntime": onnxruntime.__version__,
            "onnxruntime_build": onnxruntime.get_build_info(),
            "onnx": onnx.__version__,
            "numpy": np.__version__,
        }
        if self._settings.device == "cuda":
            found["cuda_of_build"] = onnxruntime.cuda_version
            for package in ("nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime"):
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    found[package] = importlib.metadata.version(package)
        return found
