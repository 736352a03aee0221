"""Training in the oracle: loss, statistics, descent and the derivatives of whole networks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impls import models, spec
from impls.implementation import Sgd
from impls.oracle import forward
from impls.oracle.backward import tied, winners
from impls.oracle.training import (
    Derivatives,
    Operations,
    State,
    cross_entropy,
    descend,
    differentiate,
    evaluate,
    running_statistics,
    step,
    wiring,
)
from impls.spec import (
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Block,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    Padding,
    Relu,
)

Array = npt.NDArray[Any]
SMOOTHING = 0.1

PAD = Padding(1, 1, 1, 1)
BOTTLENECK = ModelSpec(
    "bottleneck",
    (3, 20, 18),
    7,
    (
        Conv2d("conv1", 3, 6, 7, 2, Padding(2, 3, 3, 2), bias=False),
        BatchNorm2d("bn1", 6, 1e-5, 0.1, "unbiased"),
        Relu("relu1"),
        MaxPool2d("maxpool", 3, 2, PAD),
        Block(
            "block",
            (
                (
                    Conv2d("block.conv1", 6, 4, 1, 1, spec.NO_PADDING, bias=False),
                    BatchNorm2d("block.bn1", 4, 1e-5, 0.1, "biased"),
                    Relu("block.relu1"),
                    Conv2d("block.conv2", 4, 4, 3, 2, PAD, bias=False),
                    BatchNorm2d("block.bn2", 4, 1e-5, 0.1, "unbiased"),
                    Relu("block.relu2"),
                    Conv2d("block.conv3", 4, 8, 1, 1, spec.NO_PADDING, bias=False),
                    BatchNorm2d("block.bn3", 8, 1e-5, 0.3, "unbiased"),
                ),
                (Conv2d("block.projection", 6, 8, 1, 2, spec.NO_PADDING, bias=False), BatchNorm2d("block.bn4", 8, 1e-5, 0.1, "unbiased")),
                (MaxPool2d("block.pool", 3, 2, PAD), Conv2d("block.conv5", 6, 8, 1, 1, spec.NO_PADDING, bias=True)),
            ),
            Add("block.add"),
            (Relu("block.out"),),
        ),
        Block("twice", ((), ()), Add("twice.add"), ()),
        GlobalAvgPool2d("avgpool"),
        Linear("fc", 8, 7),
    ),
    source="made up: a stem, a block with three branches and one whose branches are both empty",
)
HEADS = ModelSpec(
    "heads",
    (3, 20, 18),
    7,
    (
        Conv2d("conv1", 3, 8, 3, 2, PAD, bias=True),
        Relu("relu1"),
        Block(
            "aux1",
            (
                (
                    MaxPool2d("pool", 3, 2, Padding(0, 1, 0, 1)),
                    Block(
                        "mixed",
                        (
                            (Conv2d("mixed.a", 8, 4, 1, 1, spec.NO_PADDING, bias=False), BatchNorm2d("mixed.bn", 4, 1e-3, 0.1, "unbiased")),
                            (MaxPool2d("mixed.pool", 3, 1, PAD), Conv2d("mixed.b", 8, 5, 1, 1, spec.NO_PADDING, bias=True)),
                        ),
                        Concat("mixed.cat"),
                        (),
                    ),
                    Block(
                        "aux2",
                        (
                            (GlobalAvgPool2d("avgpool"), Linear("fc", 9, 7)),
                            (AdaptiveAvgPool2d("aux2.pool", 4), Flatten("aux2.flatten", 9, 4, 4), Linear("aux2.fc", 144, 7)),
                        ),
                        Concat("aux2.logits"),
                        (),
                    ),
                ),
                (
                    AdaptiveAvgPool2d("aux1.pool", 4),
                    Flatten("aux1.flatten", 8, 4, 4),
                    Linear("aux1.fc1", 128, 12),
                    Relu("aux1.relu"),
                    Linear("aux1.fc2", 12, 7),
                ),
            ),
            Concat("aux1.logits"),
            (),
        ),
    ),
    "made up: a pool in ceil mode, branches side by side, and two auxiliary heads behind pools of 10x9 and 5x5",
    (0.5, 0.9),
)
MODELS = {name: models.get(name) for name in ("cifar_resnet8", "cifar_resnet8_b")} | {"bottleneck": BOTTLENECK, "heads": HEADS}


def generic(model: ModelSpec, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Weights in generic position."""
    generator = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in spec.tensor_shapes(model).items():
        if len(shape) > 1:
            value = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            value = generator.uniform(0.5, 1.5, shape) if name.endswith((".weight", "_var")) else generator.normal(0, 0.2, shape)
        weights[name] = value.astype(np.float32)
    return weights


def batch(model: ModelSpec, size: int = 2) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images, 20 by 18, and labels."""
    generator = np.random.default_rng(1)
    return generator.normal(size=(size, 3, 20, 18)).astype(np.float32), generator.integers(0, model.classes, size)


@cache
def derivatives(name: str) -> Derivatives:
    """Of a batch of two, made once."""
    model = MODELS[name]
    return differentiate(model, generic(model), *batch(model), SMOOTHING)


def loss_at(model: ModelSpec, weights: dict[str, Array], nudge: tuple[str, Array] | None = None) -> tuple[float, list[Array]]:
    """The loss, by the forward pass alone, with one layer's output moved; and every decision that was taken on the way."""
    images, labels = batch(model)
    decisions: list[Array] = []

    def apply(layer: Layer, *inputs: Array) -> Array:
        output = evaluate(layer, inputs, forward.tensors_of(layer, weights))
        if isinstance(layer, Relu):
            decisions.append(output > 0)
        if isinstance(layer, MaxPool2d):
            decisions.append(winners(layer, inputs[0]))
        return output + nudge[1] if nudge is not None and layer.name == nudge[0] else output

    logits = spec.walk(model.body, apply, images.astype(np.float64))
    return cross_entropy(logits, labels, SMOOTHING, model.auxiliary_weights)[0], decisions


def central_difference(model: ModelSpec, name: str, direction: Array) -> float:
    """Of the loss, in a tensor or a layer's output, at a step of 1e-6 that crosses no kink (asserted)."""
    weights: dict[str, Array] = {k: v.astype(np.float64) for k, v in generic(model).items()}
    losses, decisions = [], []
    for move in (1e-6 * direction, -1e-6 * direction):
        moved, nudge = (weights | {name: weights[name] + move}, None) if name in weights else (weights, (name, move))
        loss, taken = loss_at(model, moved, nudge)
        losses.append(loss)
        decisions.append(taken)
    assert all(np.array_equal(a, b) for a, b in zip(*decisions, strict=True))
    return (losses[0] - losses[1]) / 2e-6


@pytest.mark.parametrize("name", MODELS)
def test_central_differences(name: str) -> None:
    """Every parameter's gradient and every tap's cotangent is the slope of the loss, in a random direction each.

    The difference errs by the loss's rounding over the step, about 1e-15 / 1e-6; at most 4e-9 of the slopes' norms are measured here.
    An element that shares the maximum of a window stays where it is, for there the loss has a kink.
    """
    model, found = MODELS[name], derivatives(name)
    fixed = {
        str(node.inputs[0]): tied(node.layer, found.taps[str(node.inputs[0])])
        for node in wiring(model)
        if isinstance(node.layer, MaxPool2d)
    }
    generator = np.random.default_rng(2)
    for tensor, slope in {**found.gradients, **found.cotangents}.items():
        direction = generator.choice((-1.0, 1.0), slope.shape) / np.sqrt(slope.size)
        direction[fixed.get(tensor, np.zeros(slope.shape, dtype=bool))] = 0.0
        size = np.linalg.norm(slope)
        assert size > 0.05
        assert central_difference(model, tensor, direction) == pytest.approx(np.sum(slope * direction), abs=1e-7 * size), tensor
    assert list(found.taps) == list(found.cotangents) == [layer.name for layer in spec.layers(model.body)]
    assert tuple(found.gradients) == spec.parameter_names(model)


@pytest.mark.parametrize("name", MODELS)
def test_taps_are_in_training_mode(name: str) -> None:
    """Taps are those of inference whose running statistics are the batch's own, layer by layer."""
    model, found = MODELS[name], derivatives(name)
    images, _ = batch(model)
    weights: dict[str, Array] = dict(generic(model))
    for node in wiring(model):
        if isinstance(node.layer, BatchNorm2d):
            (source,) = node.inputs
            x = found.taps[str(source)]
            weights[f"{node.layer.name}.running_mean"] = x.mean(axis=(0, 2, 3))
            weights[f"{node.layer.name}.running_var"] = x.var(axis=(0, 2, 3))
    for layer, tap in forward.taps(model, weights, images).items():
        np.testing.assert_allclose(found.taps[layer], tap, rtol=1e-11, atol=1e-12)


def test_wiring_names_the_inputs() -> None:
    """A node's inputs are the layers that the walk feeds it, None standing for the images."""
    inputs = {node.layer.name: node.inputs for node in wiring(BOTTLENECK)}
    assert inputs["conv1"] == (None,)
    assert inputs["block.add"] == ("block.bn3", "block.bn4", "block.conv5")
    assert inputs["twice.add"] == ("block.out", "block.out")
    assert list(inputs) == [layer.name for layer in spec.layers(BOTTLENECK.body)]


def test_masks_decide() -> None:
    """Given an implementation's taps, its ReLUs and pools decide, and nothing else of the taps is used."""
    model, free = BOTTLENECK, derivatives("bottleneck")
    weights, (images, labels) = generic(model), batch(model)
    again = differentiate(model, weights, images, labels, SMOOTHING, masks={name: tap * 3 for name, tap in free.taps.items()})
    for name, gradient in free.gradients.items():
        np.testing.assert_array_equal(again.gradients[name], gradient)
    stopped = tuple(np.argwhere(free.taps["block.out"] == 0)[0])
    masks = {name: tap.copy() for name, tap in free.taps.items()}
    masks["block.out"][stopped] = 1e-20
    masks["relu1"][0, 0] = 0.0
    masks["relu1"][0, 0, 3, 3] = 1.0
    flipped = differentiate(model, weights, images, labels, SMOOTHING, masks=masks)
    assert free.cotangents["block.add"][stopped] == 0
    assert flipped.cotangents["block.add"][stopped] == flipped.cotangents["block.out"][stopped] != 0
    arrived = np.argwhere(flipped.cotangents["relu1"][0, 0]).tolist()
    assert [3, 3] in arrived
    assert all(flipped.cotangents["bn1"][0, 0, row, column] == 0 for row, column in arrived if (row, column) != (3, 3))
    np.testing.assert_array_equal(flipped.taps["fc"], free.taps["fc"])


@settings(max_examples=50, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    images=st.integers(1, 4),
    classes=st.integers(2, 12),
    smoothing=st.floats(0, 0.9),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_cross_entropy(seed: int, images: int, classes: int, smoothing: float, size: float) -> None:
    """Loss and derivative are those of exponentials in extended precision and of a complex step; large logits do not overflow."""
    generator = np.random.default_rng(seed)
    logits, labels = size * generator.normal(size=(images, classes)), generator.integers(0, classes, images)
    loss, cotangent = cross_entropy(logits, labels, smoothing)
    target = np.full((images, classes), smoothing / classes)
    target[np.arange(images), labels] += 1 - smoothing

    def by_definition(z: Array) -> Any:
        shifted = z - logits.max(axis=1, keepdims=True)
        p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            log_p = np.log(p) if size < 100 else shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -(target * log_p).sum(axis=1).mean()

    assert loss == pytest.approx(by_definition(logits).real, rel=1e-12, abs=1e-15)
    direction = generator.normal(size=logits.shape)
    slope = by_definition(logits + 1e-30j * direction).imag / 1e-30
    assert np.sum(cotangent * direction) == pytest.approx(slope, rel=1e-11, abs=1e-12 * np.linalg.norm(direction))
    assert np.abs(cotangent.sum(axis=1)).max() < 1e-15


@pytest.mark.parametrize("labels", [[0, 1, 7], [0, -1], [0, 7], [0.0, 1.0]], ids=["three", "negative", "too large", "fractions"])
def test_labels_are_checked(labels: list[float]) -> None:
    """Labels that are no class for each image are refused."""
    with pytest.raises(ValueError, match="2 images need as many integer labels from 0 to 6"):
        cross_entropy(np.zeros((2, 7)), np.array(labels), 0.0)


@pytest.mark.parametrize(("convention", "factor"), [("unbiased", 8 / 7), ("biased", 1.0)])
def test_running_statistics(convention: Any, factor: float) -> None:
    """The share ``momentum`` of the batch's mean and variance, with divisor n - 1 or n, here 8."""
    layer = BatchNorm2d("b", 3, 1e-5, 0.25, convention)
    x = np.random.default_rng(3).normal(size=(2, 3, 2, 2))
    old = {"running_mean": np.arange(3.0), "running_var": np.arange(1.0, 4)}
    new = running_statistics(layer, x, old)
    for channel in range(3):
        values = list(x[:, channel].flat)
        mean = sum(values) / 8
        variance = sum((value - mean) ** 2 for value in values) / 8
        assert new["running_mean"][channel] == pytest.approx(0.75 * channel + 0.25 * mean, rel=1e-14)
        assert new["running_var"][channel] == pytest.approx(0.75 * (channel + 1) + 0.25 * factor * variance, rel=1e-14)


def test_one_value_has_no_unbiased_variance() -> None:
    """It is refused with the layer's name."""
    old = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
    with pytest.raises(spec.SpecError, match=r"stem\.bn: one value of each channel has no variance"):
        running_statistics(BatchNorm2d("stem.bn", 3, 1e-5, 0.1, "unbiased"), np.ones((1, 3, 1, 1)), old)


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
def test_descend(nesterov: bool) -> None:
    """Two steps at two learning rates on one number, worked out by hand: the buffer does not hold the rate."""
    sgd = Sgd(momentum=0.5, nesterov=nesterov, weight_decay=0.25, label_smoothing=0.0)
    # g = 3 + 0.25 * 4 = 4, v = 0.5 * 2 + 4 = 5; moves by 0.125 * 5 or 0.125 * (4 + 0.5 * 5)
    first = descend(sgd, 0.125, np.array(4.0), np.array(3.0), np.array(2.0))
    assert first == ((4 - 0.8125, 5.0) if nesterov else (4 - 0.625, 5.0))
    # g = -1 + 0.25 * p, v = 0.5 * 5 + g
    parameter, velocity = descend(sgd, 0.5, *map(np.array, (first[0], -1.0, first[1])))
    decayed = -1 + 0.25 * first[0]
    assert velocity == 2.5 + decayed
    assert parameter == first[0] - 0.5 * (decayed + 0.5 * (2.5 + decayed) if nesterov else 2.5 + decayed)


def test_step_takes_the_gradients_and_keeps_the_statistics() -> None:
    """A step is a descent along the gradients; float32 and float64 states of one value take the same step, in float64."""
    model = BOTTLENECK
    weights, (images, labels) = generic(model), batch(model)
    momentum = {name: np.full(weights[name].shape, np.float32(0.1)) for name in spec.parameter_names(model)}
    sgd = Sgd(0.9, nesterov=True, weight_decay=5e-4, label_smoothing=SMOOTHING)
    after, found = step(model, State(weights, momentum), images, labels, sgd, 0.1)
    wide = State(*({k: v.astype(np.float64) for k, v in part.items()} for part in (weights, momentum)))
    again, _ = step(model, wide, images, labels, sgd, 0.1)
    assert set(after.weights) == set(weights)
    for name, tensor in {**after.weights, **{f"momentum of {k}": v for k, v in after.momentum.items()}}.items():
        assert tensor.dtype == np.float64
        np.testing.assert_array_equal(tensor, {**again.weights, **{f"momentum of {k}": v for k, v in again.momentum.items()}}[name])
    for name, gradient in found.gradients.items():
        parameter, velocity = descend(sgd, 0.1, wide.weights[name], gradient, wide.momentum[name])
        np.testing.assert_array_equal(after.weights[name], parameter)
        np.testing.assert_array_equal(after.momentum[name], velocity)
    for node in wiring(model):
        if isinstance(node.layer, BatchNorm2d):
            new = running_statistics(node.layer, found.taps[str(node.inputs[0])], forward.tensors_of(node.layer, weights))
            for leaf, statistic in new.items():
                np.testing.assert_array_equal(after.weights[f"{node.layer.name}.{leaf}"], statistic)


def test_operations_are_used() -> None:
    """A pass over the network computes with the operations that it is given."""
    model = BOTTLENECK
    twice = Operations(cross_entropy=lambda *arguments: tuple(2 * part for part in cross_entropy(*arguments)))
    found = differentiate(model, generic(model), *batch(model), SMOOTHING, operations=twice)
    assert found.loss == 2 * derivatives("bottleneck").loss
    for name, gradient in derivatives("bottleneck").gradients.items():
        np.testing.assert_allclose(found.gradients[name], 2 * gradient, rtol=1e-13)


def test_auxiliary_heads_count_their_weights() -> None:
    """The loss is the main head's and each other's times its weight; without weights the heads are not told apart."""
    generator = np.random.default_rng(8)
    heads, labels = [generator.normal(size=(3, 5)) for _ in range(3)], np.array([4, 0, 2])
    alone = [cross_entropy(head, labels, SMOOTHING) for head in heads]
    loss, cotangent = cross_entropy(np.concatenate(heads, axis=1), labels, SMOOTHING, (0.3, 0.25))
    assert loss == pytest.approx(alone[0][0] + 0.3 * alone[1][0] + 0.25 * alone[2][0], rel=1e-15)
    np.testing.assert_array_equal(cotangent, np.concatenate([alone[0][1], 0.3 * alone[1][1], 0.25 * alone[2][1]], axis=1))
    with pytest.raises(ValueError, match="equal division"):
        cross_entropy(np.zeros((3, 14)), labels, SMOOTHING, (0.3, 0.3))


def test_unfit_input_is_named() -> None:
    """Wrong images and missing tensors are refused as the forward pass refuses them."""
    images, labels = batch(BOTTLENECK)
    weights = generic(BOTTLENECK)
    with pytest.raises(spec.SpecError, match="3"):
        differentiate(BOTTLENECK, weights, images[:, :2], labels, 0.0)
    with pytest.raises(forward.WeightsError, match=r"block\.bn3\.bias"):
        differentiate(BOTTLENECK, {k: v for k, v in weights.items() if k != "block.bn3.bias"}, images, labels, 0.0)
