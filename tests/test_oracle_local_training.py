"""The local judgement of training: float32 arithmetic passes, every wrong arithmetic or derivative is named at its layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from impls import models
from impls.oracle.local import BIAS_APART, TapError, TapRounding
from impls.oracle.local_training import local_training
from impls.oracle.rounding import as_taken, round_to, round_to_unit
from impls.oracle.training import Derivatives, Operations, differentiate
from impls.spec import Conv2d, GlobalAvgPool2d, Linear, ModelSpec, Padding, Relu, parameter_names
from impls.weights import synthesis
from tests import float32_training

Array = npt.NDArray[Any]

MODEL = models.get("cifar_resnet8_b")
SMOOTHING = 0.1


def case(seed: int, size: int = 16) -> tuple[dict[str, npt.NDArray[np.float32]], Array, Array]:
    """Weights, two images and their labels."""
    generator = np.random.default_rng(seed)
    images = generator.standard_normal((2, 3, size, size)).astype(np.float32)
    return synthesis.synthesize(MODEL, seed), images, generator.integers(0, 10, 2)


def run(operations: Operations, seed: int = 0, model: ModelSpec = MODEL, smoothing: float = SMOOTHING) -> Derivatives:
    """What an implementation of these operations shows."""
    weights, images, labels = case(seed)
    found = differentiate(model, weights, images, labels, smoothing, operations=operations)
    # Sums of cotangents, which the walk makes, are stored in float32 too.
    return dataclasses.replace(found, cotangents={name: cotangent.astype(np.float32) for name, cotangent in found.cotangents.items()})


def judged(found: Derivatives, seed: int = 0, precision: str = "fp32") -> dict[str, TapRounding]:
    """The judgement of every array by name."""
    weights, images, labels = case(seed)
    return {each.tap: each for each in local_training(MODEL, weights, images, labels, SMOOTHING, found, precision)}


def faults(found: Derivatives, seed: int = 0) -> list[str]:
    return [name for name, each in judged(found, seed).items() if each.fault is not None]


SOUND = float32_training.operations(float32_training.pairwise)


@pytest.mark.parametrize("total", [float32_training.pairwise, float32_training.sequential], ids=["pairwise", "sequential"])
@pytest.mark.parametrize("seed", range(6))
def test_float32_passes(seed: int, total: float32_training.ChannelSum) -> None:
    """Correct arithmetic, whatever the order of its sums, and every array is judged once."""
    found = judged(run(float32_training.operations(total), seed), seed)
    assert [name for name, each in found.items() if each.fault] == []
    taps = [layer for layer in found if not layer.startswith("d ")]
    assert len(found) == 2 * (len(taps) - 1) + 1 + len(parameter_names(MODEL))
    assert all(each.elements for each in found.values())


def test_float64_passes() -> None:
    """The oracle itself, judged as fp64."""
    weights, images, labels = case(3)
    found = differentiate(MODEL, weights, images, labels, SMOOTHING)
    assert [name for name, each in judged(found, 3, "fp64").items() if each.fault] == []


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_narrow_operands_are_caught(precision: str) -> None:
    """Matrix products on rounded operands in a run declared fp32: forward, cotangents and gradients of every convolution but none else."""
    found = faults(run(float32_training.operations(float32_training.pairwise, lambda x: round_to(x, precision))))
    assert {"conv1", "layer1.0.conv2", "fc", "d layer1.0.conv1.weight", "d fc.weight", "d layer2.0.relu1"} <= set(found)
    assert not [name for name in found if "bn" in name and not name.startswith("d ")]


def spoiled(part: str, name: str, change: Callable[[Array], Array]) -> Derivatives:
    """A sound float32 run of which one array is changed, after everything else was computed."""
    found = run(SOUND)
    arrays = dict(getattr(found, part))
    arrays[name] = change(arrays[name])
    return dataclasses.replace(found, **{part: arrays})


@pytest.mark.parametrize(
    ("part", "name", "change", "first"),
    [
        ("gradients", "layer1.0.conv1.weight", lambda g: g * 1.0001, "d layer1.0.conv1.weight"),
        ("gradients", "layer2.0.bn1.weight", lambda g: -g, "d layer2.0.bn1.weight"),
        ("gradients", "fc.bias", lambda g: g * 2, "d fc.bias"),
        ("gradients", "conv1.weight", lambda g: g.transpose(0, 1, 3, 2), "d conv1.weight"),
        ("taps", "layer1.0.relu1", lambda x: np.maximum(x, 1e-3), "layer1.0.relu1"),
        ("cotangents", "layer3.0.relu1", lambda g: g + 1e-4, "d layer3.0.relu1"),
    ],
    ids=["scaled", "sign", "not the mean", "transposed", "leaky", "shifted"],
)
def test_one_wrong_array_is_named_first(part: str, name: str, change: Callable[[Array], Array], first: str) -> None:
    """What is wrong is named, before anything that follows from it in the order of computation."""
    found = faults(spoiled(part, name, change))
    assert first in found
    if part != "cotangents":
        assert found[0] == first


def test_statistics_as_constants_are_caught() -> None:
    """A batch norm whose backward pass takes mean and variance for constants."""

    def frozen(layer: Any, inputs: Any, output: Any, cotangent: Any, tensors: Any) -> Any:
        pulled = SOUND.vjp(layer, inputs, output, cotangent, tensors)
        if layer.name != "layer2.0.bn2":
            return pulled
        scale = tensors["weight"] / np.sqrt(inputs[0].var((0, 2, 3)) + layer.eps)
        return dataclasses.replace(pulled, inputs=(cotangent * scale[:, None, None],))

    assert faults(run(dataclasses.replace(SOUND, vjp=frozen))) == ["d layer2.0.conv2"]


def test_another_smoothing_is_caught_at_the_loss() -> None:
    """A loss without label smoothing: the loss, and the cotangent of the logits."""
    found = faults(run(SOUND, smoothing=0.0))
    assert found == ["loss", "d fc"]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("taps", lambda arrays: arrays.pop("bn1"), "bn1: the tap is missing"),
        ("cotangents", lambda arrays: arrays.pop("bn1"), "bn1: the tap is missing"),
        ("gradients", lambda arrays: arrays.pop("fc.bias"), "fc.bias: the tap is missing"),
        ("gradients", lambda arrays: arrays.update(extra=np.zeros(1)), "extra: there is no such tap"),
        ("gradients", lambda arrays: arrays.update({"fc.bias": np.zeros(9)}), "fc.bias: shape"),
        ("cotangents", lambda arrays: arrays["conv1"].__setitem__((0, 0, 0, 0), np.nan), "conv1: holds values that are not finite"),
    ],
    ids=["tap", "cotangent", "gradient", "extra", "shape", "NaN"],
)
def test_arrays_that_cannot_be_judged_are_named(part: str, change: Callable[[dict[str, Array]], object], message: str) -> None:
    """Missing, extra, misshapen and not finite arrays raise."""
    found = run(SOUND)
    arrays = {name: array.copy() for name, array in getattr(found, part).items()}
    change(arrays)
    with pytest.raises(TapError, match=message):
        judged(dataclasses.replace(found, **{part: arrays}))


def test_a_loss_that_is_not_finite_fails() -> None:
    """NaN is no loss."""
    assert "loss" in faults(dataclasses.replace(run(SOUND), loss=float("nan")))


def mixed(seed: int = 0, model: ModelSpec = MODEL, **faults: Callable[[Array], Array]) -> dict[str, TapRounding]:
    """The judgement of a run in mixed precision with these roundings exchanged."""
    _, images, labels = case(seed)
    weights, images = synthesis.synthesize(model, seed), round_to(images, "bf16")
    how = float32_training.mixed(float32_training.pairwise, **faults)
    found = differentiate(model, weights, images, labels, SMOOTHING, operations=how)
    stored = faults.get("stored", float32_training.to_bf16)
    found = dataclasses.replace(found, cotangents={name: stored(cotangent) for name, cotangent in found.cotangents.items()})
    taken = as_taken(model, weights, "bf16")
    return {each.tap: each for each in local_training(model, taken, images, labels, SMOOTHING, found, "bf16")}


def wrong(found: dict[str, TapRounding]) -> list[str]:
    return [name for name, each in found.items() if each.fault is not None]


@pytest.mark.parametrize("seed", range(6))
def test_mixed_precision_passes(seed: int) -> None:
    """Gradients may be rounded once or not at all; what is left beside the last rounding is float32's."""
    found = mixed(seed)
    assert wrong(found) == []
    assert wrong(mixed(seed, gradient=np.asarray)) == []
    assert found["conv1"].rms_z is not None
    assert found["conv1"].rms_z < 0.1


def off(array: Array) -> Array:
    """Rounded to one bit less."""
    return round_to_unit(np.asarray(array, np.float64), 2.0**-7)


@pytest.mark.parametrize(
    ("faults", "at"),
    [
        ({"stored": lambda x: x}, {"conv1", "bn1", "d layer1.0.bn1", "fc", "d fc"}),
        ({"stored": off}, {"conv1", "bn1", "d layer1.0.conv1", "d conv1"}),
        ({"stored": lambda x: float32_training.to_bf16(round_to(x, "tf32"))}, {"conv1", "layer1.0.conv2", "d conv1"}),
        ({"taken": np.asarray}, {"conv1", "fc", "d layer1.0.relu1"}),
        ({"gradient": off}, {"d conv1.weight", "d fc.weight", "d fc.bias"}),
    ],
    ids=["nothing is stored narrow", "a bit less", "rounded twice", "weights as they are held", "gradients of a bit less"],
)
def test_other_roundings_are_no_mixed_precision(faults: dict[str, Callable[[Array], Array]], at: set[str]) -> None:
    """A finer precision, a coarser one, and a rounding too many or too few are all refused where they are."""
    found = wrong(mixed(**faults))
    assert at <= set(found)
    if "gradient" in faults:
        assert not [name for name in found if not name.startswith("d ")]


BIASED = ModelSpec(
    "biased",
    (3, 16, 16),
    10,
    (
        Conv2d("conv1", 3, 16, 3, 1, Padding.same_on_all_sides(1), bias=True),
        Relu("relu1"),
        Conv2d("conv2", 16, 16, 3, 2, Padding.same_on_all_sides(1), bias=True),
        Relu("relu2"),
        GlobalAvgPool2d("pool"),
        Linear("fc", 16, 10),
    ),
    "a test",
)
"""Convolutions with a bias and no batch norm, as AlexNet and the VGGs have them."""


@pytest.mark.parametrize("seed", range(6))
def test_a_bias_may_be_added_to_what_was_stored(seed: int) -> None:
    """A convolution may round before its bias and behind it, or behind it alone, and its kind says which; nothing else may."""
    once, twice = (mixed(seed, BIASED, before_bias=rounding) for rounding in (np.asarray, float32_training.to_bf16))
    assert (wrong(once), wrong(twice)) == ([], [])
    assert [each.tap for each in once.values() if each.kind == BIAS_APART] == []
    assert [each.tap for each in twice.values() if each.kind == BIAS_APART] == ["conv1", "conv2"]


@pytest.mark.parametrize("before_bias", [off, lambda x: round_to(x, "fp16")], ids=["a bit less", "another format"])
def test_what_else_is_done_before_a_bias_is_refused(before_bias: Callable[[Array], Array]) -> None:
    """A coarser number before the bias, or one of a format that is not bf16."""
    assert {"conv1", "conv2"} <= set(wrong(mixed(0, BIASED, before_bias=before_bias)))


def test_a_wrong_bias_is_refused_either_way() -> None:
    """A bias that is off by a bit is explained by neither."""
    for rounding in (np.asarray, float32_training.to_bf16):
        found = mixed(
            0, BIASED, before_bias=rounding, taken=lambda tensor: off(tensor) if tensor.ndim == 1 else float32_training.to_bf16(tensor)
        )
        assert {"conv1", "conv2"} <= set(wrong(found))


def test_numbers_that_bf16_does_not_have() -> None:
    assert str(mixed(stored=lambda x: x)["conv1"].fault).endswith("elements are no bf16 numbers")
