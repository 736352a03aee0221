"""The far end of the pipe: real workers that run the fakes, started as the harness starts them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impls import models
from impls.implementation import CannotError, find
from impls.oracle import forward
from impls.weights import file, folding, synthesis
from suites.harness import worker
from suites.harness.process import Launch, WorkerError, WorkerProcess
from tests.checkouts import Checkout

Start = Callable[..., "contextmanager[WorkerProcess]"]

MODEL = models.get("cifar_resnet8")
WEIGHTS = synthesis.synthesize(MODEL, 0)
RING = np.random.Generator(np.random.PCG64(0)).standard_normal((3, 2, 3, 32, 32), np.float32)


@pytest.fixture
def start(checkout: Checkout, tmp_path: Path) -> Start:
    """Start a worker of a fake; it has answered ``start``."""

    @contextmanager
    def starter(package: str = "impls.honest", precision: str = "fp64", **variables: str) -> Iterator[WorkerProcess]:
        launch = Launch(Path(sys.executable), package, "cpu", precision, 1, False, tmp_path / "worker.log", variables, checkout.root)
        with WorkerProcess(launch) as process:
            yield process

    return starter


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    file.save(path, MODEL, WEIGHTS, source="a test", preprocess={}, licence="CC0-1.0")
    return path


@pytest.mark.parametrize("fold", [False, True])
def test_a_network_through_all_operations(start: Start, weights: Path, tmp_path: Path, fold: bool) -> None:
    """Start, prepare, put, visit, outputs, taps, weights, memory, release: the answers are those of the oracle."""
    ring, batch, out = (str(tmp_path / name) for name in ("ring", "batch", "out"))
    save_file({"images": RING}, ring)
    save_file({"images": RING[0]}, batch)
    model, tensors = folding.fold_batch_norm(MODEL, WEIGHTS) if fold else (MODEL, WEIGHTS)
    with start() as process:
        hello = process.call("start", 60)
        assert hello["protocol"] == worker.PROTOCOL_VERSION
        assert hello["packages"]["numpy"] == hello["versions"]["numpy"] == np.__version__
        assert 0 < hello["import_s"] < 60
        loaded = process.call("prepare", 60, handle="a", weights=str(weights), mode="eager", input_shape=[2, 3, 32, 32], fold=fold)
        assert loaded["settings"] == {
            "threads": 1,
            "precision": "float64",
            "tf32": False,
            "layout": "NHWC",
            "deterministic": True,
            "placed_on": "cpu",
            "folded": fold,
        }
        assert process.call("put", 60, handle="a", images=ring)["first_call_s"] > 0
        sustained = process.call("sustain", 60, handle="a", scope="transfer", calls=2, seconds=0.05)
        assert set(sustained["calls"]) == {2}
        assert sustained["start_ns"][-1] + sustained["duration_ns"][-1] - sustained["start_ns"][0] >= 0.05e9
        taken = process.call("visit", 60, handle="a", scope="transfer", samples=4, calls=2)
        assert taken["calls"] == [2] * 4
        starts, durations = np.array(taken["start_ns"]), np.array(taken["duration_ns"])
        assert (durations > 0).all()
        assert (starts[1:] >= (starts + durations)[:-1]).all()
        process.call("outputs", 60, handle="a", out=out)
        expected = np.stack([forward.forward(model, tensors, images) for images in RING])
        np.testing.assert_allclose(load_file(out)["logits"], expected, rtol=1e-10, atol=1e-10)
        unseen = str(tmp_path / "unseen")
        save_file({"images": RING[::-1].copy()}, unseen)
        process.call("classify", 60, handle="a", images=unseen, out=out)
        np.testing.assert_allclose(load_file(out)["logits"], expected[::-1], rtol=1e-10, atol=1e-10)
        told = process.call("settings", 60, handle="a")["settings"]
        assert {**told, "folded": fold} == loaded["settings"]
        process.call("taps", 60, handle="a", images=batch, out=out)
        taps = forward.taps(model, tensors, RING[0])
        assert {name: tap.shape for name, tap in load_file(out).items()} == {name: tap.shape for name, tap in taps.items()}
        held = process.call("weights", 60, handle="a")
        assert {name: each["sha256"] for name, each in held.items()} == {
            name: hashlib.sha256(tensor.astype(np.float64).tobytes()).hexdigest() for name, tensor in tensors.items()
        }
        memory = process.call("memory", 60, reset=True)["peak_memory_bytes"]
        assert 10e6 < process.call("memory", 60, reset=False)["peak_memory_bytes"] <= memory < 4e9
        process.call("release", 60, handle="a")
        with pytest.raises(WorkerError, match="KeyError: 'a'"):
            process.call("weights", 60, handle="a")
        assert process.alive


def test_an_unknown_operation_is_an_error(start: Start) -> None:
    """What the protocol has not is answered with its name, and the worker lives on."""
    with start() as process:
        with pytest.raises(WorkerError, match="KeyError: 'dance'") as caught:
            process.call("dance", 60)
        assert caught.value.kind == "failed"
        assert process.call("start", 60)["protocol"] == worker.PROTOCOL_VERSION


def test_a_precision_that_is_not_there(start: Start) -> None:
    """An implementation's own refusal arrives as such."""
    with start(precision="bf16") as process:
        with pytest.raises(WorkerError, match=r"^NumPy has no bf16$") as caught:
            process.call("start", 60)
        assert caught.value.kind == "cannot"


def test_it_may_use_as_many_cores_as_threads(start: Start) -> None:
    """A worker of one thread is confined to one core before anything counts them."""
    with start() as process:
        process.call("start", 60)
        assert len(os.sched_getaffinity(process.pid)) == 1


def test_it_ends_when_its_pipe_closes(start: Start) -> None:
    """A worker whose parent has closed the pipe ends by itself, well."""
    with start() as process:
        process.call("start", 60)
        os.close(process._requests)
        process._requests = os.open(os.devnull, os.O_WRONLY)
        assert process._process.wait(30) == 0


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (CannotError("not\n here"), "cannot", "not here"),
        (ModuleNotFoundError("No module named 'x'"), "missing", "ModuleNotFoundError: No module named 'x'"),
        (MemoryError(), "memory", "MemoryError: MemoryError"),
        (RuntimeError("CUDA out of memory. Tried"), "memory", "RuntimeError: CUDA out of memory. Tried"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of"), "memory", "RuntimeError: RESOURCE_EXHAUSTED: Out of"),
        (RuntimeError("std::bad_alloc"), "memory", "RuntimeError: std::bad_alloc"),
        (
            RuntimeError("FIND was unable to find an engine to execute this computation"),
            "memory",
            "RuntimeError: FIND was unable to find an engine to execute this computation",
        ),
        (
            RuntimeError("Failed to allocate memory for requested buffer"),
            "memory",
            "RuntimeError: Failed to allocate memory for requested buffer",
        ),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), "memory", "RuntimeError: CUDA_ERROR_OUT_OF_MEMORY"),
        (RuntimeError("OOM when allocating tensor"), "memory", "RuntimeError: OOM when allocating tensor"),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), "memory", "RuntimeError: CUDNN_STATUS_ALLOC_FAILED"),
        (ValueError("a\n\n  b\tc"), "failed", "ValueError: a b c"),
        (ValueError(), "failed", "ValueError: ValueError"),
    ],
)
def test_what_an_exception_becomes(error: Exception, kind: str, message: str) -> None:
    """The kind decides the row's status, the message is one line."""
    assert worker.error_of(error) == {"kind": kind, "message": message}
    assert len(worker.error_of(ValueError("x" * 10_000))["message"]) == 1000


def folders(checkout: Checkout) -> list[Path]:
    return [checkout.root, *(path for path in sorted(checkout.root.rglob("*")) if path.is_dir() and path.name != "__pycache__")]


def test_started_from_every_folder(checkout: Checkout, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is run, a worker finds the checkout's code."""
    for folder in (checkout.root, *(checkout.root / "impls" / name for name in find(checkout.root))):
        monkeypatch.chdir(folder)
        with start() as process:
            assert process.call("start", 60)["protocol"] == worker.PROTOCOL_VERSION


def test_no_folder_shadows_a_framework(checkout: Checkout) -> None:
    """In whatever folder a worker's interpreter is, no name of a framework leads into the checkout: jax is the package or nothing."""
    names = sorted(path.name for path in (checkout.root / "impls").iterdir() if path.is_dir())
    assert {"jax", "tensorflow", "onnx"} <= set(names)
    look = f"""
import importlib.util, json, os, sys
found = []
for folder in json.load(sys.stdin):
    os.chdir(folder)
    importlib.invalidate_caches()
    found += [str(spec.origin) for name in {names} if (spec := importlib.util.find_spec(name))]
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", look],
        input=json.dumps([str(folder) for folder in folders(checkout)]),
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(checkout.root)},
        text=True,
        capture_output=True,
        check=True,
    )
    assert [origin for origin in json.loads(done.stdout) if origin.startswith(str(checkout.root))] == []


def test_it_needs_only_numpy_and_safetensors(checkout: Checkout, weights: Path, tmp_path: Path) -> None:
    """All a worker loads beside the standard library, the project and its framework is NumPy and safetensors."""
    ring = tmp_path / "ring.safetensors"
    save_file({"images": RING}, ring)
    work = f"""
import sys
bare = set(sys.modules)  # a system's Python may load a sitecustomize of its own
import argparse
from suites.harness.worker import Worker
worker = Worker(argparse.Namespace(package="impls.honest", device="cpu", precision="fp32", threads=1, deterministic=False))
worker.start()
worker.prepare("a", {str(weights)!r}, "eager", [2, 3, 32, 32], True)
worker.put("a", {str(ring)!r})
worker.visit("a", "device", 1, 1)
worker.outputs("a", {str(tmp_path / "out")!r})
worker.memory(True)
print(*sorted({{name.partition(".")[0] for name in sys.modules.keys() - bare}} - sys.stdlib_module_names))
"""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(checkout.root)}
    done = subprocess.run([sys.executable, "-c", work], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    assert {"numpy", "safetensors"} <= loaded <= {"numpy", "safetensors", "impls", "suites"}
