"""Rounding noise predicted from theory: how far a correct implementation of a given precision may be from the oracle.

Every operation's error is modelled by its second moment; no constant is fitted. The one number of the model is ``KAPPA``,
the rms relative error of one rounding to nearest in units of the unit roundoff u. A significand m in [1, 2) is spaced by
2u, so the error is uniform with variance (2u)^2 / 12 = u^2 / 3 and the relative error has variance u^2 / (3 m^2). For
log-uniform m, whose density is 1 / (m ln 2), E[m^-2] = 3 / (8 ln 2) = 0.541, hence kappa^2 = 0.541 / 3 = 1 / (8 ln 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle.forward import Array, areas, check, convolve, evaluate, tensors_of
from impls.precision import PRECISIONS
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
    ModelSpec,
    PadShortcut,
    Relu,
)

KAPPA = 1.0 / math.sqrt(8.0 * math.log(2.0))
"""0.425: rms relative error of round-to-nearest in units of u, for log-uniform significands."""

RHO_MAX = 2.5
"""Largest error of a correct run in units of the predicted noise. The logits of one image may err as one draw, and the noise is
itself estimated from two runs of each: the square of rho then has the F distribution with 8 and 16 degrees of freedom for the 8
images of the pool, which passes 2.5**2 with a probability of 1e-3. Correct runs of PyTorch, JAX, TensorFlow and ONNX Runtime lie at 0.35
to 0.85 in fp32 and 0.8 to 1.5 in bf16 and fp16; an fp32 run whose convolutions use TF32 lies near 1000."""

RHO_MIN: Mapping[str, float] = {"bf16": 0.5, "fp16": 0.5}
"""Smallest error that a run in this precision can have: less means that it was computed in a finer one. There is none
where accumulation dominates (fp64, fp32) or the hardware may round operands or not (tf32)."""

NO_POWER = 0.3
"""Where the predicted noise exceeds this part of the logits' rms, an error that is within it would be called a fault by eye: the
network amplifies rounding so much that its logits cannot tell right from wrong, and only the layers one by one can."""

# Largest exponent of a finite number: IEEE 754-2019 table 3.5; bf16 and TF32 have binary32's.
_MAX_EXPONENT: Mapping[str, int] = {"fp64": 1023, "fp32": 127, "tf32": 127, "bf16": 127, "fp16": 15}

EXACT_LAYERS = (Relu, MaxPool2d, Flatten, Dropout, PadShortcut, Concat)
"""The kinds that round nothing."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Unit roundoffs of one precision, 0 where nothing is rounded, and the smallest number that is stored.

    ``operand`` rounds what enters a product, ``accumulate`` every product and sum, ``store`` the result that leaves the layer.
    """

    operand: float
    accumulate: float
    store: float
    smallest: float


def arithmetic(precision: str) -> Arithmetic:
    """How a precision computes: bf16 and fp16 accumulate in fp32 and store rounded; TF32 rounds operands and stores fp32."""
    unit = PRECISIONS[precision].unit_roundoff
    single = PRECISIONS["fp32"].unit_roundoff
    match precision:
        case "bf16" | "fp16":
            return Arithmetic(0.0, single, unit, _smallest(precision))
        case "tf32":
            return Arithmetic(unit, single, 0.0, _smallest("fp32"))
        case _:
            return Arithmetic(0.0, unit, 0.0, _smallest(precision))


def as_taken(model: ModelSpec, weights: Mapping[str, npt.NDArray[Any]], precision: str) -> Mapping[str, npt.NDArray[Any]]:
    """The tensors that an operation of a training step takes, which in mixed precision are not those that are trained.

    What rounds as it stores (bf16) takes the tensors of convolutions and linear layers rounded, batch norm's as they are.
    """
    if not arithmetic(precision).store:
        return weights
    products = (layer for layer in spec.layers(model.body) if isinstance(layer, Conv2d | Linear))
    rounded = {f"{layer.name}.{leaf}" for layer in products for leaf in layer.tensors()}
    return {name: round_to(tensor, precision) if name in rounded else tensor for name, tensor in weights.items()}


def _smallest(precision: str) -> float:
    """Smallest subnormal: emin - (p - 1) with emin = 1 - emax."""
    return math.ldexp(1.0, 2 - _MAX_EXPONENT[precision] - PRECISIONS[precision].significand_bits)


def smallest_normal(precision: str) -> float:
    """Smallest number with a full significand: 2^emin."""
    return math.ldexp(1.0, 1 - _MAX_EXPONENT[precision])


def largest_power(precision: str) -> float:
    """Largest power of two, about half of the largest finite number: 2^emax."""
    return math.ldexp(1.0, _MAX_EXPONENT[precision])


def sigma(layer: Layer, inputs: tuple[Array, ...], output: Array, tensors: Mapping[str, Array], arithmetic: Arithmetic) -> Array:
    """Predicted standard deviation of the rounding error of every element of ``output``.

    For y = sum of n products with q^2 = sum (w_k x_k)^2, the partial sums s_k of a random order have
    E s_k^2 = q^2 (k/n) (1 - k/n) + y^2 (k/n)^2 (large n). The model leaves out the factor (1 - k/n), so summing over k gives
    n (q^2/2 + y^2/3), an upper bound of sequential accumulation; blocked, pairwise, fused and split summation err less
    still. So fp32 is bounded from above, by a factor of 1.3 or more where y^2 is about q^2; in bf16 and fp16
    the store dominates and the prediction is two-sided. Below the normal range a store errs by the smallest subnormal
    eta, with variance eta^2 / 12. What only moves or chooses values (``EXACT_LAYERS``) rounds nothing: 0, demand equality.

    A batch norm's terms are t = |x s| + |mean s|, s its scale: var + eps counts a quarter of a rounding, since the root halves it,
    and root, division, gamma and the product one each; the offset bias - mean s and the result are rounded once more. This
    covers the usual forms, (x - mean) s + bias and x s + (bias - mean s).

    Args:
        layer: the operation.
        inputs: its inputs in float64, for example the implementation's own (teacher forcing).
        output: ``evaluate(layer, inputs, tensors)``.
        tensors: its float64 tensors by leaf name.
        arithmetic: of the precision judged.
    """
    if isinstance(layer, EXACT_LAYERS):
        return np.zeros(output.shape)
    x = inputs[0]
    match layer:
        case Conv2d():
            products = convolve(x * x, tensors["weight"] ** 2, layer.stride, layer.padding)
            bias = tensors["bias"][:, None, None] if layer.bias else None
            variance = sum_variance(products, output, _terms(layer, x), bias, arithmetic)
        case Linear():
            weight = tensors["weight"]
            products = np.einsum("nk,ok,ok->no", x * x, weight, weight)  # without a second weight of VGG's 103 million
            variance = sum_variance(products, output, _terms(layer, x), tensors["bias"], arithmetic)
        case GlobalAvgPool2d() | AdaptiveAvgPool2d():
            terms = _terms(layer, x)
            products = evaluate(layer, (x * x,), {}) / terms
            # A mean is no matrix product, so TF32 does not round what enters it.
            variance = sum_variance(products, output, terms, None, replace(arithmetic, operand=0.0))
        case BatchNorm2d():
            terms_size, offset = _batch_norm_terms(layer, x, tensors)
            variance = arithmetic.accumulate**2 * (4.25 * terms_size**2 + offset**2 + output**2)
        case Add():
            partial_sums = list(itertools.accumulate(inputs))[1:]
            variance = arithmetic.accumulate**2 * sum((partial**2 for partial in partial_sums), np.zeros(output.shape))
        case _:
            raise TypeError(f"{layer.name}: no rounding model for {type(layer).__name__}")
    variance += arithmetic.store**2 * output**2
    variance *= KAPPA**2
    variance += arithmetic.smallest**2 / 12
    return np.sqrt(variance, out=variance)


def largest_error(
    layer: Layer, inputs: tuple[Array, ...], output: Array, tensors: Mapping[str, Array], unit: float, deviations: float
) -> Array:
    """Bound of the error of every element of ``output`` where each operation rounds with ``unit``, in whatever order.

    A sum of n products has partial sums of at most g = sum |w x|, so no product and no addition errs by more than u g. Errors
    of rounding to nearest have mean zero, and by the Azuma-Hoeffding inequality (as in Higham and Mary, SIAM J. Sci. Comput.
    41(5), 2019, theorem 2.4) add up to no more than ``deviations`` * sqrt(n) u g, but for a probability of
    2 exp(-deviations^2 / 2) an element; and never to more than n u g. Of batch norm's and the residual sum's few roundings
    the largest errors are added: 3.5 for the scale (var + eps counts half, as the root halves it) and those named in ``sigma``.

    Args:
        layer: an operation that rounds.
        inputs: as for :func:`sigma`, like ``output`` and ``tensors``.
        output: see there.
        tensors: see there.
        unit: unit roundoff of the operations.
        deviations: lambda of the inequality.
    """
    match layer:
        case Conv2d() | Linear() | GlobalAvgPool2d() | AdaptiveAvgPool2d():
            roundings = _terms(layer, inputs[0]) + 2  # the products count as one addition, and there is the bias or the division
            sums = evaluate(layer, tuple(np.abs(x) for x in inputs), {leaf: np.abs(tensor) for leaf, tensor in tensors.items()})
            return np.minimum(deviations * np.sqrt(roundings), roundings) * unit * sums
        case BatchNorm2d():
            terms_size, offset = _batch_norm_terms(layer, inputs[0], tensors)
            return unit * (4.5 * terms_size + offset + np.abs(output))
        case Add():
            return unit * (len(inputs) - 1) * sum((np.abs(x) for x in inputs[1:]), np.abs(inputs[0]))
        case _:
            raise TypeError(f"{layer.name}: no rounding model for {type(layer).__name__}")


def _terms(layer: Conv2d | Linear | GlobalAvgPool2d | AdaptiveAvgPool2d, x: Array) -> int | npt.NDArray[np.intp]:
    """Number of products that one output is the sum of, without the bias; for each place where they differ."""
    match layer:
        case Conv2d():
            return layer.in_channels * layer.kernel**2
        case Linear():
            return layer.in_features
        case GlobalAvgPool2d():
            return int(x.shape[2] * x.shape[3])
        case AdaptiveAvgPool2d():
            return areas(layer, x.shape)


def _batch_norm_terms(layer: BatchNorm2d, x: Array, tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """|x s| + |mean s| for every element, and |mean s| + |bias| for every channel, s being the scale."""
    scale = np.abs(tensors["weight"]) / np.sqrt(tensors["running_var"] + layer.eps)
    mean = np.abs(tensors["running_mean"]) * scale
    terms = np.abs(x) * scale[:, None, None] + mean[:, None, None]
    return terms, (mean + np.abs(tensors["bias"]))[:, None, None]


def sum_variance(products: Array, output: Array, terms: int | npt.NDArray[np.intp], bias: Array | None, arithmetic: Arithmetic) -> Array:
    """The variance of a sum of ``terms`` products in units of kappa^2; the bias is one more addend."""
    variance = 2 * arithmetic.operand**2 * products
    if bias is not None:
        products, terms = products + bias**2, terms + 1
    variance += arithmetic.accumulate**2 * ((1 + terms / 2) * products + terms / 3 * output**2)
    return variance


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where the logits of a correct run lie: around ``logits`` with ``deviation``, both float64 (N, classes).

    ``deviation`` is the rms distance of the noisy runs from the noiseless one.
    """

    logits: Array
    deviation: Array


def envelope(
    model: ModelSpec,
    weights: Mapping[str, npt.NDArray[Any]],
    images: npt.NDArray[Any],
    precision: str,
    *,
    runs: int = 16,
    seed: int = 0,
) -> Envelope:
    """Carry the predicted rounding noise through the whole network, by Monte Carlo.

    Each run adds sigma * N(0, 1) after every operation; sigma comes from the noiseless run. Where operands are rounded (TF32) they
    are what is disturbed, as a rounded weight errs alike at every position and the global mean does not average it away. One image
    at a time, with its sigmas in float32 (0.11 GB for ResNet-50 at 224x224), so memory does not grow with the batch; the noise of
    image i depends on ``seed`` and i alone. Costs a few forward passes and about two more per run: drawing the noise takes as long
    as the pass itself.

    Pass weights and images as the implementation holds them (:func:`round_to` for bf16 and fp16): the cast is no error.

    Raises:
        SpecError, WeightsError: as :func:`impls.oracle.forward.forward`.
    """
    check(model, weights, images)
    rules = arithmetic(precision)
    sums = replace(rules, operand=0.0)
    logits, deviation = [], []
    for index in range(images.shape[0]):
        image = np.asarray(images[index : index + 1], dtype=np.float64)
        sigmas: dict[str, npt.NDArray[np.float32]] = {}

        def clean(layer: Layer, *inputs: Array, sigmas: dict[str, npt.NDArray[np.float32]] = sigmas) -> Array:
            tensors = tensors_of(layer, weights)
            output = evaluate(layer, inputs, tensors)
            if not isinstance(layer, EXACT_LAYERS):
                sigmas[layer.name] = sigma(layer, inputs, output, tensors, sums).astype(np.float32)
            return output

        logits.append(spec.walk(model.body, clean, image))
        generator = np.random.Generator(np.random.PCG64((seed, index)))

        def noisy(
            layer: Layer,
            *inputs: Array,
            sigmas: dict[str, npt.NDArray[np.float32]] = sigmas,
            generator: np.random.Generator = generator,
        ) -> Array:
            tensors = tensors_of(layer, weights)
            if rules.operand and isinstance(layer, Conv2d | Linear):
                inputs = tuple(_disturbed(x, rules.operand, generator) for x in inputs)
                tensors["weight"] = _disturbed(tensors["weight"], rules.operand, generator)
            output = evaluate(layer, inputs, tensors)
            if layer.name not in sigmas:
                return output
            noise = generator.standard_normal(output.shape, dtype=np.float32)
            noise *= sigmas[layer.name]
            return output + noise

        squares = sum((spec.walk(model.body, noisy, image) - logits[-1]) ** 2 for _ in range(runs))
        deviation.append(np.sqrt(squares / runs))
    return Envelope(np.concatenate(logits), np.concatenate(deviation))


def _disturbed(operand: Array, unit: float, generator: np.random.Generator) -> Array:
    """An operand with the error of rounding it, drawn for every element."""
    noisy: Array = operand * (1 + KAPPA * unit * generator.standard_normal(operand.shape, dtype=np.float32))
    return noisy


def rho(output: npt.NDArray[Any], envelope: Envelope) -> float:
    """Error over predicted noise: rms(output - logits) / rms(deviation). NaN or infinite where the output is not finite.

    Take at least 8 images: the logits of one image err together, so its rho alone scatters between 0.4 and 1.8 for a correct
    run (PyTorch in bf16 and fp16), that of 8 images between 0.8 and 1.2.

    Raises:
        ValueError: ``output`` has another shape than the logits, or nothing is compared.
    """
    if output.shape != envelope.logits.shape or output.size == 0:
        raise ValueError(f"logits of shape {output.shape} cannot be compared with {envelope.logits.shape}")
    error = np.asarray(output, dtype=np.float64) - envelope.logits
    return float(np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(envelope.deviation**2)))


def relative_noise(envelope: Envelope) -> float:
    """Rms of the predicted noise over that of the logits; infinite where all logits are 0."""
    logits = float(np.sqrt(np.mean(envelope.logits**2)))
    return float(np.sqrt(np.mean(envelope.deviation**2))) / logits if logits else math.inf


def plausible(rho: float, precision: str) -> bool:
    """Whether a run declared to be of ``precision`` can have this rho; False for NaN."""
    return RHO_MIN.get(precision, 0.0) <= rho <= RHO_MAX


def _last_place(values: Array, precision: str) -> npt.NDArray[np.intp]:
    """Exponent of the last place of every number: of its significand, or of the smallest subnormal."""
    bits, largest = PRECISIONS[precision].significand_bits, _MAX_EXPONENT[precision]
    _, exponent = np.frexp(values)  # values = m * 2**exponent with m in [0.5, 1)
    place: npt.NDArray[np.intp] = np.maximum(np.where(values == 0, -largest, exponent) - bits, 2 - largest - bits)
    return place


def spacing(array: npt.NDArray[Any], precision: str) -> Array:
    """How far the next number that ``precision`` holds is, away from 0."""
    step: Array = np.ldexp(1.0, _last_place(np.asarray(array, dtype=np.float64), precision))
    return step


PIECE = 1 << 22
"""Elements that are rounded at a time: seven arrays of them in float64 are 0.2 GB, where VGG's largest tensor would take 6."""


def round_to(array: npt.NDArray[Any], precision: str) -> npt.NDArray[Any]:
    """Round to nearest, ties to even, to the values that ``precision`` holds: float64 for fp64, else float32.

    Subnormals are kept and what rounds past the largest finite number becomes infinite (IEEE 754-2019 section 4.3.1).
    One rounding from the input's own precision, never two in a row.
    """
    if precision == "fp64":
        return np.asarray(array, dtype=np.float64)
    if array.size <= PIECE:
        return _rounded(array, precision)
    pieces = np.array_split(array.reshape(-1), -(-array.size // PIECE))
    return np.concatenate([_rounded(piece, precision) for piece in pieces]).reshape(array.shape)


def round_to_unit(values: Array, unit: float) -> Array:
    """Round to nearest, ties to even, to significands with the unit roundoff ``unit``, a power of two, and any exponent."""
    bits = round(-math.log2(unit))
    significand, exponent = np.frexp(values)
    rounded: Array = np.ldexp(np.rint(np.ldexp(significand, bits)), exponent - bits)
    return rounded


def _rounded(array: npt.NDArray[Any], precision: str) -> npt.NDArray[np.float32]:
    values = np.asarray(array, dtype=np.float64)
    largest = _MAX_EXPONENT[precision]
    quantum = _last_place(values, precision)
    with np.errstate(over="ignore"):  # the top binade of float64 rounds to infinity, as it should
        rounded = np.ldexp(np.rint(np.ldexp(values, -quantum)), quantum)
    return np.where(np.abs(rounded) >= 2.0 ** (largest + 1), np.copysign(np.inf, values), rounded).astype(np.float32)
