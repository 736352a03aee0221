"""PyTorch behind the contract: an ``nn.Module`` in evaluation mode, eager or compiled by TorchInductor.

On a GPU the modes are the settings that its users choose from; ``MODES`` says what each is.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from impls import implementation, kernels, spec
from impls.implementation import CannotError, Settings, Sgd
from impls.pytorch import layers, training
from impls.spec import Block, Layer, ModelSpec, Node, Shape

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Execution:
    """What a mode is: the memory order of activations and kernels, the mode that ``torch.compile`` is given (None: eager), autocast.

    "max-autotune" replays CUDA graphs, "default" does not (``torch._inductor.list_mode_options``). Under autocast the weights stay in
    fp32 and every convolution and product casts what it is given; so it is in bf16 and fp16 only.
    """

    channels_last: bool = True
    compiler: str | None = None
    autocast: bool = False

    @property
    def replays_graphs(self) -> bool:
        """Whether a pass is one CUDA graph, which writes every output to the same memory."""
        return self.compiler == "max-autotune"


MODES: Mapping[str, Mapping[str, Execution]] = {
    "cpu": {"eager": Execution(), "compile": Execution(compiler="default")},
    "cuda": {
        "eager": Execution(channels_last=False),
        "channels_last": Execution(),
        "compile": Execution(compiler="default"),
        "max_autotune": Execution(compiler="max-autotune"),
        "compile_autocast": Execution(compiler="default", autocast=True),
    },
}


class Model(nn.Module):
    """The spec's network; each layer is a submodule of its name, so ``state_dict`` has the weight file's names and hooks find it.

    Stages and blocks ("layer1", "layer1.0") only hold their layers: the wiring is the spec's. With ``inplace`` sums and ReLUs
    overwrite their input where nothing else reads it, as torchvision's do: on a CPU each new activation costs its page faults.
    """

    def __init__(self, model: ModelSpec, tensors: Mapping[str, Tensor], *, inplace: bool) -> None:
        super().__init__()
        self.body = model.body
        for layer in spec.layers(model.body):
            own = {leaf: tensors[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
            *path, name = layer.name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(name, layers.MODULES[type(layer)](layer, own))
        for name in _sole_readers(model.body, owned=False) if inplace else ():
            module = self.get_submodule(name)
            if isinstance(module, (nn.ReLU, layers.Add)):
                module.inplace = True

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W), in the dtype of the weights."""

        def apply(layer: Layer, *inputs: Tensor) -> Tensor:
            return self.get_submodule(layer.name)(*inputs)

        return spec.walk(self.body, apply, images)


def _sole_readers(nodes: tuple[Node, ...], *, owned: bool) -> Iterator[str]:
    """Names of the layers whose first input no other layer reads; ``owned`` says so of what enters ``nodes``."""
    for node in nodes:
        if isinstance(node, Block):
            for branch in node.branches:
                yield from _sole_readers(branch, owned=False)
            if node.branches[0]:
                yield node.merge.name
            yield from _sole_readers(node.then, owned=any(node.branches))
        elif owned:
            yield node.name
        owned = True


class Network(implementation.Network):
    """A ``Model`` on a device and how it is called."""

    _isa = f"cpu isa {kernels.UNTOLD}"  # oneDNN says it once in a process

    def __init__(self, settings: Settings, model: Model, mode: str, execution: Execution) -> None:
        self._mode, self._execution = mode, execution
        self._device = torch.device(settings.device)
        self._dtype = next(model.parameters()).dtype
        self._computed = DTYPES[settings.precision]
        self._memory_format = torch.channels_last if execution.channels_last else torch.contiguous_format
        self.host_layout = "NHWC" if execution.channels_last else "NCHW"
        self._model = model.to(memory_format=self._memory_format)
        self._eager = self._autocast(self._model)
        self._call = self._eager
        if execution.compiler is not None:
            self._call = self._autocast(_compile(self._model, execution.compiler, self._dtype))

    def _autocast(self, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Under autocast where the weights are wider than what is computed in."""
        if self._computed == self._dtype:
            return call
        return torch.autocast(self._device.type, self._computed)(call)

    def put(self, images: Any) -> Tensor:
        """See the contract. On a CPU the batch is a view of ``images`` when neither dtype nor memory order has to change."""
        host = torch.from_numpy(images)
        if self._device.type == "cuda":
            host = host.pin_memory()
        batch = host.to(self._device, non_blocking=True)
        return batch.to(self._dtype, memory_format=self._memory_format)

    def run(self, batch: Tensor) -> Tensor:
        """See the contract."""
        with torch.inference_mode():
            output = self._call(batch)
            return output.clone() if self._execution.replays_graphs else output  # the caller's must outlive the next pass

    def wait(self, output: Tensor) -> None:
        """See the contract."""
        if output.is_cuda:
            torch.cuda.current_stream(output.device).synchronize()

    def get(self, output: Tensor) -> Any:
        """See the contract."""
        return output.to("cpu", torch.promote_types(output.dtype, torch.float32)).numpy()

    def taps(self, images: Any) -> dict[str, Any]:
        """See the contract. Each output is copied as it is made, before a later layer can overwrite it."""
        outputs: dict[str, Any] = {}

        def keep(name: str) -> Any:
            return lambda module, inputs, output: outputs.update({name: layers.to_canonical(output)})

        names = [layer.name for layer in spec.layers(self._model.body)]
        hooks = [self._model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            with torch.inference_mode():
                self._eager(self.put(images))
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    def weights(self) -> dict[str, Any]:
        """See the contract. Under autocast as they enter the products: rounded once, to nearest."""
        return {name: layers.to_canonical(tensor.to(self._computed)) for name, tensor in self._model.state_dict().items()}

    def compilations(self) -> int:
        """See the contract."""
        return _compilations(self._execution)

    def arithmetic(self, batch: Tensor) -> str:
        """See the contract. oneDNN reports its kernels; of products that PyTorch computes itself only the operators have names."""
        if batch.device.type != "cpu":
            return f"{kernels.UNTOLD}: it is read from oneDNN, which is for CPUs"
        with kernels.standard_output() as lines, torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            self.run(batch)
        Network._isa = kernels.onednn_isa(lines) or Network._isa
        products = [product for product in map(kernels.onednn_product, lines) if product]
        expected = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in self._model.modules())
        if len(products) >= expected:
            return kernels.summary(products, Network._isa)
        with torch.autograd.profiler.profile(use_kineto=False) as profile:
            self.run(batch)
        own = ", ".join(sorted(set(_own_products(profile.function_events)))) or "kernels"
        untold = f"{kernels.UNTOLD} of {expected - len(products)} of {expected} products: PyTorch's own {own}"
        capability = f"PyTorch's kernels are for {torch.backends.cpu.get_cpu_capability()}"
        return kernels.summary(products, untold, capability, Network._isa if products else "")

    def settings(self) -> dict[str, Any]:
        """See the contract."""
        return _settings(self._mode, self._execution, self._model, self._computed)


def _compilations(execution: Execution) -> int:
    """The graphs of the whole process, as Dynamo counts them."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) if execution.compiler is not None else 0


def _settings(mode: str, execution: Execution, model: Model, computed: torch.dtype) -> dict[str, Any]:
    """What PyTorch says of a model that computes in ``computed``, and of itself."""
    held = model.state_dict().values()
    kernels = [tensor for tensor in held if tensor.dim() == 4]
    is_channels_last = all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in kernels)
    compiled = execution.compiler is not None
    on_cpu = all(tensor.device.type == "cpu" for tensor in held)
    autocast = _dtypes(held) != str(computed).removeprefix("torch.")
    frozen = compiled and _inductor_config().freezing
    return {
        "mode": mode,
        "placed_on": ", ".join(sorted({tensor.device.type for tensor in held})),
        "device": ", ".join(sorted({str(tensor.device) for tensor in held})),
        "precision": str(computed).removeprefix("torch.") if autocast else _dtypes(held),
        "weights_precision": _dtypes(held),
        "autocast": autocast,
        "layout": "NHWC" if is_channels_last else "NCHW",
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        or torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "onednn": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "training": model.training,
        "compiler": "inductor" if compiled else "none",
        "compiler_mode": execution.compiler,
        "cuda_graphs": execution.replays_graphs,
        "freezing": frozen,
        "weight_prepack": frozen and on_cpu and _inductor_config().cpp.weight_prepack,
    }


def _dtypes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def _own_products(events: Iterable[Any]) -> Iterator[str]:
    """Names of the innermost operators that compute products and are not oneDNN's, from a profile."""

    def computes(event: Any) -> bool:
        return re.search(r"conv|mm|linear", event.name) is not None

    def inner(event: Any) -> bool:
        return any(computes(child) or inner(child) for child in event.cpu_children)

    return (event.name for event in events if computes(event) and not inner(event) and "mkldnn" not in event.name)


def _inductor_config() -> Any:
    from torch._inductor import config  # nearly a second that an eager process need not spend

    return config


def _compile(model: Model, mode: str, dtype: torch.dtype) -> Any:
    """The model under TorchInductor with frozen weights (prepacked for oneDNN on a CPU).

    Compiled at the first call. Inductor's graph cache refuses frozen graphs with prepacked weights; it keeps their C++ kernels.
    """
    inductor = _inductor_config()
    inductor.freezing = True
    inductor.cpp.weight_prepack = dtype != torch.float64  # oneDNN has no float64, and prepacking fails where it should pass
    return _compiled(model, mode)


def _compiled(model: Model, mode: str) -> Any:
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise CannotError("torch.compile builds C++ extensions and Python.h is missing: install Python's headers (python3-dev)")
    _inductor_config().cpp.cxx = (None, os.environ.get("CXX", "g++"), "clang++")
    # All networks share the code of Model.forward, of which a process keeps no more than eight versions unless they are isolated.
    return torch.compile(model, backend="inductor", mode=mode, fullgraph=True, dynamic=False, isolate_recompiles=True)


class Runtime(implementation.Runtime):
    """PyTorch in this process."""

    def __init__(self, settings: Settings) -> None:
        """See the contract."""
        if settings.precision not in DTYPES:
            raise CannotError(f"PyTorch has no {settings.precision} here; it has {', '.join(DTYPES)}")
        if settings.device == "cuda":
            _check_cuda(settings.precision)
        elif settings.device != "cpu":
            raise CannotError(f"there is no device {settings.device!r}; it is cpu or cuda")
        elif settings.precision == "tf32":
            raise CannotError("TF32 is a format of NVIDIA's tensor cores")
        self._settings = settings
        torch.set_num_threads(settings.threads)
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)  # may be set only once in a process
        torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
        # TorchInductor's convolution templates read this alone. Set after the older flags it agrees with them, which torch.compile demands
        # (pytorch/pytorch#166387).
        torch.backends.cudnn.fp32_precision = "tf32" if settings.precision == "tf32" else "ieee"
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(settings.deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that writes every activation twice
        torch.backends.cudnn.benchmark = not settings.deterministic

    def prepare(self, model: ModelSpec, weights: Mapping[str, Any], mode: str, input_shape: Shape) -> Network:
        """See the contract."""
        execution = self._execution(mode)
        held = "fp32" if execution.autocast and self._settings.precision != "fp64" else self._settings.precision
        return Network(self._settings, Model(model, self._tensors(weights, held), inplace=True).eval(), mode, execution)

    def prepare_training(
        self, model: ModelSpec, weights: Mapping[str, Any], momentum: Mapping[str, Any], sgd: Sgd, mode: str, input_shape: Shape
    ) -> training.Trainer:
        """See the contract. Where it compiles, forward and backward passes are TorchInductor's; the optimizer's step is eager."""
        execution = self._execution(mode)
        training.check(model, sgd, self._settings.precision, input_shape)
        computed = DTYPES[self._settings.precision]
        held = "fp32" if computed == torch.bfloat16 else self._settings.precision
        module = Model(model, self._tensors(weights, held), inplace=False).train()  # autograd's inputs and the taps must stay
        memory_format = torch.channels_last if execution.channels_last else torch.contiguous_format
        module = module.to(memory_format=memory_format)
        call = module if execution.compiler is None else _compiled(module, execution.compiler)
        told = partial(_settings, mode, execution, module, computed)
        counted = partial(_compilations, execution)
        velocity = self._tensors(momentum, held)
        return training.Trainer(module, call, velocity, sgd, model.auxiliary_weights, computed, memory_format, told, counted)

    def _execution(self, mode: str) -> Execution:
        """What the mode is on this device.

        Raises:
            CannotError: it has no such mode.
        """
        modes = MODES[self._settings.device]
        if mode not in modes:
            raise CannotError(f"PyTorch has no mode {mode!r}; it has {' and '.join(modes)}")
        return modes[mode]

    def _tensors(self, arrays: Mapping[str, Any], precision: str) -> dict[str, Tensor]:
        dtype, device = DTYPES[precision], torch.device(self._settings.device)
        return {name: layers.to_framework(array, dtype, device) for name, array in arrays.items()}

    def versions(self) -> dict[str, str]:
        """See the contract."""
        build = torch.__config__.show()
        found = {
            "torch": torch.__version__,
            "onednn": re.search(r"MKL-DNN v(\S+)", build),
            "mkl": re.search(r"Math Kernel Library Version (\S+)", build),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        return {name: value[1] if isinstance(value, re.Match) else str(value) for name, value in found.items() if value}

    def device_memory(self) -> dict[str, int]:
        """See the contract."""
        if self._settings.device != "cuda":
            return {}
        return {"peak_allocated_bytes": torch.cuda.max_memory_allocated(), "peak_reserved_bytes": torch.cuda.max_memory_reserved()}


def _check_cuda(precision: str) -> None:
    if not torch.cuda.is_available():
        raise CannotError(f"PyTorch {torch.__version__} finds no NVIDIA GPU; `nvidia-smi` shows whether the driver does")
    if precision in ("tf32", "bf16") and torch.cuda.get_device_capability() < (8, 0):
        raise CannotError(f"{precision} needs compute capability 8.0 or newer; {torch.cuda.get_device_name()} has less")
