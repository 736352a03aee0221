"""The predicted rounding noise against simulated arithmetic, correct and broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impls import models, spec
from impls.oracle import rounding
from impls.oracle.forward import evaluate, forward
from impls.oracle.rounding import (
    KAPPA,
    RHO_MAX,
    Envelope,
    arithmetic,
    as_taken,
    envelope,
    largest_error,
    plausible,
    relative_noise,
    rho,
    round_to,
    round_to_unit,
    sigma,
    spacing,
)
from impls.precision import PRECISIONS
from impls.spec import AdaptiveAvgPool2d, Add, BatchNorm2d, Conv2d, GlobalAvgPool2d, Layer, Linear, MaxPool2d, Padding, PadShortcut, Relu
from impls.weights import synthesis

Rounding = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
MODEL = models.get("cifar_resnet8_b")
NARROW = ["tf32", "bf16", "fp16"]
EXPONENTS = {"fp32": (-149, 127), "tf32": (-136, 127), "bf16": (-133, 127), "fp16": (-24, 15)}


@cache
def net() -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Weights in generic position and four images."""
    generator = np.random.default_rng(0)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in spec.tensor_shapes(MODEL).items():
        if name.endswith("running_var"):
            value = generator.uniform(0.8, 1.25, shape)
        elif len(shape) > 1:
            value = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            value = generator.uniform(0.5, 1.5, shape) if name.endswith(".weight") else generator.normal(0, 0.2, shape)
        weights[name] = value.astype(np.float32)
    return weights, generator.normal(size=(4, 3, 32, 32)).astype(np.float32)


def held(precision: str) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Weights and images as a bf16 or fp16 mode holds them."""
    weights, images = net()
    return {name: round_to(tensor, precision) for name, tensor in weights.items()}, round_to(images, precision)


@cache
def predicted(precision: str) -> Envelope:
    """The envelope of the test's net, made once per precision."""
    weights, images = held(precision) if precision in ("bf16", "fp16") else net()
    return envelope(MODEL, weights, images, precision, runs=8, seed=0)


def in_float32(
    weights: dict[str, npt.NDArray[Any]], images: npt.NDArray[Any], *, operand: Rounding = np.asarray, store: Rounding = np.asarray
) -> npt.NDArray[Any]:
    """A plain float32 implementation that rounds the operands of every product and the result of every layer as told."""

    def apply(layer: Layer, *inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        x = inputs[0]
        tensors = {leaf: weights[f"{layer.name}.{leaf}"].astype(np.float32) for leaf in layer.tensors()}
        match layer:
            case Conv2d():
                pads = ((0, 0), (0, 0), (layer.padding.top, layer.padding.bottom), (layer.padding.left, layer.padding.right))
                windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, pads), (layer.kernel,) * 2, axis=(2, 3))
                windows = operand(np.ascontiguousarray(windows[:, :, :: layer.stride, :: layer.stride]))
                y = np.moveaxis(np.tensordot(windows, operand(tensors["weight"]), axes=((1, 4, 5), (1, 2, 3))), 3, 1)
            case BatchNorm2d():
                scale = tensors["weight"] / np.sqrt(tensors["running_var"] + np.float32(layer.eps))
                y = x * scale[:, None, None] + (tensors["bias"] - tensors["running_mean"] * scale)[:, None, None]
            case Relu():
                y = np.maximum(x, 0)
            case GlobalAvgPool2d():
                y = x.mean(axis=(2, 3))
            case Linear():
                y = operand(x) @ operand(tensors["weight"]).T + tensors["bias"]
            case Add():
                y = inputs[0] + inputs[1]
            case _:
                raise AssertionError(layer)
        assert y.dtype == np.float32
        return store(y)

    return spec.walk(MODEL.body, apply, images.astype(np.float32))


def to(precision: str) -> Rounding:
    """``round_to`` with the precision filled in."""
    return lambda array: round_to(array, precision)


def test_kappa_is_the_rms_of_one_rounding() -> None:
    """Rounding log-uniform significands to bf16 has rms relative error kappa * u; the closed form is sqrt(0.541 / 3)."""
    assert pytest.approx(math.sqrt(0.541 / 3), rel=1e-4) == KAPPA
    values = 2.0 ** np.random.default_rng(0).uniform(-3, 5, 400_000)
    error = (round_to(values, "bf16") - values) / values
    assert np.sqrt(np.mean(error**2)) / PRECISIONS["bf16"].unit_roundoff == pytest.approx(KAPPA, rel=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_correct_arithmetic_is_plausible(precision: str) -> None:
    """A correct run lies within the bounds, in every precision."""
    output = in_float32(*net()) if precision == "fp32" else in_float32(*held(precision), store=to(precision))
    value = rho(output, predicted(precision))
    assert plausible(value, precision), value
    # The observed range of correct implementations, with room for a small net's few logits.
    assert (0.2 if precision == "fp32" else 0.75) < value < (1.0 if precision == "fp32" else 1.3)


def test_correct_tf32_is_plausible() -> None:
    """Operands rounded to TF32, sums and storage in fp32, is what the tf32 rule expects."""
    value = rho(in_float32(*net(), operand=to("tf32")), predicted("tf32"))
    assert value > 0.4  # the weights are rounded once, which is one draw for all images
    assert plausible(value, "tf32")


def test_float64_is_plausible() -> None:
    """Float64 with another order of operations lies within its own bounds: 1e9 times narrower than fp32's."""
    weights, images = net()
    wide = {k: v.astype(np.float64) for k, v in weights.items()}

    def apply(layer: Layer, *inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        tensors = {leaf: wide[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        if isinstance(layer, BatchNorm2d):
            scale = tensors["weight"] / np.sqrt(tensors["running_var"] + layer.eps)
            return inputs[0] * scale[:, None, None] + (tensors["bias"] - tensors["running_mean"] * scale)[:, None, None]
        return evaluate(layer, inputs, tensors)

    output = spec.walk(MODEL.body, apply, images.astype(np.float64))
    assert 0 < rho(output, predicted("fp64")) < RHO_MAX


def broken_runs() -> dict[str, tuple[str, Callable[[], npt.NDArray[Any]]]]:
    """Runs that are not of the precision that they say."""
    weights, images = net()
    one = "layer2.0.conv1.weight"
    return {
        "TF32 in an fp32 run": ("fp32", lambda: in_float32(weights, images, operand=to("tf32"))),
        "bf16 weights in an fp32 run": ("fp32", lambda: in_float32(held("bf16")[0], images)),
        "one tensor of bf16 weights in an fp32 run": ("fp32", lambda: in_float32(weights | {one: held("bf16")[0][one]}, images)),
        "fp16 storage in an fp32 run": ("fp32", lambda: in_float32(weights, images, store=to("fp16"))),
        "bf16 run done in fp32": ("bf16", lambda: in_float32(*held("bf16"))),
        "fp16 run done in fp32": ("fp16", lambda: in_float32(*held("fp16"))),
        "bf16 run done in fp16": ("bf16", lambda: in_float32(*held("bf16"), store=to("fp16"))),
        "fp16 run done in bf16": ("fp16", lambda: in_float32(*held("fp16"), store=to("bf16"))),
        "fp32 in an fp64 run": ("fp64", lambda: in_float32(weights, images)),
        "bf16 operands in a tf32 run": ("tf32", lambda: in_float32(weights, images, operand=to("bf16"))),
        "not a number": ("fp32", lambda: np.full((4, 10), np.nan)),
    }


@pytest.mark.parametrize("fault", broken_runs())
def test_a_run_of_another_precision_is_not_plausible(fault: str) -> None:
    """A coarser precision gives a rho far above the bound, a finer one a rho below it."""
    precision, run = broken_runs()[fault]
    value = rho(run(), predicted(precision))
    assert not plausible(value, precision), value
    if " run done in fp32" in fault or fault == "bf16 run done in fp16":
        assert value < 0.5
    elif not math.isnan(value):
        assert value > 3


def test_the_noise_of_an_image_is_its_own() -> None:
    """The envelope repeats with its seed, and the other images of the batch do not matter."""
    weights, images = net()
    both = envelope(MODEL, weights, images[:2], "bf16", runs=2, seed=5)
    again = envelope(MODEL, weights, images[:2], "bf16", runs=2, seed=5)
    other = envelope(MODEL, weights, np.stack([images[0], images[3]]), "bf16", runs=2, seed=5)
    assert np.array_equal(both.deviation, again.deviation)
    assert np.array_equal(both.deviation[0], other.deviation[0])
    assert not np.array_equal(both.deviation, envelope(MODEL, weights, images[:2], "bf16", runs=2, seed=6).deviation)
    np.testing.assert_allclose(both.logits, forward(MODEL, weights, images[:2]), rtol=1e-12)


LAYERS: list[tuple[Layer, tuple[int, ...]]] = [
    (Conv2d("c", 16, 8, 3, 1, Padding(1, 1, 1, 1), bias=False), (2, 16, 16, 16)),
    (Conv2d("c", 16, 8, 3, 2, Padding(1, 1, 1, 1), bias=True), (2, 16, 16, 16)),
    (BatchNorm2d("b", 8, 1e-5, 0.1, "unbiased"), (2, 8, 16, 16)),
    (Linear("l", 64, 200), (20, 64)),
    (GlobalAvgPool2d("g"), (50, 40, 8, 8)),
    (AdaptiveAvgPool2d("g", 4), (50, 40, 7, 14)),
    (Add("a"), (2, 8, 16, 16)),
]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_sigma_of_a_stored_result(layer: Layer, shape: tuple[int, ...], precision: str) -> None:
    """Storing in bf16 or fp16 errs by sigma per element, within the two-sided bounds for each kind of layer."""
    generator = np.random.default_rng(1)
    inputs = tuple(generator.normal(size=shape) for _ in range(2 if isinstance(layer, Add) else 1))
    tensors = {leaf: generator.uniform(0.5, 1.5, s) for leaf, s in layer.tensors().items()}
    output = evaluate(layer, inputs, tensors)
    z = (round_to(output, precision) - output) / sigma(layer, inputs, output, tensors, arithmetic(precision))
    assert 0.9 < np.sqrt(np.mean(z**2)) < 1.1
    assert np.abs(z).max() < 1.1 / KAPPA


@pytest.mark.parametrize(("layer", "shape"), LAYERS[:2])
def test_sigma_of_rounded_operands(layer: Layer, shape: tuple[int, ...]) -> None:
    """Operands rounded to TF32 err by sigma; the same error in an fp32 run is hundreds of sigmas."""
    generator = np.random.default_rng(2)
    x = generator.normal(size=shape)
    tensors = {leaf: generator.normal(size=s) for leaf, s in layer.tensors().items()}
    output = evaluate(layer, (x,), tensors)
    rounded = tensors | {"weight": round_to(tensors["weight"], "tf32").astype(np.float64)}
    error = evaluate(layer, (round_to(x, "tf32").astype(np.float64),), rounded) - output
    z = {p: np.sqrt(np.mean((error / sigma(layer, (x,), output, tensors, arithmetic(p))) ** 2)) for p in ("tf32", "fp32")}
    assert 0.9 < z["tf32"] < 1.1
    assert z["fp32"] > 100


def test_sigma_bounds_sequential_float32_sums() -> None:
    """The one-by-one sum in float32, the worst an implementation does, stays below sigma: theory says sqrt((1/2) / (5/6)) = 0.77."""
    generator = np.random.default_rng(3)
    layer = Linear("l", 512, 40)
    x, weight = (generator.normal(size=s).astype(np.float32) for s in ((40, 512), (40, 512)))
    total = np.zeros((40, 40), np.float32)
    for k in range(512):
        total += x[:, k : k + 1] * weight[:, k]
    tensors = {"weight": weight.astype(np.float64), "bias": np.zeros(40)}
    inputs = (x.astype(np.float64),)
    output = evaluate(layer, inputs, tensors)
    z = (total - output) / sigma(layer, inputs, output, tensors, arithmetic("fp32"))
    assert 0.65 < np.sqrt(np.mean(z**2)) < 0.85


def test_layers_that_round_nothing() -> None:
    """ReLU, max-pooling and option A have no noise."""
    x = np.random.default_rng(4).normal(size=(1, 2, 4, 4))
    for layer in (Relu("r"), MaxPool2d("m", 2, 2, Padding(0, 0, 0, 0)), PadShortcut("s", 2, 1, 1)):
        output = evaluate(layer, (x,), {})
        assert not sigma(layer, (x,), output, {}, arithmetic("bf16")).any()
        assert sigma(layer, (x,), output, {}, arithmetic("bf16")).shape == output.shape


def by_fractions(value: float, precision: str) -> float:
    """Round-to-nearest-even by exact rational arithmetic."""
    bits, (lowest, highest) = PRECISIONS[precision].significand_bits, EXPONENTS[precision]
    exact = abs(Fraction(value))
    exponent = lowest
    while exact >= Fraction(2) ** (exponent + bits):
        exponent += 1
    rounded = round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent  # round() of a Fraction takes ties to even
    if rounded >= Fraction(2) ** (highest + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


@settings(max_examples=300, derandomize=True)
@given(
    value=st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(-70000, 70000), st.floats(-1e-6, 1e-6)),
    precision=st.sampled_from(sorted(EXPONENTS)),
)
def test_round_to_is_exact_rounding(value: float, precision: str) -> None:
    """One rounding, ties to even, subnormals kept, overflow to infinity: as in rational arithmetic, sign of zero included."""
    rounded = round_to(np.array([value]), precision)[0]
    expected = by_fractions(value, precision)
    assert rounded == expected
    assert np.signbit(rounded) == np.signbit(expected)


@pytest.mark.parametrize("shape", [(7,), (5, 9), (2, 3, 3, 1)])
def test_large_tensors_are_rounded_in_pieces(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """The pieces together are the whole, in shape, type and every bit."""
    values = np.random.default_rng(6).normal(size=shape)
    whole = round_to(values, "bf16")
    monkeypatch.setattr(rounding, "PIECE", 4)
    pieces = round_to(values, "bf16")
    assert (pieces.dtype, pieces.shape) == (whole.dtype, shape)
    assert np.array_equal(pieces, whole)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("fp32", np.float32)])
def test_round_to_is_numpys_cast(precision: str, dtype: npt.DTypeLike) -> None:
    """For the formats that NumPy has, on ties, subnormals, overflow and special values."""
    generator = np.random.default_rng(5)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 65519.999, 65520.0, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 3.4028235677973366e38]
    values = np.concatenate([generator.normal(size=20_000) * 2.0 ** generator.integers(-30, 20, 20_000), special])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(round_to(values, precision), values.astype(dtype).astype(np.float32))
    assert round_to(values, precision).dtype == np.float32


@pytest.mark.parametrize("precision", NARROW)
def test_round_to_keeps_what_the_format_holds(precision: str) -> None:
    """Every integer up to the format's exact range stays, the next odd one does not, and rounding twice changes nothing."""
    limit = PRECISIONS[precision].exact_integer
    integers = np.arange(-limit, limit + 1)
    assert np.array_equal(round_to(integers, precision), integers)
    assert round_to(np.array(limit + 1), precision) == limit
    values = np.random.default_rng(6).normal(size=1000)
    assert np.array_equal(round_to(round_to(values, precision), precision), round_to(values, precision))
    assert round_to(values, "fp64").dtype == np.float64


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_round_to_unit_is_round_to_within_the_range(precision: str) -> None:
    """Ties to even and zeros included; beyond the range of exponents it knows none."""
    unit = PRECISIONS[precision].unit_roundoff
    values = np.random.default_rng(7).normal(size=20_000)
    ties = 1 + unit * np.arange(1, 40)
    for each in (values, ties, -ties, np.zeros(3)):
        assert np.array_equal(round_to_unit(each, unit), round_to(each, precision))
    assert round_to_unit(np.array([1e300]), unit)[0] == pytest.approx(1e300, rel=unit)


def test_what_mixed_precision_takes() -> None:
    """In bf16 the tensors of convolutions and linear layers are rounded and no others; other precisions take what is held."""
    model = models.get("cifar_resnet8_b")
    weights = synthesis.synthesize(model, 1)
    taken = as_taken(model, weights, "bf16")
    changed = {name for name in weights if not np.array_equal(taken[name], weights[name])}
    assert changed == {name for name in weights if "bn" not in name and "downsample.1" not in name}
    assert all(np.array_equal(taken[name], round_to(weights[name], "bf16")) for name in changed)
    for precision in ("fp64", "fp32", "tf32"):
        assert all(tensor is weights[name] for name, tensor in as_taken(model, weights, precision).items())


def test_rho_compares_something() -> None:
    """Nothing to compare and other shapes are refused; the right logits have rho 0."""
    made = Envelope(np.ones((1, 3)), np.full((1, 3), 0.5))
    assert rho(made.logits, made) == 0
    assert rho(made.logits + 1, made) == pytest.approx(2)
    with pytest.raises(ValueError, match="shape"):
        rho(np.ones((3, 1)), made)
    with pytest.raises(ValueError, match="shape"):
        rho(np.ones((0, 3)), Envelope(np.ones((0, 3)), np.ones((0, 3))))


@pytest.mark.parametrize("precision", sorted(EXPONENTS))
def test_spacing_is_the_distance_to_the_next_number(precision: str) -> None:
    """Of every number that the format holds, subnormals and 0 included: half of it rounds to even, more rounds up."""
    bits, (lowest, highest) = PRECISIONS[precision].significand_bits, EXPONENTS[precision]
    exponents = np.array([lowest, lowest + 1, lowest + bits, -1.0, 0, 5, highest - 1])
    values = np.concatenate([[0.0], round_to(1.2 * 2.0**exponents, precision), -round_to(1.2 * 2.0**exponents, precision)])
    steps = spacing(values, precision)
    away = values + np.copysign(steps, values)
    assert np.array_equal(round_to(away, precision), away)
    assert np.array_equal(round_to(values + np.copysign(0.4 * steps, values), precision), values)
    assert np.array_equal(round_to(values + np.copysign(0.6 * steps, values), precision), away)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_the_largest_error_is_not_exceeded(layer: Layer, shape: tuple[int, ...]) -> None:
    """Float32 stays within the bound of theory in every kind of layer, and bf16 storage does not."""
    generator = np.random.default_rng(8)
    inputs = tuple(generator.normal(size=shape).astype(np.float32) for _ in range(2 if isinstance(layer, Add) else 1))
    tensors = {leaf: generator.uniform(0.5, 1.5, s).astype(np.float32) for leaf, s in layer.tensors().items()}
    wide, exact_tensors = tuple(x.astype(np.float64) for x in inputs), {leaf: t.astype(np.float64) for leaf, t in tensors.items()}
    exact = evaluate(layer, wide, exact_tensors)
    bound = largest_error(layer, wide, exact, exact_tensors, PRECISIONS["fp32"].unit_roundoff, 8)
    computed = np.asarray(evaluate(layer, inputs, tensors), np.float64)  # type: ignore[arg-type]
    assert np.all(np.abs(computed - exact) <= bound)
    assert np.any(np.abs(round_to(exact, "bf16") - exact) > bound)


def test_relative_noise() -> None:
    """Rms of the deviation over that of the logits."""
    assert relative_noise(Envelope(np.full((2, 3), 2.0), np.full((2, 3), 0.5))) == pytest.approx(0.25)
    assert relative_noise(Envelope(np.zeros((2, 3)), np.ones((2, 3)))) == math.inf
