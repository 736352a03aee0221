"""Training by a declared practice, in NumPy: the oracle's steps with one convention exchanged.

With no convention exchanged it is the oracle's own training, bit for bit, which a test holds it to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from impls.implementation import Sgd
from impls.oracle import training
from impls.oracle.backward import Pullback
from impls.oracle.forward import Array, tensors_of
from impls.oracle.training import Derivatives, Operations, State, taken, wiring
from impls.spec import BatchNorm2d, Layer
from suites.equivalence.faults.training import Labels, Practice, Tensors, Update
from suites.equivalence.trainer import Batch


class PracticeTrainer:
    """One network in training by a practice, in fp64 or fp32; asked as ``LiveTrainer`` is."""

    def __init__(self, practice: Practice, state: State, precision: str = "fp64") -> None:
        self._practice = _in_single(practice) if precision == "fp32" else practice
        self._dtype = np.dtype("float32" if precision == "fp32" else "float64")
        self._state = state
        self._rate_before: float | None = None

    def differentiate(self, batch: Batch) -> Derivatives:
        """The loss of a batch and its derivatives."""
        practice = self._practice

        def loss(logits: Array, labels: Labels, smoothing: float, _: tuple[float, ...]) -> tuple[float, Array]:
            return practice.loss(logits, labels, smoothing)

        operations = Operations(practice.evaluate, loss, practice.pull)
        smoothing = practice.sgd.label_smoothing
        found = training.differentiate(practice.model, self._state.weights, batch.images, batch.labels, smoothing, operations=operations)
        # Where branches meet, a cotangent is a sum that no operation rounds.
        return dataclasses.replace(found, cotangents={name: each.astype(self._dtype) for name, each in found.cotangents.items()})

    def steps(self, batches: Sequence[Batch], learning_rates: Sequence[float]) -> list[float]:
        """A step on each of the batches; the loss before each."""
        return [self._step(batch, rate) for batch, rate in zip(batches, learning_rates, strict=True)]

    def state(self) -> State:
        """Where training stands."""
        return self._state

    def _step(self, batch: Batch, rate: float) -> float:
        practice, before = self._practice, self._state
        found = self.differentiate(batch)
        weights, momentum = dict(before.weights), {}
        for node in wiring(practice.model):
            if isinstance(node.layer, BatchNorm2d):
                (x,) = taken(node, found.taps, batch.images)
                new = practice.statistics(node.layer, x, tensors_of(node.layer, before.weights))
                weights |= {f"{node.layer.name}.{leaf}": np.asarray(tensor) for leaf, tensor in new.items()}
        rate_before = rate if self._rate_before is None else self._rate_before
        for name, gradient in found.gradients.items():
            parameter, velocity = (np.asarray(held[name], np.float64) for held in (before.weights, before.momentum))
            update = Update(name, rate, rate_before, parameter, gradient, velocity)
            weights[name], momentum[name] = practice.descend(practice.sgd, update)
        self._state, self._rate_before = State(weights, momentum), rate
        return found.loss


def _in_single(practice: Practice) -> Practice:
    """The practice in fp32: every result is computed in float64 and rounded once to float32, as by accumulators that are wide enough."""

    def evaluate(layer: Layer, inputs: tuple[Array, ...], tensors: Tensors) -> Array:
        return _single(practice.evaluate(layer, inputs, tensors))

    def loss(logits: Array, labels: Labels, smoothing: float) -> tuple[float, Array]:
        value, cotangent = practice.loss(logits, labels, smoothing)
        return float(np.float32(value)), _single(cotangent)

    def pull(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
        pulled = practice.pull(layer, inputs, output, cotangent, tensors)
        return Pullback(tuple(map(_single, pulled.inputs)), {leaf: _single(value) for leaf, value in pulled.parameters.items()})

    def statistics(layer: BatchNorm2d, x: Array, tensors: Tensors) -> dict[str, Array]:
        return {leaf: _single(value) for leaf, value in practice.statistics(layer, x, tensors).items()}

    def descend(sgd: Sgd, update: Update) -> tuple[Array, Array]:
        parameter, velocity = practice.descend(sgd, update)
        return _single(parameter), _single(velocity)

    return dataclasses.replace(practice, evaluate=evaluate, loss=loss, pull=pull, statistics=statistics, descend=descend)


def _single(values: Array) -> Array:
    return np.asarray(values, np.float32).astype(np.float64)
