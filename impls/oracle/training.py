"""Training in NumPy float64: what every implementation must compute in one step, up to rounding.

Forward pass with the batch's statistics, loss, backward pass over the whole network, running statistics and descent. The
meaning of loss and descent is that of ``impls.implementation.Sgd``, written here a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle import forward
from impls.oracle.backward import Pullback, batch_statistics, vjp
from impls.oracle.forward import Array, check, tensors_of
from impls.spec import BatchNorm2d, Layer, MaxPool2d, ModelSpec, Relu

Arrays = Mapping[str, npt.NDArray[Any]]


class Sgd(Protocol):
    """The numbers of stochastic gradient descent; ``impls.implementation.Sgd`` has them."""

    @property
    def momentum(self) -> float:
        """Share of the old velocity in the new."""

    @property
    def nesterov(self) -> bool:
        """Whether the step looks ahead."""

    @property
    def weight_decay(self) -> float:
        """Share of the parameter that is added to its gradient."""

    @property
    def label_smoothing(self) -> float:
        """Share of the target that is spread over all classes."""


@dataclass(frozen=True, slots=True)
class Node:
    """A layer and the names of the taps that it takes, in order; None is the images."""

    layer: Layer
    inputs: tuple[str | None, ...]


def wiring(model: ModelSpec) -> list[Node]:
    """Every layer in topological order with where its inputs come from."""
    nodes: list[Node] = []

    def apply(layer: Layer, *inputs: str | None) -> str | None:
        nodes.append(Node(layer, inputs))
        return layer.name

    spec.walk(model.body, apply, None)
    return nodes


@dataclass(frozen=True, slots=True)
class Derivatives:
    """One loss and its derivatives, float64.

    ``taps`` holds every layer's output in training mode and ``cotangents`` the derivative of the loss with respect to it, both
    by layer name; ``gradients`` the derivative with respect to every parameter by tensor name, without weight decay.
    """

    loss: float
    taps: dict[str, Array]
    cotangents: dict[str, Array]
    gradients: dict[str, Array]


@dataclass(frozen=True, slots=True)
class State:
    """What a step changes, by tensor name: weights with running statistics, and the momentum buffer of every parameter."""

    weights: Arrays
    momentum: Arrays


def evaluate(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
    """One layer's output in training mode: batch norm has its input's own statistics, all else is ``forward.evaluate``."""
    return forward.evaluate(layer, inputs, in_training(layer, inputs, tensors))


def in_training(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    """The layer's tensors with which inference computes what training does."""
    if not isinstance(layer, BatchNorm2d):
        return tensors
    mean, variance = batch_statistics(inputs[0])
    return {**tensors, "running_mean": mean, "running_var": variance}


def running_statistics(layer: BatchNorm2d, x: Array, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Running mean and variance after a step on a batch norm's input (N, C, H, W), by leaf name.

    Raises:
        SpecError: the unbiased variance of one value is asked for.
    """
    mean, variance = batch_statistics(x)
    if layer.running_variance == "unbiased":
        count = x.size // layer.channels
        if count < 2:
            raise spec.SpecError(f"{layer.name}: one value of each channel has no variance; train on more images or larger ones")
        variance = variance * count / (count - 1)
    return {
        "running_mean": (1 - layer.momentum) * tensors["running_mean"] + layer.momentum * mean,
        "running_var": (1 - layer.momentum) * tensors["running_var"] + layer.momentum * variance,
    }


def statistics_after(model: ModelSpec, weights: Arrays, images: npt.NDArray[Any], taps: Arrays) -> dict[str, Array]:
    """All running statistics after a step in which the layers gave ``taps``, by tensor name; raises as ``running_statistics``."""
    after: dict[str, Array] = {}
    for node in wiring(model):
        if isinstance(node.layer, BatchNorm2d):
            (x,) = taken(node, taps, images)
            new = running_statistics(node.layer, x, tensors_of(node.layer, weights))
            after |= {f"{node.layer.name}.{leaf}": tensor for leaf, tensor in new.items()}
    return after


def taken(node: Node, taps: Arrays, images: npt.NDArray[Any]) -> tuple[Array, ...]:
    """The inputs of a layer in float64."""
    return tuple(np.asarray(images if name is None else taps[name], dtype=np.float64) for name in node.inputs)


def cross_entropy(
    logits: Array, labels: npt.NDArray[np.integer[Any]], label_smoothing: float, auxiliary_weights: tuple[float, ...] = ()
) -> tuple[float, Array]:
    """Loss of a batch of logits (N, classes * heads) with labels (N,), and its derivative by the logits.

    Of a head the mean over the batch of -sum_k t_k log p_k with p = softmax(logits) and t = (1 - s) onehot(label) + s / classes. As
    the t of an image sum to 1, the derivative is (p - t) / N. Auxiliary heads stand behind the main one, and each counts its weight.

    Raises:
        ValueError: the labels are not one class for each image.
    """
    weights = (1.0, *auxiliary_weights)
    heads = [_cross_entropy(head, labels, label_smoothing) for head in np.split(logits, len(weights), axis=1)]
    loss = sum(weight * loss for weight, (loss, _) in zip(weights, heads, strict=True))
    return loss, np.concatenate([weight * cotangent for weight, (_, cotangent) in zip(weights, heads, strict=True)], axis=1)


def _cross_entropy(logits: Array, labels: npt.NDArray[np.integer[Any]], label_smoothing: float) -> tuple[float, Array]:
    batch, classes = logits.shape
    if labels.shape != (batch,) or labels.dtype.kind not in "iu" or np.any((labels < 0) | (labels >= classes)):
        raise ValueError(f"{batch} images need as many integer labels from 0 to {classes - 1}")
    target = targets(labels, classes, label_smoothing)
    log_p = log_softmax(logits)
    return float(-np.sum(target * log_p) / batch), (np.exp(log_p) - target) / batch


def targets(labels: npt.NDArray[np.integer[Any]], classes: int, label_smoothing: float) -> Array:
    """What the softmax should be: (N, classes), Szegedy et al., arXiv 1512.00567, section 7."""
    spread: Array = (1 - label_smoothing) * np.eye(classes)[labels] + label_smoothing / classes
    return spread


def log_softmax(logits: Array) -> Array:
    """Logarithm of exp(logits) over their sum of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    return result


@dataclass(frozen=True, slots=True)
class Operations:
    """What a pass over the network computes with: a layer's output, the loss with its derivative, and a layer's pullback."""

    evaluate: Callable[[Layer, tuple[Array, ...], Mapping[str, Array]], Array] = evaluate
    cross_entropy: Callable[[Array, npt.NDArray[np.integer[Any]], float, tuple[float, ...]], tuple[float, Array]] = cross_entropy
    vjp: Callable[[Layer, tuple[Array, ...], Array, Array, Mapping[str, Array]], Pullback] = vjp


EXACT = Operations()
"""Those of this module and ``backward``."""


def differentiate(
    model: ModelSpec,
    weights: Arrays,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    label_smoothing: float,
    *,
    masks: Arrays | None = None,
    operations: Operations = EXACT,
) -> Derivatives:
    """Loss, taps, cotangents and gradients of a batch.

    Args:
        model: the network.
        weights: every tensor of ``spec.tensor_shapes(model)`` by name; cast to float64, which is exact.
        images: (N, C, H, W), any real type.
        labels: (N,), integers from 0 to classes - 1.
        label_smoothing: at least 0, below 1.
        masks: an implementation's taps. Then the backward pass takes its decisions instead of the oracle's: ReLU passes where its
            output is positive, and max-pooling takes the maximum of its input. One activation that rounding puts on the other side
            of zero would change gradients by far more than rounding does.
        operations: what is computed with.

    Raises:
        SpecError, WeightsError: as :func:`impls.oracle.forward.forward`.
        ValueError: the labels are not one class for each image.
    """
    check(model, weights, images)
    nodes = wiring(model)
    taps: dict[str, Array] = {}
    for node in nodes:
        taps[node.layer.name] = operations.evaluate(node.layer, taken(node, taps, images), tensors_of(node.layer, weights))
    last = nodes[-1].layer.name
    loss, cotangent = operations.cross_entropy(taps[last], labels, label_smoothing, model.auxiliary_weights)
    cotangents, gradients = {last: cotangent}, {}
    for node in reversed(nodes):
        layer = node.layer
        decisive = masks if masks is not None and isinstance(layer, (Relu, MaxPool2d)) else taps
        inputs, output = taken(node, decisive, images), decisive[layer.name]
        pulled = operations.vjp(layer, inputs, output, cotangents[layer.name], tensors_of(layer, weights))
        gradients.update({f"{layer.name}.{leaf}": gradient for leaf, gradient in pulled.parameters.items()})
        for name, arriving in zip(node.inputs, pulled.inputs, strict=True):
            if name is not None:
                cotangents[name] = cotangents[name] + arriving if name in cotangents else arriving
    return Derivatives(
        loss,
        taps,
        {name: cotangents[name] for name in taps},
        {name: gradients[name] for name in spec.parameter_names(model)},
    )


def descend(sgd: Sgd, learning_rate: float, parameter: Array, gradient: Array, velocity: Array) -> tuple[Array, Array]:
    """One parameter and its momentum buffer after a step; ``gradient`` is the loss's alone."""
    decayed = gradient + sgd.weight_decay * parameter
    velocity = sgd.momentum * velocity + decayed
    direction = decayed + sgd.momentum * velocity if sgd.nesterov else velocity
    return parameter - learning_rate * direction, velocity


def step(
    model: ModelSpec,
    state: State,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    sgd: Sgd,
    learning_rate: float,
    *,
    taken: Arrays | None = None,
    masks: Arrays | None = None,
    operations: Operations = EXACT,
) -> tuple[State, Derivatives]:
    """The state after one step, and the derivatives that it took; arguments and errors as :func:`differentiate`.

    ``taken`` are the weights that are differentiated at, where those are not the state's (``rounding.as_taken``).

    Raises:
        SpecError: moreover, if a batch norm gets one value of each channel and keeps the unbiased variance.
    """
    at = state.weights if taken is None else taken
    found = differentiate(model, at, images, labels, sgd.label_smoothing, masks=masks, operations=operations)
    weights = statistics_after(model, state.weights, images, found.taps)
    momentum: dict[str, Array] = {}
    for name, gradient in found.gradients.items():
        parameter, velocity = state.weights[name].astype(np.float64), state.momentum[name].astype(np.float64)
        weights[name], momentum[name] = descend(sgd, learning_rate, parameter, gradient, velocity)
    return State(weights, momentum), found
