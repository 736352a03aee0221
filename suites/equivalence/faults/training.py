"""Faults of training: of the network in training mode, of the loss, of the backward pass, of running statistics and of the optimizer.

Each replaces one of the conventions of ``Practice``, which are the oracle's; ``suites.equivalence.practice`` trains by them. What the
spec and ``impls.implementation.Sgd`` can say is changed there, so that a framework's trainer can be given the same fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.implementation import Sgd
from impls.oracle import forward, training
from impls.oracle.backward import Pullback, batch_statistics, vjp
from impls.oracle.forward import Array
from impls.oracle.training import cross_entropy, evaluate, log_softmax, running_statistics
from impls.spec import BatchNorm2d, Conv2d, Layer, ModelSpec, Padding, Relu, layers
from suites.equivalence.faults.fault import Case, Citation
from suites.equivalence.faults.surgery import relayered

Tensors = Mapping[str, Array]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Update:
    """One parameter at one step: its name, the step's learning rate and that of the step before, value, gradient and velocity."""

    name: str
    rate: float
    rate_before: float
    parameter: Array
    gradient: Array
    velocity: Array


def descend(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    """The oracle's."""
    return training.descend(sgd, update.rate, update.parameter, update.gradient, update.velocity)


@dataclass(frozen=True, slots=True)
class Practice:
    """How one step is done. Every field but ``model`` and ``sgd`` is a function; the defaults are the oracle's.

    ``rate`` gives the learning rate of step k of a schedule.
    """

    model: ModelSpec
    sgd: Sgd
    evaluate: Callable[[Layer, tuple[Array, ...], Tensors], Array] = evaluate
    loss: Callable[[Array, Labels, float], tuple[float, Array]] = cross_entropy
    pull: Callable[[Layer, tuple[Array, ...], Array, Array, Tensors], Pullback] = vjp
    statistics: Callable[[BatchNorm2d, Array, Tensors], dict[str, Array]] = running_statistics
    descend: Callable[[Sgd, Update], tuple[Array, Array]] = descend
    rate: Callable[[Sequence[float], int], float] = lambda rates, k: rates[k]


@dataclass(frozen=True, slots=True)
class TrainingFault:
    """One way to train wrongly.

    ``equivalent`` says why it can change nothing, for those that cannot; ``hidden`` why a step in fp32 moves by less than rounding moves
    it, for those with which it does.
    """

    id: str
    sentence: str
    change: Callable[[Practice], Practice]
    citation: Citation | None = None
    equivalent: str | None = None
    hidden: str | None = None


def _respec(**fields: Any) -> Callable[[Practice], Practice]:
    """Other numbers in every batch norm."""

    def change(practice: Practice) -> Practice:
        names = [layer.name for layer in layers(practice.model.body) if isinstance(layer, BatchNorm2d)]
        empty = Case(practice.model, {}, np.zeros((0, 0, 0, 0), np.float32))
        return dataclasses.replace(practice, model=relayered(empty, names, **fields).model)

    return change


def _same_padding(practice: Practice) -> Practice:
    names = [layer.name for layer in layers(practice.model.body) if isinstance(layer, Conv2d) and layer.kernel == 3 and layer.stride == 2]
    empty = Case(practice.model, {}, np.zeros((0, 0, 0, 0), np.float32))
    return dataclasses.replace(practice, model=relayered(empty, names, padding=Padding(0, 1, 0, 1)).model)


def _sgd(**fields: Any) -> Callable[[Practice], Practice]:
    return lambda practice: dataclasses.replace(practice, sgd=dataclasses.replace(practice.sgd, **fields))


def _with(**functions: Any) -> Callable[[Practice], Practice]:
    return lambda practice: dataclasses.replace(practice, **functions)


# Batch norm in training mode.


def _evaluated_with(statistics: Callable[[BatchNorm2d, Array], tuple[Array, Array]]) -> Callable[..., Array]:
    """Forward pass in which batch norm divides by another deviation; ``statistics`` gives mean and squared deviation with epsilon."""

    def run(layer: Layer, inputs: tuple[Array, ...], tensors: Tensors) -> Array:
        if not isinstance(layer, BatchNorm2d):
            return evaluate(layer, inputs, tensors)
        mean, square = statistics(layer, inputs[0])
        normalised = (inputs[0] - mean[:, None, None]) / np.sqrt(square)[:, None, None]
        return np.asarray(normalised * tensors["weight"][:, None, None] + tensors["bias"][:, None, None])

    return run


def _pulled_with(statistics: Callable[[BatchNorm2d, Array], tuple[Array, Array]]) -> Callable[..., Pullback]:
    """The backward pass of that forward pass, to the accuracy with which the deviation's derivative is the sound one scaled."""

    def run(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
        if not isinstance(layer, BatchNorm2d):
            return vjp(layer, inputs, output, cotangent, tensors)
        _, variance = batch_statistics(inputs[0])
        _, square = statistics(layer, inputs[0])
        ratio = np.sqrt((variance + layer.eps) / square)
        sound = vjp(layer, inputs, output, cotangent, tensors)
        return Pullback((sound.inputs[0] * ratio[:, None, None],), sound.parameters | {"weight": sound.parameters["weight"] * ratio})

    return run


def _unbiased(layer: BatchNorm2d, x: Array) -> tuple[Array, Array]:
    mean, variance = batch_statistics(x)
    count = x.size // layer.channels
    return mean, variance * count / (count - 1) + layer.eps


def _outside(layer: BatchNorm2d, x: Array) -> tuple[Array, Array]:
    mean, variance = batch_statistics(x)
    return mean, (np.sqrt(variance) + layer.eps) ** 2


def fast_statistics(layer: BatchNorm2d, x: Array) -> tuple[Array, Array]:
    """E[x^2] - E[x]^2 in float32, no less than 0: what cancels where the mean is large."""
    narrow = x.astype(np.float32)
    mean = narrow.mean(axis=(0, 2, 3), dtype=np.float32)
    square = (narrow * narrow).mean(axis=(0, 2, 3), dtype=np.float32)
    return mean.astype(np.float64), np.maximum(square - mean * mean, 0).astype(np.float64) + layer.eps


def _pull_constant_statistics(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
    """Mean and variance taken as constants."""
    sound = vjp(layer, inputs, output, cotangent, tensors)
    if not isinstance(layer, BatchNorm2d):
        return sound
    _, variance = batch_statistics(inputs[0])
    scale = tensors["weight"] / np.sqrt(variance + layer.eps)
    return Pullback((cotangent * scale[:, None, None],), sound.parameters)


def _frozen(layer: Layer, inputs: tuple[Array, ...], tensors: Tensors) -> Array:
    return forward.evaluate(layer, inputs, tensors)


def _pull_frozen(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
    if not isinstance(layer, BatchNorm2d):
        return vjp(layer, inputs, output, cotangent, tensors)
    deviation = np.sqrt(tensors["running_var"] + layer.eps)[:, None, None]
    normalised = (inputs[0] - tensors["running_mean"][:, None, None]) / deviation
    gradients = {"weight": np.sum(cotangent * normalised, axis=(0, 2, 3)), "bias": cotangent.sum(axis=(0, 2, 3))}
    return Pullback((cotangent * tensors["weight"][:, None, None] / deviation,), gradients)


def _twice(layer: BatchNorm2d, x: Array, tensors: Tensors) -> dict[str, Array]:
    return running_statistics(layer, x, {**tensors, **running_statistics(layer, x, tensors)})


def _never(layer: BatchNorm2d, x: Array, tensors: Tensors) -> dict[str, Array]:
    return {leaf: tensors[leaf] for leaf in ("running_mean", "running_var")}


# The backward pass.


def _relu_at_zero(share: float) -> Callable[..., Pullback]:
    def run(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
        sound = vjp(layer, inputs, output, cotangent, tensors)
        if not isinstance(layer, Relu):
            return sound
        return Pullback((np.where(inputs[0] == 0, share * cotangent, sound.inputs[0]),), {})

    return run


def _shortcut_detached(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
    sound = vjp(layer, inputs, output, cotangent, tensors)
    return sound if len(inputs) == 1 else Pullback((cotangent, *(np.zeros_like(cotangent) for _ in inputs[1:])), {})


def _mask_from_input_above(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Tensors) -> Pullback:
    """ReLU's mask taken from its input instead of from its output."""
    if isinstance(layer, Relu):
        return Pullback((np.where(inputs[0] > 0, cotangent, 0.0),), {})
    return vjp(layer, inputs, output, cotangent, tensors)


# The loss.


def _of_target(target: Callable[[Labels, int, float], Array]) -> Callable[[Array, Labels, float], tuple[float, Array]]:
    """Cross-entropy against another target; the derivative for targets of any sum."""

    def loss(logits: Array, labels: Labels, smoothing: float) -> tuple[float, Array]:
        batch, classes = logits.shape
        wanted = target(labels, classes, smoothing)
        log_p = log_softmax(logits)
        slope = (np.exp(log_p) * wanted.sum(axis=1, keepdims=True) - wanted) / batch
        return float(-np.sum(wanted * log_p) / batch), slope

    return loss


def _one_hot(labels: Labels, classes: int) -> Array:
    return np.eye(classes)[labels]


def _among_the_others(labels: Labels, classes: int, smoothing: float) -> Array:
    hot = _one_hot(labels, classes)
    return (1 - smoothing) * hot + smoothing / (classes - 1) * (1 - hot)


def _unscaled(labels: Labels, classes: int, smoothing: float) -> Array:
    return (1 - smoothing) * _one_hot(labels, classes) + 1 / classes


def _little_taken(labels: Labels, classes: int, smoothing: float) -> Array:
    return (1 - smoothing / classes) * _one_hot(labels, classes) + smoothing / classes


def _scaled(factor: Callable[[int], float]) -> Callable[[Array, Labels, float], tuple[float, Array]]:
    def loss(logits: Array, labels: Labels, smoothing: float) -> tuple[float, Array]:
        value, slope = cross_entropy(logits, labels, smoothing)
        return value * factor(len(labels)), slope * factor(len(labels))

    return loss


def _softmax_twice(logits: Array, labels: Labels, smoothing: float) -> tuple[float, Array]:
    p = np.exp(log_softmax(logits))
    value, slope = cross_entropy(p, labels, smoothing)
    return value, p * (slope - np.sum(slope * p, axis=1, keepdims=True))


def _log_softmax_twice(logits: Array, labels: Labels, smoothing: float) -> tuple[float, Array]:
    log_p = log_softmax(logits)
    value, slope = cross_entropy(log_p, labels, smoothing)
    return value, slope - np.exp(log_p) * slope.sum(axis=1, keepdims=True)


# The optimizer.


def _vectors_spared(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    """Gamma, beta and biases are the parameters with one axis."""
    return descend(dataclasses.replace(sgd, weight_decay=0.0) if update.parameter.ndim == 1 else sgd, update)


def _decoupled(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    moved, velocity = descend(dataclasses.replace(sgd, weight_decay=0.0), update)
    return moved - update.rate * sgd.weight_decay * update.parameter, velocity


def _decay_without_rate(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    moved, velocity = descend(dataclasses.replace(sgd, weight_decay=0.0), update)
    return moved - sgd.weight_decay * update.parameter, velocity


def _rate_in_velocity(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    """The step is v = mu v - lr g and p += v, in units in which v is the oracle's as long as the rate stays."""
    carried = update.velocity * update.rate_before / update.rate
    return descend(sgd, dataclasses.replace(update, velocity=carried))


def _dampened(share: float) -> Callable[[Sgd, Update], tuple[Array, Array]]:
    def run(sgd: Sgd, update: Update) -> tuple[Array, Array]:
        decayed = update.gradient + sgd.weight_decay * update.parameter
        velocity = sgd.momentum * update.velocity + (1 - share) * decayed
        direction = decayed + sgd.momentum * velocity if sgd.nesterov else velocity
        return update.parameter - update.rate * direction, velocity

    return run


def _ahead_in_gradient(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    """The look-ahead is added to the gradient before the velocity takes it."""
    ahead = update.gradient + sgd.momentum * update.velocity
    return descend(dataclasses.replace(sgd, nesterov=False), dataclasses.replace(update, gradient=ahead))


def _reset(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    return descend(sgd, dataclasses.replace(update, velocity=np.zeros_like(update.velocity)))


def _bias_untrained(sgd: Sgd, update: Update) -> tuple[Array, Array]:
    return (update.parameter, update.velocity) if update.name == "fc.bias" else descend(sgd, update)


def _late(rates: Sequence[float], k: int) -> float:
    return rates[max(k - 1, 0)]


def _early(rates: Sequence[float], k: int) -> float:
    return rates[min(k + 1, len(rates) - 1)]


_NO_ZEROS = "with weights in generic position no ReLU is given an exact 0"

TRAINING: tuple[TrainingFault, ...] = (
    TrainingFault(
        "running-variance-biased",
        "every batch norm keeps the biased variance",
        _respec(running_variance="biased"),
        Citation("callummcdougall/ARENA_3.0#415", "[0.2] `BatchNorm2d` updates `running_var` with the biased variance"),
    ),
    TrainingFault(
        "normalised-unbiased",
        "every batch norm normalises the batch by its unbiased variance",
        _with(evaluate=_evaluated_with(_unbiased), pull=_pulled_with(_unbiased)),
        Citation("pytorch/pytorch#3122", "Bug - BatchNormalization - normalization var and running var are not compatible"),
    ),
    TrainingFault(
        "momentum-exchanged",
        "every batch norm has a momentum of 0.9 instead of 0.1: the other convention",
        _respec(momentum=0.9),
        Citation("huggingface/transformers#19454", "Fix TF batch norm momentum and epsilon values"),
    ),
    TrainingFault(
        "momentum-0.01",
        "every batch norm has a momentum of 0.01 instead of 0.1: TensorFlow's default of 0.99",
        _respec(momentum=0.01),
        Citation("pytorch/examples#289", "batchnorm momentum convention"),
    ),
    TrainingFault(
        "statistics-twice",
        "every batch norm updates its running statistics twice a step",
        _with(statistics=_twice),
        Citation("pytorch/pytorch#96136", "`torch.utils.checkpoint` should avoid updating BatchNorm statistics twice"),
    ),
    TrainingFault(
        "statistics-never",
        "no batch norm updates its running statistics",
        _with(statistics=_never),
        Citation("tensorflow/tensorflow#11965", "Moving average and moving variance in Batchnorm aren't updated"),
    ),
    TrainingFault(
        "norm-frozen",
        "every batch norm normalises by its running statistics instead of by the batch: evaluation mode",
        _with(evaluate=_frozen, pull=_pull_frozen),
    ),
    TrainingFault("train-eps-1e-3", "every batch norm has an epsilon of 1e-3 instead of 1e-5", _respec(eps=1e-3)),
    TrainingFault(
        "train-eps-1.001e-5",
        "every batch norm has an epsilon of 1.001e-5 instead of 1e-5",
        _respec(eps=1.001e-5),
        hidden="it adds 1e-8 to variances near 1, whose float32 neighbours are 6e-8 away",
    ),
    TrainingFault(
        "train-eps-outside",
        "every batch norm adds epsilon to the standard deviation instead of to the variance",
        _with(evaluate=_evaluated_with(_outside), pull=_pulled_with(_outside)),
    ),
    TrainingFault(
        "variance-fast",
        "every batch norm computes its variance as E[x^2] - E[x]^2 in float32",
        _with(evaluate=_evaluated_with(fast_statistics)),
        Citation("google/flax#1491", "Variance can be negative in BatchNorm computation, leading to NaN's"),
        hidden="its difference cancels only where a mean is far larger than the deviation",
    ),
    TrainingFault(
        "statistics-constant",
        "the backward pass takes the statistics of the batch as constants",
        _with(pull=_pull_constant_statistics),
        Citation("pytorch/pytorch#36382", "Fixing SyncBN dgrad"),
    ),
    TrainingFault(
        "relu-half-at-zero",
        "the derivative of ReLU at 0 is 0.5 instead of 0",
        _with(pull=_relu_at_zero(0.5)),
        Citation("jax-ml/jax#37821", "`jax.grad(lambda x: jnp.maximum(x, 0.0))(0.0)` returns `0.5`"),
        hidden=_NO_ZEROS,
    ),
    TrainingFault("relu-one-at-zero", "the derivative of ReLU at 0 is 1 instead of 0", _with(pull=_relu_at_zero(1.0)), hidden=_NO_ZEROS),
    TrainingFault(
        "relu-mask-of-input",
        "ReLU's backward pass asks whether its input is positive instead of its output",
        _with(pull=_mask_from_input_above),
        equivalent="max(x, 0) is positive exactly where x is",
    ),
    TrainingFault("shortcut-detached", "no gradient flows through the shortcuts", _with(pull=_shortcut_detached)),
    TrainingFault(
        "train-conv-same",
        "every strided 3x3 convolution pads (0, 1) instead of (1, 1): SAME padding",
        _same_padding,
        Citation("mlcommons/algorithmic-efficiency#231", "Tests + Small DeepSpeech/Imagenet fix"),
    ),
    TrainingFault(
        "smoothing-others",
        "label smoothing spreads over the other classes only, divided by classes - 1",
        _with(loss=_of_target(_among_the_others)),
        Citation("fastai/fastai#1814", "Fix label smoothing."),
    ),
    TrainingFault("smoothing-none", "no label smoothing", _sgd(label_smoothing=0.0)),
    TrainingFault(
        "smoothing-unscaled",
        "label smoothing adds 1 / classes instead of smoothing / classes",
        _with(loss=_of_target(_unscaled)),
        Citation("TimDettmers/ConvE#55", "About Label Smoothing"),
    ),
    TrainingFault(
        "smoothing-taken-once",
        "label smoothing takes smoothing / classes from the label instead of smoothing",
        _with(loss=_of_target(_little_taken)),
        Citation("ildoonet/pytorch-randaugment#30", "SmoothCrossEntropyLoss"),
    ),
    TrainingFault(
        "loss-sum",
        "the loss is the sum over the batch instead of the mean",
        _with(loss=_scaled(float)),
        Citation("intel/ipex-llm#2079", "Loss and gradient is not correct when criterion's sizeAverage is set to false"),
    ),
    TrainingFault(
        "loss-halved",
        "the loss is averaged over two replicas once too often",
        _with(loss=_scaled(lambda batch: 0.5)),
        Citation("tensorflow/tensorflow#35333", "Optimizer within Estimator computes incorrectly small gradient with MirroredStrategy"),
    ),
    TrainingFault(
        "softmax-twice",
        "the loss takes probabilities for logits: softmax twice",
        _with(loss=_softmax_twice),
        Citation("Lightning-Universe/lightning-bolts#654", "Softmax applied twice when computing loss in LogisticRegression"),
    ),
    TrainingFault(
        "log-softmax-twice",
        "the loss takes log-probabilities for logits: log-softmax twice",
        _with(loss=_log_softmax_twice),
        Citation("bhanML/Co-teaching#4", "A question about your loss_coteaching function"),
        equivalent="log-probabilities are logits whose normaliser is 1 already, so the second log-softmax changes nothing",
    ),
    TrainingFault(
        "decay-spares-norms",
        "weight decay leaves out batch norms and biases",
        _with(descend=_vectors_spared),
        Citation("facebookresearch/ClassyVision#392", "ResNeXt weight decay batch norm"),
    ),
    TrainingFault("decay-1e-4", "weight decay is 1e-4 instead of 5e-4", _sgd(weight_decay=1e-4)),
    TrainingFault(
        "decay-none",
        "weight decay has no effect",
        _sgd(weight_decay=0.0),
        Citation("ml-explore/mlx#473", "[Fix] Fix SGD implementation"),
    ),
    TrainingFault(
        "decay-decoupled",
        "weight decay is decoupled: it bypasses the momentum",
        _with(descend=_decoupled),
        Citation("benchopt/benchmark_resnet_classif#35", "Corrected coupled weight decay for TF, and changed Dense layer initialization"),
    ),
    TrainingFault(
        "decay-without-rate",
        "weight decay is decoupled and not multiplied by the learning rate",
        _with(descend=_decay_without_rate),
        Citation("leondgarse/Keras_insightface#5", "Weight decay multiplier."),
    ),
    TrainingFault("nesterov-missing", "the momentum is the heavy ball's instead of Nesterov's", _sgd(nesterov=False)),
    TrainingFault(
        "nesterov-in-gradient",
        "Nesterov's look-ahead enters the gradient before the velocity is updated",
        _with(descend=_ahead_in_gradient),
        Citation("ml-explore/mlx#87", "Adds Nesterov momentum to SGD"),
    ),
    TrainingFault(
        "rate-in-velocity",
        "the learning rate is inside the velocity",
        _with(descend=_rate_in_velocity),
        Citation("pytorch/pytorch#1099", "Add a note in the docs about the momentum formulation used in optim"),
    ),
    TrainingFault("dampening-0.1", "the gradient enters the velocity with a dampening of 0.1", _with(descend=_dampened(0.1))),
    TrainingFault(
        "dampening-0.9",
        "the gradient enters the velocity with a dampening of 0.9, the momentum",
        _with(descend=_dampened(0.9)),
        Citation("intel/BigDL#1499", "Changing SGD dampening default to 0 as it did in pytorch"),
    ),
    TrainingFault(
        "velocity-reset",
        "the velocity begins at zero in every step",
        _with(descend=_reset),
        Citation("kozistr/pytorch_optimizer#516", "[Fix] Keep `SignSGD` momentum buffer across steps"),
    ),
    TrainingFault("momentum-0.99", "the momentum is 0.99 instead of 0.9", _sgd(momentum=0.99)),
    TrainingFault("bias-untrained", "the classifier's bias is not trained", _with(descend=_bias_untrained)),
    TrainingFault(
        "rate-late",
        "the learning rate changes one step late",
        _with(rate=_late),
        Citation("ildoonet/pytorch-gradual-warmup-lr#11", "fix when after_scheduler=StepLR, and step_size=1"),
    ),
    TrainingFault(
        "rate-early",
        "the learning rate changes one step early: its first value is skipped",
        _with(rate=_early),
        Citation("pytorch/pytorch#22107", "LR scheduler design bug !"),
    ),
)
"""All of them; ids are unique and none is that of a fault of inference."""
