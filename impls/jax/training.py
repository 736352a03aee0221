"""Training in JAX: one compiled pure function from a state and a batch to the next state and the loss.

Batch norm, loss and optimizer are written in primitive operations after ``impls.spec`` and ``impls.implementation.Sgd``, and compute in
float32 where the activations are bf16; every other layer is the one of ``layers``, in the dtype of its input. The step is compiled
unrolled, without scans, and takes over the memory of the old state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from impls import implementation
from impls.implementation import Derivatives, Sgd
from impls.jax.layers import FUNCTIONS, Tensors, to_canonical, to_framework
from impls.spec import BatchNorm2d, Conv2d, Layer, ModelSpec, Shape, parameter_names, tap_shapes, walk

Array = npt.NDArray[Any]
Arrays = dict[str, jax.Array]


class State(NamedTuple):
    """What a step changes, by tensor name."""

    parameters: Arrays
    statistics: Arrays
    momentum: Arrays


def centre(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The mean of every channel, and x without it, in ``dtype``.

    The mean is taken off twice, since what the first leaves of it by rounding, n terms long, can be more than the deviation. Not of bf16
    numbers: their sum in float32 is all but exact, and in what it leaves the low bits are alike, so that their sum errs by more.
    """
    if x.dtype != dtype:
        once = x.astype(dtype)  # of two conversions each would round its part of the cotangent
        mean = jnp.mean(once, (0, 1, 2))
        return mean, once - mean
    first = lax.stop_gradient(jnp.mean(x, (0, 1, 2)))  # any constant leaves the result the same, and so do its derivatives
    rest = jnp.mean(x - first, (0, 1, 2))
    return first + rest, x - first - rest


def batch_norm2d(layer: BatchNorm2d, tensors: Tensors, x: jax.Array) -> tuple[jax.Array, Arrays]:
    """Normalisation by the batch's own mean and biased variance, and the running statistics after it.

    Arithmetic is in the dtype of the parameters. The mean is taken off before squaring (Chan, Golub and LeVeque, "Algorithms for computing
    the sample variance", 1983, section 3).
    """
    mean, centred = centre(x, tensors["weight"].dtype)
    variance = jnp.mean(centred * centred, (0, 1, 2))
    count = x.size // layer.channels
    kept = variance * (count / (count - 1)) if layer.running_variance == "unbiased" else variance
    running = {
        "running_mean": (1 - layer.momentum) * tensors["running_mean"] + layer.momentum * mean,
        "running_var": (1 - layer.momentum) * tensors["running_var"] + layer.momentum * kept,
    }
    normalised = centred / jnp.sqrt(variance + layer.eps)
    return (normalised * tensors["weight"] + tensors["bias"]).astype(x.dtype), running


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """The loss of ``Sgd``; the largest logit is taken off, so no exponential overflows."""
    classes = logits.shape[1]
    targets = (1 - label_smoothing) * jax.nn.one_hot(labels, classes, dtype=logits.dtype) + label_smoothing / classes
    shifted = logits - lax.stop_gradient(jnp.max(logits, 1, keepdims=True))
    log_softmax = shifted - jnp.log(jnp.sum(jnp.exp(shifted), 1, keepdims=True))
    return -jnp.mean(jnp.sum(targets * log_softmax, 1))


def descend(sgd: Sgd, rate: jax.Array, parameter: jax.Array, gradient: jax.Array, velocity: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One parameter and its momentum buffer after a step of ``Sgd``."""
    gradient = gradient + sgd.weight_decay * parameter
    velocity = sgd.momentum * velocity + gradient
    return parameter - rate * (gradient + sgd.momentum * velocity if sgd.nesterov else velocity), velocity


def conv2d(layer: Conv2d, tensors: Tensors, x: jax.Array, *, dtype: Any) -> jax.Array:
    """As ``layers.conv2d``; a bias is added in ``dtype``, in which its gradient is then added up."""
    y = FUNCTIONS[Conv2d](replace(layer, bias=False), tensors, x)
    return (y.astype(dtype) + tensors["bias"].astype(dtype)).astype(x.dtype) if layer.bias else y


def apply(layer: Layer, tensors: Tensors, *inputs: jax.Array) -> tuple[jax.Array, Arrays]:
    """One layer in training mode: its output, and the running statistics that it changed."""
    if isinstance(layer, BatchNorm2d):
        return batch_norm2d(layer, tensors, *inputs)
    own = {leaf: tensor.astype(inputs[0].dtype) for leaf, tensor in tensors.items()}
    if isinstance(layer, Conv2d):
        return conv2d(layer, own, *inputs, dtype=tensors["weight"].dtype), {}
    return FUNCTIONS[type(layer)](layer, own, *inputs), {}


def loss_of(
    model: ModelSpec,
    label_smoothing: float,
    apply: Callable[..., tuple[jax.Array, Arrays]],
    parameters: Arrays,
    nudges: Arrays,
    statistics: Arrays,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, tuple[Arrays, Arrays]]:
    """The loss of a batch; with it the new running statistics by tensor name and the output of every layer in ``nudges``.

    ``nudges`` are zeros that are added to outputs: the derivative by one of them is the derivative by that output.
    """
    tensors, running, taps = {**parameters, **statistics}, {}, {}

    def applied(layer: Layer, *inputs: jax.Array) -> jax.Array:
        own = {leaf: tensors[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        output, changed = apply(layer, own, *inputs)
        running.update({f"{layer.name}.{leaf}": array for leaf, array in changed.items()})
        if layer.name in nudges:
            taps[layer.name] = output = output + nudges[layer.name]
        return output

    logits = walk(model.body, applied, images).astype(parameters[parameter_names(model)[-1]].dtype)
    main, *others = (cross_entropy(head, labels, label_smoothing) for head in jnp.split(logits, model.heads, 1))
    return sum((weight * loss for weight, loss in zip(model.auxiliary_weights, others, strict=True)), main), (running, taps)


def step(
    model: ModelSpec, sgd: Sgd, state: State, images: jax.Array, labels: jax.Array, learning_rate: jax.Array
) -> tuple[State, jax.Array]:
    """The state after a step of ``Sgd``, and the loss before it."""
    loss_and_gradients = jax.value_and_grad(partial(loss_of, model, sgd.label_smoothing, apply), has_aux=True)
    (loss, (statistics, _)), gradients = loss_and_gradients(state.parameters, {}, state.statistics, images, labels)
    stepped = {
        name: descend(sgd, learning_rate, parameter, gradients[name], state.momentum[name]) for name, parameter in state.parameters.items()
    }
    parameters, momentum = ({name: pair[part] for name, pair in stepped.items()} for part in (0, 1))
    return State(parameters, statistics, momentum), loss


class Trainer(implementation.Trainer):
    """One model's state, and its step, compiled when it is first taken; ``dtype`` is that of the activations.

    ``told`` reads the settings back from an array of the state and the step's operand precisions, ``compilations`` counts them.
    """

    host_layout = "NHWC"

    def __init__(
        self,
        model: ModelSpec,
        weights: Mapping[str, Array],
        momentum: Mapping[str, Array],
        sgd: Sgd,
        dtype: Any,
        told: Callable[[jax.Array, list[str]], dict[str, Any]],
        compilations: Callable[[], int],
    ) -> None:
        self._model, self._sgd, self._dtype, self._told, self._compilations = model, sgd, dtype, told, compilations
        self._operand_precisions: list[str] = []
        self._rate = math.nan, jnp.zeros(())  # as it was given, and on the device
        self._held = jnp.promote_types(dtype, jnp.float32)
        parameters = parameter_names(model)
        loaded = {name: jnp.array(to_framework(array), self._held) for name, array in weights.items()}
        self._state = State(
            {name: loaded[name] for name in parameters},
            {name: array for name, array in loaded.items() if name not in parameters},
            {name: jnp.array(to_framework(momentum[name]), self._held) for name in parameters},
        )
        self._step: Callable[..., tuple[State, jax.Array]] | None = None

    def put(self, images: Array, labels: Array) -> tuple[jax.Array, jax.Array]:
        """See the contract. On a CPU the batch may be the host's own memory, as ``runtime.Network.put``'s."""
        return jax.device_put(images.transpose(0, 2, 3, 1)).astype(self._dtype), jnp.asarray(labels, jnp.int32)

    def enqueue(self, batch: tuple[jax.Array, jax.Array], learning_rate: float) -> jax.Array:
        """See the contract. The old state's memory is the new one's, so it can be used no more."""
        if learning_rate != self._rate[0]:
            self._rate = learning_rate, jnp.asarray(learning_rate, self._held)
        arguments = self._state, *batch, self._rate[1]
        if self._step is None:
            lowered = jax.jit(partial(step, self._model, self._sgd), donate_argnums=0).lower(*arguments)
            self._operand_precisions = operand_precisions(lowered)
            self._step = lowered.compile()
        self._state, loss = self._step(*arguments)
        return loss

    def wait(self, loss: jax.Array) -> None:
        """See the contract. A later step needs the state of this one, so the state at hand is the one to wait for."""
        jax.block_until_ready((loss, self._state))

    def get(self, loss: jax.Array) -> float:
        """See the contract."""
        return float(loss)

    def first_parameter(self) -> Array:
        """See the contract."""
        return np.asarray(self._state.parameters[parameter_names(self._model)[0]])

    def differentiate(self, images: Array, labels: Array) -> Derivatives:
        """See the contract. Forward and backward of each layer are programs of their own, so nothing is fused across layers."""
        alone = jax.jit(apply, static_argnums=0)
        shapes = tap_shapes(self._model, len(images), *images.shape[2:])
        nudges = {name: jnp.zeros(_nhwc(shape), self._dtype) for name, shape in shapes.items()}

        def by_itself(layer: Layer, *arguments: Any) -> tuple[jax.Array, Arrays]:
            return alone(replace(layer, name=""), *arguments)  # without its name a layer is compiled once for all its equals

        differentiated = jax.value_and_grad(partial(loss_of, self._model, self._sgd.label_smoothing, by_itself), (0, 1), has_aux=True)
        (loss, (_, taps)), (gradients, cotangents) = differentiated(
            self._state.parameters, nudges, self._state.statistics, *self.put(images, labels)
        )
        return Derivatives(float(loss), _nchw(taps, self._held), _nchw(cotangents, self._held), _canonical(gradients))

    def weights(self) -> dict[str, Array]:
        """See the contract."""
        return _canonical({**self._state.parameters, **self._state.statistics})

    def momentum(self) -> dict[str, Array]:
        """See the contract."""
        return _canonical(self._state.momentum)

    def compilations(self) -> int:
        """See the contract."""
        return self._compilations()

    def settings(self) -> dict[str, Any]:
        """See the contract; operand precisions are there once a step has been taken."""
        leaf = jax.tree.leaves(self._state)[0]
        return self._told(leaf.astype(self._dtype), self._operand_precisions) | {"weights_precision": str(leaf.dtype)}


def operand_precisions(lowered: Any) -> list[str]:
    """The precisions that a lowered program gives the operands of its products."""
    return sorted(set(re.findall(r"precision = \[(\w+)", lowered.as_text())))


def _nhwc(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


def _nchw(arrays: Arrays, dtype: Any) -> dict[str, Array]:
    host = jax.device_get({name: array.astype(dtype) for name, array in arrays.items()})
    return {name: array.transpose(0, 3, 1, 2) if array.ndim == 4 else array for name, array in host.items()}


def _canonical(arrays: Arrays) -> dict[str, Array]:
    return {name: np.array(to_canonical(array)) for name, array in jax.device_get(arrays).items()}
