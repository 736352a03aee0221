"""The predicted noise of training against simulated float32 arithmetic in several orders, correct and broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls.implementation import Sgd
from impls.oracle import training
from impls.oracle.backward import vjp
from impls.oracle.backward_rounding import descend_sigma, loss_noise, noise, running_statistics_sigma, sum_sigma, vjp_noise
from impls.oracle.local import WORST_SIGNIFICAND
from impls.oracle.rounding import Arithmetic, arithmetic, round_to
from impls.spec import (
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Conv2d,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    Padding,
    PadShortcut,
    Relu,
)
from impls.spec import windows as spec_windows
from tests.float32_training import (
    ChannelSum,
    batch_norm,
    batch_norm_back,
    batch_norm_by_parts,
    operations,
    pairwise,
    sequential,
    wide,
    windows,
)

Array = npt.NDArray[Any]
FP32 = arithmetic("fp32")
PAD = Padding(1, 1, 1, 1)
NORM = BatchNorm2d("b", 64, 1e-5, 0.1, "unbiased")


def rms(z: Array) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.asarray(z, dtype=np.float64) ** 2)))


def allowed(draws: int) -> float:
    """Bound of rms z that a correct run exceeds with a probability of 1e-6; of one draw for each channel, as ``impls.oracle.local``."""
    exponent = -math.log(1e-6)
    return WORST_SIGNIFICAND * math.sqrt(1 + 2 * math.sqrt(exponent / draws) + 2 * exponent / draws)


def double(array: Array) -> Array:
    """The same numbers in float64."""
    return array.astype(np.float64)


def made(shape: tuple[int, ...], loc: float, scale: float, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """A batch norm's input with channel means near ``loc``, a cotangent, gamma and beta, float32."""
    generator = np.random.default_rng(seed)
    channels = shape[1]
    x = loc * generator.uniform(0.5, 1.5, (channels, 1, 1)) + scale * generator.normal(size=shape)
    parameters = generator.uniform(0.5, 1.5, channels), generator.normal(0, 0.2, channels)
    return tuple(array.astype(np.float32) for array in (x, generator.normal(0.5, 1, shape), *parameters))


def batch_norm_z(
    run: Callable[..., tuple[Array, Array, Array]], back: Callable[..., tuple[Array, Array, Array]], total: ChannelSum, *given: Array
) -> dict[str, float]:
    """Rms z of everything that a simulated batch norm computes in a step."""
    x, g, gamma, beta = given
    tensors = {"weight": double(gamma), "bias": double(beta), "running_mean": np.zeros(len(gamma)), "running_var": np.ones(len(gamma))}
    inputs = (double(x),)
    exact = training.evaluate(NORM, inputs, tensors)
    pulled = vjp(NORM, inputs, exact, double(g), tensors)
    predicted = vjp_noise(NORM, inputs, double(g), tensors, pulled, FP32)
    mean, variance, y = run(x, gamma, beta, NORM.eps, total)
    dx, for_gamma, for_beta = back(x, g, gamma, NORM.eps, total)
    count = x.size // len(gamma)
    after = training.running_statistics(NORM, inputs[0], tensors)
    of_after = running_statistics_sigma(NORM, inputs[0], tensors, after, FP32)
    momentum, old = np.float32(NORM.momentum), np.float32(1 - NORM.momentum)
    running = {"running_mean": momentum * mean, "running_var": old * 1 + momentum * (variance * np.float32(count / (count - 1)))}
    return {
        "y": rms((y - exact) / noise(NORM, inputs, exact, tensors, FP32).sigma),
        "dx": rms((dx - pulled.inputs[0]) / predicted.inputs[0].sigma),
        "gamma": rms((for_gamma - pulled.parameters["weight"]) / predicted.parameters["weight"].sigma),
        "beta": rms((for_beta - pulled.parameters["bias"]) / predicted.parameters["bias"].sigma),
        **{leaf: rms((running[leaf] - after[leaf]) / of_after[leaf]) for leaf in after},
    }


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (3.0, 1.0), (100.0, 0.01), (0.0, 1e-4)])
@pytest.mark.parametrize("size", [2, 16], ids=["8 values", "512 values"])
@pytest.mark.parametrize("total", [sequential, pairwise])
@pytest.mark.parametrize("back", [batch_norm_back, batch_norm_by_parts])
def test_batch_norm_is_bounded(total: ChannelSum, back: Any, size: int, loc: float, scale: float) -> None:
    """Forward, backward and running statistics, by two ways and in two orders, far from zero and where epsilon rules."""
    found = batch_norm_z(batch_norm, back, total, *made((2, 64, size, size), loc, scale))
    assert all(z < allowed(64) for z in found.values()), found


def test_batch_norm_is_not_bounded_from_far_away() -> None:
    """One-by-one summation, the worst that is usual, comes near every bound: none is generous by a factor of three."""
    found = batch_norm_z(batch_norm, batch_norm_back, sequential, *made((8, 64, 16, 16), 3.0, 1.0))
    assert all(0.33 < z < allowed(64) for z in found.values()), found


def fast_variance(x: Array, gamma: Array, beta: Array, eps: float, total: ChannelSum) -> tuple[Array, Array, Array]:
    """Batch norm whose variance is E[x^2] - E[x]^2."""
    count = np.float32(x.size // x.shape[1])
    mean = total(x) / count
    variance = np.maximum(total(x * x) / count - mean * mean, 0)
    scale = gamma / np.sqrt(variance + np.float32(eps))
    return mean, variance, (x - wide(mean)) * wide(scale) + wide(beta)


def in_bf16(x: Array, *rest: Any) -> Any:
    """Batch norm of an input rounded to bf16."""
    return batch_norm(round_to(x, "bf16"), *rest)


def back_in_bf16(x: Array, g: Array, *rest: Any) -> Any:
    """Its backward pass on a cotangent rounded to bf16."""
    return batch_norm_back(x, round_to(g, "bf16"), *rest)


def test_batch_norm_notices() -> None:
    """A variance that cancels and values rounded to bf16 are far outside."""
    given = made((2, 64, 16, 16), 100.0, 0.01)
    found = batch_norm_z(fast_variance, batch_norm_back, pairwise, *given)
    assert min(found["y"], found["running_var"]) > 5
    given = made((2, 64, 16, 16), 1.0, 1.0)
    found = batch_norm_z(in_bf16, back_in_bf16, pairwise, *given)
    assert min(found[leaf] for leaf in ("y", "dx", "gamma", "beta", "running_mean", "running_var")) > 100, found


def test_equal_addends_round_alike() -> None:
    """Behind a global mean a sum one by one errs far more than independent roundings would, and is bounded still."""
    generator = np.random.default_rng(0)
    g = np.repeat(generator.normal(size=(16, 64, 1, 1)), 64, axis=2).astype(np.float32)
    layer = Conv2d("c", 1, 64, 1, 1, Padding(0, 0, 0, 0), bias=True)
    x, tensors = np.ones((16, 1, 64, 1)), {"weight": np.ones((64, 1, 1, 1)), "bias": np.zeros(64)}
    pulled = vjp(layer, (x,), double(g), double(g), tensors)
    sigma = vjp_noise(layer, (x,), double(g), tensors, pulled, FP32).parameters["bias"].sigma
    z = rms((sequential(g) - pulled.parameters["bias"]) / sigma)
    assert 0.1 < z < allowed(64)
    assert z * math.sqrt(64) > 2 * allowed(64)  # what it is if the 64 equal addends of an image are taken to round independently


CONVS = [
    (Conv2d("c", 6, 8, 3, 1, PAD, bias=False), (4, 6, 12, 12)),
    (Conv2d("c", 6, 8, 3, 2, Padding(0, 1, 1, 0), bias=False), (4, 6, 13, 12)),
    (Conv2d("c", 16, 12, 1, 2, Padding(0, 0, 0, 0), bias=False), (4, 16, 12, 12)),
]


def products_one_by_one(layer: Conv2d, x: Array, g: Array, weight: Array) -> tuple[Array, Array]:
    """Both halves of a convolution's backward pass, every product and sum rounded to float32 in the plainest order."""
    pad = layer.padding
    padded = np.zeros((*x.shape[:2], x.shape[2] + pad.top + pad.bottom, x.shape[3] + pad.left + pad.right), np.float32)
    height, width = g.shape[2:]
    for out in range(layer.out_channels):
        for row, column in np.ndindex(layer.kernel, layer.kernel):
            view = padded[:, :, row :: layer.stride, column :: layer.stride][:, :, :height, :width]
            view += wide(weight[out, :, row, column]) * g[:, out : out + 1]
    seen = windows(x, layer)
    gradient = np.zeros(weight.shape, np.float32)
    for image, row, column in np.ndindex(len(x), height, width):
        gradient += g[image, :, row, column][:, None, None, None] * seen[image, :, row, column]
    return padded[:, :, pad.top : pad.top + x.shape[2], pad.left : pad.left + x.shape[3]], gradient


def convolution_z(layer: Conv2d, shape: tuple[int, ...], rules: Arithmetic, run: Callable[..., tuple[Array, Array]]) -> tuple[float, float]:
    """Rms z of the input's cotangent and of the weight's gradient."""
    generator = np.random.default_rng(1)
    x, weight = generator.normal(0.3, 1, shape).astype(np.float32), generator.normal(size=layer.tensors()["weight"]).astype(np.float32)
    tensors, inputs = {"weight": double(weight)}, (double(x),)
    output = training.evaluate(layer, inputs, tensors)
    g = generator.normal(size=output.shape).astype(np.float32)
    pulled = vjp(layer, inputs, output, double(g), tensors)
    predicted = vjp_noise(layer, inputs, double(g), tensors, pulled, rules)
    dx, gradient = run(layer, x, g, weight)
    error = dx - pulled.inputs[0]
    reached = predicted.inputs[0].sigma > rules.smallest  # a stride leaves elements whose cotangent is an exact 0
    assert not error[~reached].any()
    return rms(error[reached] / predicted.inputs[0].sigma[reached]), rms(
        (gradient - pulled.parameters["weight"]) / predicted.parameters["weight"].sigma
    )


def by_operations(operand: Callable[[Array], Array]) -> Callable[..., tuple[Array, Array]]:
    """A backward pass by matrix products whose operands are rounded."""

    def run(layer: Conv2d, x: Array, g: Array, weight: Array) -> tuple[Array, Array]:
        pulled = operations(pairwise, operand).vjp(layer, (x,), g, g, {"weight": weight})
        return pulled.inputs[0], pulled.parameters["weight"]

    return run


@pytest.mark.parametrize(("layer", "shape"), CONVS)
def test_convolutions(layer: Conv2d, shape: tuple[int, ...]) -> None:
    """Fp32 lies below 1, near it one product after the other; TF32 is two-sided; a coarser rounding is far outside."""
    plain = convolution_z(layer, shape, FP32, products_one_by_one)
    assert all(0.4 < z < 1.0 for z in plain), plain
    assert all(0.02 < z < 1.0 for z in convolution_z(layer, shape, FP32, by_operations(np.asarray)))
    tf32, bf16 = (by_operations(lambda array, p=p: round_to(array, p)) for p in ("tf32", "bf16"))
    found = convolution_z(layer, shape, arithmetic("tf32"), tf32)
    assert all(0.85 < z < 1.15 for z in found), found
    assert all(z < 0.05 for z in convolution_z(layer, shape, arithmetic("tf32"), by_operations(np.asarray)))
    assert all(z > 100 for z in convolution_z(layer, shape, FP32, tf32))
    assert all(z > 1000 for z in convolution_z(layer, shape, FP32, bf16))


def test_linear() -> None:
    """Fp32 lies below 1 and TF32 at 1; an fp32 run in TF32 is far outside."""
    generator = np.random.default_rng(2)
    layer, x, g = Linear("l", 40, 30), *(generator.normal(size=(64, n)).astype(np.float32) for n in (40, 30))
    tensors = {"weight": double(generator.normal(size=(30, 40)).astype(np.float32)), "bias": np.zeros(30)}
    pulled = vjp(layer, (double(x),), double(g), double(g), tensors)

    def z(precision: str, operand: Callable[[Array], Array]) -> list[float]:
        predicted = vjp_noise(layer, (double(x),), double(g), tensors, pulled, arithmetic(precision))
        found = operations(sequential, operand).vjp(layer, (x,), g, g, tensors)
        errors = [(found.inputs[0] - pulled.inputs[0]) / predicted.inputs[0].sigma]
        errors += [(found.parameters[leaf] - pulled.parameters[leaf]) / predicted.parameters[leaf].sigma for leaf in ("weight", "bias")]
        return [rms(error) for error in errors]

    def in_tf32(array: Array) -> Array:
        return round_to(array, "tf32")

    assert all(0.05 < value < allowed(30) for value in z("fp32", np.asarray))
    assert all(0.85 < value < 1.15 for value in z("tf32", in_tf32)[:2])
    assert all(value > 100 for value in z("fp32", in_tf32)[:2])
    assert z("tf32", in_tf32)[2] == z("fp32", np.asarray)[2]  # a bias's gradient is no product


def test_mean_and_sums() -> None:
    """A mean's cotangent and a sum of two are one or two roundings, so their z is near 1."""
    generator = np.random.default_rng(3)
    g = generator.normal(size=(20, 30)).astype(np.float32)
    layer, x = GlobalAvgPool2d("g"), np.zeros((20, 30, 7, 7))
    pulled = vjp(layer, (x,), double(g), double(g), {})
    sigma = vjp_noise(layer, (x,), double(g), {}, pulled, FP32).inputs[0].sigma
    spread = np.broadcast_to((g * np.float32(1 / 49))[:, :, None, None], x.shape)
    assert 0.8 < rms((spread - pulled.inputs[0]) / sigma) < 1.2
    terms = [generator.normal(size=5000).astype(np.float32) for _ in range(3)]
    for some in (terms[:2], terms):
        found = some[0] + some[1] if len(some) == 2 else some[0] + some[1] + some[2]
        sigma = sum_sigma([double(t) for t in some], [np.zeros(5000)] * len(some), FP32.accumulate)
        assert 0.9 < rms((found - sum(double(t) for t in some)) / sigma) < 1.1


@pytest.mark.parametrize("size", [(14, 14), (7, 7), (9, 13)], ids=str)
def test_adaptive_pools(size: tuple[int, int]) -> None:
    """Forward and backward in float32, rows before columns, within the bounds; with bf16 sums far outside."""
    generator = np.random.default_rng(9)
    layer = AdaptiveAvgPool2d("g", 4)
    x, g = (generator.normal(0.5, 1, shape).astype(np.float32) for shape in ((20, 30, *size), (20, 30, 4, 4)))
    output = training.evaluate(layer, (double(x),), {})
    sigma = noise(layer, (double(x),), output, {}, FP32).sigma

    def pooled(x: Array, rounded: Callable[[Array], Array]) -> Array:
        for axis, length in ((2, size[0]), (3, size[1])):
            parts = [
                rounded(x.take(range(*window), axis).sum(axis, dtype=np.float32) / np.float32(window[1] - window[0]))
                for window in spec_windows(length, 4)
            ]
            x = np.stack(parts, axis)
        return x

    def spread(g: Array, rounded: Callable[[Array], Array]) -> Array:
        for axis, length in ((2, size[0]), (3, size[1])):
            shape = (*g.shape[:axis], length, *g.shape[axis + 1 :])
            wider = np.zeros(shape, np.float32)
            for place, (first, end) in enumerate(spec_windows(length, 4)):
                part = rounded(g.take([place], axis) * (np.float32(1) / np.float32(end - first)))
                wider.swapaxes(0, axis)[first:end] += part.swapaxes(0, axis)
            g = wider
        return g

    assert rms((pooled(x, np.asarray) - output) / sigma) < allowed(30)
    assert rms((pooled(x, lambda y: round_to(y, "bf16")) - output) / sigma) > 100
    pulled = vjp(layer, (double(x),), output, double(g), {})
    sigma = vjp_noise(layer, (double(x),), double(g), {}, pulled, FP32).inputs[0].sigma
    assert rms((spread(g, np.asarray) - pulled.inputs[0]) / sigma) < allowed(30)
    assert rms((spread(g, lambda y: round_to(y, "bf16")) - pulled.inputs[0]) / sigma) > 100


@pytest.mark.parametrize("layer", [Relu("r"), PadShortcut("s", 2, 1, 1), Add("a"), MaxPool2d("p", 2, 2, Padding(0, 0, 0, 0))])
def test_what_rounds_nothing(layer: Layer) -> None:
    """Masks, copies and pools whose windows do not overlap have no noise."""
    x = np.random.default_rng(4).normal(size=(2, 3, 6, 6))
    inputs = (x, x) if isinstance(layer, Add) else (x,)
    output = training.evaluate(layer, inputs, {})
    pulled = vjp(layer, inputs, output, output, {})
    for value, predicted in zip(pulled.inputs, vjp_noise(layer, inputs, output, {}, pulled, FP32).inputs, strict=True):
        assert predicted.sigma.shape == value.shape
        assert not predicted.sigma.any()
        assert not predicted.draw(np.random.default_rng(0)).any()


def test_overlapping_windows() -> None:
    """An element that won one window gets its cotangent as it is; one that won several gets a sum of theirs, bounded."""
    generator = np.random.default_rng(5)
    layer, x = MaxPool2d("p", 3, 1, PAD), generator.normal(size=(4, 8, 20, 20))
    g = generator.normal(size=x.shape).astype(np.float32)
    pulled = vjp(layer, (x,), x, double(g), {})
    sigma = vjp_noise(layer, (x,), double(g), {}, pulled, FP32).inputs[0].sigma
    found = np.zeros((4, 8, 22, 22), np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    for image, channel, row, column in np.ndindex(x.shape):
        window = padded[image, channel, row : row + 3, column : column + 3]
        place = np.unravel_index(np.argmax(window), (3, 3))
        found[image, channel, row + place[0], column + place[1]] += g[image, channel, row, column]
    error = found[:, :, 1:-1, 1:-1] - pulled.inputs[0]
    assert not error[sigma == 0].any()
    assert 0.5 < rms(error[sigma > 0] / sigma[sigma > 0]) < 1.0


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("size", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss(classes: int, size: float, smoothing: float) -> None:
    """Loss and cotangent in float32, small logits and large ones; logits in bf16 are far outside."""
    generator = np.random.default_rng(6)
    run = operations(pairwise).cross_entropy
    of_loss, of_cotangent, coarse = [], [], []
    for _ in range(20):
        logits = (size * generator.normal(size=(8, classes))).astype(np.float32)
        labels = generator.integers(0, classes, 8)
        loss, cotangent = training.cross_entropy(double(logits), labels, smoothing)
        sigma_loss, sigma_cotangent = (predicted.sigma for predicted in loss_noise(double(logits), labels, smoothing, FP32))
        found_loss, found_cotangent = run(logits, labels, smoothing)
        of_loss.append((found_loss - loss) / sigma_loss)
        of_cotangent.append(rms((found_cotangent - cotangent) / sigma_cotangent))
        coarse.append(rms((run(round_to(logits, "bf16"), labels, smoothing)[1] - cotangent) / sigma_cotangent))
    assert 0.01 < rms(np.array(of_loss)) < allowed(20)
    # A sum by halves errs far less than the bound of one after the other, in which equal t err alike.
    assert (0.001 if smoothing else 0.05) < rms(np.array(of_cotangent)) < 1.0
    if size >= 1:  # smaller ones leave p at 1 / classes, whatever they are rounded to
        assert min(coarse) > 20


@pytest.mark.parametrize("factor", [1.0, 0.3, 0.7])
def test_equal_targets_err_alike(factor: float) -> None:
    """The sum of a thousand cotangents, all equal but one, one after the other: independent errors do not explain it, equal ones do."""
    generator = np.random.default_rng(12)
    z = []
    for label in generator.integers(0, 1000, 20):
        logits = generator.normal(size=(1, 1000))
        labels = np.array([label])
        t = (np.float32(factor) * training.targets(labels, 1000, 0.1)).astype(np.float32)
        p = np.exp(training.log_softmax(logits))
        error = p * (np.cumsum(t, axis=1, dtype=np.float32)[:, -1:].astype(np.float64) / double(t).sum() - 1)
        z.append(rms(error / loss_noise(logits, labels, 0.1, FP32)[1].sigma))
    assert 0.05 < rms(np.array(z)) < allowed(20)


def test_loss_of_several_heads() -> None:
    """As of one; and a weight that is off by a ten-thousandth is far outside."""
    generator = np.random.default_rng(6)
    run, weights = operations(pairwise).cross_entropy, (0.3, 0.3)
    of_loss, of_cotangent, otherwise = [], [], []
    for _ in range(20):
        logits, labels = generator.normal(size=(8, 300)).astype(np.float32), generator.integers(0, 100, 8)
        loss, cotangent = training.cross_entropy(double(logits), labels, 0.1, weights)
        sigma_loss, sigma_cotangent = (predicted.sigma for predicted in loss_noise(double(logits), labels, 0.1, FP32, weights))
        found_loss, found_cotangent = run(logits, labels, 0.1, weights)
        of_loss.append((found_loss - loss) / sigma_loss)
        of_cotangent.append(rms((found_cotangent - cotangent) / sigma_cotangent))
        otherwise.append(rms((run(logits, labels, 0.1, (0.3, 0.30003))[1] - cotangent) / sigma_cotangent))
    assert 0.01 < rms(np.array(of_loss)) < allowed(20)
    assert 0.001 < rms(np.array(of_cotangent)) < 1.0
    assert min(otherwise) > 3


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_descent(nesterov: bool, decay: float) -> None:
    """A step in float32 from the implementation's own gradient; a learning rate inside the buffer or one in bf16 is far outside."""
    generator = np.random.default_rng(7)
    sgd = Sgd(0.9, nesterov=nesterov, weight_decay=decay, label_smoothing=0.0)
    parameter, gradient, velocity = (generator.normal(size=20_000).astype(np.float32) for _ in range(3))
    rate, momentum = np.float32(0.1), np.float32(0.9)
    decayed = gradient + np.float32(decay) * parameter
    new = momentum * velocity + decayed
    moved = parameter - rate * (decayed + momentum * new if nesterov else new)
    given = tuple(map(double, (parameter, gradient, velocity)))
    exact = training.descend(sgd, 0.1, *given)
    sigmas = descend_sigma(sgd, 0.1, *given, np.zeros(20_000), FP32)
    z = [rms((found - right) / sigma) for found, right, sigma in zip((moved, new), exact, sigmas, strict=True)]
    assert all(0.4 < value < 1.05 for value in z), z
    other = training.descend(sgd, float(round_to(np.array(0.1), "bf16")), *given)
    assert rms((other[0] - exact[0]) / sigmas[0]) > 1000
    wider = descend_sigma(sgd, 0.1, *given, np.full(20_000, 1e-3), FP32)
    gain = 0.1 * (1 + 0.9 if nesterov else 1)
    assert np.allclose(wider[0], 1e-3 * gain, rtol=1e-3)
    assert np.allclose(wider[1], 1e-3, rtol=1e-3)
