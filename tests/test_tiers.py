"""The comparisons of each tier: what passes, what fails, and what the failure says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from impls import models
from impls.oracle import forward, local, rounding
from impls.oracle.rounding import Envelope
from impls.spec import Conv2d, Linear, layers, walk
from impls.weights import synthesis
from suites.equivalence.tiers import (
    MEANING_BOUND,
    Tier,
    all_of,
    check_ring,
    compare,
    exact,
    identity,
    local_rounding,
    meaning,
    meaning_of_layers,
    rounding_noise,
)
from suites.harness.reference import held

Array = npt.NDArray[Any]
Taps = dict[str, Array]

SMALL = arrays.arrays(
    np.float64, arrays.array_shapes(max_dims=4, max_side=4), elements=st.floats(-100, 100).filter(lambda x: abs(x) > 1e-3)
)


def taps() -> Taps:
    """Four taps of integers, whose names sort otherwise than they come."""
    generator = np.random.default_rng(0)
    return {name: generator.integers(1, 9, (2, 3, 4, 4)).astype(np.float64) for name in ("stem", "layer1", "add", "fc")}


def spoiled(spoil: Callable[[Taps], None]) -> Taps:
    """The taps as float32 after ``spoil`` had its way with them."""
    found = {name: tap.astype(np.float32) for name, tap in taps().items()}
    spoil(found)
    return found


def put(name: str, value: float) -> Callable[[Taps], None]:
    """Put one value into the middle of a tap."""
    return lambda found: found[name].__setitem__((1, 2, 3, 0), value)


JUDGES = pytest.mark.parametrize("judge", [exact, meaning])


@JUDGES
def test_equal_taps_pass(judge: Callable[[Taps, Taps], Tier]) -> None:
    """Equal taps pass, and the tier says how many elements it compared."""
    tier = judge(taps(), spoiled(lambda found: None))
    assert (tier.passed, tier.elements, tier.worst_error, tier.reason) == (True, 4 * 96, 0.0, None)


@JUDGES
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda found: found.pop("layer1"), "layer1: the tap is missing"),
        (lambda found: found.update(extra=np.ones(3)), "extra: there is no such tap in the spec"),
        (lambda found: found.update(add=found["add"].transpose(0, 2, 3, 1)), "add: shape (2, 4, 4, 3), not (2, 3, 4, 4)"),
        (lambda found: found.update(add=found["add"][:1]), "add: shape (1, 3, 4, 4), not (2, 3, 4, 4)"),
        (put("add", np.nan), "add: holds values that are not finite"),
        (put("add", np.inf), "add: holds values that are not finite"),
        (put("add", -np.inf), "add: holds values that are not finite"),
        (lambda found: found.clear(), "stem: the tap is missing"),
    ],
    ids=["missing", "extra", "NHWC", "batch", "nan", "inf", "minus inf", "none"],
)
def test_broken_taps_fail(judge: Callable[[Taps, Taps], Tier], spoil: Callable[[Taps], None], reason: str) -> None:
    """A missing, extra, misshapen or non-finite tap fails and is named."""
    tier = judge(taps(), spoiled(spoil))
    assert (tier.passed, tier.reason) == (False, reason)


@JUDGES
def test_not_finite_on_both_sides_fails(judge: Callable[[Taps, Taps], Tier]) -> None:
    """NaN is equal to nothing, a NaN of the oracle included; nor is infinity to infinity."""
    for value in (np.nan, np.inf):
        expected = taps()
        expected["add"][0, 0, 0, 0] = value
        assert judge(expected, expected).reason == "add: holds values that are not finite"


@JUDGES
def test_nothing_compared_fails(judge: Callable[[Taps, Taps], Tier]) -> None:
    """No tap, or a tap without elements, proves nothing."""
    assert judge({}, {}).reason == "nothing was compared"
    empty = taps() | {"add": np.zeros((0, 3))}
    assert judge(empty, empty).reason == "add: has no elements"


@JUDGES
def test_a_later_tap_that_is_not_finite_does_not_hide_the_first(judge: Callable[[Taps, Taps], Tier]) -> None:
    """The first tap that is wrong is named, whatever it leads to."""

    def spoil(found: Taps) -> None:
        put("stem", 100.0)(found)
        put("add", np.inf)(found)

    tier = judge(taps(), spoiled(spoil))
    assert str(tier.reason).startswith("stem: the first tap that differs")
    assert tier.worst_tap == "add"


@JUDGES
def test_first_diverging_tap_is_named(judge: Callable[[Taps, Taps], Tier]) -> None:
    """The reason names the first tap in topological order that differs, the worst tap is the one furthest off."""

    def spoil(found: Taps) -> None:
        put("fc", 1000)(found)
        put("layer1", 10)(found)

    tier = judge(taps(), spoiled(spoil))
    assert tier.reason is not None
    assert tier.reason.startswith("layer1: the first tap that differs")
    if judge is meaning:
        assert tier.worst_tap == "fc"


@given(SMALL, st.data())
def test_one_ulp_breaks_equality(right: Array, data: st.DataObject) -> None:
    """At E1 the next float32 is another value, wherever it stands."""
    expected = right.astype(np.float32).astype(np.float64)
    found = expected.astype(np.float32)
    at = data.draw(st.sampled_from(list(np.ndindex(found.shape))))
    assert exact({"tap": expected}, {"tap": found}).passed
    found[at] = np.nextafter(found[at], np.float32(np.inf))
    tier = exact({"tap": expected}, {"tap": found})
    assert (tier.passed, tier.worst_error) == (False, 1.0)


@given(SMALL, st.sampled_from([-1.0, 1.0]), st.data())
def test_meaning_is_relative_to_the_taps_rms(right: Array, sign: float, data: st.DataObject) -> None:
    """At E2 one element off by 1e-9 of the tap's rms fails, and by 5e-11 passes, at any scale."""
    at = data.draw(st.sampled_from(list(np.ndindex(right.shape))))
    rms = np.sqrt(np.mean(right**2))
    for error, passes in ((1e-9, False), (5e-11, True)):
        found = right.copy()
        found[at] += sign * error * rms
        tier = meaning({"tap": right}, {"tap": found})
        assert tier.passed is passes
        assert tier.worst_error == pytest.approx(error, rel=0.01)
    assert MEANING_BOUND == 1e-10


def test_taps_of_zeros_must_be_zero() -> None:
    """Where the oracle has nothing but zeros any other value is a fault, whose size JSON can hold."""
    zeros = np.zeros((2, 3))
    assert meaning({"tap": zeros}, {"tap": -zeros}).passed
    tier = meaning({"tap": zeros}, {"tap": zeros + 1e-30})
    assert (tier.passed, tier.worst_error) == (False, None)
    json.dumps(dataclasses.asdict(tier), allow_nan=False)


def test_a_comparison_that_yields_nan_fails() -> None:
    """An error that is not a number is within no bound."""
    assert not compare({"tap": np.ones(2)}, {"tap": np.ones(2)}, 1.0, lambda given, right: float("nan")).passed


def as_held(weights: Taps) -> dict[str, dict[str, Any]]:
    """What a worker reports of weights."""
    import hashlib

    return {
        name: {"sha256": hashlib.sha256(tensor.tobytes()).hexdigest(), "dtype": str(tensor.dtype), "shape": list(tensor.shape)}
        for name, tensor in weights.items()
    }


def weights_of_two() -> Taps:
    """Two tensors in generic position."""
    generator = np.random.default_rng(1)
    shapes = {"conv.weight": (4, 3, 3, 3), "fc.bias": (5,)}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_identity_passes_for_the_same_bytes() -> None:
    """Held in another memory order, the tensors are still the same."""
    held = weights_of_two()
    tier = identity({name: np.asfortranarray(tensor) for name, tensor in held.items()}, as_held(held))
    assert (tier.passed, tier.elements) == (True, 108 + 5)


@given(st.integers(0, 4 * 108 * 8 - 1))
def test_one_flipped_bit_breaks_identity(bit: int) -> None:
    """Any single bit of a weight counts."""
    found = weights_of_two()
    found["conv.weight"].reshape(-1).view(np.uint8)[bit // 8 % 432] ^= np.uint8(1 << bit % 8)
    assert identity(weights_of_two(), as_held(found)).reason == "conv.weight: its bytes are not the file's"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda found: found.pop("fc.bias"), "fc.bias: the framework does not hold it"),
        (lambda found: found.update(extra=np.ones(1)), "extra: the framework holds it, the file does not"),
        (
            lambda found: found.update({"fc.bias": found["fc.bias"].astype(np.float64)}),
            "fc.bias: held as float64 (5,), not float32 (5,)",
        ),
        (
            lambda found: found.update({"conv.weight": found["conv.weight"].transpose(2, 3, 1, 0).copy()}),
            "conv.weight: held as float32 (3, 3, 3, 4), not float32 (4, 3, 3, 3)",
        ),
        (
            lambda found: found.update({"conv.weight": found["conv.weight"].transpose(0, 1, 3, 2).copy()}),
            "conv.weight: its bytes are not the file's",
        ),
        (
            lambda found: found.update({"fc.bias": rounding.round_to(found["fc.bias"], "bf16")}),
            "fc.bias: its bytes are not the file's",
        ),
    ],
    ids=["missing", "extra", "cast", "HWIO", "transposed", "rounded"],
)
def test_other_weights_break_identity(spoil: Callable[[Taps], None], reason: str) -> None:
    """Missing, extra, cast, transposed or rounded tensors fail and are named."""
    found = weights_of_two()
    spoil(found)
    tier = identity(weights_of_two(), as_held(found))
    assert (tier.passed, tier.reason) == (False, reason)


def test_identity_of_nothing_fails() -> None:
    """No tensor proves nothing."""
    assert identity({}, {}).reason == "nothing was compared"


def test_weights_of_narrow_precisions_are_rounded_once() -> None:
    """What a bf16 run must hold is the file's weights rounded, not the file's."""
    weights = weights_of_two()
    assert identity(held(weights, "fp32"), as_held(weights)).passed
    assert not identity(held(weights, "bf16"), as_held(weights)).passed
    assert identity(held(weights, "bf16"), as_held({name: rounding.round_to(tensor, "bf16") for name, tensor in weights.items()})).passed


MODEL = models.get("cifar_resnet8_b")


def net() -> tuple[Taps, npt.NDArray[np.float32]]:
    """A small network's weights and eight images."""
    images = np.random.default_rng(2).normal(size=(8, 3, 16, 16)).astype(np.float32)
    return synthesis.synthesize(MODEL, 3), images


def in_tf32(weights: Taps, images: Array) -> Array:
    """The logits where every product takes operands rounded to TF32, all else in float64."""

    def apply(layer: Any, *inputs: Array) -> Array:
        tensors = forward.tensors_of(layer, weights)
        if isinstance(layer, Conv2d | Linear):
            inputs = tuple(rounding.round_to(x, "tf32").astype(np.float64) for x in inputs)
            tensors["weight"] = rounding.round_to(tensors["weight"], "tf32").astype(np.float64)
        return forward.evaluate(layer, inputs, tensors)

    return walk(MODEL.body, apply, images.astype(np.float64))


def test_hidden_tf32_breaks_rounding() -> None:
    """Operands rounded to TF32 are far outside what fp32 explains, and within what tf32 does."""
    weights, images = net()
    logits = in_tf32(weights, images)
    as_fp32 = rounding_noise(logits, rounding.envelope(MODEL, weights, images, "fp32", runs=2), "fp32")
    as_tf32 = rounding_noise(logits, rounding.envelope(MODEL, weights, images, "tf32", runs=4), "tf32")
    assert as_tf32.passed, as_tf32.reason
    assert not as_fp32.passed
    assert as_fp32.worst_error is not None
    assert as_fp32.worst_error > 100


def test_exact_arithmetic_is_no_bf16() -> None:
    """A run that is declared bf16 and computes finer is refused, and the reason says how much it errs and how much it must."""
    weights, images = net()
    rounded = held(weights, "bf16")
    envelope = rounding.envelope(MODEL, rounded, rounding.round_to(images, "bf16"), "bf16", runs=2)
    tier = rounding_noise(envelope.logits, envelope, "bf16")
    assert (tier.passed, tier.reason) == (False, "logits: 0 times the noise that bf16 explains (must be 0.5 to 2.5)")


def local_taps() -> tuple[Taps, npt.NDArray[np.float32], Taps]:
    """Weights, images and the taps of an implementation that computes in float64 and stores float32."""
    weights, images = net()
    return weights, images, {name: tap.astype(np.float32) for name, tap in forward.taps(MODEL, weights, images).items()}


def forced(weights: Taps, images: Array, name: str, compute: Callable[..., Array], store: Any = np.float32) -> Taps:
    """Taps whose layer ``name`` is computed by ``compute(layer, inputs, tensors, taps so far)``, every one stored in this type."""
    taps: Taps = {}

    def apply(layer: Any, *inputs: Array) -> Array:
        tensors = forward.tensors_of(layer, weights)
        wide = tuple(x.astype(np.float64) for x in inputs)
        output = compute(layer, wide, tensors, taps) if layer.name == name else forward.evaluate(layer, wide, tensors)
        taps[layer.name] = output.astype(store)
        return taps[layer.name]

    walk(MODEL.body, apply, images)
    return taps


def test_layers_that_round_as_they_should_pass() -> None:
    """E3 counts every element of every tap, and its figures go into the certificate as JSON."""
    weights, images = net()
    taps = forced(weights, images, "none", forward.evaluate)
    tier = local_rounding(MODEL, weights, images, taps, "fp32")
    assert (tier.passed, tier.elements) == (True, sum(tap.size for tap in taps.values()))
    assert [tap.tap for tap in tier.taps] == list(taps)
    assert tier.worst_error is not None
    assert tier.worst_error <= 1 == tier.bound
    json.dumps(dataclasses.asdict(tier), allow_nan=False)


def test_the_layer_that_rounds_otherwise_is_named() -> None:
    """The reason is the first tap that fails, with its figures; the later ones are right for what they were given."""
    weights, images = net()

    def in_bf16(layer: Any, inputs: tuple[Array, ...], tensors: Taps, taps: Taps) -> Array:
        return rounding.round_to(forward.evaluate(layer, inputs, tensors), "bf16")

    tier = local_rounding(MODEL, weights, images, forced(weights, images, "layer2.0.conv1", in_bf16), "fp32")
    assert (tier.passed, tier.worst_tap) == (False, "layer2.0.conv1")
    assert tier.reason is not None
    assert tier.reason.startswith("layer2.0.conv1: does not round as fp32 does: rms ")
    assert [tap.tap for tap in tier.taps if tap.fault] == ["layer2.0.conv1"]


def test_the_wire_that_is_wrong_is_named() -> None:
    """A layer that is right for another tap reads that tap."""
    weights, images = net()

    def reads_before_the_relu(layer: Any, inputs: tuple[Array, ...], tensors: Taps, taps: Taps) -> Array:
        return forward.evaluate(layer, (taps["layer1.0.bn1"].astype(np.float64),), tensors)

    tier = local_rounding(MODEL, weights, images, forced(weights, images, "layer1.0.conv2", reads_before_the_relu), "fp32")
    assert (tier.passed, tier.reason) == (False, "layer1.0.conv2 reads layer1.0.bn1, not layer1.0.relu1")


def test_layers_alone_in_float64() -> None:
    """An error that a layer was given is not its own, so no tap but the wrong one fails; one that reads another tap is wrong too."""
    weights, images = net()
    taps = forward.taps(MODEL, weights, images)

    def off(layer: Any, inputs: tuple[Array, ...], tensors: Taps, taps: Taps) -> Array:
        return 1.001 * forward.evaluate(layer, inputs, tensors)

    assert meaning_of_layers(MODEL, weights, images, taps).passed
    wrong = forced(weights, images, "layer2.0.conv1", off, np.float64)
    tier = meaning_of_layers(MODEL, weights, images, wrong)
    assert (tier.passed, tier.worst_tap) == (False, "layer2.0.conv1")
    expected = local.forced(MODEL, weights, images, wrong)
    assert [name for name, right in expected.items() if not np.array_equal(right, wrong[name])] == ["layer2.0.conv1"]

    def reads_before_the_relu(layer: Any, inputs: tuple[Array, ...], tensors: Taps, taps: Taps) -> Array:
        return forward.evaluate(layer, (taps["layer1.0.bn1"],), tensors)

    tier = meaning_of_layers(MODEL, weights, images, forced(weights, images, "layer1.0.conv2", reads_before_the_relu, np.float64))
    assert (tier.passed, tier.worst_tap) == (False, "layer1.0.conv2")


@pytest.mark.parametrize(
    "judge",
    [lambda *given: local_rounding(MODEL, *given, "fp32"), lambda *given: meaning_of_layers(MODEL, *given)],
    ids=["rounding", "meaning"],
)
def test_taps_that_are_missing_or_not_finite_break_what_judges_layers(judge: Callable[..., Tier]) -> None:
    """Nothing is judged, and the tap is named."""
    weights, images, taps = local_taps()
    taps["bn1"][0, 0, 0, 0] = np.nan
    assert judge(weights, images, taps).reason == "bn1: holds values that are not finite"
    del taps["conv1"]
    tier = judge(weights, images, taps)
    assert (tier.passed, tier.elements, tier.reason) == (False, 0, "conv1: the tap is missing")


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (np.zeros((2, 4)), "logits: shape (2, 4), not (2, 3)"),
        (np.array([[0, 0, 0], [0, np.nan, 0]]), "logits: hold values that are not finite"),
        (np.array([[0, 0, 0], [0, np.inf, 0]]), "logits: hold values that are not finite"),
        (np.full((2, 3), 102.6), "logits: 2.6 times the noise that fp32 explains (must be 0 to 2.5)"),
    ],
    ids=["shape", "nan", "inf", "distant"],
)
def test_broken_logits_break_rounding(logits: Array, reason: str) -> None:
    """Misshapen, non-finite or distant logits fail."""
    tier = rounding_noise(logits, Envelope(np.full((2, 3), 100.0), np.ones((2, 3))), "fp32")
    assert (tier.passed, tier.reason) == (False, reason)


@pytest.mark.parametrize(("noise", "passed"), [(29, False), (31, True)])
def test_rounding_without_power_leaves_it_to_the_layers(noise: float, passed: bool) -> None:
    """Where rounding alone moves logits by more than 30 % of their rms, whatever they are proves nothing, and the tier says so."""
    tier = rounding_noise(np.zeros((2, 3)), Envelope(np.full((2, 3), 100.0), np.full((2, 3), noise)), "bf16")
    assert tier.passed is passed
    note = "no power: bf16 explains errors of 31% of the logits' rms, E3 decides"
    assert tier.note == (note if passed else None)


def test_no_logits_break_rounding() -> None:
    """No logits prove nothing."""
    none = np.zeros((0, 3))
    assert rounding_noise(none, Envelope(none, none), "fp32").reason == "nothing was compared"


def test_several_comparisons_of_a_tier() -> None:
    """The first failure stands for all; else the worst does, with the elements of all; none is a failure."""
    good, better = exact(taps(), taps()), Tier(True, 7, 0.0, "fc", 0.5, None)
    bad = exact(taps(), spoiled(put("add", 10)))
    assert all_of([good, better]) == dataclasses.replace(better, elements=good.elements + 7)
    assert all_of([good, bad, better]) == bad
    assert not all_of([]).passed


def test_ring_is_compared_image_by_image() -> None:
    """Logits that stand at another image's place are found."""
    generator = np.random.default_rng(4)
    predicted = Envelope(generator.normal(size=(3, 5)), np.full((3, 5), 1e-7))
    members = np.array([[0, 1], [1, 2], [2, 0]])
    logits = predicted.logits[members]
    assert check_ring(logits, members, predicted, "fp32").passed
    assert not check_ring(logits[:, ::-1], members, predicted, "fp32").passed


def test_the_order_of_the_oracle_is_topological() -> None:
    """The taps that comparisons walk come in the order of the network, so the first that differs is the earliest."""
    weights, images = net()
    assert list(forward.taps(MODEL, weights, images)) == [layer.name for layer in layers(MODEL.body)]
