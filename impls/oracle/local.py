"""Whether every layer rounds as its precision allows, each judged on the implementation's own inputs (teacher forcing).

So no error travels, and the layer that is at fault is the layer that fails. The reference is the correctly rounded layer:
operands rounded as the precision rounds them, the sum exact, the result rounded once as it is stored. What a correct
implementation adds to that is the error of its wide accumulator (fp32, or fp64 in fp64), and this is what is judged in every
precision: the *residual* is the least error of the wide result that explains the value that was stored. Where storing rounds
nothing it is the plain error; in bf16 and fp16 it is 0 for all values but those near a tie. This makes every test two-sided:
an fp32 layer computed in TF32 has large residuals, but so have a tf32 layer computed in fp32 and a bf16 layer rounded twice,
and a bf16 layer that was never rounded holds numbers that bf16 does not have.

What only moves or chooses values (ReLU, max-pool, padding, concatenation) rounds nothing and the sum of two numbers is rounded
once, however it is computed (in a format of 2p + 2 bits a rounding to p bits in between changes nothing: Figueroa, SIGNUM Newsl.
30(3), 1995): these must be equal.

Of the others there are three tests, whose bounds follow from theory and from the number of taps. Errors within a channel count
as one draw, for they share what is rounded once for the channel, and flat parts of an image give equal sums. Significands may
lie anywhere in their binade (``WORST_SIGNIFICAND``).

rms    The residual in units of its predicted standard deviation. C squared standard normals add up to more than
       C + 2 sqrt(C L) + 2 L with a probability of at most exp(-L) (Laurent and Massart, Ann. Statist. 28(5), 2000, lemma 1).
gauge  The largest residual, over ``rounding.largest_error``.
slope  Residuals regressed on the output, per channel as the mean of the residuals that enlarge the output, in units of
       their deviation. Its variance is at most 1 in a channel and C in the sum over all channels, where a drift that they
       share shows long before it shows in the rms.

The arithmetic is that of processors, which round every addition to nearest. Tensor cores truncate sums (Fasi, Higham, Mikaitis
and Pranesh, PeerJ Comput. Sci. 7:e330, 2021), which these bounds were not held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle.forward import Array, check, evaluate, tensors_of
from impls.oracle.rounding import EXACT_LAYERS, KAPPA, arithmetic, largest_error, round_to, sigma, smallest_normal, spacing
from impls.spec import Add, BatchNorm2d, Conv2d, Layer, Linear, ModelSpec
from impls.weights.variant import epsilons, with_constants

FALSE_ALARM = 1e-5
"""Probability, at most, that any tap of a correct implementation fails: each test of every tap gets its share (Bonferroni)."""

TESTS = 3
"""Of a tap: rms, gauge and slope."""

WORST_SIGNIFICAND = 1 / (math.sqrt(3) * KAPPA)
"""1.36: rms error of roundings whose significands are all 1, the worst, over that of log-uniform ones."""

SHARED_BY_CHANNELS = 1 / (4 * KAPPA)
"""0.59 deviations: batch norm's rounding of var + eps, u/2 of its terms, is no new draw for every channel. Variances of one
binade lie on one grid, so adding the same eps to them errs by the same amount; the deviation is at least 2 kappa u of the terms."""

EDGES = tuple(bin / 2 for bin in range(-8, 9))
"""Between the bins of the histograms of z; the first and the last bin are open. A single rounding ends at 1 / kappa = 2.35."""

BIAS_APART = "Conv2d, its bias added once it is rounded"
"""The kind of a convolution whose bias is an operation of its own."""

IN_FLOAT32 = "Linear, multiplied in float32"
"""The kind of a linear layer that a tf32 run computes in float32: on an H100 cuBLAS takes TF32 for 16 rows and more alone, with min(n, k)
of at least 512 (PyTorch 2.13, torch/_inductor/template_heuristics/triton.py), whatever it is allowed."""

IMAGES = "images"
"""The name of the network's input among the taps."""


class TapError(ValueError):
    """A tap that cannot be judged; the message says why, ``tap`` which one."""

    def __init__(self, tap: str, problem: str) -> None:
        super().__init__(f"{tap}: {problem}")
        self.tap = tap


@dataclass(frozen=True, slots=True)
class TapRounding:
    """How one layer rounds.

    ``rms_z`` is the rms of the error over the deviation that the precision predicts for it, operands and store included, and
    ``histogram`` counts the elements between ``EDGES``; neither is judged. ``rms``, ``gauge`` and ``slope`` are the tests, each
    over its bound, so that more than 1 fails; None where infinite. Of a layer that must be equal the histogram is empty, and
    ``gauge`` counts the elements that are not. ``fault`` says what is wrong, None if nothing is.
    """

    tap: str
    kind: str
    elements: int
    rms_z: float | None
    rms: float | None
    gauge: float | None
    slope: float | None
    histogram: tuple[int, ...]
    fault: str | None


def local_rounding(
    model: ModelSpec,
    weights: Mapping[str, npt.NDArray[Any]],
    images: npt.NDArray[Any],
    taps: Mapping[str, npt.NDArray[Any]],
    precision: str,
) -> tuple[TapRounding, ...]:
    """Judge every tap, in topological order.

    Args:
        model: the network.
        weights: its tensors as the implementation holds them, rounded where the precision rounds them.
        images: (N, C, H, W) as the implementation holds them.
        taps: the implementation's output of every layer, by layer name, NCHW or NC, in a type that holds the precision's numbers.
        precision: in which it is said to compute.

    Raises:
        SpecError, WeightsError: as :func:`impls.oracle.forward.forward`.
        TapError: a tap is missing, there is one too many, or one has another shape than the spec says or holds values that are not finite.
    """
    check(model, weights, images)
    check_taps(spec.tap_shapes(model, images.shape[0], *images.shape[2:]), taps)
    producers, found, chance = _producers(model), {**taps, IMAGES: images}, FALSE_ALARM / (TESTS * len(taps))
    return tuple(_judge_on(layer, producers[layer.name], found, weights, precision, chance) for layer in spec.layers(model.body))


def forced(
    model: ModelSpec, weights: Mapping[str, npt.NDArray[Any]], images: npt.NDArray[Any], taps: Mapping[str, npt.NDArray[Any]]
) -> dict[str, Array]:
    """Every layer's output in float64 on the implementation's own inputs; arguments and errors as :func:`local_rounding`."""
    check(model, weights, images)
    check_taps(spec.tap_shapes(model, images.shape[0], *images.shape[2:]), taps)
    producers, found = _producers(model), {**taps, IMAGES: images}
    return {
        layer.name: evaluate(layer, _inputs(producers[layer.name], found), tensors_of(layer, weights)) for layer in spec.layers(model.body)
    }


def misread(
    model: ModelSpec,
    weights: Mapping[str, npt.NDArray[Any]],
    images: npt.NDArray[Any],
    taps: Mapping[str, npt.NDArray[Any]],
    precision: str,
    tap: str,
) -> str | None:
    """Which other tap the layer ``tap``, which fails, reads: with it for an input it passes. None where no other explains it.

    A layer that reads another tap than the spec says computes as it should, so its wire is wrong and not the layer.
    """
    producers, found = _producers(model), {**taps, IMAGES: images}
    layer = next(layer for layer in spec.layers(model.body) if layer.name == tap)
    names = producers[tap]
    for place, right in enumerate(names):
        for other in (name for name in found if name not in (right, tap) and found[name].shape == found[right].shape):
            changed = (*names[:place], other, *names[place + 1 :])
            if _judge_on(layer, changed, found, weights, precision, FALSE_ALARM / (TESTS * len(taps))).fault is None:
                return f"{tap} reads {other}, not {right}"
    return None


def with_single_epsilon(model: ModelSpec) -> ModelSpec:
    """The network as a format has it whose epsilon is a float32 (ONNX's is): 2.5e-8 from 1e-5, which float64 resolves."""
    return with_constants(model, model.classes, {name: float(np.float32(epsilon)) for name, epsilon in epsilons(model).items()})


def _producers(model: ModelSpec) -> dict[str, tuple[str, ...]]:
    """The names of every layer's inputs."""
    producers: dict[str, tuple[str, ...]] = {}

    def apply(layer: Layer, *inputs: str) -> str:
        producers[layer.name] = inputs
        return layer.name

    spec.walk(model.body, apply, IMAGES)
    return producers


def _judge_on(
    layer: Layer,
    inputs: tuple[str, ...],
    found: Mapping[str, npt.NDArray[Any]],
    weights: Mapping[str, npt.NDArray[Any]],
    precision: str,
    chance: float,
) -> TapRounding:
    return judge(
        layer, _inputs(inputs, found), np.asarray(found[layer.name], dtype=np.float64), tensors_of(layer, weights), precision, chance
    )


def _inputs(names: tuple[str, ...], found: Mapping[str, npt.NDArray[Any]]) -> tuple[Array, ...]:
    return tuple(np.asarray(found[name], dtype=np.float64) for name in names)


def check_taps(shapes: Mapping[str, spec.Shape], taps: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise TapError for the first tap that is missing, one too many, misshapen, empty or not finite."""
    check_shapes(shapes, taps)
    for name in shapes:
        if not np.isfinite(taps[name]).all():
            raise TapError(name, "holds values that are not finite")


def check_shapes(shapes: Mapping[str, spec.Shape], taps: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise TapError for the first tap that is missing, one too many, misshapen or empty."""
    for name in shapes:
        if name not in taps:
            raise TapError(name, "the tap is missing")
    for name in taps:
        if name not in shapes:
            raise TapError(name, "there is no such tap in the spec")
    for name, shape in shapes.items():
        if taps[name].shape != shape:
            raise TapError(name, f"shape {taps[name].shape}, not {shape}")
        if taps[name].size == 0:
            raise TapError(name, "has no elements")


def judge(
    layer: Layer, inputs: tuple[Array, ...], output: Array, tensors: Mapping[str, Array], precision: str, chance: float
) -> TapRounding:
    """Judge one layer's output, given its inputs; each of the tests fails a correct one with a probability of at most ``chance``.

    A convolution may add its bias to the wide sum, or, where that is an operation of its own, to the sum as it was stored, and a linear
    layer may be multiplied in float32 where TF32 is allowed; ``kind`` says which.
    """
    found = _judge(layer, inputs, output, tensors, precision, chance)
    if found.fault is not None and isinstance(layer, Linear) and precision == "tf32":
        finer = _judge(layer, inputs, output, tensors, "fp32", chance)
        if finer.fault is None:
            return replace(finer, kind=IN_FLOAT32)
    if found.fault is not None and isinstance(layer, Conv2d) and layer.bias and arithmetic(precision).store:
        apart = _judge(replace(layer, bias=False), inputs, output, tensors, precision, chance, added=tensors["bias"][:, None, None])
        if apart.fault is None:
            return replace(apart, kind=BIAS_APART)
    return found


def residual_of_sum(output: Array, product: Array, added: Array, precision: str) -> Array:
    """The least error of ``product`` with which its rounding, ``added`` to and rounded again, is ``output``.

    The plain error where none is, as that is more than any accumulator explains.
    """
    inward, outward = spacing(output * (1 - 2.0**-20), precision) / 2, spacing(output, precision) / 2
    # What rounds to the output lies between these, and so does the stored product that explains it: the nearest, or the first inside.
    low = output - np.where(output > 0, inward, outward) - added
    high = output + np.where(output > 0, outward, inward) - added
    least = np.full_like(product, np.inf)
    for near in (product, low, low + 0.75 * spacing(low, precision), high, high - 0.75 * spacing(high, precision)):
        stored = round_to(near, precision).astype(np.float64)
        explains = round_to(stored + added, precision) == output
        error = np.maximum(np.abs(stored - product) - spacing(stored, precision) / 2, 0.0)
        least = np.where(explains & (error < np.abs(least)), np.copysign(error, stored - product), least)
    return np.where(np.isfinite(least), least, output - added - product)


def _judge(
    layer: Layer,
    inputs: tuple[Array, ...],
    output: Array,
    tensors: Mapping[str, Array],
    precision: str,
    chance: float,
    added: Array | None = None,
) -> TapRounding:
    """Of a layer whose result is rounded once, or of a product that is stored before ``added`` is added to it."""
    exact = evaluate(layer, inputs, tensors)
    kind = type(layer).__name__
    if isinstance(layer, EXACT_LAYERS) or (isinstance(layer, Add) and len(inputs) == 2):
        unequal = int(np.count_nonzero(output != round_to(exact, "fp32" if precision == "tf32" else precision)))
        fault = f"{unequal} of {output.size} elements are not the {kind} of its inputs, correctly rounded" if unequal else None
        return TapRounding(layer.name, kind, output.size, 0.0, 0.0, float(unequal), 0.0, (), fault)
    rules = arithmetic(precision)
    wide = replace(rules, operand=0.0, store=0.0)
    # In fp64 the oracle rounds as much as the implementation, and neither is the reference for the other.
    rounds = 2 if precision == "fp64" else 1
    deviation = sigma(layer, inputs, exact, tensors, rules) * math.sqrt(rounds)
    if added is None:
        z = over(output - exact, deviation)
    else:
        z = over(output - added - exact, np.hypot(deviation, KAPPA * rules.store * output))
    if rules.operand and isinstance(layer, Conv2d | Linear):
        inputs = tuple(round_to(x, precision).astype(np.float64) for x in inputs)
        tensors = {**tensors, "weight": round_to(tensors["weight"], precision).astype(np.float64)}
        exact = evaluate(layer, inputs, tensors)
    if wide != rules:
        deviation = sigma(layer, inputs, exact, tensors, wide)
    residual = output - exact
    if added is not None:
        residual = residual_of_sum(output, exact, added, precision)
    elif rules.store:
        residual = np.copysign(np.maximum(np.abs(residual) - spacing(output, precision) / 2, 0), residual)
    exponent = -math.log(chance)
    bound = largest_error(layer, inputs, exact, tensors, rules.accumulate, math.sqrt(2 * (exponent + math.log(2 * exact.size))))
    over_bound = np.abs(over(residual, rounds * bound))
    rms = _rms(over(residual, deviation)) / (WORST_SIGNIFICAND * rms_of_draws(exact.shape[1], exponent))
    gauge = float(over_bound.max())
    slope = _slope(residual, deviation, exact, exponent, SHARED_BY_CHANNELS if isinstance(layer, BatchNorm2d) else 0.0)
    fault = None
    if rules.store and np.any(strange := round_to(output, precision) != output):
        fault = f"{np.count_nonzero(strange)} of {output.size} elements are no {precision} numbers"
    elif np.all((output == 0) & (np.abs(exact) < smallest_normal(precision)) | (over_bound <= 1)) and gauge > 1:
        fault = f"results below {precision}'s normal range are flushed to zero"
    elif max(rms, gauge, slope) > 1:
        times = f"rms {rms:.3g}, gauge {gauge:.3g}, slope {slope:.3g} times their bounds"
        fault = f"does not round as {precision} does: {times}; rms z {_rms(z):.3g}"
    return TapRounding(
        tap=layer.name,
        kind=kind,
        elements=output.size,
        rms_z=finite(_rms(z)),
        rms=finite(rms),
        gauge=finite(gauge),
        slope=finite(slope),
        histogram=tuple(int(count) for count in np.histogram(z, (-np.inf, *EDGES, np.inf))[0]),
        fault=fault,
    )


def finite(figure: float) -> float | None:
    """The figure as a document holds it, which knows neither NaN nor infinities."""
    return figure if math.isfinite(figure) else None


def over(numerator: Array, denominator: Array) -> Array:
    """The quotient; 0 / 0 is 0, since no error where none is allowed is right."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(numerator == 0, 0.0, numerator / denominator)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def rms_of_draws(count: int, exponent: float) -> float:
    """What the rms of so many standard normals exceeds with a probability of at most exp(-exponent)."""
    return math.sqrt(1 + 2 * math.sqrt(exponent / count) + 2 * exponent / count)


def _slope(residual: Array, deviation: Array, exact: Array, exponent: float, shared: float) -> float:
    """The larger of the steepest channel's slope and of the sum of all, over its bound."""
    axes = (0, *range(2, exact.ndim))
    enlarging = np.sum(residual * exact, axis=axes)
    slopes = over(enlarging, np.sum(deviation * np.abs(exact), axis=axes))
    channels = len(slopes)
    steepest = float(np.max(np.abs(slopes))) / (WORST_SIGNIFICAND * math.sqrt(2 * (exponent + math.log(4 * channels))) + shared)
    spread = WORST_SIGNIFICAND * math.sqrt(2 * (exponent + math.log(4)) * channels) + shared * channels
    return max(steepest, abs(float(np.sum(slopes))) / spread)
