"""What an implementation's backward pass must give, layer by layer, from its own taps and cotangents (teacher forcing).

So every layer's backward pass is judged alone: a tap's cotangent from the cotangents of the layers that took it, a parameter's
gradient from its layer's own input and cotangent. ReLU's masks and the maxima of pooling are the implementation's.

An element that shares the maximum of a window with another (zeros behind a ReLU often do) may or may not be the one that is taken; JAX
pools rows first and columns after them, others row by row. In every plane the cotangents of such elements are therefore compared by
their sum, which no choice changes: it stands in place of the first of them, and 0 in place of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle.backward import tied, vjp
from impls.oracle.backward_rounding import loss_noise, sum_sigma, vjp_noise
from impls.oracle.forward import Array, check, tensors_of
from impls.oracle.rounding import EXACT_LAYERS, KAPPA, Arithmetic, arithmetic, spacing
from impls.oracle.training import Arrays, cross_entropy, taken, wiring
from impls.spec import AdaptiveAvgPool2d, Add, BatchNorm2d, MaxPool2d, ModelSpec


@dataclass(frozen=True, slots=True)
class Expected:
    """A value in float64 and the predicted deviation of its rounding error, 0 where only equality will do.

    ``tied`` marks the elements of a max-pool's input that are compared by their sum, None if the tap is no such input. ``stored`` is the
    precision that the value may then have been rounded to, once and to nearest; None where it has not.
    """

    value: Array
    sigma: Array
    tied: npt.NDArray[np.bool_] | None
    stored: str | None

    def z(self, found: npt.NDArray[Any]) -> Array:
        """Error over deviation, element by element, with ties summed up; infinite where no error is allowed and there is one.

        Of a value that was rounded as it was stored it is the least error before that which explains what was stored.
        """
        error = settled(np.asarray(found, dtype=np.float64), self.tied) - self.value
        if self.stored is not None:
            error = np.copysign(np.maximum(np.abs(error) - spacing(found, self.stored) / 2, 0.0), error)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error == 0, 0.0, error / self.sigma)


@dataclass(frozen=True, slots=True)
class Forced:
    """What the backward pass must give: the loss (), cotangents by layer name, gradients by tensor name; in topological order."""

    loss: Expected
    cotangents: dict[str, Expected]
    gradients: dict[str, Expected]


def forced(
    model: ModelSpec,
    weights: Arrays,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    label_smoothing: float,
    taps: Arrays,
    cotangents: Arrays,
    precision: str,
) -> Forced:
    """The teacher-forced backward pass.

    Args:
        model: the network.
        weights: as the implementation holds them.
        images: (N, C, H, W) as the implementation holds them.
        labels: (N,), integers from 0 to classes - 1.
        label_smoothing: at least 0, below 1.
        taps: the implementation's output of every layer in training mode, by layer name, NCHW or NC.
        cotangents: its derivative of the loss by each of them.
        precision: that is judged.

    Raises:
        SpecError, WeightsError: as :func:`impls.oracle.forward.forward`.
        ValueError: the labels are not one class for each image.
        KeyError: a tap or a cotangent is missing.
    """
    check(model, weights, images)
    rules = arithmetic(precision)
    stored = precision if rules.store else None
    nodes = wiring(model)
    last = nodes[-1].layer.name
    logits = np.asarray(taps[last], dtype=np.float64)
    loss, cotangent = cross_entropy(logits, labels, label_smoothing, model.auxiliary_weights)
    of_loss, of_cotangent = loss_noise(logits, labels, label_smoothing, rules, model.auxiliary_weights)
    arriving: dict[str, list[Expected]] = {node.layer.name: [] for node in nodes}
    arriving[last].append(Expected(cotangent, of_cotangent.sigma, None, stored))
    ties: dict[str, npt.NDArray[np.bool_]] = {}
    gradients: dict[str, Expected] = {}
    for node in reversed(nodes):
        layer, inputs, tensors = node.layer, taken(node, taps, images), tensors_of(node.layer, weights)
        output, given = (np.asarray(arrays[layer.name], dtype=np.float64) for arrays in (taps, cotangents))
        pulled = vjp(layer, inputs, output, given, tensors)
        noises = vjp_noise(layer, inputs, given, tensors, pulled, rules)
        for leaf, gradient in pulled.parameters.items():
            kept = None if isinstance(layer, BatchNorm2d) else stored
            gradients[f"{layer.name}.{leaf}"] = Expected(gradient, noises.parameters[leaf].sigma, None, kept)
        for name, value, noise in zip(node.inputs, pulled.inputs, noises.inputs, strict=True):
            if name is None:
                continue
            moved = isinstance(layer, (*EXACT_LAYERS, Add, AdaptiveAvgPool2d))  # a pool's noise holds its roundings, others have none
            arriving[name].append(Expected(value, noise.sigma, None, None if moved else stored))
            if isinstance(layer, MaxPool2d):
                ties[name] = ties.get(name, np.bool_(False)) | tied(layer, inputs[0])
    return Forced(
        Expected(np.array(loss), of_loss.sigma, None, None),
        {name: _summed(terms, ties.get(name), rules) for name, terms in arriving.items()},
        {name: gradients[name] for name in spec.parameter_names(model)},
    )


def _summed(terms: list[Expected], ties: npt.NDArray[np.bool_] | None, rules: Arithmetic) -> Expected:
    """The only term as it is; of several the sum, each of them and each partial sum rounded as it is stored."""
    if len(terms) == 1 and ties is None:
        return terms[0]
    deviations = [np.hypot(term.sigma, KAPPA * rules.store * term.value) if term.stored else term.sigma for term in terms]
    values = [term.value for term in terms]
    variance = sum_sigma(values, deviations, math.hypot(rules.accumulate, rules.store)) ** 2
    return Expected(settled(sum(values[1:], values[0]), ties), np.sqrt(settled(variance, ties)), ties, None)


def settled(array: Array, ties: npt.NDArray[np.bool_] | None) -> Array:
    """(N, C, H, W) with the sum of each plane's tied elements in the first of them, and 0 in the others."""
    if ties is None:
        return array
    rows, marks = array.reshape(-1, array.shape[2] * array.shape[3]), ties.reshape(-1, array.shape[2] * array.shape[3])
    result = np.where(marks, 0.0, rows)
    planes = np.flatnonzero(marks.any(axis=1))
    result[planes, marks.argmax(axis=1)[planes]] = np.sum(rows, axis=1, where=marks)[planes]
    return result.reshape(array.shape)
