"""Training in TensorFlow: a ``tf.function`` of fixed input shape that assigns the next state to variables.

Loss, optimizer and batch norm are written in primitive operations after ``impls.implementation.Sgd``; but in graph mode the last two are
TensorFlow's kernels. All three compute in float32 where the activations are bf16; every other layer is the one of ``layers``, in the dtype
of its input, and ``tf.GradientTape`` differentiates. No Keras.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from impls import implementation
from impls.implementation import Derivatives, Sgd
from impls.spec import NO_PADDING, BatchNorm2d, Conv2d, Layer, ModelSpec, Padding, Shape, parameter_names, walk
from impls.tensorflow.layers import FUNCTIONS, Tensors, to_canonical, to_framework

Array = npt.NDArray[Any]


def conv2d(layer: Conv2d, tensors: Tensors, x: tf.Tensor, *, dtype: tf.DType) -> tf.Tensor:
    """As ``layers.conv2d``, but on a CPU without explicit padding; a bias is added in ``dtype``, in which its gradient is then added up.

    oneDNN's gradients do not take explicit padding, and TensorFlow's own (2.21.0) take up to 3 times as long in fp32, 80 times in bf16,
    where they also add up in bf16.
    """
    if tf.config.list_logical_devices("GPU"):
        y = FUNCTIONS[Conv2d](replace(layer, bias=False), tensors, x)
    else:
        padding, pad = "VALID", layer.padding
        if layer.stride == 1 and pad == Padding.same_on_all_sides(layer.kernel // 2) and layer.kernel % 2:
            padding = "SAME"
        elif pad != NO_PADDING:
            x = tf.pad(x, [[0, 0], [pad.top, pad.bottom], [pad.left, pad.right], [0, 0]])
        y = tf.nn.conv2d(x, tensors["weight"], layer.stride, padding)
    return tf.cast(tf.nn.bias_add(tf.cast(y, dtype), tf.cast(tensors["bias"], dtype)), x.dtype) if layer.bias else y


def batch_norm2d(layer: BatchNorm2d, tensors: Tensors, x: tf.Tensor, *, mode: str) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Normalisation by the batch's own mean and biased variance, and the running statistics after it.

    By TensorFlow's kernel (2.21.0), but in float64, which it does not have, and under XLA, where it squares before it takes the mean off.
    """
    normalise = by_operations if mode == "xla" or x.dtype == tf.float64 else by_kernel
    y, mean, unbiased = normalise(layer, tensors, x)
    count = x.shape.num_elements() // layer.channels
    kept = unbiased if layer.running_variance == "unbiased" else unbiased * ((count - 1) / count)
    running = {
        "running_mean": (1 - layer.momentum) * tensors["running_mean"] + layer.momentum * mean,
        "running_var": (1 - layer.momentum) * tensors["running_var"] + layer.momentum * kept,
    }
    return y, running


def by_kernel(layer: BatchNorm2d, tensors: Tensors, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The normalised x, its mean and its unbiased variance, which are float32 whatever x is."""
    y, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=tensors["weight"],
        offset=tensors["bias"],
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=layer.eps,
        is_training=True,
    )
    return y, mean, unbiased


def by_operations(layer: BatchNorm2d, tensors: Tensors, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The same in the dtype of the parameters.

    The mean is taken off before squaring (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, section 3).
    """
    mean, centred = centre(x, tensors["weight"].dtype)
    variance, count = tf.reduce_mean(centred * centred, (0, 1, 2)), x.shape.num_elements() // layer.channels
    y = centred / tf.sqrt(variance + layer.eps) * tensors["weight"] + tensors["bias"]
    return tf.cast(y, x.dtype), mean, variance * (count / (count - 1))


def centre(x: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean of every channel, and x without it, in ``dtype``.

    The mean is taken off twice, since what the first leaves of it by rounding, n terms long, can be more than the deviation. Not of bf16
    numbers: their sum in float32 is all but exact, and in what it leaves the low bits are alike, so that their sum errs by more.
    """
    if x.dtype != dtype:
        once = tf.cast(x, dtype)  # of two conversions each would round its part of the cotangent
        mean = tf.reduce_mean(once, (0, 1, 2))
        return mean, once - mean
    first = tf.stop_gradient(tf.reduce_mean(x, (0, 1, 2)))  # any constant leaves the result the same, and so do its derivatives
    rest = tf.reduce_mean(x - first, (0, 1, 2))
    return first + rest, x - first - rest


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """The loss of ``Sgd``; the largest logit is taken off, so no exponential overflows."""
    classes = logits.shape[1]
    targets = (1 - label_smoothing) * tf.one_hot(labels, classes, dtype=logits.dtype) + label_smoothing / classes
    shifted = logits - tf.stop_gradient(tf.reduce_max(logits, 1, keepdims=True))
    log_softmax = shifted - tf.math.log(tf.reduce_sum(tf.exp(shifted), 1, keepdims=True))
    return -tf.reduce_mean(tf.reduce_sum(targets * log_softmax, 1))


def descend(sgd: Sgd, rate: tf.Tensor, parameter: tf.Tensor, gradient: tf.Tensor, velocity: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One parameter and its momentum buffer after a step of ``Sgd``."""
    gradient = gradient + sgd.weight_decay * parameter
    velocity = sgd.momentum * velocity + gradient
    return parameter - rate * (gradient + sgd.momentum * velocity if sgd.nesterov else velocity), velocity


def apply(layer: Layer, tensors: Tensors, mode: str, *inputs: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """One layer in training mode: its output, and the running statistics that it changed."""
    if isinstance(layer, BatchNorm2d):
        return batch_norm2d(layer, tensors, *inputs, mode=mode)
    own = {leaf: tf.cast(tensor, inputs[0].dtype) for leaf, tensor in tensors.items()}
    if isinstance(layer, Conv2d):
        return conv2d(layer, own, *inputs, dtype=tensors["weight"].dtype), {}
    return FUNCTIONS[type(layer)](layer, own, *inputs), {}


def synchronise() -> None:
    """Return when the GPU has done all that was enqueued; ``tf.test.experimental.sync_devices`` runs an operation on the CPU, too."""
    with tf.device("GPU:0"):
        tf.raw_ops.SyncDevice()


class Trainer(implementation.Trainer):
    """One model's state in variables, and its step traced for one shape of batches.

    ``dtype`` is that of the activations; ``told`` reads settings of a function back.
    """

    host_layout = "NHWC"

    def __init__(
        self,
        model: ModelSpec,
        weights: Mapping[str, Array],
        momentum: Mapping[str, Array],
        sgd: Sgd,
        mode: str,
        dtype: tf.DType,
        input_shape: Shape,
        told: Callable[[Any, str], dict[str, Any]],
    ) -> None:
        self._model, self._sgd, self._mode, self._dtype, self._told = model, sgd, mode, dtype, told
        self._held = tf.float64 if dtype == tf.float64 else tf.float32
        self._on_gpu, self._pending = bool(tf.config.list_logical_devices("GPU")), False
        self._rate = math.nan, tf.zeros(())  # as it was given, and on the device

        def variable(array: Array) -> tf.Variable:
            return tf.Variable(to_framework(array).astype(self._held.as_numpy_dtype), trainable=False)

        self._tensors = {name: variable(array) for name, array in weights.items()}
        self._parameters = parameter_names(model)
        self._momentum = {name: variable(momentum[name]) for name in self._parameters}
        batch, channels, height, width = input_shape
        signature = [
            tf.TensorSpec((batch, height, width, channels), dtype),
            tf.TensorSpec((batch,), tf.int64),
            tf.TensorSpec((), self._held),
        ]
        self._traced = tf.function(self._stepped, input_signature=signature, jit_compile=mode == "xla", autograph=False)
        self._step = self._traced.get_concrete_function()

    def put(self, images: Array, labels: Array) -> tuple[tf.Tensor, tf.Tensor]:
        """See the contract."""
        return tf.cast(tf.convert_to_tensor(images.transpose(0, 2, 3, 1)), self._dtype), tf.convert_to_tensor(labels)

    def enqueue(self, batch: tuple[tf.Tensor, tf.Tensor], learning_rate: float) -> tf.Tensor:
        """See the contract."""
        if learning_rate != self._rate[0]:
            self._rate = learning_rate, tf.constant(learning_rate, self._held)
        self._pending = self._on_gpu
        return self._step(*batch, self._rate[1])

    def wait(self, loss: tf.Tensor) -> None:
        """See the contract. On a CPU a call of a function returns with its variables assigned."""
        if self._pending:
            synchronise()
            self._pending = False

    def get(self, loss: tf.Tensor) -> float:
        """See the contract."""
        return float(loss)

    def first_parameter(self) -> Array:
        """See the contract."""
        return self._tensors[self._parameters[0]].numpy()

    def differentiate(self, images: Array, labels: Array) -> Derivatives:
        """See the contract. Operation by operation in both modes, so nothing is fused."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            parameters = self._watched(tape)
            loss, _, taps = self._loss(tape, parameters, *self.put(images, labels))
        gradients, cotangents = tape.gradient(loss, (parameters, taps))
        return Derivatives(float(loss), _nchw(taps, self._held), _nchw(cotangents, self._held), _canonical(gradients))

    def weights(self) -> dict[str, Array]:
        """See the contract."""
        return _canonical(self._tensors)

    def momentum(self) -> dict[str, Array]:
        """See the contract."""
        return _canonical(self._momentum)

    def compilations(self) -> int:
        """See the contract. With one signature XLA compiles a trace once."""
        return int(self._traced.experimental_get_tracing_count())

    def settings(self) -> dict[str, Any]:
        """See the contract."""
        dtypes = sorted({variable.dtype.name for held in (self._tensors, self._momentum) for variable in held.values()})
        return self._told(self._step, self._dtype.name) | {"weights_precision": ", ".join(dtypes)}

    def _watched(self, tape: tf.GradientTape) -> dict[str, tf.Tensor]:
        """The values of the parameters, watched by ``tape``."""
        parameters = {name: tf.convert_to_tensor(self._tensors[name]) for name in self._parameters}
        tape.watch(parameters)
        return parameters

    def _loss(
        self, tape: tf.GradientTape, parameters: Mapping[str, tf.Tensor], images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """The loss of a batch, the new running statistics by tensor name, and every layer's output, watched by ``tape``."""
        running, taps = {}, {}

        def applied(layer: Layer, *inputs: tf.Tensor) -> tf.Tensor:
            names = {leaf: f"{layer.name}.{leaf}" for leaf in layer.tensors()}
            own = {
                leaf: parameters[name] if name in parameters else tf.convert_to_tensor(self._tensors[name]) for leaf, name in names.items()
            }
            taps[layer.name], changed = apply(layer, own, self._mode, *inputs)
            running.update({names[leaf]: value for leaf, value in changed.items()})
            tape.watch(taps[layer.name])
            return taps[layer.name]

        logits = tf.cast(walk(self._model.body, applied, images), self._held)
        main, *others = (cross_entropy(head, labels, self._sgd.label_smoothing) for head in tf.split(logits, self._model.heads, 1))
        return sum((weight * loss for weight, loss in zip(self._model.auxiliary_weights, others, strict=True)), main), running, taps

    def _stepped(self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        """Assigns the state after a step of ``Sgd``; the loss before it."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            parameters = self._watched(tape)
            loss, running, _ = self._loss(tape, parameters, images, labels)
        gradients = tape.gradient(loss, parameters)
        for name, parameter in parameters.items():
            self._descend(name, rate, parameter, gradients[name])
        for name, value in running.items():
            self._tensors[name].assign(value)
        return loss

    def _descend(self, name: str, rate: tf.Tensor, parameter: tf.Tensor, gradient: tf.Tensor) -> None:
        """Assigns one parameter and its momentum buffer after a step.

        A graph has a kernel for each operation, so it takes TensorFlow's: ``descend``, but that Nesterov's rate is multiplied term by term.
        """
        if self._mode == "xla":
            stepped, velocity = descend(self._sgd, rate, parameter, gradient, tf.convert_to_tensor(self._momentum[name]))
            self._tensors[name].assign(stepped)
            self._momentum[name].assign(velocity)
            return
        tf.raw_ops.ResourceApplyMomentum(
            var=self._tensors[name].handle,
            accum=self._momentum[name].handle,
            lr=rate,
            grad=gradient + self._sgd.weight_decay * parameter,
            momentum=tf.constant(self._sgd.momentum, self._held),
            use_nesterov=self._sgd.nesterov,
        )


def _nchw(tensors: Mapping[str, tf.Tensor], dtype: tf.DType) -> dict[str, Array]:
    host = {name: tf.cast(tensor, dtype).numpy() for name, tensor in tensors.items()}
    return {name: array.transpose(0, 3, 1, 2) if array.ndim == 4 else array for name, array in host.items()}


def _canonical(tensors: Mapping[str, tf.Tensor | tf.Variable]) -> dict[str, Array]:
    return {name: np.array(to_canonical(tensor.numpy())) for name, tensor in tensors.items()}
