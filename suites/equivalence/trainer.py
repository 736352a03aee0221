"""A trainer that lives in a worker, as the parent sees it: given a state, asked for derivatives, steps and its state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import Derivatives, Sgd
from impls.oracle import local_training
from impls.oracle.training import State
from impls.spec import ModelSpec, Shape
from impls.weights import file
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S
from suites.harness.process import WorkerProcess

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images (N, C, H, W) and labels (N,)."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


class Trainer(Protocol):
    """One network in training, whoever trains it."""

    def differentiate(self, batch: Batch) -> local_training.Derivatives:
        """The loss of a batch and its derivatives."""

    def steps(self, batches: Sequence[Batch], learning_rates: Sequence[float]) -> list[float]:
        """A step on each of the batches; the loss before each."""

    def state(self) -> State:
        """Where training stands."""


class LiveTrainer:
    """One network in training in a worker; arrays pass through files in ``folder``.

    Every method raises WorkerError if the worker does not answer as it should.
    """

    def __init__(
        self, worker: WorkerProcess, folder: Path, model: ModelSpec, state: State, sgd: Sgd, mode: str, batch_shape: Shape
    ) -> None:
        self._worker, self._folder = worker, folder
        path, held = folder / "training.safetensors", folder / "state.safetensors"
        weights = {name: np.asarray(tensor, np.float32) for name, tensor in state.weights.items()}
        file.save(path, model, weights, source="the state of a training", preprocess={}, licence="CC0-1.0")
        kinds = {"weights": state.weights, "momentum": state.momentum}
        save({f"{kind}:{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}, held)
        arguments = {"sgd": dataclasses.asdict(sgd), "mode": mode, "input_shape": list(batch_shape)}
        worker.call("prepare_training", BUILD_TIMEOUT_S, weights=str(path), state=str(held), **arguments)

    def differentiate(self, batch: Batch) -> Derivatives:
        """The loss of a batch and its derivatives."""
        given, out = self._folder / "batch.safetensors", self._folder / "derivatives.safetensors"
        save({"images": batch.images, "labels": batch.labels}, given)
        loss = self._worker.call("differentiate", BUILD_TIMEOUT_S, batch=str(given), out=str(out))["loss"]
        kinds = by_kind(load_file(out), "taps", "cotangents", "gradients")
        return Derivatives(loss, **kinds)

    def steps(self, batches: Sequence[Batch], learning_rates: Sequence[float]) -> list[float]:
        """A step on each of the batches; the loss before each."""
        given = self._folder / "batches.safetensors"
        save({"images": np.stack([each.images for each in batches]), "labels": np.stack([each.labels for each in batches])}, given)
        losses: list[float] = self._worker.call("train", BUILD_TIMEOUT_S, batches=str(given), learning_rates=list(learning_rates))["losses"]
        return losses

    def state(self) -> State:
        """Where training stands."""
        out = self._folder / "trained.safetensors"
        self._worker.call("trained", CALL_TIMEOUT_S, out=str(out))
        return State(**by_kind(load_file(out), "weights", "momentum"))


def by_kind(arrays: Arrays, *kinds: str) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Arrays called "kind:name" by kind and name."""
    return {kind: {name.removeprefix(f"{kind}:"): array for name, array in arrays.items() if name.startswith(f"{kind}:")} for kind in kinds}
