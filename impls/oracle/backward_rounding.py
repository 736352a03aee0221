"""Rounding noise of training, predicted as in ``impls.oracle.rounding``: second moments, and no constant that is fitted.

A value that goes through a fixed number of roundings has kappa^2 u^2 times its square for each; a sum of n terms has the variance
of ``rounding.sum_variance``, an upper bound for every usual order. What a whole channel shares (the error of its mean, of its
deviation, of its two sums in the backward pass) is a variance of each element as much as its own roundings are, but one draw for
the whole channel. Where there are several ways to compute the same (through the normalised values or through centred ones, by
a formula or by differentiating each operation) the roundings of all are counted. So the prediction bounds a correct run from above
and does not bound it from below. Where results are stored narrower than they are added up (bf16, which in training is mixed precision,
``impls.implementation.TRAINING_PRECISIONS``) this is the noise before that last rounding, which no drawn number stands for: whoever judges
or simulates a stored value rounds. Only a pool's cotangents, which may be stored while they grow, have it in their noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle import rounding
from impls.oracle.backward import Pullback, batch_statistics, correlate_back, correlate_weights, scatter, spread, tied, winners
from impls.oracle.forward import Array, areas
from impls.oracle.rounding import KAPPA, Arithmetic, sum_variance
from impls.oracle.training import Sgd, cross_entropy, in_training, log_softmax, targets
from impls.spec import (
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    PadShortcut,
    Relu,
)

FAITHFUL = 4
"""Variance of a faithful exp or log over that of its rounded exact value: it is off by up to one unit in the last place, twice the half
that rounding is. Scalar libraries are better (0.502 units, Arm Optimized Routines, math/expf.c), so this bounds from above."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Rounding noise of one array: ``own`` is drawn for every element, each of ``shared`` times one draw for every channel.

    All are standard deviations that broadcast to ``own``'s shape.
    """

    own: Array
    shared: tuple[Array, ...] = ()

    @property
    def sigma(self) -> Array:
        """Standard deviation of every element."""
        total: Array = np.sqrt(sum((pattern**2 for pattern in self.shared), self.own**2))
        return total

    def narrow(self) -> Noise:
        """The same in float32, half as large: a deviation needs no more digits."""
        return Noise(self.own.astype(np.float32), tuple(pattern.astype(np.float32) for pattern in self.shared))

    def draw(self, generator: np.random.Generator) -> Array:
        """One sample."""
        if not self.own.any():
            return self.own
        noise: Array = self.own * generator.standard_normal(self.own.shape, dtype=np.float32)
        for pattern in self.shared:
            noise += pattern * generator.standard_normal((1, self.own.shape[1], 1, 1))
        return noise


@dataclass(frozen=True, slots=True)
class PullbackNoise:
    """Of what ``backward.Pullback`` holds."""

    inputs: tuple[Noise, ...]
    parameters: dict[str, Noise]

    def narrow(self) -> PullbackNoise:
        """The same in float32."""
        return PullbackNoise(
            tuple(noise.narrow() for noise in self.inputs), {leaf: noise.narrow() for leaf, noise in self.parameters.items()}
        )


def noise(layer: Layer, inputs: tuple[Array, ...], output: Array, tensors: Mapping[str, Array], arithmetic: Arithmetic) -> Noise:
    """Predicted rounding noise of a layer's output in training mode; arguments as of :func:`impls.oracle.rounding.sigma`.

    Batch norm adds to inference's what the errors of mean and deviation make: scale * d(mean) and (y - bias) * d(s) / s.
    """
    own = rounding.sigma(layer, inputs, output, in_training(layer, inputs, tensors), replace(arithmetic, store=0.0))
    if not isinstance(layer, BatchNorm2d):
        return Noise(own)
    statistics = _Statistics(layer, inputs[0], arithmetic)
    shift = _wide(tensors["weight"] / statistics.deviation * np.sqrt(statistics.mean_variance))
    return Noise(own, (shift, (output - _wide(tensors["bias"])) * _wide(np.sqrt(statistics.relative_variance))))


class _Statistics:
    """Mean and variance of a batch norm's input and the variances of their errors, (C,) each.

    The mean is a sum of x / m. The variance is a sum of c^2 / m with c = x - mean, rounded once, so that its square errs by twice
    that. An error d of the mean adds d^2 to the variance, whose second moment is 3 E(d^2)^2. Not covered is the
    difference E[x^2] - E[x]^2, which cancels.
    """

    def __init__(self, layer: BatchNorm2d, x: Array, arithmetic: Arithmetic) -> None:
        self.count = x.size // layer.channels
        self.mean, self.variance = batch_statistics(x)
        self.centred = x - _wide(self.mean)
        self.deviation = np.sqrt(self.variance + layer.eps)
        unit = (KAPPA * arithmetic.accumulate) ** 2
        squares = self.centred**2 / self.count
        self.mean_variance = _channel_sum(x / self.count, arithmetic)
        self.variance_variance = _channel_sum(squares, arithmetic) + 4 * unit * np.sum(squares**2, axis=(0, 2, 3))
        self.variance_variance += 3 * self.mean_variance**2
        # The root halves the relative error of var + eps: d(1 / s) = s^-3 / 2 d(var). It and the sum before it are rounded.
        self.relative_variance = self.variance_variance / (4 * self.deviation**4) + 1.25 * unit


def loss_noise(
    logits: Array,
    labels: npt.NDArray[np.integer[Any]],
    label_smoothing: float,
    arithmetic: Arithmetic,
    auxiliary_weights: tuple[float, ...] = (),
) -> tuple[Noise, Noise]:
    """Predicted noise of the loss () and the cotangent that ``training.cross_entropy`` gives.

    The weight of an auxiliary head is rounded, and so are the products with it and the sum of the losses.
    """
    losses: list[Array] = []
    of_losses: list[Array] = []
    of_cotangents: list[Array] = []
    for weight, head in zip((1.0, *auxiliary_weights), np.split(logits, 1 + len(auxiliary_weights), axis=1), strict=True):
        roundings = 2 * (KAPPA * arithmetic.accumulate) ** 2 if losses else 0.0
        of_loss, of_cotangent = (noise.sigma for noise in _head_noise(head, labels, label_smoothing, arithmetic))
        loss, cotangent = cross_entropy(head, labels, label_smoothing)
        losses.append(np.array(weight * loss))
        of_losses.append(weight * np.sqrt(of_loss**2 + roundings * loss**2))
        of_cotangents.append(weight * np.sqrt(of_cotangent**2 + roundings * cotangent**2))
    return Noise(np.asarray(sum_sigma(losses, of_losses, arithmetic.accumulate))), Noise(np.concatenate(of_cotangents, axis=1))


def _head_noise(logits: Array, labels: npt.NDArray[np.integer[Any]], label_smoothing: float, arithmetic: Arithmetic) -> tuple[Noise, Noise]:
    """Of one head's.

    With z' = z - max z, a logarithm of p errs by the rounding of z', by that of lse = log(sum exp z') and by its own; an error of
    a logarithm is a relative error of p. The derivative counts log-softmax's (p is an exponential, and multiplied with the
    sum of t as it is computed) and softmax's (a quotient). t takes three roundings at most: 1 - s, s / classes and their sum.
    """
    batch, classes = logits.shape
    target, log_p = targets(labels, classes, label_smoothing), log_softmax(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    unit, p = (KAPPA * arithmetic.accumulate) ** 2, np.exp(log_p)
    total_variance = unit * _rows(p**2 * (shifted**2 + FAITHFUL)) + _sum(_rows(p**2), np.ones((batch, 1)), classes, arithmetic)
    lse = shifted - log_p
    log_variance = unit * (shifted**2 + log_p**2 + FAITHFUL * lse**2) + total_variance
    # All t but the label's are equal, so their sum errs as that of equal cotangents (``_total``): by up to 30 u in PyTorch, of 1000.
    target_sum = _mean_multiplicity(target[0][target[0] != 0]) * _sum(_rows(target**2), np.ones((batch, 1)), classes, arithmetic)
    cotangent = (p - target) / batch
    variance = p**2 * (log_variance + target_sum + (FAITHFUL + 2) * unit) + unit * (4 * target**2 + (p - target) ** 2)
    terms = target * log_p
    losses = -_rows(terms)
    # The error of lse is that of a whole row, and the t of a row sum to 1.
    of_image = unit * _rows(3 * terms**2 + target**2 * (shifted**2 + log_p**2)) + total_variance + unit * FAITHFUL * lse[:, :1] ** 2
    of_image += _sum(_rows(terms**2), losses, classes, arithmetic)
    loss = losses.mean()
    of_loss = np.sum(of_image) / batch**2 + _sum(np.sum(losses**2) / batch**2, loss, batch, arithmetic) + 2 * unit * loss**2
    return _noise(of_loss, arithmetic), _noise(variance / batch**2 + unit * cotangent**2, arithmetic)


def vjp_noise(
    layer: Layer, inputs: tuple[Array, ...], cotangent: Array, tensors: Mapping[str, Array], pulled: Pullback, arithmetic: Arithmetic
) -> PullbackNoise:
    """Predicted rounding noise of ``pulled``, which ``backward.vjp`` made of the other arguments.

    0 where nothing is rounded. An element of a max-pool's input that shares the maximum of a window may have got its cotangent in
    other company: there the variances add up, over the tied elements of a plane, to a bound of any choice.
    """
    x = inputs[0]
    match layer:
        case Conv2d():
            reach = math.ceil(layer.kernel / layer.stride) ** 2
            squares = correlate_back(cotangent**2, tensors["weight"] ** 2, layer, x.shape)
            into = _products(squares, pulled.inputs[0], layer.out_channels * reach, arithmetic)
            squares, places = correlate_weights(x**2, cotangent**2, layer), cotangent.size // layer.out_channels
            parameters = {"weight": _products(squares, pulled.parameters["weight"], places, arithmetic)}
            if layer.bias:
                parameters["bias"] = _noise(_total(cotangent, arithmetic), arithmetic)
            return PullbackNoise((into,), parameters)
        case Linear():
            into = _products(cotangent**2 @ tensors["weight"].astype(np.float64) ** 2, pulled.inputs[0], layer.out_features, arithmetic)
            weight = _products((cotangent**2).T @ x**2, pulled.parameters["weight"], len(x), arithmetic)
            return PullbackNoise((into,), {"weight": weight, "bias": _noise(_total(cotangent, arithmetic), arithmetic)})
        case BatchNorm2d():
            return _batch_norm(layer, x, cotangent, tensors["weight"], pulled, arithmetic)
        case GlobalAvgPool2d():
            # The reciprocal of the area and the product with it.
            return PullbackNoise((_noise(2 * (KAPPA * arithmetic.accumulate * pulled.inputs[0]) ** 2, arithmetic),), {})
        case AdaptiveAvgPool2d():
            return PullbackNoise((_adaptive_avg_pool(layer, x, cotangent, pulled.inputs[0], arithmetic),), {})
        case MaxPool2d():
            return PullbackNoise((_max_pool(layer, x, cotangent, pulled.inputs[0], arithmetic),), {})
        case Relu() | Flatten() | Dropout() | PadShortcut() | Add() | Concat():
            return PullbackNoise(tuple(Noise(np.zeros(value.shape)) for value in pulled.inputs), {})


def _batch_norm(layer: BatchNorm2d, x: Array, cotangent: Array, gamma: Array, pulled: Pullback, arithmetic: Arithmetic) -> PullbackNoise:
    """Of gamma / s * (g - b - e) with b = mean(g) and e = h * mean(g h).

    h takes two subtractions and a quotient. e is h times a mean and up to five roundings more where each operation of the
    variance is differentiated on its own; the mean that is subtracted last is then one of g - e.
    """
    statistics = _Statistics(layer, x, arithmetic)
    unit, count = (KAPPA * arithmetic.accumulate) ** 2, statistics.count
    normalised = statistics.centred / _wide(statistics.deviation)
    for_weight, for_bias = pulled.parameters["weight"], pulled.parameters["bias"]
    mean_variance = statistics.mean_variance / statistics.deviation**2

    products = cotangent * normalised
    # Where x is stored with few bits, the low bits of x - mean are the mean's, so that products of equal cotangents round alike.
    alike = _equal(cotangent) if arithmetic.store else 1.0
    weight = alike * (_channel_sum(products, arithmetic) + 3 * unit * np.sum(products**2, axis=(0, 2, 3)))
    weight += for_bias**2 * mean_variance + for_weight**2 * statistics.relative_variance
    bias = _total(cotangent, arithmetic)

    mean, slope = _wide(for_bias / count), _wide(for_weight / count)
    through, scale = normalised * slope, _wide(gamma / statistics.deviation)
    offset = bias / count**2 + _channel_sum(through / count, arithmetic)
    own = 8 * through**2 + 2 * cotangent**2 + 2 * mean**2 + (cotangent - mean) ** 2 + (cotangent - mean - through) ** 2
    shared = (
        scale * _wide(np.sqrt(offset)),
        scale * normalised * _wide(np.sqrt(weight) / count),
        scale * slope * _wide(np.sqrt(mean_variance)),
        pulled.inputs[0] * _wide(np.sqrt(statistics.relative_variance)),
    )
    into = _noise(unit * (scale**2 * own + 2 * pulled.inputs[0] ** 2), arithmetic, shared)
    return PullbackNoise((into,), {"weight": _noise(weight, arithmetic), "bias": _noise(bias, arithmetic)})


def _adaptive_avg_pool(layer: AdaptiveAvgPool2d, x: Array, cotangent: Array, pulled: Array, arithmetic: Arithmetic) -> Noise:
    """Of rows and of columns a reciprocal and the product with it; and of an element in several windows the sum, stored as it grows."""
    addends = spread(layer, np.ones(cotangent.shape), x.shape)
    squares = spread(layer, (cotangent / areas(layer, x.shape)) ** 2, x.shape)
    sums = np.where(addends > 1, addends * (squares / 2 + pulled**2 / 3), 0.0)
    stored = arithmetic.store**2 * (2 * squares + sums + pulled**2)  # of rows, of columns, and of each partial sum
    return _noise(KAPPA**2 * (arithmetic.accumulate**2 * (4 * squares + sums) + stored), arithmetic)


def _max_pool(layer: MaxPool2d, x: Array, cotangent: Array, pulled: Array, arithmetic: Arithmetic) -> Noise:
    """Where windows overlap, an element is the sum of as many cotangents as it won windows, stored as it grows; alone it is passed on."""
    chosen = winners(layer, x)
    addends = scatter(layer, chosen, np.ones(cotangent.shape), x.shape)
    squares = scatter(layer, chosen, cotangent**2, x.shape)
    variance = np.where(addends > 1, addends * (squares / 2 + pulled**2 / 3), 0.0)
    # c addends have c - 1 partial sums, each at most c * squares when squared.
    most = math.ceil(layer.kernel / layer.stride) ** 2
    variance = np.where(tied(layer, x), most * (most - 1) * squares, variance)
    unit = KAPPA**2 * (arithmetic.accumulate**2 + arithmetic.store**2)
    return Noise(np.where(variance > 0, _deviation(unit * variance, arithmetic), 0.0))


def sum_sigma(values: list[Array], sigmas: list[Array], unit: float) -> Array:
    """Deviation of the error of a sum whose terms err by ``sigmas``; the partial sums, each rounded, are those in the given order.

    Of two terms, which is what a residual network adds up, there is only one.
    """
    partial, variance = values[0], sigmas[0] ** 2
    for value, deviation in zip(values[1:], sigmas[1:], strict=True):
        partial = partial + value
        variance = variance + deviation**2 + (KAPPA * unit * partial) ** 2
    total: Array = np.sqrt(variance)
    return total


def running_statistics_sigma(
    layer: BatchNorm2d, x: Array, tensors: Mapping[str, Array], after: Mapping[str, Array], arithmetic: Arithmetic
) -> dict[str, Array]:
    """Deviations of the errors of ``after``, which ``training.running_statistics`` made of the other arguments.

    Both constants are rounded, and so are both products and the sum; n / (n - 1) is rounded and multiplied with.
    """
    statistics = _Statistics(layer, x, arithmetic)
    unit, kept = (KAPPA * arithmetic.accumulate) ** 2, 1 - layer.momentum
    new = {"running_mean": statistics.mean_variance, "running_var": statistics.variance_variance}
    if layer.running_variance == "unbiased":
        ratio = statistics.count / (statistics.count - 1)
        new["running_var"] = ratio**2 * (new["running_var"] + 2 * unit * statistics.variance**2)
    sigmas = {}
    for leaf, variance in new.items():
        old = kept * tensors[leaf]
        roundings = 2 * old**2 + 2 * (after[leaf] - old) ** 2 + after[leaf] ** 2
        sigmas[leaf] = _deviation(layer.momentum**2 * variance + unit * roundings, arithmetic)
    return sigmas


def descend_sigma(
    sgd: Sgd, learning_rate: float, parameter: Array, gradient: Array, velocity: Array, gradient_sigma: Array, arithmetic: Arithmetic
) -> tuple[Array, Array]:
    """Deviations of the errors of a parameter and its momentum buffer after ``training.descend``.

    Args:
        sgd: its numbers, each rounded to the precision.
        learning_rate: rounded as well.
        parameter: before the step, as the implementation holds it, like ``velocity``.
        gradient: the loss's.
        velocity: before the step.
        gradient_sigma: deviation of the gradient's error, 0 where it is the implementation's own.
        arithmetic: of the precision judged.
    """
    unit = (KAPPA * arithmetic.accumulate) ** 2
    decay, kept = sgd.weight_decay * parameter, sgd.momentum * velocity
    decayed = gradient + decay
    after = kept + decayed
    of_decayed = gradient_sigma**2 + unit * (2 * decay**2 + decayed**2)
    of_kept = unit * (2 * kept**2 + after**2)
    direction, of_direction = after, of_decayed + of_kept
    if sgd.nesterov:
        ahead = sgd.momentum * after
        direction = decayed + ahead
        # The error of the decayed gradient comes in twice, directly and through the new velocity.
        of_direction = (1 + sgd.momentum) ** 2 * of_decayed + sgd.momentum**2 * of_kept + unit * (2 * ahead**2 + direction**2)
    moved = learning_rate * direction
    of_parameter = learning_rate**2 * of_direction + unit * (2 * moved**2 + (parameter - moved) ** 2)
    return _deviation(of_parameter, arithmetic), _deviation(of_decayed + of_kept, arithmetic)


def _sum(products: Array, output: Array, terms: int, arithmetic: Arithmetic) -> Array:
    """Variance of the error of a sum that is no matrix product, so TF32 does not round what enters it."""
    variance: Array = KAPPA**2 * sum_variance(products, output, terms, None, replace(arithmetic, operand=0.0))
    return variance


def _products(products: Array, output: Array, terms: int, arithmetic: Arithmetic) -> Noise:
    """Noise of a convolution or matrix product."""
    return _noise(KAPPA**2 * sum_variance(products, output, terms, None, arithmetic), arithmetic)


def _channel_sum(addends: Array, arithmetic: Arithmetic) -> Array:
    """Variance of the error of each channel's sum over (N, H, W) or (N,).

    Images differ from each other more than an image's places do, so the partial sums in the usual order, image by image and row by
    row, can be larger than those in a random one. The larger of the two is taken.
    """
    channels = addends.swapaxes(0, 1).reshape(addends.shape[1], -1)
    products = np.sum(channels**2, axis=1)
    in_order = products + np.sum(np.cumsum(channels, axis=1) ** 2, axis=1)
    at_random = _sum(products, np.sum(channels, axis=1), channels.shape[1], arithmetic)
    larger: Array = np.maximum((KAPPA * arithmetic.accumulate) ** 2 * in_order, at_random)
    return larger


def _total(cotangent: Array, arithmetic: Arithmetic) -> Array:
    """Variance of the error of each channel's sum of a cotangent.

    Behind a global mean all places of an image and channel have one cotangent. While the partial sum stays in its binade, equal
    addends round alike: r of them err by r times the error of one and not by its sqrt(r)-fold, so the variance is r times larger.
    """
    return _equal(cotangent) * _channel_sum(cotangent, arithmetic)


def _equal(addends: Array) -> Array:
    """Of every channel, how many of the addends have the value of one, on average."""
    return np.array([_mean_multiplicity(values[values != 0]) for values in addends.swapaxes(0, 1)])


def _mean_multiplicity(values: Array) -> float:
    """How many elements have the value of an element, on average over the elements; 1 if there are none."""
    counts = np.unique(values, return_counts=True)[1]
    return float(np.sum(counts**2)) / values.size if values.size else 1.0


def _noise(variance: Array, arithmetic: Arithmetic, shared: tuple[Array, ...] = ()) -> Noise:
    return Noise(_deviation(variance, arithmetic), shared)


def _deviation(variance: Array, arithmetic: Arithmetic) -> Array:
    """Below the normal range a result errs by the smallest subnormal, whatever its size."""
    deviation: Array = np.sqrt(variance + arithmetic.smallest**2 / 12)
    return deviation


def _rows(values: Array) -> Array:
    total: Array = np.sum(values, axis=1, keepdims=True)
    return total


def _wide(channels: Array) -> Array:
    return channels[:, None, None]
