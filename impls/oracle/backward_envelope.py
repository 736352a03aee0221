"""Where a whole training step of a correct run lies: predicted noise carried forward and backward by Monte Carlo.

A compiled step shows neither its taps nor its cotangents, so it cannot be teacher-forced layer by layer. What it shows (loss, running
statistics, and in parameters and buffers the gradients) is compared with the oracle's in units of this noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle.backward import Pullback, vjp
from impls.oracle.backward_rounding import Noise, PullbackNoise, loss_noise, noise, running_statistics_sigma, vjp_noise
from impls.oracle.forward import Array, tensors_of
from impls.oracle.rounding import KAPPA, Arithmetic, round_to_unit
from impls.oracle.training import Arrays, Derivatives, Operations, cross_entropy, differentiate, evaluate, statistics_after, taken, wiring
from impls.spec import BatchNorm2d, Conv2d, Layer, Linear, ModelSpec


@dataclass(frozen=True, slots=True)
class Envelope:
    """The noiseless derivatives and running statistics, and the rms distance of noisy runs from them.

    The deviations of ``taps`` are those of channels, (1, C, 1, 1) or (1, C), by layer name, or of elements where they are rounded as they
    are stored; those of ``gradients`` and ``statistics`` of whole tensors, by tensor name. All are pooled over the runs.
    """

    exact: Derivatives
    after: dict[str, Array]
    loss: float
    taps: dict[str, Array]
    gradients: dict[str, float]
    statistics: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class StepNoise:
    """The rounding noise of every operation of a step, predicted where the step is taken."""

    arithmetic: Arithmetic
    forward: dict[str, Noise]
    loss: tuple[Noise, Noise]
    backward: dict[str, PullbackNoise]

    def operations(self, generator: np.random.Generator) -> Operations:
        """Those of a step that errs by noise of this size, drawn anew in every pass.

        Operands that TF32 rounds are rounded themselves, since an error of a weight is the same at every place, and adds up in the mean
        of a channel. What is stored narrower is rounded and not drawn, since equal values, of which 8 bits make many, err alike. The
        roundings of sums of cotangents, one for each residual block, are left out.
        """

        def rounded(operand: Array) -> Array:
            return operand * (1 + KAPPA * self.arithmetic.operand * generator.standard_normal(operand.shape))

        def stored(values: Array) -> Array:
            return round_to_unit(values, self.arithmetic.store) if self.arithmetic.store else values

        def noisy(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
            if self.arithmetic.operand and isinstance(layer, Conv2d | Linear):
                inputs, tensors = (rounded(inputs[0]),), {**tensors, "weight": rounded(tensors["weight"])}
            return stored(evaluate(layer, inputs, tensors) + self.forward[layer.name].draw(generator))

        def noisy_loss(
            logits: Array, labels: npt.NDArray[np.integer[Any]], label_smoothing: float, auxiliary_weights: tuple[float, ...]
        ) -> tuple[float, Array]:
            loss, cotangent = cross_entropy(logits, labels, label_smoothing, auxiliary_weights)
            return loss + float(self.loss[0].draw(generator)), stored(cotangent + self.loss[1].draw(generator))

        def noisy_vjp(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
            pulled, noises = vjp(layer, inputs, output, cotangent, tensors), self.backward[layer.name]
            if self.arithmetic.operand and isinstance(layer, Conv2d | Linear):
                products = vjp(layer, (rounded(inputs[0]),), output, rounded(cotangent), {**tensors, "weight": rounded(tensors["weight"])})
                # A bias's gradient is no product.
                pulled = Pullback(products.inputs, {**pulled.parameters, "weight": products.parameters["weight"]})
            parameters = {leaf: value + noises.parameters[leaf].draw(generator) for leaf, value in pulled.parameters.items()}
            if not isinstance(layer, BatchNorm2d):
                parameters = {leaf: stored(value) for leaf, value in parameters.items()}
            inputs = tuple(stored(value + noise.draw(generator)) for value, noise in zip(pulled.inputs, noises.inputs, strict=True))
            return Pullback(inputs, parameters)

        return Operations(noisy, noisy_loss, noisy_vjp)


def step_noise(
    model: ModelSpec,
    weights: Arrays,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    label_smoothing: float,
    arithmetic: Arithmetic,
    *,
    masks: Arrays | None = None,
) -> tuple[Derivatives, StepNoise]:
    """The noiseless derivatives of a batch, and what ``backward_rounding`` predicts that rounding adds to each operation behind them.

    Arguments and errors as of :func:`envelope`. Costs about three passes.
    """
    wide = replace(arithmetic, operand=0.0, store=0.0)
    forward: dict[str, Noise] = {}
    backward: dict[str, PullbackNoise] = {}
    of_loss: list[tuple[Noise, Noise]] = []

    def observed(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
        output = evaluate(layer, inputs, tensors)
        forward[layer.name] = noise(layer, inputs, output, tensors, wide).narrow()
        return output

    def observed_loss(
        logits: Array, labels: npt.NDArray[np.integer[Any]], label_smoothing: float, auxiliary_weights: tuple[float, ...]
    ) -> tuple[float, Array]:
        of_loss.append(loss_noise(logits, labels, label_smoothing, wide, auxiliary_weights))
        return cross_entropy(logits, labels, label_smoothing, auxiliary_weights)

    def observed_vjp(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
        pulled = vjp(layer, inputs, output, cotangent, tensors)
        backward[layer.name] = vjp_noise(layer, inputs, cotangent, tensors, pulled, wide).narrow()
        return pulled

    operations = Operations(observed, observed_loss, observed_vjp)
    exact = differentiate(model, weights, images, labels, label_smoothing, masks=masks, operations=operations)
    return exact, StepNoise(arithmetic, forward, of_loss[0], backward)


def envelope(
    model: ModelSpec,
    weights: Arrays,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    label_smoothing: float,
    arithmetic: Arithmetic,
    *,
    masks: Arrays | None = None,
    free: bool = False,
    runs: int = 8,
    seed: int = 0,
) -> Envelope:
    """Run the network without noise, and ``runs`` times with that of ``step_noise`` added after every operation.

    Every run decides at its ReLUs as the noiseless one does, or as ``masks`` does, or where it is ``free`` as its own noise has it. Costs
    about three passes and ``runs`` more, and memory for the noise of all taps twice.

    Args:
        model: the network.
        weights: as the implementation's operations take them (``rounding.as_taken``).
        images: (N, C, H, W) as the implementation holds them.
        labels: (N,), integers from 0 to classes - 1.
        label_smoothing: at least 0, below 1.
        arithmetic: of the precision judged.
        masks: an implementation's taps, as for :func:`impls.oracle.training.differentiate`.
        free: whether the decisions of a run are its own.
        runs: noisy runs.
        seed: of the noise.

    Raises:
        SpecError, WeightsError, ValueError: as :func:`impls.oracle.training.differentiate`.
    """
    exact, predicted = step_noise(model, weights, images, labels, label_smoothing, arithmetic, masks=masks)
    noisy = predicted.operations(np.random.Generator(np.random.PCG64(seed)))
    masks = None if free else exact.taps if masks is None else masks
    after = statistics_after(model, weights, images, exact.taps)
    loss, taps = 0.0, {name: np.zeros(1) for name in exact.taps}
    wide = replace(arithmetic, operand=0.0)
    gradients, statistics = dict.fromkeys(exact.gradients, 0.0), _own_variance(model, weights, images, exact.taps, after, wide)
    for _ in range(runs):
        found = differentiate(model, weights, images, labels, label_smoothing, masks=masks, operations=noisy)
        loss += (found.loss - exact.loss) ** 2 / runs
        for name, tap in found.taps.items():
            axes = (0, *range(2, tap.ndim))
            taps[name] = taps[name] + np.mean((tap - exact.taps[name]) ** 2, axis=axes, keepdims=True) / runs
        for name, gradient in found.gradients.items():
            gradients[name] += float(np.mean((gradient - exact.gradients[name]) ** 2)) / runs
        for name, statistic in statistics_after(model, weights, images, found.taps).items():
            statistics[name] += float(np.mean((statistic - after[name]) ** 2)) / runs
    return Envelope(
        exact,
        after,
        float(np.sqrt(loss)),
        {name: _of_elements(np.sqrt(variance), exact.taps[name], arithmetic) for name, variance in taps.items()},
        {name: float(np.sqrt(variance)) for name, variance in gradients.items()},
        {name: float(np.sqrt(variance)) for name, variance in statistics.items()},
    )


def _of_elements(deviation: Array, tap: Array, arithmetic: Arithmetic) -> Array:
    """A channel's deviation, which is that of its larger elements in proportion to them where each is rounded as it is stored."""
    if not arithmetic.store:
        return deviation
    rms = np.sqrt(np.mean(tap**2, axis=(0, *range(2, tap.ndim)), keepdims=True))
    larger: Array = deviation * np.maximum(1.0, np.abs(tap) / np.where(rms > 0, rms, 1.0))
    return larger


def _own_variance(
    model: ModelSpec, weights: Arrays, images: npt.NDArray[Any], taps: Arrays, after: Arrays, arithmetic: Arithmetic
) -> dict[str, float]:
    """Mean square of the noise that each running statistic has of its own, by tensor name."""
    variances = {}
    for node in wiring(model):
        if isinstance(layer := node.layer, BatchNorm2d):
            (x,) = taken(node, taps, images)
            new = {leaf: after[f"{layer.name}.{leaf}"] for leaf in ("running_mean", "running_var")}
            for leaf, sigma in running_statistics_sigma(layer, x, tensors_of(layer, weights), new, arithmetic).items():
                variances[f"{layer.name}.{leaf}"] = float(np.mean(sigma**2))
    return variances
