"""Live workers of every implementation on disk, for the tests that need a framework.

Environments are built once and cached (``suites.harness.environments``); workers are shared by the whole session, one per
implementation and precision, and driven over the pipe, since the frameworks' environments hold no pytest.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from impls.implementation import find
from impls.spec import ModelSpec
from impls.weights import file
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S
from suites.harness.environments import build, cache_root
from suites.harness.process import Launch, WorkerProcess

DEVICE = "cpu"
THREADS = min(2, len(os.sched_getaffinity(0)))
MANIFESTS = find()

Array = npt.NDArray[Any]
Images = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Arm:
    """An implementation in one mode and precision."""

    implementation: str
    mode: str
    precision: str

    def __str__(self) -> str:
        return f"{self.implementation}-{self.mode}-{self.precision}"


ARMS = tuple(
    Arm(name, mode, precision)
    for name, manifest in MANIFESTS.items()
    for mode in manifest.modes
    for precision in manifest.devices[DEVICE].precisions
)
"""Everything that the implementations on disk say they can do on this device."""


@functools.cache
def interpreter(implementation: str) -> Path:
    """The Python of an implementation's environment, built where it is not there yet."""
    manifest = MANIFESTS[implementation]
    return build(manifest, manifest.devices[DEVICE])


class Prepared:
    """A network that lives in a worker under a handle of its own."""

    def __init__(self, worker: WorkerProcess, handle: str, folder: Path, prepared: Mapping[str, Any]) -> None:
        self.worker = worker
        self.handle = handle
        self.folder = folder
        self.settings = prepared["settings"]

    def logits(self, ring: Images) -> Array:
        """(ring, N, classes) of a ring of batches (ring, N, C, H, W), through the timed path."""
        images, out = self.folder / "ring.safetensors", self.folder / "logits.safetensors"
        save_file({"images": np.ascontiguousarray(ring)}, images)
        self.settings = self.worker.call("put", BUILD_TIMEOUT_S, handle=self.handle, images=str(images))["settings"]
        self.worker.call("outputs", CALL_TIMEOUT_S, handle=self.handle, out=str(out))
        return load_file(out)["logits"]

    def arithmetic(self) -> str:
        """How the products of the last ring's first batch were computed."""
        return str(self.worker.call("arithmetic", BUILD_TIMEOUT_S, handle=self.handle)["arithmetic"])

    def taps(self, images: Images) -> dict[str, Array]:
        """Every layer's output for one batch (N, C, H, W)."""
        batch, out = self.folder / "batch.safetensors", self.folder / "taps.safetensors"
        save_file({"images": np.ascontiguousarray(images)}, batch)
        self.worker.call("taps", BUILD_TIMEOUT_S, handle=self.handle, images=str(batch), out=str(out))
        return load_file(out)

    def weights(self) -> dict[str, Any]:
        """Type, shape and SHA-256 of every tensor as the framework holds it."""
        return self.worker.call("weights", CALL_TIMEOUT_S, handle=self.handle)

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        if self.worker.alive:
            self.worker.call("release", CALL_TIMEOUT_S, handle=self.handle)


class Frameworks:
    """The session's workers; ``folder`` holds what passes between the processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._live: dict[tuple[str, str], WorkerProcess] = {}
        self._files: dict[tuple[str, str], Path] = {}
        self._handles = 0

    def start(self, implementation: str, precision: str, *, deterministic: bool = False, **environment: str) -> WorkerProcess:
        """A worker of its own, started but not yet asked, with these environment variables beside the usual ones."""
        log = self.folder / f"{implementation}-{precision}-{deterministic}.log"
        variables = {"TORCHINDUCTOR_CACHE_DIR": str(cache_root() / "torchinductor"), "OMP_NUM_THREADS": str(THREADS), **environment}
        python = interpreter(implementation)
        return WorkerProcess(Launch(python, MANIFESTS[implementation].package, DEVICE, precision, THREADS, deterministic, log, variables))

    def worker(self, implementation: str, precision: str) -> WorkerProcess:
        """The session's worker of this implementation and precision."""
        key = implementation, precision
        if key not in self._live or not self._live[key].alive:
            worker = self.start(implementation, precision)
            worker.call("start", START_TIMEOUT_S)
            self._live[key] = worker
        return self._live[key]

    def weight_file(self, model: ModelSpec, weights: Mapping[str, npt.NDArray[np.float32]]) -> Path:
        """A weight file of these tensors, written once."""
        key = file.spec_sha256(model), file.tensor_sha256(weights)
        if key not in self._files:
            path = self.folder / f"{len(self._files)}-{model.name}.safetensors"
            file.save(path, model, weights, source="the conformance tests", preprocess={}, licence="CC0-1.0")
            self._files[key] = path
        return self._files[key]

    def prepare(self, arm: Arm, path: Path, input_shape: tuple[int, ...], *, fold: bool) -> Prepared:
        """The network of a weight file, in the arm's mode, for inputs of one shape."""
        worker = self.worker(arm.implementation, arm.precision)
        self._handles += 1
        handle = str(self._handles)
        arguments = {"handle": handle, "weights": str(path), "mode": arm.mode, "input_shape": list(input_shape), "fold": fold}
        return Prepared(worker, handle, self.folder, worker.call("prepare", BUILD_TIMEOUT_S, **arguments))

    def end(self) -> None:
        """End all workers."""
        for worker in self._live.values():
            worker.end()


@pytest.fixture(scope="session", name="frameworks")
def live_frameworks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frameworks]:
    """The session's live workers."""
    live = Frameworks(tmp_path_factory.mktemp("frameworks"))
    yield live
    live.end()
