"""Weights from a seed: the same bytes on every machine, in generic position, with activations of order one at any depth.

Generic position means that every parameter shows in the output: no gamma is zero, no batch norm has fresh statistics.
The random numbers are SplitMix64's integers. Floats see only elementwise +, -, *, / and sqrt, which IEEE 754 rounds exactly, in an
order fixed here, and ``math.fsum``; no other libm function and no reduction of NumPy's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from impls.spec import (
    Add,
    BatchNorm2d,
    Block,
    Concat,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    Node,
    PadShortcut,
    Relu,
    Shape,
    output_shape,
    walk,
)

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt64 = npt.NDArray[np.uint64]

GAMMA = (0.5, 1.5)
RESIDUAL_GAMMA = (0.25, 0.75)  # the last batch norm of a residual branch, so that the sum over the blocks grows slowly
BETA_SD = 0.2
BIAS_SD = 0.2
VARIANCE_FACTOR = (0.8, 1.25)  # stored over predicted variance
CENTRING = 0.75  # the share of its own mean that each filter loses
MEAN_SD = 0.1  # of the stored mean, in root second moments

# SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), with Vigna's constants.
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_CHUNK = 1 << 15  # numbers made at a time: 256 KiB, which stay in a core's cache
_STEPS: UInt64 = np.arange(1, _CHUNK + 1, dtype=np.uint64) * np.uint64(_GOLDEN)

# The sum of four uniform 16-bit integers: its mean, and its variance 4 * (2**32 - 1) / 12.
_SUM_MEAN = 2 * 0xFFFF
_SUM_VARIANCE = (2**32 - 1) / 3
_EVEN_16_BITS = np.uint64(0x0000FFFF0000FFFF)


def synthesize(model: ModelSpec, seed: int) -> dict[str, Float32]:
    """Weights for ``model``: canonical names, topological order, float32 in canonical layout.

    Each tensor's random numbers depend on (seed, tensor name) alone. Kernels before a batch norm have the standard deviation
    sqrt(2 / fan_in) (He et al., arXiv 1502.01852); kernels that none follows (fc) are scaled to outputs of second moment 1.
    Three quarters of each filter's own mean is taken away, since what is common to all images (ReLU outputs are positive) would
    otherwise drown what differs. Gamma is uniform in ``GAMMA`` (``RESIDUAL_GAMMA`` at the end of a residual branch), beta normal
    with ``BETA_SD``. "Normal" draws are sums of four uniforms.

    The running variance is the second moment that the layer's outputs have for N(0, 1) images of the model's own size, as moments
    propagate through the layers, and the running mean 0; both perturbed per channel. One moment serves all channels of a
    convolution, which keeps its average gain at 1: statistics predicted channel by channel amplify their own errors with depth.
    """
    normalised, residual = set(_before_batch_norm(model.body)), set(_ends_of_residual_branches(model.body))
    weights: dict[str, Float32] = {}

    def affine(layer: Conv2d | Linear, x: _Moments, live: tuple[float, float]) -> _Moments:
        shape = layer.tensors()["weight"]
        fan_in = math.prod(shape[1:])
        # For a filter w = r - c * mean(r): E y^2 = fan_in * var(r) * (live * E x^2 - (2c - c^2) * live^2 * (E x)^2).
        power = live[0] * _mean(x.var + x.mean * x.mean) - (2 - CENTRING) * CENTRING * live[1] * _mean(x.mean) * _mean(x.mean)
        gain = 2.0 if layer.name in normalised else 1 / power
        name = f"{layer.name}.weight"
        weights[name] = _filters(seed, name, shape[0], fan_in, math.sqrt(gain / fan_in)).reshape(shape)
        mean = np.zeros(shape[0])
        if "bias" in layer.tensors():
            weights[f"{layer.name}.bias"] = normal(seed, f"{layer.name}.bias", shape[0], BIAS_SD)
            mean += weights[f"{layer.name}.bias"]
        return _Moments(mean, np.full(shape[0], gain * power))

    def batch_norm(layer: BatchNorm2d, x: _Moments) -> _Moments:
        def name(leaf: str) -> str:
            return f"{layer.name}.{leaf}"

        gamma = _uniform(seed, name("weight"), layer.channels, *(RESIDUAL_GAMMA if layer.name in residual else GAMMA))
        beta = normal(seed, name("bias"), layer.channels, BETA_SD)
        second = _mean(x.var + x.mean * x.mean)
        mean = normal(seed, name("running_mean"), layer.channels, MEAN_SD * math.sqrt(second))
        var = _uniform(seed, name("running_var"), layer.channels, VARIANCE_FACTOR[0] * second, VARIANCE_FACTOR[1] * second)
        weights.update({name("weight"): gamma, name("bias"): beta, name("running_mean"): mean, name("running_var"): var})
        scale = gamma / np.sqrt(var.astype(np.float64) + layer.eps)
        return _Moments((x.mean - mean) * scale + beta, x.var * scale * scale)

    def apply(layer: Layer, *inputs: tuple[_Moments, Shape]) -> tuple[_Moments, Shape]:
        x, shape = inputs[0]
        after = output_shape(layer, *(shape for _, shape in inputs))
        match layer:
            case Conv2d():
                x = affine(layer, x, _live_taps(layer, shape, after))
            case Linear():
                x = affine(layer, x, (1.0, 1.0))
            case BatchNorm2d():
                x = batch_norm(layer, x)
            case _:
                x = _without_weights(layer, *(moments for moments, _ in inputs))
        return x, after

    channels = model.input_chw[0]
    image: tuple[_Moments, Shape] = _Moments(np.zeros(channels), np.ones(channels)), (1, *model.input_chw)
    walk(model.body, apply, image)
    return weights


@dataclass(frozen=True, slots=True)
class _Moments:
    """Mean and variance of each channel, float64 (C,), over weights, images and positions."""

    mean: Float64
    var: Float64


def _without_weights(layer: Layer, x: _Moments, *others: _Moments) -> _Moments:
    """The moments behind a layer without weights."""
    match layer:
        case Relu():
            return _rectified(x)
        case MaxPool2d():
            # A 3x3 maximum of a rectified map keeps the spread and lifts the mean: by 1.9 standard deviations for nine
            # independent values, by 1.4 behind the 7x7 stem, whose outputs overlap.
            return _Moments(x.mean + 1.4 * np.sqrt(x.var), x.var)
        case PadShortcut():
            pads = (layer.channels_before, layer.channels_after)
            return _Moments(np.pad(x.mean, pads), np.pad(x.var, pads))
        case Add():
            for other in others:
                x = _Moments(x.mean + other.mean, x.var + other.var)
            return x
        case Concat():
            every = (x, *others)
            return _Moments(np.concatenate([each.mean for each in every]), np.concatenate([each.var for each in every]))
        case Flatten():
            area = layer.height * layer.width
            return _Moments(x.mean.repeat(area), x.var.repeat(area))
        case _:
            # The mean over positions keeps at least the channels' means; how much spread it keeps depends on the images.
            return x


def _before_batch_norm(nodes: tuple[Node, ...]) -> Iterator[str]:
    """Names of the convolutions whose output goes straight into a batch norm."""
    for node, following in pairwise((*nodes, None)):
        if isinstance(node, Block):
            for branch in (*node.branches, node.then):
                yield from _before_batch_norm(branch)
        elif isinstance(node, Conv2d) and isinstance(following, BatchNorm2d):
            yield node.name


def _ends_of_residual_branches(nodes: tuple[Node, ...]) -> Iterator[str]:
    """Names of the batch norms that end a branch with a ReLU in it; a shortcut has none."""
    for node in nodes:
        if isinstance(node, Block):
            for branch in node.branches:
                yield from _ends_of_residual_branches(branch)
                if branch and isinstance(branch[-1], BatchNorm2d) and any(isinstance(child, Relu) for child in branch):
                    yield branch[-1].name


def _integers(seed: int, name: str, count: int) -> Iterator[tuple[slice, UInt64]]:
    """SplitMix64's first ``count`` outputs for (seed, name), uint64, in pieces that come with their place."""
    start = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    for first in range(0, count, _CHUNK):
        last = min(first + _CHUNK, count)
        z = _STEPS[: last - first] + np.uint64((start + first * _GOLDEN) & _MASK)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        yield slice(first, last), z


def _uniform(seed: int, name: str, count: int, low: float, high: float) -> Float32:
    """Uniform in [low, high], float32 (count,), from the upper 53 bits."""
    values = np.empty(count, np.float32)
    for place, z in _integers(seed, name, count):
        values[place] = low + (high - low) * ((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    return values


def _normal_integers(seed: int, name: str, count: int) -> npt.NDArray[np.int64]:
    """Nearly normal integers, int64 (count,), of mean 0 and variance ``_SUM_VARIANCE``: the sums of a number's four quarters."""
    values = np.empty(count, np.int64)
    for place, z in _integers(seed, name, count):
        pairs = (z & _EVEN_16_BITS) + ((z >> np.uint64(16)) & _EVEN_16_BITS)
        values[place] = (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))
    values -= _SUM_MEAN
    return values


def normal(seed: int, name: str, count: int, sd: float) -> Float32:
    """Nearly normal numbers for (seed, name), float32 (count,), mean 0: sums of four uniforms."""
    return (_normal_integers(seed, name, count) * (sd / math.sqrt(_SUM_VARIANCE))).astype(np.float32)


def _filters(seed: int, name: str, outputs: int, fan_in: int, sd: float) -> Float32:
    """Nearly normal filters, float32 (outputs, fan_in), each less ``CENTRING`` of its own mean; integers until the last step."""
    values = _normal_integers(seed, name, outputs * fan_in).reshape(outputs, fan_in)
    common = int(4 * CENTRING) * values.sum(axis=1, keepdims=True)
    values *= 4 * fan_in  # in place, and the product below in pieces: VGG's largest layer has 103 million
    values -= common
    scaled = np.empty(values.shape, np.float32)
    np.multiply(values, sd / (4 * fan_in * math.sqrt(_SUM_VARIANCE)), out=scaled, dtype=np.float64, casting="same_kind")
    return scaled


def _mean(values: Float64) -> float:
    """The mean; ``math.fsum`` is exactly rounded, so it does not depend on an order of summation."""
    return math.fsum(values.tolist()) / values.size


def _live_taps(layer: Conv2d, before: Shape, after: Shape) -> tuple[float, float]:
    """Mean and mean square, over output positions, of the fraction of the kernel that does not lie on padding."""

    def live(extent: int, pad: int, outputs: int) -> tuple[int, int]:
        starts = range(-pad, outputs * layer.stride - pad, layer.stride)
        taps = [min(start + layer.kernel, extent) - max(start, 0) for start in starts]
        return sum(taps), sum(tap * tap for tap in taps)

    rows = live(before[2], layer.padding.top, after[2])
    columns = live(before[3], layer.padding.left, after[3])
    positions = after[2] * after[3]
    return rows[0] * columns[0] / (positions * layer.kernel**2), rows[1] * columns[1] / (positions * layer.kernel**4)


def _rectified(x: _Moments) -> _Moments:
    """The moments of max(x, 0) for normal x."""
    sd = np.sqrt(x.var)
    t = x.mean / np.maximum(sd, 1e-30)
    density = _normal_density(t)
    cdf = _normal_cdf(t, density)
    mean = x.mean * cdf + sd * density
    second = (x.mean * x.mean + x.var) * cdf + x.mean * sd * density
    return _Moments(mean, np.maximum(second - mean * mean, 0.0))


def _normal_density(t: Float64) -> Float64:
    """exp(-t**2 / 2) / sqrt(2 pi), the exponential as the (1, 1) Pade approximant of exp(-y / 256) squared eight times."""
    y = np.minimum(t * t / 2, 64.0) / 256
    value = (2 - y) / (2 + y)
    for _ in range(8):
        value = value * value
    return value / 2.5066282746310002


def _normal_cdf(t: Float64, density: Float64) -> Float64:
    """The normal distribution function within 1e-5 (Abramowitz and Stegun 26.2.16)."""
    k = 1 / (1 + 0.33267 * np.abs(t))
    tail = density * k * (0.4361836 + k * (-0.1201676 + k * 0.9372980))
    return np.where(t > 0, 1 - tail, tail)
