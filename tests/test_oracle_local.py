"""Local rounding against implementations in NumPy: right ones pass in every precision, wrong ones fail at the tap that is wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models, spec
from impls.oracle import forward, local
from impls.oracle.forward import WeightsError, evaluate
from impls.oracle.local import EDGES, FALSE_ALARM, TESTS, TapError, judge, local_rounding, misread, with_single_epsilon
from impls.oracle.rounding import arithmetic, round_to, round_to_unit, sigma
from impls.precision import PRECISIONS
from impls.spec import (
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
from impls.weights import synthesis

Array = npt.NDArray[Any]
Rounding = Callable[[Array], Array]
Compute = Callable[[Layer, tuple[Array, ...], Mapping[str, Array]], Array]

MODEL = models.get("cifar_resnet8_b")
CHANCE = FALSE_ALARM / (TESTS * 100)
STORES = ("fp32", "tf32", "bf16", "fp16")


def to(precision: str) -> Rounding:
    """``round_to`` with the precision filled in."""
    return lambda array: round_to(array, precision)


def same(array: Array) -> Array:
    """No rounding."""
    return array


def columns(layer: Conv2d, x: Array) -> Array:
    """The windows of a convolution, (N, H, W, terms)."""
    pads = ((0, 0), (0, 0), (layer.padding.top, layer.padding.bottom), (layer.padding.left, layer.padding.right))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, pads), (layer.kernel,) * 2, axis=(2, 3))
    windows = windows[:, :, :: layer.stride, :: layer.stride].transpose(0, 2, 3, 1, 4, 5)
    return np.ascontiguousarray(windows).reshape(*windows.shape[:3], -1)


def blas(rows: Array, weight: Array) -> Array:
    """A product of float32 matrices as NumPy's BLAS sums it."""
    return rows @ weight.T


def one_by_one(rounded: Rounding) -> Callable[[Array, Array], Array]:
    """A product whose every term and partial sum is rounded, one after the other: the least accurate order."""

    def product(rows: Array, weight: Array) -> Array:
        total = np.zeros((*rows.shape[:-1], len(weight)), np.float32)
        for term in range(rows.shape[-1]):
            total = rounded(total + rounded(rows[..., term, None] * weight[:, term]))
        return total

    return product


def float32(
    operand: Rounding = same,
    store: Rounding = same,
    product: Callable[[Array, Array], Array] = blas,
    before_bias: Rounding = same,
    folded: bool = False,
) -> Compute:
    """An implementation in float32 that rounds operands, the sum before the bias, and results as told.

    ``folded`` chooses the form of batch norm: x s + (bias - mean s), or (x - mean) s + bias.
    """

    def compute(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
        x = inputs[0]
        match layer:
            case Conv2d():
                weight = tensors["weight"].reshape(layer.out_channels, -1)
                y = product(operand(columns(layer, x)), operand(weight)).transpose(0, 3, 1, 2)
                y = before_bias(y) + tensors["bias"][:, None, None] if layer.bias else y
            case BatchNorm2d():
                scale = (tensors["weight"] / np.sqrt(tensors["running_var"] + np.float32(layer.eps)))[:, None, None]
                mean, bias = tensors["running_mean"][:, None, None], tensors["bias"][:, None, None]
                y = x * scale + (bias - mean * scale) if folded else (x - mean) * scale + bias
            case GlobalAvgPool2d():
                y = x.mean(axis=(2, 3))
            case Linear():
                y = before_bias(product(operand(x), operand(tensors["weight"]))) + tensors["bias"]
            case Add():
                y = inputs[0] + inputs[1]
            case Relu():
                y = np.maximum(x, 0)
            case PadShortcut() | MaxPool2d() | Flatten() | Dropout() | Concat():
                y = evaluate(layer, inputs, {})
        assert y.dtype == np.float32
        return store(y)

    return compute


SOUND: dict[str, Callable[..., Compute]] = {
    "fp32": float32,
    "tf32": lambda **knobs: float32(operand=to("tf32"), **knobs),
    "bf16": lambda **knobs: float32(store=to("bf16"), **knobs),
    "fp16": lambda **knobs: float32(store=to("fp16"), **knobs),
}
"""Right arithmetic, by precision."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What an implementation was given and what it showed."""

    weights: dict[str, Array]
    images: Array
    taps: dict[str, Array]

    def judged(self, precision: str) -> tuple[local.TapRounding, ...]:
        return local_rounding(MODEL, self.weights, self.images, self.taps, precision)

    def faulty(self, precision: str) -> dict[str, str]:
        """What is said of the taps that fail."""
        return {tap.tap: tap.fault for tap in self.judged(precision) if tap.fault is not None}


def run(
    precision: str,
    compute: Compute | None = None,
    *,
    seed: int = 0,
    scale: float = 1.0,
    wrong: Mapping[str, Compute] = {},
    rewired: Mapping[str, tuple[str, ...]] = {},
) -> Run:
    """Weights and images of a seed through an implementation, with other arithmetic in ``wrong`` layers; ``rewired`` read other taps."""
    kept = "fp32" if precision == "tf32" else precision
    weights = {name: round_to(tensor, kept) for name, tensor in synthesized(seed).items()}
    images = round_to(scale * np.random.default_rng(seed).normal(size=(2, 3, 16, 16)), kept)
    taps: dict[str, Array] = {}

    def apply(layer: Layer, *inputs: Array) -> Array:
        tensors = {leaf: weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        inputs = tuple(taps[name] for name in rewired[layer.name]) if layer.name in rewired else inputs
        taps[layer.name] = wrong.get(layer.name, compute or SOUND[precision]())(layer, inputs, tensors)
        return taps[layer.name]

    spec.walk(MODEL.body, apply, images)
    return Run(weights, images, taps)


@cache
def synthesized(seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Weights in generic position."""
    return synthesis.synthesize(MODEL, seed)


@pytest.mark.parametrize("precision", STORES)
def test_right_arithmetic_passes(precision: str) -> None:
    """Over seeds, forms of batch norm and image scales no tap fails, and every element is counted."""
    for seed in range(12):
        made = run(precision, SOUND[precision](folded=seed % 2 == 1), seed=seed, scale=10.0 ** (seed % 3 - 1))
        judged = made.judged(precision)
        assert [tap for tap in judged if tap.fault] == []
        assert [(tap.tap, tap.elements) for tap in judged] == [(name, tap.size) for name, tap in made.taps.items()]


@pytest.mark.parametrize("precision", STORES)
def test_the_least_accurate_order_of_summation_passes(precision: str) -> None:
    """A sum that rounds every product and every partial sum in float32, one after the other, is what the bounds are made for."""
    made = run(precision, SOUND[precision](product=one_by_one(lambda array: array.astype(np.float32))))
    assert made.faulty(precision) == {}


def test_float64_passes() -> None:
    """In fp64 the oracle rounds as well; another order of summation is within twice the variance, and float32 is not."""
    weights = {name: tensor.astype(np.float64) for name, tensor in synthesized(0).items()}
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    taps: dict[str, Array] = {}

    def apply(layer: Layer, *inputs: Array) -> Array:
        tensors = {leaf: weights[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        if isinstance(layer, Conv2d):
            taps[layer.name] = np.einsum("nhwk,ok->nohw", columns(layer, inputs[0]), tensors["weight"].reshape(layer.out_channels, -1))
        else:
            taps[layer.name] = evaluate(layer, inputs, tensors)
        return taps[layer.name]

    spec.walk(MODEL.body, apply, images)
    judged = local_rounding(MODEL, weights, images, taps, "fp64")
    assert [tap for tap in judged if tap.fault] == []
    assert max(tap.rms_z or 0 for tap in judged) > 0.05
    taps["layer2.0.conv1"] = taps["layer2.0.conv1"].astype(np.float32).astype(np.float64)
    failing = [tap.tap for tap in local_rounding(MODEL, weights, images, taps, "fp64") if tap.fault]
    assert failing[0] == "layer2.0.conv1"


def test_epsilon_of_single_precision_is_declared() -> None:
    """ONNX's epsilon is a float32: in float64 batch norm shows it, unless the network is given as ONNX holds it."""
    single = with_single_epsilon(MODEL)
    weights = {name: tensor.astype(np.float64) for name, tensor in synthesized(0).items()}
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    shown = forward.taps(single, weights, images)
    assert {tap.kind for tap in local_rounding(MODEL, weights, images, shown, "fp64") if tap.fault} == {"BatchNorm2d"}
    assert not any(tap.fault for tap in local_rounding(single, weights, images, shown, "fp64"))
    assert {type(layer) for layer in spec.layers(single.body)} == {type(layer) for layer in spec.layers(MODEL.body)}


def truncated(array: Array) -> Array:
    """To TF32 by cutting off the last 13 bits of a float32, as hardware does that does not round operands."""
    return (array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def flushed(array: Array) -> Array:
    """Stored in fp16, subnormals as 0."""
    stored = round_to(array, "fp16")
    return np.where(np.abs(stored) < 2.0**-14, np.float32(0), stored)


CONV, NORM, DOWN, MEAN, LAST = "layer2.0.conv2", "layer2.0.bn1", "layer2.0.downsample.0", "avgpool", "fc"


def other_epsilon(eps: float, compute: Compute) -> Compute:
    """A batch norm of another epsilon."""
    return lambda layer, inputs, tensors: compute(dataclasses.replace(layer, eps=eps), inputs, tensors)  # type: ignore[type-var]


BF16, FP16, FP32, TF32 = SOUND["bf16"], SOUND["fp16"], SOUND["fp32"], SOUND["tf32"]

WRONG: dict[str, tuple[str, str, Compute]] = {
    "TF32 in an fp32 run": ("fp32", CONV, TF32()),
    "TF32 in an fp32 run, 1x1": ("fp32", DOWN, TF32()),
    "TF32 in an fp32 run, classifier": ("fp32", LAST, TF32()),
    "bf16 operands in an fp32 run": ("fp32", CONV, float32(operand=to("bf16"))),
    "fp16 operands in an fp32 run": ("fp32", CONV, float32(operand=to("fp16"))),
    "bf16 storage in an fp32 run": ("fp32", CONV, BF16()),
    "bf16 storage in an fp32 run, batch norm": ("fp32", NORM, BF16()),
    "bf16 storage in an fp32 run, mean": ("fp32", MEAN, BF16()),
    "bf16 storage in an fp32 run, sum": ("fp32", "layer2.0.add", BF16()),
    "bf16 storage in an fp32 run, ReLU": ("fp32", "layer2.0.relu1", BF16()),
    "fp32 in a tf32 run": ("tf32", CONV, FP32()),
    "bf16 operands in a tf32 run": ("tf32", CONV, float32(operand=to("bf16"))),
    "bf16 operands in a tf32 run, classifier": ("tf32", LAST, float32(operand=to("bf16"))),
    "truncated operands in a tf32 run, classifier": ("tf32", LAST, float32(operand=truncated)),
    "truncated operands in a tf32 run": ("tf32", CONV, float32(operand=truncated)),
    "tf32 storage in a tf32 run": ("tf32", CONV, TF32(store=to("tf32"))),
    "fp32 in a bf16 run": ("bf16", CONV, FP32()),
    "fp32 in a bf16 run, batch norm": ("bf16", NORM, FP32()),
    "fp32 in a bf16 run, sum": ("bf16", "layer2.0.add", FP32()),
    "fp16 storage in a bf16 run": ("bf16", CONV, FP16()),
    "accumulation in bf16": ("bf16", CONV, BF16(product=one_by_one(to("bf16")))),
    "accumulation in fp16 in a bf16 run": ("bf16", CONV, BF16(product=one_by_one(to("fp16")))),
    "bias after the store": ("bf16", LAST, BF16(before_bias=to("bf16"))),
    "double rounding, by way of fp16": ("bf16", CONV, float32(store=lambda array: round_to(round_to(array, "fp16"), "bf16"))),
    "truncated storage": ("bf16", CONV, float32(store=lambda array: (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))),
    "another epsilon in bf16": ("bf16", NORM, other_epsilon(2e-5, BF16())),
    "another epsilon in fp16": ("fp16", NORM, other_epsilon(2e-5, FP16())),
    "another epsilon in fp32": ("fp32", NORM, other_epsilon(1.2e-5, FP32())),
    "bf16 in an fp16 run": ("fp16", CONV, BF16()),
    "fp32 in an fp16 run": ("fp16", CONV, FP32()),
    "accumulation in fp16": ("fp16", CONV, FP16(product=one_by_one(to("fp16")))),
    "bias after the store in fp16": ("fp16", LAST, FP16(before_bias=to("fp16"))),
}


@pytest.mark.parametrize("fault", WRONG)
def test_one_layer_of_wrong_arithmetic_is_named(fault: str) -> None:
    """Arithmetic that is wrong in one layer fails there and nowhere else, with no other tap's error in the way."""
    precision, name, compute = WRONG[fault]
    for seed in range(3):
        faulty = run(precision, seed=seed, wrong={name: compute}).faulty(precision)
        assert list(faulty) == [name], faulty


def test_a_library_may_multiply_a_classifier_in_float32_where_tf32_is_allowed() -> None:
    """It passes and is called what it is; so is none that multiplies in TF32, and no convolution."""
    for seed in range(3):
        finer, sound = (run("tf32", seed=seed, wrong=wrong).judged("tf32") for wrong in ({LAST: FP32()}, {}))
        assert [each.tap for each in finer if each.fault] == []
        assert [each.tap for each in finer if each.kind == local.IN_FLOAT32] == [LAST]
        assert local.IN_FLOAT32 not in {each.kind for each in sound}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("fp32 in a bf16 run", "elements are no bf16 numbers"),
        ("TF32 in an fp32 run", "does not round as fp32 does: rms "),
        ("bf16 storage in an fp32 run, ReLU", "elements are not the Relu of its inputs, correctly rounded"),
    ],
)
def test_a_fault_says_what_it_is(fault: str, says: str) -> None:
    """The sentence tells a wrong format from wrong rounding from inequality."""
    precision, name, compute = WRONG[fault]
    assert says in run(precision, wrong={name: compute}).faulty(precision)[name]


def test_flushed_subnormals_are_called_so() -> None:
    """Numbers below fp16's normal range that became 0 are told from rounding."""
    scale = 1e-3
    assert run("fp16", scale=scale).faulty("fp16") == {}
    faulty = run("fp16", scale=scale, wrong={"conv1": float32(store=flushed)}).faulty("fp16")
    assert faulty == {"conv1": "results below fp16's normal range are flushed to zero"}


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("layer2.0.bn2", ("layer2.0.bn1",)),
        ("layer2.0.conv2", ("layer2.0.bn1",)),
        ("layer2.0.add", ("layer2.0.bn2", "layer2.0.downsample.0")),
        ("layer1.0.add", ("layer1.0.bn1", "relu")),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_wire_is_told_from_a_wrong_layer(precision: str, name: str, reads: tuple[str, ...]) -> None:
    """A layer that reads another tap of the same shape fails alone, and the wire is named."""
    made = run(precision, rewired={name: reads})
    assert list(made.faulty(precision)) == [name]
    producers: dict[str, tuple[str, ...]] = {}

    def apply(layer: Layer, *inputs: str) -> str:
        producers[layer.name] = inputs
        return layer.name

    spec.walk(MODEL.body, apply, "images")
    (wrong, right), *others = [(new, old) for new, old in zip(reads, producers[name], strict=True) if new != old]
    assert others == []
    assert misread(MODEL, made.weights, made.images, made.taps, precision, name) == f"{name} reads {wrong}, not {right}"


BIASED = Conv2d("conv", in_channels=24, out_channels=16, kernel=3, stride=1, padding=spec.Padding(1, 1, 1, 1), bias=True)


def biased(precision: str, compute: Compute, seed: int = 0, change: Rounding = same) -> local.TapRounding:
    """What is said of a convolution with a bias as large as its sums; the implementation computes with it as ``change`` makes it."""
    generator = np.random.default_rng(seed)
    x = round_to(generator.normal(size=(2, 24, 12, 12)), precision)
    weight, bias = (round_to(values, precision) for values in (generator.normal(size=(16, 24, 3, 3)), 15 * generator.normal(size=16)))
    output = compute(BIASED, (x,), {"weight": weight, "bias": change(bias)})
    tensors = {"weight": weight.astype(np.float64), "bias": bias.astype(np.float64)}
    return judge(BIASED, (x.astype(np.float64),), output.astype(np.float64), tensors, precision, CHANCE)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_bias_may_be_an_operation_of_its_own(precision: str) -> None:
    """Added to the wide sum or to the stored one, each is right and is told from the other; so is the least accurate order of the sum."""
    store = to(precision)
    for seed, product in ((0, blas), (1, blas), (2, one_by_one(lambda array: array.astype(np.float32)))):
        once = biased(precision, float32(store=store, product=product), seed)
        assert (once.kind, once.fault) == ("Conv2d", None)
        apart = biased(precision, float32(store=store, before_bias=store, product=product), seed)
        assert (apart.kind, apart.fault) == (local.BIAS_APART, None)
        assert apart.rms_z is not None
        assert 0.5 < apart.rms_z < 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("before_bias", [True, False])
def test_what_is_wrong_with_a_bias_stays_wrong(precision: str, before_bias: bool) -> None:
    """Neither way excuses other arithmetic, or another bias."""
    store, unit = to(precision), arithmetic(precision).store

    def twice(array: Array) -> Array:
        return store(round_to_unit(array.astype(np.float64), unit / 4))

    def shrunk(array: Array) -> Array:
        return store(array * np.float32(1 - unit / 2))

    def said(store: Rounding = store, before: Rounding = store, change: Rounding = same, **knobs: Any) -> str | None:
        return biased(precision, float32(store=store, before_bias=before if before_bias else same, **knobs), change=change).fault

    assert said() is None
    assert said(product=one_by_one(store))
    assert said(store=same)
    for wrong in (twice, shrunk):
        assert said(store=wrong)
        assert said(before=wrong) or not before_bias
    assert said(change=np.zeros_like)
    assert said(change=lambda bias: np.where(np.arange(len(bias)) == 7, np.float32(0), bias))
    assert said(change=lambda bias: store(bias * np.float32(1 - 2 * unit)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_error_that_explains_a_sum_is_the_least(precision: str) -> None:
    """Against a search over every stored product within 300 steps: also of small ones, whose error is many of their own steps."""
    generator, unit = np.random.default_rng(0), arithmetic(precision).store
    count = 200
    product = generator.normal(size=count) * 2.0 ** generator.integers(-9, 2, count)
    added = round_to(generator.normal(size=count), precision).astype(np.float64)
    wide = product + generator.normal(size=count) * 2.0 ** generator.integers(-12, -6, count) * unit * 64
    output = round_to(round_to(wide, precision) + added, precision).astype(np.float64)
    found = local.residual_of_sum(output, product, added, precision)

    def least(place: int) -> float:
        best = math.inf
        for direction in (-1.0, 1.0):
            stored = float(round_to(product[place : place + 1], precision)[0])
            for _ in range(300):
                if float(round_to(np.array([stored + added[place]]), precision)[0]) == output[place]:
                    step = float(local.spacing(np.array([stored]), precision)[0])
                    best = min(best, max(abs(stored - product[place]) - step / 2, 0.0))
                step = float(local.spacing(np.array([stored * (1 - 2.0**-20) if stored * direction < 0 else stored]), precision)[0])
                stored += direction * step
        return best

    expected = np.array([least(place) for place in range(count)])
    reached = np.isfinite(expected)
    assert np.count_nonzero(reached) > 0.9 * count
    assert np.count_nonzero(expected[reached]) > 0.05 * count
    np.testing.assert_allclose(np.abs(found[reached]), expected[reached], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_where_nothing_is_stored_narrower_a_bias_is_no_excuse(precision: str) -> None:
    assert biased(precision, SOUND[precision](before_bias=to("bf16"))).fault


def test_a_wrong_layer_is_not_called_a_wrong_wire() -> None:
    """Where no other input explains a layer, it is the layer."""
    made = run("fp32", wrong={CONV: TF32()})
    assert misread(MODEL, made.weights, made.images, made.taps, "fp32", CONV) is None


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda taps: taps.pop("bn1"), "bn1: the tap is missing"),
        (lambda taps: taps.update(other=np.ones(3)), "other: there is no such tap in the spec"),
        (lambda taps: taps.update({NORM: taps[NORM].transpose(0, 2, 3, 1)}), f"{NORM}: shape (2, 8, 8, 32), not (2, 32, 8, 8)"),
        (lambda taps: taps.update(fc=taps["fc"][:1]), "fc: shape (1, 10), not (2, 10)"),
        (lambda taps: taps["bn1"].__setitem__((1, 2, 3, 4), np.nan), "bn1: holds values that are not finite"),
        (lambda taps: taps["fc"].__setitem__((1, 2), -np.inf), "fc: holds values that are not finite"),
    ],
    ids=["missing", "extra", "NHWC", "batch", "nan", "inf"],
)
def test_unfit_taps_are_refused(spoil: Callable[[dict[str, Array]], None], says: str) -> None:
    """A tap that cannot be judged is named."""
    made = run("fp32")
    spoil(made.taps)
    with pytest.raises(TapError) as caught:
        made.judged("fp32")
    assert str(caught.value) == says
    assert caught.value.tap == says.split(":", maxsplit=1)[0]


def test_bad_questions_are_refused() -> None:
    """Weights and images that do not fit the network are told as everywhere in the oracle."""
    made = run("fp32")
    with pytest.raises(WeightsError, match=r"fc\.bias"):
        local_rounding(MODEL, {name: t for name, t in made.weights.items() if name != "fc.bias"}, made.images, made.taps, "fp32")
    with pytest.raises(spec.SpecError):
        local_rounding(MODEL, made.weights, made.images[:, :2], made.taps, "fp32")


def test_batch_norms_of_few_channels_pass() -> None:
    """The kind with the fewest independent roundings, a handful per channel, over 3000 batch norms of 1 to 16 channels."""
    generator = np.random.default_rng(7)
    largest = 0.0
    for number in range(3000):
        channels = int(generator.choice((1, 2, 4, 16)))
        layer = BatchNorm2d("bn", channels, 1e-5, 0.1, "unbiased")
        spread = 10.0 ** generator.uniform(-3, 3)
        tensors = {
            "weight": generator.uniform(0.25, 1.5, channels),
            "bias": generator.normal(0, spread, channels),
            "running_mean": generator.normal(0, 10.0 ** generator.uniform(-3, 3), channels),
            "running_var": 2.0 ** generator.uniform(-8, 8) * generator.uniform(1, 1 + 10.0 ** generator.uniform(-3, 1), channels),
        }
        tensors = {leaf: tensor.astype(np.float32) for leaf, tensor in tensors.items()}
        x = generator.normal(0, 1, (1, channels, 4, 4)).astype(np.float32)
        output = float32(folded=number % 2 == 1)(layer, (x,), tensors).astype(np.float64)
        wide = {leaf: tensor.astype(np.float64) for leaf, tensor in tensors.items()}
        judged = judge(layer, (x.astype(np.float64),), output, wide, "fp32", CHANCE)
        assert judged.fault is None, (judged, layer)
        largest = max(largest, *(figure for figure in (judged.rms, judged.gauge, judged.slope) if figure is not None))
    assert 0.6 < largest < 1  # the bounds are reached by no more than they must be


def test_flat_images_pass() -> None:
    """Where all windows are equal a channel has one error many times over, and still counts as one."""
    layer = Conv2d("conv", 3, 16, 3, 1, spec.NO_PADDING, bias=False)
    for seed in range(300):
        generator = np.random.default_rng(seed)
        x = np.broadcast_to(generator.normal(size=(1, 3, 1, 1)).astype(np.float32), (1, 3, 34, 34))
        tensors = {"weight": generator.normal(size=(16, 3, 3, 3)).astype(np.float32)}
        output = float32(product=one_by_one(lambda array: array.astype(np.float32)))(layer, (x,), tensors).astype(np.float64)
        assert judge(layer, (x.astype(np.float64),), output, {"weight": tensors["weight"].astype(np.float64)}, "fp32", CHANCE).fault is None


def test_a_drift_below_the_noise_shows_in_the_slope() -> None:
    """All channels shrunk by half a deviation: neither the rms nor the largest error is unusual, their common sign is."""
    layer = Linear("fc", 64, 2000)
    generator = np.random.default_rng(3)
    x = generator.normal(size=(8, 64))
    tensors = {"weight": generator.normal(size=(2000, 64)), "bias": generator.normal(size=2000)}
    exact = evaluate(layer, (x,), tensors)
    noise = sigma(layer, (x,), exact, tensors, arithmetic("fp32"))
    clean = exact + noise * generator.normal(0, 0.5, exact.shape)
    assert judge(layer, (x,), clean, tensors, "fp32", CHANCE).fault is None
    drifted = judge(layer, (x,), clean - 0.5 * noise * np.sign(exact), tensors, "fp32", CHANCE)
    assert drifted.fault is not None
    assert drifted.slope is not None
    assert drifted.slope > 1 > max(drifted.rms or 0, drifted.gauge or 0)


def test_the_histogram_counts_every_element() -> None:
    """Bins between the edges, open at both ends; a single rounding ends at 1 / kappa = 2.35 deviations."""
    judged = {tap.tap: tap for tap in run("bf16").judged("bf16")}
    for tap in judged.values():
        if tap.kind in ("Relu", "Add", "PadShortcut"):
            assert tap.histogram == ()
        else:
            assert sum(tap.histogram) == tap.elements
            assert len(tap.histogram) == len(EDGES) + 1
    beyond = [count for edge, count in zip((*EDGES, math.inf), judged["conv1"].histogram, strict=True) if abs(edge) > 3]
    assert sum(beyond) == 0
    assert judged["conv1"].rms_z == pytest.approx(1, abs=0.05)


def test_sums_of_three_are_judged_too() -> None:
    """A sum of more than two numbers is rounded twice, so it has bounds instead of equality."""
    generator = np.random.default_rng(4)
    inputs = tuple(generator.normal(size=(2, 8, 6, 6)).astype(np.float32) for _ in range(3))
    wide = tuple(x.astype(np.float64) for x in inputs)
    right = (inputs[0] + inputs[1] + inputs[2]).astype(np.float64)
    assert judge(Add("add"), wide, right, {}, "fp32", CHANCE).fault is None
    assert judge(Add("add"), wide, round_to(right, "bf16").astype(np.float64), {}, "fp32", CHANCE).fault is not None


@pytest.mark.parametrize("precision", STORES)
@pytest.mark.parametrize(
    ("layer", "shapes", "wrong"),
    [
        (Concat("c"), [(2, 3, 4, 4), (2, 2, 4, 4)], lambda y: np.roll(y, 2, axis=1)),
        (Flatten("f", 3, 4, 5), [(2, 3, 4, 5)], lambda y: y.reshape(2, 3, 20).swapaxes(1, 2).reshape(2, 60)),
        (Dropout("d", 0.5), [(2, 60)], lambda y: y * 2),
    ],
)
def test_what_moves_values_must_be_equal(
    precision: str, layer: Layer, shapes: list[tuple[int, ...]], wrong: Callable[[Array], Array]
) -> None:
    """Branches, axes or a scale that are not the spec's are counted element by element."""
    generator = np.random.default_rng(7)
    inputs = tuple(round_to(generator.normal(size=shape), precision).astype(np.float64) for shape in shapes)
    right = evaluate(layer, inputs, {})
    assert judge(layer, inputs, right, {}, precision, CHANCE).fault is None
    fault = judge(layer, inputs, wrong(right), {}, precision, CHANCE).fault
    assert fault is not None
    assert fault.endswith(f"of {right.size} elements are not the {type(layer).__name__} of its inputs, correctly rounded")


def test_unit_roundoffs_are_those_of_the_formats() -> None:
    """What is judged is fp32's accumulator in every narrow precision."""
    assert {p: arithmetic(p).accumulate for p in STORES} == dict.fromkeys(STORES, PRECISIONS["fp32"].unit_roundoff)


def test_networks_without_rounding_layers() -> None:
    """A network of a ReLU alone is compared for equality."""
    model = ModelSpec("relu", (1, 4, 4), 1, (Relu("relu"),), "test")
    images = np.random.default_rng(5).normal(size=(1, 1, 4, 4))
    (tap,) = local_rounding(model, {}, images, {"relu": np.maximum(images, 0)}, "fp64")
    assert (tap.fault, tap.elements, tap.gauge) == (None, 16, 0)
    (tap,) = local_rounding(model, {}, images, {"relu": images}, "fp64")
    assert tap.fault == f"{int(tap.gauge or 0)} of 16 elements are not the Relu of its inputs, correctly rounded"
