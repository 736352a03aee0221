"""ONNX files of others: their weights are recognised, what they compute is diagnosed, and what is hostile is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from impls.implementation import ROOT
from levelfield.cli import main
from suites.equivalence import foreign
from tests.frameworks import interpreter

MODEL = "cifar_resnet8"

MAKE = """
import sys
import numpy as np
import onnx
from onnx import TensorProto, helper
from impls import models
from impls.onnx import runtime
from impls.weights import folding, synthesis

change, out, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = models.get("MODEL")
weights = synthesis.synthesize(model, 0)
if change == "folded":
    model, weights = folding.fold_batch_norm(model, weights)
proto = runtime.build(model, weights, np.float32, (batch, 3, 32, 32))
graph = proto.graph
del graph.value_info[:]

def attribute(node, name):
    return next(each for each in node.attribute if each.name == name)

def strided(node):
    return node.op_type == "Conv" and list(attribute(node, "kernel_shape").ints) == [3, 3] and attribute(node, "strides").ints[0] == 2

if change == "same":
    for node in filter(strided, graph.node):
        attribute(node, "pads").ints[:] = [0, 0, 1, 1]
elif change == "epsilon":
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            attribute(node, "epsilon").f = 1e-3
elif change == "softmax":
    graph.node.append(helper.make_node("Softmax", [graph.output[0].name], ["p"], axis=1))
    graph.output[0].name = "p"
elif change == "nameless":
    names = {tensor.name: f"onnx::{index}" for index, tensor in enumerate(graph.initializer)}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
elif change == "nhwc":
    graph.node.insert(0, helper.make_node("Transpose", ["nhwc"], ["images"], perm=[0, 3, 1, 2]))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("nhwc", TensorProto.FLOAT, ["n", "h", "w", 3]))
elif change == "external":
    tensor = next(each for each in graph.initializer if each.name == "conv1.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
elif change == "short":
    tensor = next(each for each in graph.initializer if each.name == "conv1.weight")
    tensor.raw_data = tensor.raw_data[:-4]
elif change == "typeless":
    next(each for each in graph.initializer if each.name == "conv1.weight").data_type = 99
elif change == "huge":
    attribute(graph.node[0], "pads").ints[:] = [10**6] * 4
elif change == "custom":
    graph.node[3].domain = "evil"
elif change == "nested":
    graph.node[3].op_type = "Loop"
elif change == "narrow":
    del graph.node[-1]
    graph.output[0].name = graph.node[-1].output[0]
open(out, "wb").write(proto.SerializeToString())
""".replace("MODEL", MODEL)


def made(change: str, folder: Path, batch: int = 8) -> Path:
    """A changed ONNX file, built in ONNX Runtime's environment."""
    path = folder / f"{change}.onnx"
    subprocess.run([interpreter("onnx"), "-c", MAKE, change, path, str(batch)], cwd=ROOT, check=True)
    return path


def diagnosed(path: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["diagnose", "--onnx", str(path), *more], prog_name="levelfield")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ("none", 0, f"{MODEL} agrees: 80 numbers"),
        ("nameless", 0, f"{MODEL} agrees: 80 numbers"),
        ("folded", 0, f"{MODEL} agrees: 80 numbers"),
        ("nhwc", 0, f"{MODEL} agrees: 80 numbers"),
        ("same", 1, f"{MODEL} differs: every strided 3x3 convolution pads (0, 1) instead of (1, 1): SAME padding; explains 99.99 %"),
        ("epsilon", 1, "differs: every batch norm has an epsilon of 1e-3 instead of 1e-5; explains 99.9"),
        ("softmax", 1, "differs: fc gives probabilities instead of logits; explains 99.99 %"),
    ],
)
def test_a_foreign_resnet_is_judged(change: str, code: int, says: str, tmp_path: Path) -> None:
    """By its own weights, found by structure, whatever its names and layout."""
    done = diagnosed(made(change, tmp_path), *(("--model", MODEL) if change == "nhwc" else ()))
    assert (done.exit_code, says in done.stdout) == (code, True), done.output


def test_a_batch_of_one_is_run_image_by_image(tmp_path: Path) -> None:
    """What most exporters write."""
    done = diagnosed(made("none", tmp_path, batch=1))
    assert (done.exit_code, "80 numbers" in done.stdout) == (0, True), done.output


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("external", "keeps the tensor 'conv1.weight' in another file, which is not read"),
        ("short", "holds a constant 'conv1.weight' that cannot be read: "),
        ("typeless", "holds a constant 'conv1.weight' that cannot be read: "),
        ("huge", "computes 'conv1' of shape"),
        ("custom", "has the operator evil."),
        ("nested", "has the operator Loop"),
        ("narrow", "its weights are no known network's; the nearest is cifar_resnet8: nothing in it is fc"),
    ],
)
def test_a_file_that_cannot_be_judged_gets_a_sentence(change: str, says: str, tmp_path: Path) -> None:
    """Exit code 2, the file and what is wrong with it."""
    path = made(change, tmp_path)
    done = diagnosed(path)
    assert (done.exit_code, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.output
    assert f"levelfield: {path}: {says}" in done.stderr


def test_other_files_and_other_models(tmp_path: Path) -> None:
    """No ONNX file, none at all, and the weights of another network than was meant."""
    (tmp_path / "junk.onnx").write_bytes(b"\x00\xff" * 99)
    assert "is no ONNX file" in diagnosed(tmp_path / "junk.onnx").stderr
    assert "there is no such file" in diagnosed(tmp_path / "absent.onnx").stderr
    done = diagnosed(made("none", tmp_path), "--model", "cifar_resnet20")
    assert (done.exit_code, "its weights are not cifar_resnet20's: nothing in it is layer1.1.conv1" in done.stderr) == (2, True), (
        done.stderr
    )


def test_implementations_are_diagnosed() -> None:
    """Each of two against the oracle, taps and the mode's logits."""
    done = CliRunner().invoke(main, ["diagnose", "--model", MODEL, "pytorch/eager", "onnx/ort"], prog_name="levelfield")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert [line.split()[0] for line in lines] == ["pytorch/eager", "onnx/ort"]
    assert all(line.endswith("and so do the logits of the mode") for line in lines)


def test_operators_are_matched_by_what_they_read() -> None:
    """The last convolution and the shortcut's of a bottleneck have one shape; which is which is told by their inputs."""
    from impls import models, spec
    from impls.weights import synthesis

    model = models.get("resnet50")
    weights = synthesis.synthesize(model, 0)
    order = [layer for layer in spec.layers(model.body) if layer.tensors()]
    place = {layer.name: number for number, layer in enumerate(order)}
    # The exporter puts the shortcut first.
    swapped = sorted(order, key=lambda layer: place[layer.name] - 6.5 if ".downsample" in layer.name else place[layer.name])
    numbers = {layer.name: number for number, layer in enumerate(swapped)} | {foreign.IMAGES: -1}
    before = foreign._before(model)
    kinds = {kind: names[0] for kind, names in foreign.KINDS.items()}
    operators = [{"kind": kinds[type(layer)], "inputs": sorted(numbers[name] for name in before[layer.name])} for layer in swapped]
    arrays = {f"{numbers[layer.name]}.{leaf}": weights[f"{layer.name}.{leaf}"] for layer in swapped for leaf in layer.tensors()}
    found = foreign.identify(operators, arrays)
    assert found.model.name == "resnet50"
    assert all((found.weights[name] == weights[name]).all() for name in weights)
