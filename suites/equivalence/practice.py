"""Training by a declared practice, in NumPy: the oracle's steps with one convention exchanged.

With no convention exchanged it is the oracle's own training, bit for bit, which a test holds it to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from impls.implementation import Sgd
from impls.oracle import training
from impls.oracle.backward import Pullback
from impls.oracle.forward import Array, tensors_of
from impls.oracle.rounding import arithmetic, round_to
from impls.oracle.training import Derivatives, Operations, State, taken, wiring
from impls.spec import BatchNorm2d, Conv2d, Layer, Linear
from suites.equivalence.faults.training import Labels, Practice, Tensors, Update
from suites.equivalence.trainer import Batch

Rounding = Callable[[Array], Array]


class PracticeTrainer:
    """One network in training by a practice, in fp64, fp32 or a precision of mixed training; asked as ``LiveTrainer`` is."""

    def __init__(self, practice: Practice, state: State, precision: str = "fp64") -> None:
        self._stored = _stored(precision)
        self._practice = practice if precision == "fp64" else _rounded(practice, self._stored)
        self._state = state
        self._rate_before: float | None = None

    def differentiate(self, batch: Batch) -> Derivatives:
        """The loss of a batch and its derivatives."""
        practice = self._practice

        def loss(logits: Array, labels: Labels, smoothing: float, _: tuple[float, ...]) -> tuple[float, Array]:
            return practice.loss(logits, labels, smoothing)

        operations = Operations(practice.evaluate, loss, practice.pull)
        smoothing, images = practice.sgd.label_smoothing, self._stored(batch.images)
        found = training.differentiate(practice.model, self._state.weights, images, batch.labels, smoothing, operations=operations)
        # Where branches meet, a cotangent is a sum that no operation rounds.
        return dataclasses.replace(found, cotangents={name: self._stored(each) for name, each in found.cotangents.items()})

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
                (x,) = taken(node, found.taps, self._stored(batch.images))
                new = practice.statistics(node.layer, x, tensors_of(node.layer, before.weights))
                weights |= {f"{node.layer.name}.{leaf}": np.asarray(tensor) for leaf, tensor in new.items()}
        rate_before = rate if self._rate_before is None else self._rate_before
        for name, gradient in found.gradients.items():
            parameter, velocity = (np.asarray(held[name], np.float64) for held in (before.weights, before.momentum))
            update = Update(name, rate, rate_before, parameter, gradient, velocity)
            weights[name], momentum[name] = practice.descend(practice.sgd, update)
        self._state, self._rate_before = State(weights, momentum), rate
        return found.loss


def _stored(precision: str) -> Rounding:
    """How activations and cotangents are held."""
    if precision == "fp64":
        return lambda values: np.asarray(values, np.float64)
    return _narrow(precision) if arithmetic(precision).store else _single


def _rounded(practice: Practice, stored: Rounding) -> Practice:
    """The practice in a precision: every result is computed in float64 and rounded once, as by accumulators that are wide enough.

    Activations, cotangents, and what convolutions and linear layers take and derive of parameters are ``stored``; all else is float32.
    """

    def held(layer: Layer) -> Rounding:
        return stored if isinstance(layer, Conv2d | Linear) else _single

    def own(layer: Layer, tensors: Tensors) -> Tensors:
        return {leaf: held(layer)(tensor) for leaf, tensor in tensors.items()}

    def evaluate(layer: Layer, inputs: tuple[Array, ...], tensors: Tensors) -> Array:
        return stored(practice.evaluate(layer, inputs, own(layer, tensors)))

    def loss(logits: Array, labels: Labels, smoothing: float) -> tuple[float, Array]:
        value, cotangent = practice.loss(logits, labels, smoothing)
        return float(np.float32(value)), stored(cotangent)

    def pull(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
        pulled = practice.pull(layer, inputs, output, stored(cotangent), own(layer, tensors))
        return Pullback(tuple(map(stored, pulled.inputs)), {leaf: held(layer)(value) for leaf, value in pulled.parameters.items()})

    def statistics(layer: BatchNorm2d, x: Array, tensors: Tensors) -> dict[str, Array]:
        return {leaf: _single(value) for leaf, value in practice.statistics(layer, x, tensors).items()}

    def descend(sgd: Sgd, update: Update) -> tuple[Array, Array]:
        parameter, velocity = practice.descend(sgd, update)
        return _single(parameter), _single(velocity)

    return dataclasses.replace(practice, evaluate=evaluate, loss=loss, pull=pull, statistics=statistics, descend=descend)


def _single(values: Array) -> Array:
    return np.asarray(values, np.float32).astype(np.float64)


def _narrow(precision: str) -> Rounding:
    return lambda values: round_to(values, precision).astype(np.float64)
