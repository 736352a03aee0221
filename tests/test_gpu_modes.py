"""The modes of a GPU as far as they run without one: on the CPU, in the frameworks' own environments."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from impls.implementation import ROOT, find
from tests.frameworks import interpreter

PYTORCH = """
import dataclasses, json
import numpy as np
import torch
from impls import models
from impls.implementation import CannotError, Settings
from impls.pytorch import runtime
from impls.weights import folding, synthesis

model = models.get("cifar_resnet8")
folded, weights = folding.fold_batch_norm(model, synthesis.synthesize(model, 0))
images = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
told = {"compilers": sorted(torch._inductor.list_mode_options()), "modes": {}}
told["graphs"] = [name for name, options in torch._inductor.list_mode_options().items() if options.get("triton.cudagraphs")]
held = {}
for precision in ("fp32", "bf16"):
    settings = Settings("cpu", precision, 1, False)
    process = runtime.Runtime(settings)
    for name, execution in runtime.MODES["cuda"].items():
        if execution.autocast and precision == "fp32":
            continue
        tensors = process._tensors(weights, "fp32" if execution.autocast else precision)
        eager = dataclasses.replace(execution, compiler=None)
        network = runtime.Network(settings, runtime.Model(folded, tensors, inplace=True).eval(), name, eager)
        logits = network.get(network.run(network.put(images)))
        held[name] = network.weights()
        told["modes"][f"{name} {precision}"] = {
            "logits": logits.tolist(), "last_tap": network.taps(images)["fc"].tolist(), "settings": network.settings(),
            "compiler": execution.compiler, "replays": execution.replays_graphs, "host": network.host_layout,
        }
told["same_weights"] = all(np.array_equal(held["compile_autocast"][name], held["channels_last"][name]) for name in weights)
try:
    process.prepare(folded, weights, "max_autotune", (1, 3, 32, 32))
except CannotError as error:
    told["refused"] = str(error)
print(json.dumps(told))
"""

TRAINING = """
import json
import numpy as np
from impls import models
from impls.implementation import Settings, Sgd
from impls.pytorch import runtime
from impls.spec import parameter_names
from impls.weights import synthesis

model = models.get("cifar_resnet8")
weights = synthesis.synthesize(model, 0)
generator = np.random.default_rng(0)
momentum = {name: generator.standard_normal(weights[name].shape, np.float32) for name in parameter_names(model)}
images, labels = generator.standard_normal((4, 3, 32, 32), np.float32), generator.integers(0, 10, 4)
runtime.MODES = {"cpu": runtime.MODES["cuda"]}
process = runtime.Runtime(Settings("cpu", "fp32", 1, False))
told = {}
for mode in ("eager", "channels_last"):
    trainer = process.prepare_training(model, weights, momentum, Sgd(0.9, True, 5e-4, 0.1), mode, (4, 3, 32, 32))
    state = trainer._optimizer.state
    strides = [(parameter.stride(), state[parameter]["momentum_buffer"].stride()) for parameter in trainer._parameters.values()]
    trainer.get(trainer.enqueue(trainer.put(images, labels), 0.1))
    told[mode] = {"strides": strides, "weights": {name: tensor.tolist() for name, tensor in trainer.weights().items()}}
apart = [np.abs(np.subtract(*(told[mode]["weights"][name] for mode in told))).max() for name in momentum]
print(json.dumps({"strides": {mode: told[mode]["strides"] for mode in told}, "apart": float(max(apart))}))
"""

ONNX = """
import json
import numpy as np
import onnxruntime
from impls import models
from impls.implementation import Settings
from impls.onnx import runtime
from impls.weights import folding, synthesis

model = models.get("cifar_resnet8")
folded, weights = folding.fold_batch_norm(model, synthesis.synthesize(model, 0))
generator = np.random.default_rng(0)
batches = [generator.standard_normal((2, 3, 32, 32), np.float32) for _ in range(2)]
runtime.MODES = {"cpu": runtime.MODES["cuda"]}
process = runtime.Runtime(Settings("cpu", "fp32", 1, False))
plain, graph = (process.prepare(folded, weights, mode, (2, 3, 32, 32)) for mode in ("ort", "ort_graph"))
put = [graph.put(images) for images in batches]
outputs = [graph.run(batch) for batch in put]
expected = [plain.get(plain.run(plain.put(images))) for images in batches]
options = {f"{precision} {graph}": runtime._cuda_options(Settings("cuda", precision, 1, False), cuda_graph=graph)
           for precision in ("fp32", "tf32", "fp16") for graph in (False, True)}
print(json.dumps({
    "same": [bool(np.array_equal(graph.get(output), answer)) for output, answer in zip(outputs, expected)],
    "batches": [bool(np.array_equal(batch.numpy(), images)) for batch, images in zip(put, batches)],
    "kind": type(graph).__name__, "options": options,
}))
"""


def told(implementation: str, script: str) -> dict[str, Any]:
    """What a script prints in an implementation's environment."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [interpreter(implementation), "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def pytorch() -> dict[str, Any]:
    return told("pytorch", PYTORCH)


def difference(one: Any, other: Any) -> float:
    flat = [(a, b) for first, second in zip(one, other, strict=True) for a, b in zip(first, second, strict=True)]
    return max(abs(a - b) for a, b in flat) / max(abs(b) for _, b in flat)


def test_pytorchs_modes_compute_the_same(pytorch: dict[str, Any]) -> None:
    """Whatever the memory order; under autocast as in pure bf16 to a few of its roundings, and not as in fp32."""
    modes = pytorch["modes"]
    assert {name for name, _, _ in (key.partition(" ") for key in modes)} == set(find()["pytorch"].modes_on("cuda"))
    assert difference(modes["eager fp32"]["logits"], modes["channels_last fp32"]["logits"]) < 1e-5
    assert difference(modes["compile_autocast bf16"]["logits"], modes["channels_last bf16"]["logits"]) < 0.05
    assert difference(modes["compile_autocast bf16"]["logits"], modes["channels_last fp32"]["logits"]) > 1e-4
    assert all(difference(mode["logits"], mode["last_tap"]) < 0.05 for mode in modes.values())


def test_pytorchs_modes_tell_what_they_are(pytorch: dict[str, Any]) -> None:
    """Read back: the memory order of the held kernels, what is computed in, and what the weights are held in."""
    modes = pytorch["modes"]
    layouts = {name: mode["settings"]["layout"] for name, mode in modes.items()}
    assert [name for name, layout in layouts.items() if layout == "NCHW"] == ["eager fp32", "eager bf16"]
    assert all(mode["host"] == layouts[name] for name, mode in modes.items())
    autocast = modes["compile_autocast bf16"]["settings"]
    assert (autocast["precision"], autocast["weights_precision"], autocast["autocast"]) == ("bfloat16", "float32", True)
    pure = modes["channels_last bf16"]["settings"]
    assert (pure["precision"], pure["weights_precision"], pure["autocast"]) == ("bfloat16", "bfloat16", False)
    assert pytorch["same_weights"]


def test_pytorch_trains_in_both_memory_orders() -> None:
    """A momentum buffer lies in memory as its parameter does, which the fused optimizer needs, and a step is the same."""
    found = told("pytorch", TRAINING)
    for strides in found["strides"].values():
        assert all(own == velocity for own, velocity in strides)
    assert found["strides"]["eager"] != found["strides"]["channels_last"]
    assert found["apart"] < 1e-4


def test_pytorchs_compiler_has_these_modes(pytorch: dict[str, Any]) -> None:
    """By the words of the installed version, CUDA graphs too; a GPU's mode is refused on a CPU, with those that it has."""
    for mode in pytorch["modes"].values():
        assert mode["compiler"] is None or mode["compiler"] in pytorch["compilers"]
        assert mode["replays"] == (mode["compiler"] in pytorch["graphs"])
    assert pytorch["refused"] == "PyTorch has no mode 'max_autotune'; it has eager and compile"


def test_onnx_runtimes_graph() -> None:
    """Passes that share their memory give what others give, each output its own, and leave their batches as they were."""
    found = told("onnx", ONNX)
    assert found["kind"] == "GraphNetwork"
    assert found["same"] == [True, True]
    assert found["batches"] == [True, True]
    for name, options in found["options"].items():
        precision, graph = name.split()
        assert options["enable_cuda_graph"] == str(int(graph == "True"))
        assert options["use_tf32"] == options["prefer_nhwc"] == options["fuse_conv_bias"] == str(int(precision != "fp32"))
