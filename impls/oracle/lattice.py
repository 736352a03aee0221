"""A probe that rounding cannot touch: weights and images for which every format computes the same integers.

Convolutions have a few +-1 taps per filter, images are small integers, and batch norm only flips signs and adds integers:
its running variance is a power of four so large that adding epsilon leaves it as it is, and gamma is plus or minus its root. So
every product, partial sum and result is an integer (after the global mean, a multiple of 1/n with n a power of two). As long
as they stay inside the integers that a format holds exactly, implementations must agree with the oracle bit for bit,
whatever their order of summation, and any fault of wiring shows as an inequality.

The values would grow with depth (2^109 in 1202 layers of unit weights). Instead each offset is fitted to the values that
arrive: it puts zero near their median, so that ReLU passes some and stops some, and keeps the largest within ``CEILING``. So
how large a sum is follows from how many taps a filter has, and not from how many inputs: of the 25,088 inputs of VGG's first linear
layer each of the 4,096 units reads seven, all units together every one, and no sum of magnitudes exceeds 7 * CEILING and the offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impls import spec
from impls.oracle.forward import Array, check, evaluate, multiply, tensors_of
from impls.oracle.rounding import round_to
from impls.precision import PRECISIONS
from impls.spec import AdaptiveAvgPool2d, Add, BatchNorm2d, Block, Concat, Conv2d, GlobalAvgPool2d, Layer, Linear, ModelSpec, Node, Shape

CEILING = 8
"""Largest value behind any ReLU. Filters have at most a handful of taps, so sums stay within bf16's 256."""

IMAGE_RANGE = 4
"""Images hold integers in [-4, 4]."""

MEAN_RANGE = 3
"""Running means are integers in [-3, 3]."""

# Per channel one of two powers of four. 2^44 absorbs an eps up to 1.9e-3 (half its float64 spacing) and bf16 holds it;
# fp16 ends at 65504, and 2^12 absorbs 2.4e-4 in float32, in which fp16 implementations compute var + eps at best.
_VARIANCE_EXPONENTS = {"fp64": (44, 46), "fp32": (44, 46), "tf32": (44, 46), "bf16": (44, 46), "fp16": (12, 14)}


class LatticeError(ValueError):
    """No exact probe for this network, size and precision; the message says what would have to change."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """The probe of one network.

    ``weights`` (float32) and ``images`` (float32, NCHW) go to the implementation; ``expected`` holds every tap in float64.
    ``largest`` holds, for every layer, the largest sum of magnitudes of the terms of one output in units of its grid.
    """

    weights: dict[str, npt.NDArray[np.float32]]
    images: npt.NDArray[np.float32]
    expected: dict[str, Array]
    largest: dict[str, int]


def lattice(model: ModelSpec, precision: str, *, batch: int, height: int, width: int, seed: int) -> Lattice:
    """Make the probe and prove it exact in ``precision``.

    The weights stay exact when :func:`impls.weights.folding.fold_batch_norm` folds them; :func:`prove` then proves the
    folded network. The smallest images that leave every kernel something to see are 32x32 for CIFAR nets and 64x64 for
    ImageNet nets.

    Raises:
        SpecError: the network does not take images of this size.
        LatticeError: the pooled area is no power of two, an epsilon is too large, or a sum leaves the exact range.
    """
    shapes = spec.tap_shapes(model, batch, height, width)
    generator = np.random.Generator(np.random.PCG64(seed))
    images = generator.integers(-IMAGE_RANGE, IMAGE_RANGE + 1, (batch, model.input_chw[0], height, width)).astype(np.float32)
    pooled = _pooled(model, shapes, PRECISIONS[precision].exact_integer)
    maker = _Maker(generator, _VARIANCE_EXPONENTS[precision], *pooled, logits=list(shapes)[-1])
    maker.run(model.body, images.astype(np.float64))
    weights = {name: maker.weights[name] for name in spec.tensor_shapes(model)}
    return prove(model, weights, images, precision)


def prove(model: ModelSpec, weights: dict[str, npt.NDArray[np.float32]], images: npt.NDArray[np.float32], precision: str) -> Lattice:
    """The probe of these weights and images, having proved that ``precision`` computes every tap without rounding.

    The proof, by induction over the layers: inputs and terms are multiples of a grid (1, or 1/n behind a mean of n values).
    A partial sum in any order is a multiple of the grid too, and at most the sum of the terms' magnitudes. If that is at
    most ``exact_integer`` grid steps, the format holds every partial sum, so no addition rounds. The magnitudes are those of
    the values that do arrive; the bound itself is computed in float64, where the same argument holds as
    ``exact_integer`` is at most 2^53.

    Raises:
        SpecError, WeightsError: as :func:`impls.oracle.forward.forward`.
        LatticeError: a weight or mean is off the grid, a batch norm's scale is not exactly +-1, or a sum is too large.
    """
    check(model, weights, images)
    limit = PRECISIONS[precision].exact_integer
    expected: dict[str, Array] = {}
    largest: dict[str, int] = {}

    def apply(layer: Layer, *inputs: tuple[Array, float]) -> tuple[Array, float]:
        tensors = tensors_of(layer, weights)
        values = tuple(value for value, _ in inputs)
        grid = min(step for _, step in inputs)
        magnitudes, grid = _magnitudes(layer, tuple(np.abs(value) for value in values), tensors, grid, precision)
        bound = float(magnitudes.max()) / grid
        if not bound <= limit:
            raise LatticeError(f"{layer.name}: its sums reach {bound:.0f}, {precision} holds all integers only up to {limit}")
        largest[layer.name] = int(bound)
        expected[layer.name] = evaluate(_absorbed(layer), values, tensors)
        return expected[layer.name], grid

    if not _whole(images) or np.abs(images).max() > limit:
        raise LatticeError(f"the images are not integers that {precision} holds")
    spec.walk(model.body, apply, (np.asarray(images, dtype=np.float64), 1.0))
    return Lattice(weights, images, expected, largest)


def _whole(values: npt.NDArray[Any]) -> bool:
    """Whether all are integers; np.rint takes a twentieth of the time of the remainder by 1."""
    return bool(np.array_equal(np.rint(values), values))


def _absorbed(layer: Layer) -> Layer:
    """The layer as it computes where the running variance absorbs epsilon."""
    return replace(layer, eps=0.0) if isinstance(layer, BatchNorm2d) else layer


def _magnitudes(layer: Layer, values: tuple[Array, ...], tensors: Mapping[str, Array], grid: float, precision: str) -> tuple[Array, float]:
    """Sum of the magnitudes of the terms of every output, and the grid of the output; ``values`` are magnitudes."""
    x = values[0]
    match layer:
        case Conv2d() | Linear():
            terms = {leaf: np.abs(tensor) for leaf, tensor in tensors.items()}
            if any(not _whole(tensor) or tensor.max() > PRECISIONS[precision].exact_integer for tensor in terms.values()):
                raise LatticeError(f"{layer.name}: its weights are not integers that {precision} holds")
            return evaluate(layer, values, terms), grid
        case BatchNorm2d():
            variance, gamma = tensors["running_var"], tensors["weight"]
            held = np.dtype(np.float64 if precision == "fp64" else np.float32)
            absorbs = np.add(variance, layer.eps, dtype=held) == variance
            power_of_two = np.abs(np.frexp(gamma)[0]) == 0.5
            if not np.all(absorbs & power_of_two & (gamma**2 == variance) & np.isfinite(round_to(variance, precision))):
                raise LatticeError(f"{layer.name}: its scale is not exactly 1 or -1 in {precision} with epsilon {layer.eps}")
            if not _whole(tensors["bias"]) or not _whole(tensors["running_mean"]):
                raise LatticeError(f"{layer.name}: its mean and bias are not integers")
            return x + (np.abs(tensors["running_mean"]) + np.abs(tensors["bias"]))[:, None, None], grid
        case GlobalAvgPool2d():
            area = x.shape[2] * x.shape[3]
            if area & (area - 1):
                raise LatticeError(f"{layer.name}: the mean of {x.shape[2]}x{x.shape[3]} values is exact only for a power of two")
            return np.mean(x, axis=(2, 3)), grid / area
        case AdaptiveAvgPool2d():
            raise LatticeError(f"{layer.name}: means over windows of several sizes have no grid")
        case Add() | Concat():
            return evaluate(layer, values, tensors), grid
        case _:
            return x, grid


def _pooled(model: ModelSpec, shapes: dict[str, Shape], limit: int) -> tuple[Shape, float]:
    """Size of the maps that are averaged, and how large the sum over one may be for the classifier to stay exact.

    A class adds some means and a bias of at most 1, in units of 1 / area.
    """
    names = list(shapes)
    pool = next((layer.name for layer in spec.layers(model.body) if isinstance(layer, GlobalAvgPool2d)), None)
    if pool is None:
        return (), math.inf
    size = shapes[names[names.index(pool) - 1]][2:]
    area = math.prod(size)
    if area & (area - 1):
        raise LatticeError(
            f"{model.name}: at this size it averages {size[0]}x{size[1]} = {area} values, which is exact only for a power of two;"
            f" take images of 32, 64 or 128 pixels"
        )
    terms = max(
        (_terms(layer.in_features, layer.out_features, 1) for layer in spec.layers(model.body) if isinstance(layer, Linear)), default=1
    )
    budget = (limit - area) / terms
    if budget < 1:
        raise LatticeError(f"{model.name}: a mean over {size[0]}x{size[1]} leaves no room in integers up to {limit}; take smaller images")
    return size, budget


def _terms(inputs: int, outputs: int, area: int) -> int:
    """Taps per filter: at least two, of both signs; enough to read every input; at most four more than that, to see the kernel."""
    return max(2, -(-inputs // outputs), min(4, -(-inputs * area // outputs)))


@dataclass(slots=True)
class _Maker:
    """Fits the weights layer by layer to the values that arrive."""

    generator: np.random.Generator
    variance_exponents: tuple[int, int]
    pooled_size: Shape
    pooled_budget: float
    logits: str
    weights: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    before: Layer | None = None

    def run(self, nodes: tuple[Node, ...], x: Array, beside: Array | None = None) -> Array:
        """Evaluate ``nodes``; the last layer's offset is fitted to its sum with ``beside``."""
        for position, node in enumerate(nodes):
            if isinstance(node, Block) and isinstance(node.merge, Concat):
                x = self.run(node.then, np.concatenate([self.run(branch, x) for branch in node.branches], axis=1))
            elif isinstance(node, Block):
                # The main branch last: it is fitted to what the shortcut brings.
                others = [self.run(branch, x) for branch in node.branches[1:]]
                joined: Array = np.sum(others, axis=0)
                main = self.run(node.branches[0], x, joined)
                x = self.run(node.then, main + joined)
            else:
                x = self.layer(node, x, beside if position == len(nodes) - 1 else None)
        return x

    def layer(self, layer: Layer, x: Array, beside: Array | None) -> Array:
        match layer:
            case Conv2d():
                self.put(layer, weight=self.taps(layer.out_channels, layer.in_channels, layer.kernel))
                if layer.bias:
                    self.put(layer, bias=np.zeros(layer.out_channels))
                    plain = evaluate(layer, (x,), tensors_of(layer, self.weights))
                    self.put(layer, bias=self.offset(plain if beside is None else plain + beside))
            case Linear():
                weight = self.taps(layer.out_features, layer.in_features, 1)[:, :, 0, 0]
                bias = self.generator.choice((-1.0, 1.0), layer.out_features)
                if layer.name != self.logits:
                    # The taps' signs leave half of the units below zero; an image sees too few of one unit's values to fit more.
                    bias = np.minimum(bias, CEILING - multiply(x, weight).max(axis=0))
                self.put(layer, weight=weight, bias=bias)
            case BatchNorm2d():
                self.normalise(layer, x, beside)
        self.before = layer
        return evaluate(_absorbed(layer), (x,), tensors_of(layer, self.weights))

    def put(self, layer: Layer, **tensors: npt.NDArray[np.floating]) -> None:
        self.weights.update({f"{layer.name}.{leaf}": tensor.astype(np.float32, copy=False) for leaf, tensor in tensors.items()})

    def taps(self, outputs: int, inputs: int, kernel: int) -> npt.NDArray[np.float32]:
        """+-1 taps, OIHW: every input channel and every kernel position is used, as evenly as the number of taps allows."""
        area = kernel * kernel
        terms = _terms(inputs, outputs, area)
        tap = np.arange(outputs * terms)
        channel = self.generator.permutation(inputs)[tap % inputs]
        position = self.generator.permutation(area)[(tap + tap // math.lcm(inputs, area)) % area]
        signs = np.where(tap % 2, -1.0, 1.0) * np.repeat(self.generator.choice((-1.0, 1.0), outputs), terms)
        weight = np.zeros((outputs, inputs, area), np.float32)
        weight[tap // terms, channel, position] = signs
        return weight.reshape(outputs, inputs, kernel, kernel)

    def normalise(self, layer: BatchNorm2d, x: Array, beside: Array | None) -> None:
        """Signs on half of the channels each, where they shorten the upper tail; then the offset."""
        joined = np.zeros_like(x) if beside is None else beside
        tails = _tail(joined + x) - _tail(joined - x) + self.generator.random(layer.channels)  # the random part breaks ties
        sign = np.where(tails <= np.median(tails), 1.0, -1.0)
        values = joined + sign[:, None, None] * x
        offset = self.offset(values)
        if isinstance(self.before, Conv2d) and self.before.bias:
            # Folded, its bias and the offset are one number: that must not be 0 either, for the same reason as below.
            cancels = offset + sign * self.weights[f"{self.before.name}.bias"] == 0
            lower, upper = offset - 1 - (offset == 1), offset + 1 + (offset == -1)
            offset = np.where(cancels, np.where(values.max(axis=(0, 2, 3)) + lower >= 1, lower, upper), offset)
        # Where mean and bias would cancel, folding in float64 could leave a remainder: there both are 0.
        mean = np.where(offset == 0, 0.0, self.generator.choice([m for m in range(-MEAN_RANGE, MEAN_RANGE + 1) if m], layer.channels))
        exponent = self.generator.choice(self.variance_exponents, layer.channels)
        self.put(
            layer,
            weight=sign * 2.0 ** (exponent // 2),
            bias=offset + sign * mean,
            running_mean=mean,
            running_var=2.0**exponent,
        )

    def offset(self, values: Array) -> Array:
        """Integer per channel that puts zero inside the values, the largest within the ceiling and the sums within the budget."""
        low, high = values.min(axis=(0, 2, 3)), values.max(axis=(0, 2, 3))
        middle = -np.floor(np.median(values, axis=(0, 2, 3)))
        offset: Array = np.minimum(np.maximum(np.minimum(middle, -1 - low), 1 - high), CEILING - high)
        # 0 would hide mean and bias exchanged; it stays where any other would leave but one sign.
        other = np.where((low < -1) & (high < CEILING), 1.0, np.where(high > 1, -1.0, 0.0))
        offset = np.where(offset == 0, other, offset)
        while values.shape[2:] == self.pooled_size:
            sums = np.maximum(values + offset[:, None, None], 0).sum(axis=(2, 3)).max(axis=0)
            if np.all(sums <= self.pooled_budget):
                break
            offset -= sums > self.pooled_budget
        return offset


def _tail(values: Array) -> Array:
    """How far the largest value of a channel lies above its middle."""
    tail: Array = values.max(axis=(0, 2, 3)) - np.median(values, axis=(0, 2, 3))
    return tail
