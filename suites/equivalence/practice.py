"""Training by a declared practice, in NumPy float64: the oracle's steps with one convention exchanged.

With no convention exchanged it is the oracle's own training, bit for bit, which a test holds it to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle.forward import Array, tensors_of
from impls.oracle.training import Arrays, Derivatives, State, taken, wiring
from impls.spec import BatchNorm2d, parameter_names
from suites.equivalence.faults.training import Labels, Practice, Update

Images = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images (N, C, H, W) with labels (N,)."""

    images: Images
    labels: Labels


def differentiate(practice: Practice, weights: Arrays, batch: Batch) -> Derivatives:
    """Loss, taps, cotangents and gradients as ``impls.oracle.training.differentiate``."""
    nodes = wiring(practice.model)
    taps: dict[str, Array] = {}
    for node in nodes:
        taps[node.layer.name] = practice.evaluate(node.layer, taken(node, taps, batch.images), tensors_of(node.layer, weights))
    last = nodes[-1].layer.name
    loss, cotangent = practice.loss(taps[last], batch.labels, practice.sgd.label_smoothing)
    cotangents, gradients = {last: cotangent}, {}
    for node in reversed(nodes):
        name, inputs = node.layer.name, taken(node, taps, batch.images)
        pulled = practice.pull(node.layer, inputs, taps[name], cotangents[name], tensors_of(node.layer, weights))
        gradients.update({f"{name}.{leaf}": gradient for leaf, gradient in pulled.parameters.items()})
        for source, arriving in zip(node.inputs, pulled.inputs, strict=True):
            if source is not None:
                cotangents[source] = cotangents[source] + arriving if source in cotangents else arriving
    return Derivatives(loss, taps, cotangents, {name: gradients[name] for name in parameter_names(practice.model)})


def train(practice: Practice, state: State, batches: Sequence[Batch], rates: Sequence[float], first: int = 0) -> tuple[State, list[float]]:
    """The state after a step on each batch, and the losses; ``rates`` is the whole schedule, ``first`` the number of the first step."""
    losses = []
    for k, batch in enumerate(batches, start=first):
        found = differentiate(practice, state.weights, batch)
        losses.append(found.loss)
        weights, momentum = dict(state.weights), {}
        for node in wiring(practice.model):
            if isinstance(node.layer, BatchNorm2d):
                (x,) = taken(node, found.taps, batch.images)
                new = practice.statistics(node.layer, x, tensors_of(node.layer, state.weights))
                weights |= {f"{node.layer.name}.{leaf}": np.asarray(tensor) for leaf, tensor in new.items()}
        for name, gradient in found.gradients.items():
            rate, before = practice.rate(rates, k), practice.rate(rates, max(k - 1, 0))
            update = Update(name, rate, before, state.weights[name], gradient, state.momentum[name])
            weights[name], momentum[name] = practice.descend(practice.sgd, update)
        state = State(weights, momentum)
    return state, losses
