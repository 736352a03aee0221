"""The zoo models: found only when asked for, what their manifests say, and how the harness honours it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from impls import models
from impls.implementation import ROOT, ManifestError, find, read_manifest
from impls.weights import file, synthesis
from suites.equivalence.examination import Examination
from suites.harness import plan
from suites.harness.context import subject
from suites.harness.process import Launch, WorkerProcess
from suites.harness.runner import _probing

TWINS = {"flax": "jax", "keras": "tensorflow", "torchvision": "pytorch", "torchvision_export": "onnx"}
"""Each zoo model and the implementation of ours whose framework it runs on."""

ZOO = set(TWINS)

MANIFEST = """
title = "Toy"
distribution = "numpy"
default_mode = "eager"

[modes.eager]
title = "Toy eager"
build_s = 1

[devices.cpu]
precisions = ["fp32"]
"""

RUNTIME = """
from pathlib import Path
import numpy as np
from impls import implementation, spec

class Network(implementation.Network):
    host_layout = "NCHW"
    def __init__(self, model, weights):
        self.model, self.held = model, weights
    def put(self, images): return images
    def run(self, batch): return batch
    def wait(self, output): pass
    def get(self, output): return output
    def weights(self): return dict(self.held)
    def compilations(self): return 0
    def settings(self): return {"batch_norms": sum(isinstance(layer, spec.BatchNorm2d) for layer in spec.layers(self.model.body))}

class Runtime(implementation.Runtime):
    def __init__(self, settings): pass
    def prepare(self, model, weights, mode, input_shape): return Network(model, weights)
    def versions(self): return {"package": __package__}
"""


def manifest(folder: Path, lines: str = "") -> Any:
    """The toy's manifest with more lines at its head."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requirements-cpu.txt").write_text("numpy\n")
    (folder / "impl.toml").write_text(lines + MANIFEST)
    return read_manifest(folder / "impl.toml", "suites.zoo")


def pins(requirements: Path) -> dict[str, str]:
    """Version by package, each of which must be pinned exactly."""
    lines = [line for line in requirements.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+(\[[\w,-]+\])?==[\d.]+", line) for line in lines), requirements
    return dict(line.split("==") for line in lines)


def test_manifest_facts(tmp_path: Path) -> None:
    """Package, models, folds and taps are read; where nothing is said any model is built, folded, with taps."""
    plain = manifest(tmp_path / "toy")
    assert (plain.package, plain.models, plain.folds, plain.taps) == ("suites.zoo.toy", None, True, True)
    bare = manifest(tmp_path / "toy", 'models = ["resnet50"]\nfolds = false\ntaps = false\n')
    assert (bare.models, bare.folds, bare.taps) == (("resnet50",), False, False)


@pytest.mark.parametrize("line", ['folds = "no"', "taps = 0"])
def test_a_fact_that_is_no_truth_value_is_refused(tmp_path: Path, line: str) -> None:
    """A string or a number in place of true or false is refused by name."""
    with pytest.raises(ManifestError, match=f"{line.split(maxsplit=1)[0]} = .* is neither true nor false"):
        manifest(tmp_path / "toy", f"{line}\n")


def test_the_zoo_is_found_only_when_asked_for() -> None:
    """Without ``zoo`` there are only our own; with it both, in packages of their own."""
    assert not ZOO & set(find())
    both = find(zoo=True)
    assert set(both) == ZOO | set(find())
    for name, each in both.items():
        assert each.package == (f"suites.zoo.{name}" if name in ZOO else f"impls.{name}")
        assert (ROOT.joinpath(*each.package.split(".")) / "runtime.py").is_file()


def test_every_zoo_model_is_known_and_pinned() -> None:
    """A zoo model's models are models of ours, its taps are not promised, and each requirement is pinned exactly."""
    for name in ZOO:
        each = find(zoo=True)[name]
        assert each.models
        assert [models.get(model).name for model in each.models] == list(each.models)
        assert not each.taps
        assert all(pins(device.requirements) for device in each.devices.values())


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_our_framework_to_the_version(name: str) -> None:
    """It runs on every kind of device that ours runs on, with the same packages; but the exporter's PyTorch chooses CUDA's libraries."""
    twin, ours = find(zoo=True)[name], find()[TWINS[name]]
    assert set(twin.devices) == set(ours.devices)
    for kind, device in twin.devices.items():
        own, other = pins(device.requirements), pins(ours.devices[kind].requirements)
        chosen = (
            {package for package in other if package.startswith("nvidia-")} if (name, kind) == ("torchvision_export", "cuda") else set()
        )
        missing = {package: version for package, version in other.items() if package not in chosen and own.get(package) != version}
        assert not missing, device.requirements


def test_the_plan_holds_the_zoo_only_when_asked() -> None:
    """A plan without ``zoo`` has no zoo cell; with it Keras is in the plan of resnet50_v1, and a reasoned skip in resnet50's."""
    request = plan.Request(models=("resnet50", "resnet50_v1"), zoo=True)
    ours, _ = plan.arms(plan.Request(models=request.models), find(), timed=True)
    assert not ZOO & {cell.implementation for cell in ours}
    cells, skips = plan.arms(request, find(zoo=True), timed=True)
    assert {cell.model for cell in cells if cell.implementation == "keras"} == {"resnet50_v1"}
    assert {cell.model for cell in cells if cell.implementation == "flax"} == {"resnet50"}
    reasons = {skip.reason for skip in skips if skip.implementation == "keras" and skip.model == "resnet50"}
    assert reasons == {"Keras has no resnet50; it has resnet50_v1"}
    assert not any(skip.by_name for skip in skips if skip.implementation == "keras")


def test_a_zoo_model_asked_for_by_name_is_impossible_by_name() -> None:
    """Keras and resnet50, both named, is a cell that was asked for by name."""
    request = plan.Request(models=("resnet50",), implementations=("keras",), modes=("graph",), zoo=True)
    cells, skips = plan.arms(request, find(zoo=True), timed=True)
    assert not cells
    assert [skip.by_name for skip in skips] == [True]


def test_only_what_builds_any_network_probes_the_machine() -> None:
    """The probe's one-layer networks are asked of our implementations and of no zoo model."""
    manifests = find(zoo=True)
    cells, _ = plan.arms(plan.Request(models=("resnet50",), zoo=True), manifests, timed=True)
    assert ZOO & {cell.implementation for cell in cells}
    assert {cell.implementation for cell in _probing(cells, manifests)} == set(find())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose zoo holds one toy."""
    skip = shutil.ignore_patterns("__pycache__", "zoo")
    shutil.copytree(ROOT / "impls", tmp_path / "impls", ignore=skip)
    shutil.copytree(ROOT / "suites", tmp_path / "suites", ignore=skip)
    manifest(tmp_path / "suites" / "zoo" / "toy", "folds = false\n")
    for folder in (tmp_path / "suites" / "zoo", tmp_path / "suites" / "zoo" / "toy"):
        (folder / "__init__.py").write_text("")
    (tmp_path / "suites" / "zoo" / "toy" / "runtime.py").write_text(RUNTIME)
    return tmp_path


@pytest.mark.parametrize(("fold", "batch_norms"), [(True, 0), (False, 19)])
def test_the_worker_imports_the_package_and_folds_as_told(checkout: Path, fold: bool, batch_norms: int) -> None:
    """A worker runs the implementation of its package, which sees batch norms only if nothing was folded."""
    package = find(checkout, zoo=True)["toy"].package
    model = models.get("cifar_resnet20")
    weights = checkout / "weights.safetensors"
    file.save(weights, model, synthesis.synthesize(model, 0), source="a test", preprocess={}, licence="CC0-1.0")
    launch = Launch(Path(sys.executable), package, "cpu", "fp32", 1, False, checkout / "log", {}, checkout)
    with WorkerProcess(launch) as worker:
        hello = worker.call("start", 60)
        assert hello["versions"] == {"package": "suites.zoo.toy"}
        prepared = worker.call("prepare", 60, handle="a", weights=str(weights), mode="eager", input_shape=[1, 3, 32, 32], fold=fold)
    assert prepared["settings"]["batch_norms"] == batch_norms
    assert prepared["settings"]["folded"] is fold


class FakeWorker:
    """Answers the operations of an examination with zeros and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, operation: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Write what the operation promises."""
        from safetensors.numpy import save_file

        self.calls.append((operation, arguments))
        if operation in ("taps", "outputs"):
            save_file({"logits": np.zeros((1, 2, 10))}, arguments["out"])
        return {"settings": {}} if operation == "prepare" else {}


@pytest.mark.parametrize(("folds", "taps"), [(True, True), (False, True), (True, False), (False, False)])
def test_an_examination_follows_the_manifest(tmp_path: Path, folds: bool, taps: bool) -> None:
    """The network that is timed is built folded or not as the manifest says, and taps are asked for only where there are any."""
    worker = FakeWorker()
    facts = SimpleNamespace(folds=folds, taps=taps)
    context: Any = SimpleNamespace(manifests={"toy": facts}, scratch_of=lambda name: tmp_path)
    workers: Any = SimpleNamespace(get=lambda cell, precision: (worker, {}))
    cell: Any = SimpleNamespace(implementation="toy", mode="eager")
    about: Any = None
    examination = Examination(context, workers, cell, about, (1,))
    found, _, _ = examination._observe("fp32", tmp_path / "weights", np.zeros((2, 3, 32, 32), np.float32))
    folded = {arguments["handle"]: arguments["fold"] for operation, arguments in worker.calls if operation == "prepare"}
    assert folded == ({"taps": False} if taps else {}) | {"mode": folds}
    assert ("taps" in [operation for operation, _ in worker.calls]) == taps
    assert bool(found) == taps


def test_the_oracle_is_given_what_the_implementation_is_given() -> None:
    """The subject's network for a manifest that does not fold has batch norms, and for one that does has none."""
    about = subject("cifar_resnet20")
    folding: Any = SimpleNamespace(folds=True)
    plain: Any = SimpleNamespace(folds=False)
    assert about.given(folding) == (about.folded_model, about.folded_weights)
    assert about.given(plain)[0] is about.model
    assert about.given(plain)[1] is about.weights
